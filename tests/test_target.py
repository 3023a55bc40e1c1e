"""Where an average may go, and where it must not."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from safetensors.torch import save_file

from ema_cli.errors import OutputError, UsageError
from ema_cli.input_file import InputFile
from ema_cli.target import Target, check_target, parse_target
from tests.conftest import make_tensors


def refuse(target: Target, match: str, *, force: bool = True, inputs: tuple[InputFile, ...] = ()) -> None:
    with pytest.raises(OutputError, match=match) as raised:
        check_target(target, inputs, force=force)
    assert raised.value.exit_code == 5
    assert raised.value.hint


@pytest.mark.parametrize(
    ("path", "is_folder"),
    [
        ("a.safetensors", False),
        ("A.SAFETENSORS", False),
        ("out", True),
        ("ema-0.5ep", True),
        ("v1.0", True),
        ("x/", True),
    ],
)
def test_the_suffix_says_what_is_written(path: str, is_folder: bool):
    """A name that ends in .safetensors is one file, one without a suffix is a folder; a number is no suffix."""
    assert parse_target(Path(path)).is_folder is is_folder


@pytest.mark.parametrize("path", ["x.pt", "x.bin", "x.tar.gz", "safetensors.json", "x.safetensors.index"])
def test_other_suffixes_are_refused(path: str):
    """Any other suffix is a usage error that names it."""
    with pytest.raises(UsageError, match=r"which is not written") as raised:
        parse_target(Path(path))
    assert raised.value.exit_code == 2


def test_a_missing_folder_is_named(tmp_path: Path):
    """The folder of the target must be there; the hint makes it."""
    refuse(Target(tmp_path / "no" / "x.safetensors", False), "no does not exist")


def test_an_existing_target_needs_force(tmp_path: Path):
    """A file that is there is refused without force, and free with it."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"old")
    refuse(Target(path, False), "exists already", force=False)
    check_target(Target(path, False), (), force=True)


def test_what_is_no_regular_file_is_never_replaced(tmp_path: Path):
    """A FIFO, a link and a device stay what they are, force or not."""
    fifo, link = tmp_path / "f.safetensors", tmp_path / "l.safetensors"
    os.mkfifo(fifo)
    (tmp_path / "mine").write_bytes(b"")
    link.symlink_to(tmp_path / "mine")
    for path in (fifo, link, Path("/dev/null")):
        refuse(Target(path, False), "neither a regular file nor a folder")


def test_a_file_and_a_folder_do_not_replace_each_other(tmp_path: Path):
    """A folder in the place of a file, or the other way round, is refused."""
    (tmp_path / "x.safetensors").mkdir()
    (tmp_path / "out").write_bytes(b"")
    refuse(Target(tmp_path / "x.safetensors", False), "is a folder, and a file would replace it")
    refuse(Target(tmp_path / "out", True), "is a file, and a folder would replace it")


def test_an_input_is_never_replaced(tmp_path: Path):
    """The target may not be an input, nor a folder that holds one, by whatever path."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file(make_tensors(1), folder / "model.safetensors")
    inputs = (InputFile(folder / "model.safetensors"),)
    refuse(Target(folder / ".." / "checkpoint" / "model.safetensors", False), "holds an input", inputs=inputs)
    refuse(Target(folder, True), "holds an input, model.safetensors", inputs=inputs)


def own_folder(folder: Path) -> None:
    """Write a folder as ema-cli leaves it."""
    folder.mkdir()
    recipe = json.dumps(
        {"version": "0", "checkpoints": [], "files": ["config.json", "additional_chat_templates/a.jinja"]}
    )
    save_file(make_tensors(1), folder / "model.safetensors", metadata={"ema_cli": recipe})
    (folder / "config.json").write_text("{}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "a.jinja").write_text("")


def test_force_replaces_a_folder_of_our_own_only(tmp_path: Path):
    """A folder whose files our metadata lists may go; one file more, anywhere in it, and it stays."""
    folder = tmp_path / "out"
    own_folder(folder)
    check_target(Target(folder, True), (), force=True)
    for foreign in ("notes.txt", ".git", "additional_chat_templates/mine.jinja"):
        (folder / foreign).write_text("mine")
        refuse(Target(folder, True), f"holds '{foreign}', which ema-cli did not write")
        (folder / foreign).unlink()


def test_an_empty_folder_or_a_link_in_it_is_somebody_s(tmp_path: Path):
    """What holds no file is not ours to remove either."""
    folder = tmp_path / "out"
    own_folder(folder)
    (folder / "sub").mkdir()
    refuse(Target(folder, True), "holds 'sub', which ema-cli did not write")
    (folder / "sub").rmdir()
    (folder / "link").symlink_to(tmp_path)
    refuse(Target(folder, True), "holds 'link', which ema-cli did not write")


def test_force_leaves_a_model_that_is_not_ours(tmp_path: Path):
    """A folder with a model, but without our metadata, is the user's."""
    folder = tmp_path / "out"
    folder.mkdir()
    save_file(make_tensors(1), folder / "model.safetensors", metadata={"format": "pt"})
    refuse(Target(folder, True), "holds 'model.safetensors'")


def test_an_empty_folder_may_be_replaced(tmp_path: Path):
    """There is nothing to lose in an empty folder; without force it is refused all the same."""
    (tmp_path / "out").mkdir()
    check_target(Target(tmp_path / "out", True), (), force=True)
    refuse(Target(tmp_path / "out", True), "exists already", force=False)


def test_a_target_that_cannot_be_looked_at_is_not_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On a failing disk an existing folder used to count as absent, and was replaced unchecked with --force."""
    (tmp_path / "out").mkdir()

    def fail(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(Path, "lstat", fail)
    with pytest.raises(OutputError, match="cannot be looked at: Input/output error"):
        check_target(Target(tmp_path / "out", is_folder=True), [], force=True)
