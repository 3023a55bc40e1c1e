"""Places in storage: what lies there, what a folder holds, and what the file system refuses to say."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest

from ema_cli.errors import CheckpointError, EmaError, Missing, Unreadable
from ema_cli.storage.info import Kind
from ema_cli.storage.location import location


def refuse(monkeypatch: pytest.MonkeyPatch, call: str, code: int) -> None:
    """Let a system call fail."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)


def test_each_kind_is_told_from_the_others(tmp_path: Path):
    """A file has a size, a folder none, and a name that nothing can have is known."""
    (tmp_path / "file").write_bytes(bytes(7))
    os.mkfifo(tmp_path / "fifo")
    kinds = {
        "file": Kind.FILE,
        "": Kind.FOLDER,
        "fifo": Kind.OTHER,
        "none": Kind.MISSING,
        "file/below": Kind.MISSING,
        "x" * 300: Kind.IMPOSSIBLE,
        "a\0b": Kind.IMPOSSIBLE,
    }
    assert {name: location(tmp_path / name).info().kind for name in kinds} == kinds
    assert [name for name in kinds if location(tmp_path / name).info().exists] == ["file", "", "fifo"]
    assert location(tmp_path / "file").info().size == 7
    assert location(tmp_path).info().size == 0


def test_a_link_is_followed_unless_the_link_itself_is_wanted(tmp_path: Path):
    """A link to nothing is missing, and yet something has that name."""
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    assert location(tmp_path / "link").info().is_file
    for name in ("dangling", "loop"):
        assert not location(tmp_path / name).info().exists
        assert location(tmp_path / name).info(follow=False).is_link


def test_all_links_to_a_file_have_its_identity_until_it_changes(tmp_path: Path):
    """Hard and symbolic links are the same file; a file written anew is another."""
    path = tmp_path / "file"
    path.write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    os.link(path, tmp_path / "hard")
    before = location(path).open().identity
    assert {location(tmp_path / name).info().identity for name in ("file", "link", "hard")} == {before}
    os.utime(path, ns=(1, 1))
    assert location(path).info().identity != before


def test_a_folder_keeps_its_identity_whatever_is_put_into_it(tmp_path: Path):
    """A search that meets a folder twice knows it, also where somebody writes there meanwhile."""
    before = location(tmp_path).info().identity
    (tmp_path / "new").write_bytes(b"x")
    assert location(tmp_path).info().identity == before


def test_the_entries_of_a_folder_say_what_they_are(tmp_path: Path):
    """A link has the kind of what it leads to."""
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "to-file").symlink_to("file")
    (tmp_path / "to-folder").symlink_to("folder")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    found = {entry.name: (entry.kind, entry.is_link) for entry in location(tmp_path).entries()}
    assert found == {
        "file": (Kind.FILE, False),
        "folder": (Kind.FOLDER, False),
        "to-file": (Kind.FILE, True),
        "to-folder": (Kind.FOLDER, True),
        "dangling": (Kind.MISSING, True),
        "fifo": (Kind.OTHER, False),
    }
    assert set(location(tmp_path).names()) == found.keys()


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_a_file_that_the_system_refuses_is_unreadable_not_damaged(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The error names the path and the reason, and its class says that nobody knows what is in it."""
    path = tmp_path / "file"
    path.write_bytes(b"x")
    looks = {
        "stat": lambda: location(path).info(),
        "scandir": lambda: location(path).entries(),
        "listdir": lambda: location(path).names(),
        "open": lambda: location(path).open(),
        "pread": lambda: location(path).open().read(0, 1),
    }
    facts = {
        "stat": "looked at",
        "scandir": "looked into",
        "listdir": "looked into",
        "open": "opened",
        "pread": "read at byte 0",
    }
    for call, look in looks.items():
        with monkeypatch.context() as patch:
            refuse(patch, call, code)
            with pytest.raises(Unreadable) as caught:
                look()
        assert (caught.value.subject, caught.value.fact) == (
            path,
            f"cannot be {facts.get(call, 'looked into')}: {os.strerror(code)}",
        )


def test_a_file_that_is_not_there_is_missing(tmp_path: Path):
    """That, too, is no damage; a folder in its place is refused, but not by the file system."""
    with pytest.raises(Missing):
        location(tmp_path / "none").open()
    with pytest.raises(Missing):
        location(tmp_path / "none").entries()
    with pytest.raises(Missing):
        location(tmp_path / "none").names()
    with pytest.raises(CheckpointError) as caught:
        location(tmp_path).open()
    assert type(caught.value) is CheckpointError


def test_a_refusal_survives_the_way_between_processes():
    """Errors are sent from one process to the others where several save together."""
    error = pickle.loads(pickle.dumps(Missing("cannot be opened: gone", subject=Path("a"))))
    assert isinstance(error, EmaError)
    assert (type(error), error.subject, error.fact) == (Missing, Path("a"), "cannot be opened: gone")


def test_folders_are_made_with_those_around_them(tmp_path: Path):
    """And where one is already, nothing happens."""
    for _ in range(2):
        location(tmp_path / "a" / "b").make_folder()
    assert (tmp_path / "a" / "b").is_dir()
    assert location(tmp_path).free_bytes() > 0


def test_a_path_may_be_given_as_text(tmp_path: Path):
    """As a user types it."""
    assert location(str(tmp_path)).path == tmp_path
    assert location(str(tmp_path)).info().is_folder
