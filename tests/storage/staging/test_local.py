"""All or nothing: what is published, what is left behind, what is refused."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from ema_cli.errors import OutputError
from ema_cli.storage.location import location
from ema_cli.storage.output_stream import OutputStream
from ema_cli.storage.staging import local, renames
from ema_cli.storage.staging.local import Staging


def stage_file(target: Path, content: bytes, *, force: bool = False) -> None:
    with Staging(target) as area:
        stream = OutputStream(area.folder / target.name)
        stream.write(0, content)
        stream.sync()
        stream.close()
        area.publish_file(target.name, force=force)


def stage_folder(target: Path, names: list[str], *, force: bool = False) -> None:
    with Staging(target) as area:
        folder = area.folder / target.name
        folder.mkdir()
        for name in names:
            (folder / name).write_text(name)
        area.publish_folder(target.name, force=force)


BESIDE = ("x.safetensors.manifest.json", "x.safetensors.sha256")
FILES = ("x.safetensors", *BESIDE)


def stage_beside(target: Path, content: bytes, beside: Sequence[str] = BESIDE, *, force: bool = True) -> None:
    """Publish a file with those `beside` it, all of the same content; of what may be there, the rest is to go."""
    with Staging(target) as area:
        for name in (target.name, *beside):
            (area.folder / name).write_bytes(content)
        with area.alone():
            area.publish_file(target.name, {name: target.with_name(name) for name in BESIDE}, force=force)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def listing(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_file_appears_whole_with_the_umask_s_mode(tmp_path: Path):
    """Nothing but the target is left, and its mode is that of any new file."""
    before = os.umask(0o027)
    try:
        stage_file(tmp_path / "x.safetensors", b"content")
    finally:
        os.umask(before)
    assert listing(tmp_path) == ["x.safetensors"]
    assert (tmp_path / "x.safetensors").read_bytes() == b"content"
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == 0o640


def test_a_target_that_appeared_meanwhile_is_kept(tmp_path: Path):
    """The rename itself refuses to replace, whatever was checked before."""
    target = tmp_path / "x.safetensors"
    with Staging(target) as area:
        (area.folder / target.name).write_bytes(b"new")
        target.write_bytes(b"old")
        with pytest.raises(OutputError, match="exists already"):
            area.publish_file(target.name, force=False)
    assert target.read_bytes() == b"old"
    assert listing(tmp_path) == ["x.safetensors"]


def test_without_renameat2_the_check_is_made_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where the system has no such call, an existing target is still refused, and a folder still replaced."""
    monkeypatch.setattr(renames, "rename_with", lambda *_: False)
    target = tmp_path / "out"
    stage_folder(target, ["a"])
    with pytest.raises(OutputError, match="exists already"):
        stage_folder(target, ["b"])
    stage_folder(target, ["c"], force=True)
    assert listing(tmp_path) == ["out", "out/c"]


def test_force_replaces_file_and_folder(tmp_path: Path):
    """With force the new content is there, and the old gone."""
    for content in (b"1", b"2"):
        stage_file(tmp_path / "x.safetensors", content, force=True)
    for names in (["a", "b"], ["c"]):
        stage_folder(tmp_path / "out", names, force=True)
    assert listing(tmp_path) == ["out", "out/c", "x.safetensors"]
    assert (tmp_path / "x.safetensors").read_bytes() == b"2"


def test_an_exception_leaves_the_old_state(tmp_path: Path):
    """Whatever happens before publishing, the target is as it was and the staging folder is gone."""
    (tmp_path / "x.safetensors").write_bytes(b"old")

    def interrupted() -> None:
        with Staging(tmp_path / "x.safetensors") as area:
            (area.folder / "x.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert listing(tmp_path) == ["x.safetensors"]
    assert (tmp_path / "x.safetensors").read_bytes() == b"old"


@pytest.mark.parametrize("call", ["pwrite", "fsync", "open"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_each_failing_call_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int):
    """A full or broken disk at any step is one error with the path, and nothing is left."""
    target = tmp_path / "x.safetensors"
    real = getattr(os, call)

    def fail(*args: object, **options: object) -> object:
        # Folders are opened to be locked and synced; fail where the file's turn has come.
        if call == "open" and not str(args[0]).endswith("x.safetensors"):
            return real(*args, **options)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OutputError, match=r"x\.safetensors: cannot be written: " + os.strerror(code)) as raised:
        stage_file(target, b"content")
    assert raised.value.exit_code == 5
    assert bool(raised.value.hint) == (code != errno.EIO)
    monkeypatch.undo()
    assert listing(tmp_path) == []


def test_a_folder_that_cannot_be_exchanged_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """When the second of two renames fails, the first is taken back."""
    monkeypatch.setattr(renames, "rename_with", lambda *_: False)
    target = tmp_path / "out"
    stage_folder(target, ["old"])
    real = Path.rename

    def fail(self: Path, to: Path) -> Path:
        if self.name == "out" and to == target and ".ema-cli-" in str(self) and not self.name.endswith("-replaced"):
            raise OSError(errno.EIO, "Input/output error")
        return real(self, to)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OutputError):
        stage_folder(target, ["new"], force=True)
    monkeypatch.undo()
    assert listing(tmp_path) == ["out", "out/old"]


def test_a_dead_run_s_litter_is_removed_and_a_living_one_s_is_not(tmp_path: Path):
    """The next run removes what a killed one left, but nothing that a living process holds."""
    script = (
        "import os, sys; from pathlib import Path; from ema_cli.storage.staging.local import Staging\n"
        "area = Staging(Path(sys.argv[1])).__enter__(); (area.folder / 'half').write_bytes(b'x')\n"
        "print(area.folder.name, flush=True); sys.stdin.read(); os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "other.safetensors")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        name = other.stdout.readline().strip()
        stage_file(tmp_path / "x.safetensors", b"1")
        assert listing(tmp_path) == [name, f"{name}/half", "x.safetensors"]
        other.communicate()
    assert other.returncode == -9
    assert (tmp_path / name / "half").exists()
    stage_file(tmp_path / "y.safetensors", b"1")
    assert listing(tmp_path) == ["x.safetensors", "y.safetensors"]


def test_a_hidden_folder_that_is_gone_is_not_made_anew(tmp_path: Path):
    """Whoever stood still while it was removed, with the output published, is told; nothing is left beside that."""
    with Staging(tmp_path / "out") as place:
        late = place.folder / "out" / "inner"
        location(late).make_folder()
        location(late).make_folder()
        assert late.is_dir()
    for make in (location(late).make_folder, lambda: place.make_folder(Path("out"))):
        with pytest.raises(OutputError, match="No such file or directory"):
            make()
    assert list(tmp_path.iterdir()) == []


def test_a_planted_link_is_not_followed(tmp_path: Path):
    """A link in the place of a new file is an error, not a way out."""
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "x").symlink_to(tmp_path / "mine")
    with pytest.raises(OutputError):
        OutputStream(tmp_path / "x")
    assert (tmp_path / "mine").read_bytes() == b"mine"


def test_files_are_synced_before_the_rename_and_the_folder_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The order that survives a power cut: file, its folder, rename, the folder above."""
    events: list[str] = []
    real_fsync, real_rename = os.fsync, renames.rename_with

    def fsync(descriptor: int) -> None:
        events.append("sync " + ("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"))
        real_fsync(descriptor)

    def rename(*args: object) -> bool:
        events.append("rename")
        return real_rename(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(renames, "rename_with", rename)
    stage_file(tmp_path / "x.safetensors", b"1")
    assert events == ["sync file", "sync folder", "rename", "sync folder"]


def test_a_file_system_without_locks_is_written_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where flock is not supported, output works, and nothing is taken for abandoned."""

    def no_lock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_lock)
    other = tmp_path / ".ema-cli-0123456789abcdef"
    other.mkdir()
    stage_file(tmp_path / "x.safetensors", b"1")
    assert listing(tmp_path) == [other.name, "x.safetensors"]


@pytest.mark.parametrize("call", ["open", "flock"])
def test_a_folder_that_cannot_be_locked_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str):
    """An error between the making of the hidden folder and its lock used to leave the folder behind."""

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl if call == "flock" else os, call, fail)
    with pytest.raises(OutputError, match="Input/output error"):
        Staging(tmp_path / "x.safetensors").__enter__()
    monkeypatch.undo()
    assert listing(tmp_path) == []


def test_an_output_that_was_set_aside_comes_back(tmp_path: Path):
    """A run that was killed between two renames left the old output in its hidden folder, and the next lost it."""
    hidden = tmp_path / ".ema-cli-0123456789abcdef"
    for name in ("out", "other"):
        aside = hidden / f"{hidden.name}-{name}"
        aside.mkdir(parents=True)
        (aside / "old").write_text("old")
    (hidden / "out").mkdir()
    (tmp_path / "other").mkdir()
    stage_file(tmp_path / "x.safetensors", b"1")
    assert listing(tmp_path) == ["other", "out", "out/old", "x.safetensors"]


def test_an_output_that_cannot_be_put_back_stays_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where every rename fails from the second on, the old output used to be removed; the next run puts it back."""
    monkeypatch.setattr(renames, "rename_with", lambda *_: False)
    target = tmp_path / "out"
    stage_folder(target, ["old"])
    real, calls = Path.rename, []

    def fail(self: Path, to: Path) -> Path:
        calls.append(self)
        if len(calls) > 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(self, to)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OutputError, match="Input/output error"):
        stage_folder(target, ["new"], force=True)
    monkeypatch.undo()
    assert len(calls) == 3
    assert not target.exists()
    stage_file(tmp_path / "x.safetensors", b"1")
    assert listing(tmp_path) == ["out", "out/old", "x.safetensors"]


def test_force_finds_a_folder_that_appeared_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of two runs with force the later used to fail with "exists already" if the earlier had just published."""
    monkeypatch.setattr(os.path, "lexists", lambda _: False)
    for names in (["a"], ["b"]):
        stage_folder(tmp_path / "out", names, force=True)
    assert listing(tmp_path) == ["out", "out/b"]


def test_a_folder_does_not_replace_a_file(tmp_path: Path):
    """What appeared at the target and is no folder of ours is not exchanged for one."""
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="is not a folder"):
        stage_folder(tmp_path / "out", ["a"], force=True)
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize(("code", "passes"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_a_folder_that_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, passes: bool):
    """File systems that never sync folders are written all the same; a failure after the rename says what is there."""
    real = os.fsync

    def fail(descriptor: int) -> None:
        if os.path.samestat(os.fstat(descriptor), tmp_path.stat()):
            raise OSError(code, os.strerror(code))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    if passes:
        stage_file(tmp_path / "x.safetensors", b"1")
    else:
        with pytest.raises(OutputError, match="is in place, but the disk does not confirm it"):
            stage_file(tmp_path / "x.safetensors", b"1")
    assert listing(tmp_path) == ["x.safetensors"]


def test_an_error_of_the_last_close_is_nothing_to_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The output is there and synced; that the lock's descriptor closes badly used to end in exit 1."""
    real = os.close

    def fail(descriptor: int) -> None:
        is_removed = os.fstat(descriptor).st_nlink == 0
        real(descriptor)
        if is_removed:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "close", fail)
    stage_file(tmp_path / "x.safetensors", b"1")
    monkeypatch.undo()
    assert listing(tmp_path) == ["x.safetensors"]


@pytest.fixture(params=["exchanged", "set aside"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file system that swaps two files in one step, and one that does not."""
    if request.param == "set aside":
        monkeypatch.setattr(renames, "rename_with", lambda *_: False)
    return str(request.param)


@pytest.mark.usefixtures("system")
def test_files_beside_a_file_come_and_go_with_it(tmp_path: Path):
    """New ones, over older ones, and older ones that nothing new is staged for."""
    target = tmp_path / "x.safetensors"
    stage_beside(target, b"1", force=False)
    assert contents(tmp_path) == dict.fromkeys(FILES, b"1")
    stage_beside(target, b"2")
    assert contents(tmp_path) == dict.fromkeys(FILES, b"2")
    stage_beside(target, b"3", BESIDE[:1])
    assert contents(tmp_path) == dict.fromkeys(FILES[:2], b"3")
    stage_beside(target, b"4", ())
    assert contents(tmp_path) == {"x.safetensors": b"4"}


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, which: Collection[int]) -> Iterator[None]:
    """Let the renames of these numbers, from 0, fail."""
    numbers = count()

    def wrapped(real: Callable[..., object]) -> Callable[..., object]:
        def rename(*arguments: object) -> object:
            if next(numbers) in which:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(*arguments)

        return rename

    with monkeypatch.context() as patched:
        for owner, name in ((Path, "rename"), (Path, "replace"), (renames, "rename_with")):
            patched.setattr(owner, name, wrapped(getattr(owner, name)))
        yield


each_before = pytest.mark.parametrize(
    "before", [(), FILES, FILES[:1], FILES[:2], (FILES[0], FILES[2]), BESIDE], ids=len
)


def written(place: Path, names: Sequence[str]) -> Path:
    """Make a folder with older files of these names; return the one whose manifest and sums are beside it."""
    place.mkdir()
    for name in names:
        (place / name).write_bytes(b"old")
    return place / FILES[0]


@pytest.mark.slow
@pytest.mark.usefixtures("system")
@each_before
@pytest.mark.parametrize("beside", [BESIDE, BESIDE[1:], ()], ids=len)
def test_a_rename_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: Sequence[str], beside: Sequence[str]
):
    """Each in turn: the file and what lies beside it are as they were, and nothing else is there."""
    failed = 0
    for number in count():
        target = written(tmp_path / str(number), before)
        with failing(monkeypatch, {number}):
            try:
                stage_beside(target, b"new", beside)
            except OutputError:
                failed += 1
                assert contents(target.parent) == dict.fromkeys(before, b"old")
            else:
                break
    assert failed
    assert contents(target.parent) == dict.fromkeys([FILES[0], *beside], b"new")


@pytest.mark.slow
@pytest.mark.usefixtures("system")
@each_before
@pytest.mark.parametrize("beside", [BESIDE, ()], ids=len)
def test_a_disk_on_which_nothing_can_be_put_back_keeps_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: Sequence[str], beside: Sequence[str]
):
    """From one rename on all fail: the file is the old one, those beside it are whole, and the next run tidies up."""
    for number in range(8):
        target = written(tmp_path / str(number), before)
        with failing(monkeypatch, set(range(number, 99))):
            try:
                stage_beside(target, b"new", beside)
            except OutputError:
                left = {name: content for name, content in contents(target.parent).items() if name in FILES}
                assert left.get(FILES[0]) == (b"old" if FILES[0] in before else None)
                assert set(left.values()) <= {b"old", b"new"}
        stage_beside(target, b"newer", beside)
        assert contents(target.parent) == dict.fromkeys([FILES[0], *beside], b"newer")


@pytest.mark.parametrize("committed", [False, True])
def test_files_beside_a_file_come_back_unless_it_was_replaced(tmp_path: Path, committed: bool):
    """A run that was killed while it took away an older manifest: it is put back if the file is the older one, too."""
    hidden = tmp_path / ".ema-cli-0123456789abcdef"
    hidden.mkdir()
    (hidden / f"{hidden.name}-{BESIDE[0]}").write_bytes(b"old")
    (tmp_path / FILES[0]).write_bytes(b"new" if committed else b"old")
    if not committed:
        (hidden / FILES[0]).write_bytes(b"new")
    stage_file(tmp_path / "other.safetensors", b"1")
    (tmp_path / "other.safetensors").unlink()
    assert contents(tmp_path) == ({FILES[0]: b"new"} if committed else dict.fromkeys(FILES[:2], b"old"))


def test_a_folder_in_the_place_of_the_sums_is_not_replaced(tmp_path: Path):
    """A folder in the place of the sums: nothing is published, and what was put in place before is taken back."""
    (tmp_path / BESIDE[1]).mkdir()
    with pytest.raises(OutputError, match=r"x\.safetensors\.sha256: is not a regular file"):
        stage_beside(tmp_path / FILES[0], b"new")
    assert listing(tmp_path) == [BESIDE[1]]


def test_two_runs_publish_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Else the manifest of the one would come to lie beside the file of the other."""
    waited = threading.Event()
    real = time.sleep

    def sleep(seconds: float) -> None:
        waited.set()
        real(seconds)

    monkeypatch.setattr(local.time, "sleep", sleep)
    other = threading.Thread(target=stage_beside, args=(tmp_path / FILES[0], b"other"))
    with Staging(tmp_path / FILES[0]) as area, area.alone():
        other.start()
        assert waited.wait(30)
        assert [name for name in listing(tmp_path) if not name.startswith(".")] == []
    other.join()
    assert contents(tmp_path) == dict.fromkeys(FILES, b"other")


def test_who_holds_a_folder_s_lock_for_long_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`flock FOLDER ema-cli ...` holds it for as long as we run."""
    monkeypatch.setattr(local, "_PATIENCE_SECONDS", 0.05)
    held = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    stage_beside(tmp_path / FILES[0], b"1")
    os.close(held)
    assert contents(tmp_path) == dict.fromkeys(FILES, b"1")


def test_only_staging_folders_are_removed(tmp_path: Path):
    """A hidden folder of another name, however alike, is the user's."""
    (tmp_path / ".ema-cli-notes").mkdir()
    (tmp_path / ".ema-cli-0123456789abcdef").mkdir()
    stage_file(tmp_path / "x.safetensors", b"1")
    assert listing(tmp_path) == [".ema-cli-notes", "x.safetensors"]
