"""Regular files read by range: few descriptors, no waiting, and no mixing of an old file with a new one."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ema_cli.errors import CheckpointError
from ema_cli.formats import open_checkpoint
from ema_cli.storage.local_file import LocalFile, held_open

MANY = 300  # more than are ever kept open


def write_many(folder: Path) -> list[Path]:
    """Write files that say their own number."""
    paths = [folder / f"{number:03}.bin" for number in range(MANY)]
    for number, path in enumerate(paths):
        path.write_bytes(f"file {number:03}".encode())
    return paths


def open_descriptors() -> int:
    """Return how many descriptors this process holds."""
    return len(list(Path("/proc/self/fd").iterdir()))


def test_any_range_is_read(tmp_path: Path) -> None:
    """Bytes come from where they were asked for, none past the end."""
    path = tmp_path / "a"
    path.write_bytes(bytes(range(200)))
    file = LocalFile(path)
    assert file.size == 200
    assert file.read(0, 200) == bytes(range(200))
    assert file.read(37, 5) == bytes(range(37, 42))
    assert file.read(200, 0) == b""


def test_few_descriptors_stay_open(tmp_path: Path) -> None:
    """However many files are open, the process holds a bounded number of descriptors, and all can be read."""
    before = open_descriptors()
    files = [LocalFile(path) for path in write_many(tmp_path)]
    assert open_descriptors() - before <= 130
    for number in (0, MANY - 1, 5, 150, 0):
        assert files[number].read(0, 8) == f"file {number:03}".encode()
    assert open_descriptors() - before <= 130


def test_no_more_descriptors_are_held_than_stay_open(tmp_path: Path) -> None:
    """Whoever wants to hold more gets none, with others who hold some, too; afterwards few stay open."""
    files = [LocalFile(path) for path in write_many(tmp_path)]
    before = open_descriptors()
    with held_open(files[:100]) as some, held_open(files[50:128]) as shared, held_open(files[100:140]) as more:
        assert some is not None
        assert shared is not None
        assert some[50:] == shared[:50]
        assert more is None
        assert open_descriptors() <= before + 1
        assert files[140].read(0, 8) == b"file 140"
    assert open_descriptors() <= before
    with held_open(files[:129]) as none:
        assert none is None
    with held_open(files[172:]) as last:
        assert last is not None


@pytest.mark.slow
def test_many_threads_read_many_files(tmp_path: Path) -> None:
    """Threads that fight for descriptors each get their own file's bytes."""
    files = [LocalFile(path) for path in write_many(tmp_path)]
    numbers = [(7 * step) % MANY for step in range(4 * MANY)]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda number: files[number].read(5, 3), numbers))
    assert found == [f"{number:03}".encode() for number in numbers]


def test_reading_past_the_end_names_the_file_and_the_byte(tmp_path: Path) -> None:
    """A range that the file does not have is an error, never zeros."""
    path = tmp_path / "a"
    path.write_bytes(bytes(10))
    with pytest.raises(CheckpointError) as caught:
        LocalFile(path).read(8, 4)
    assert str(caught.value) == f"{path}: ends at byte 10 while it is read"


def test_the_end_of_a_file_is_told_wherever_the_read_began(tmp_path: Path) -> None:
    """The byte at which the file ends, not that from which on nothing was found: threads read in any order."""
    path = tmp_path / "a"
    path.write_bytes(bytes(10_000))
    file = LocalFile(path)
    os.truncate(path, 100)
    for offset in (99, 100, 5000):
        with pytest.raises(CheckpointError, match="ends at byte 100 while it is read"):
            file.read(offset, 50)


def test_a_file_cut_short_while_open_is_an_error(tmp_path: Path) -> None:
    """A truncation under our feet gives an error with the file's name; a mapping would kill the process."""
    path = tmp_path / "a"
    path.write_bytes(bytes(1 << 20))
    file = LocalFile(path)
    os.truncate(path, 5000)
    with pytest.raises(CheckpointError) as caught:
        file.read(0, 1 << 20)
    assert str(caught.value) == f"{path}: ends at byte 5000 while it is read"
    assert caught.value.hint == "something cut it short; average a run that is not being rewritten"


def change_size(path: Path) -> None:
    """Append a byte."""
    with path.open("ab") as file:
        file.write(b"x")


def change_time(path: Path) -> None:
    """Let the file look as if it were written again."""
    os.utime(path, ns=(1, 1))


def replace(path: Path) -> None:
    """Put another file of the same bytes in its place."""
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.rename(path)


@pytest.mark.parametrize("change", [change_size, change_time, replace])
def test_a_file_that_changed_is_noticed(change: object, tmp_path: Path) -> None:
    """Another size, time or file at the same path is a change, and said to be one."""
    assert callable(change)
    path = tmp_path / "a"
    path.write_bytes(bytes(10))
    file = LocalFile(path)
    file.check_unchanged()
    change(path)
    with pytest.raises(CheckpointError) as caught:
        file.check_unchanged()
    assert str(caught.value) == f"{path}: changed while it was used"


def test_a_file_that_disappeared_is_noticed(tmp_path: Path) -> None:
    """A file that was removed while it was used is an error."""
    path = tmp_path / "a"
    path.write_bytes(b"x")
    file = LocalFile(path)
    path.unlink()
    with pytest.raises(CheckpointError) as caught:
        file.check_unchanged()
    assert str(caught.value).startswith(f"{path}: disappeared while it was used")


def test_a_file_replaced_while_its_descriptor_was_closed_is_not_read(tmp_path: Path) -> None:
    """A file whose descriptor had to be closed is checked when it is opened again: no mixture of two files."""
    first, *others = write_many(tmp_path)
    file = LocalFile(first)
    opened = [LocalFile(path) for path in others]
    replace(first)
    with pytest.raises(CheckpointError) as caught:
        file.read(0, 8)
    assert str(caught.value) == f"{first}: changed while it was used"
    assert opened[-1].read(0, 8) == f"file {MANY - 1:03}".encode()


def test_special_files_are_refused_without_waiting(tmp_path: Path) -> None:
    """A FIFO that nobody writes to, a folder and a device are refused at once, leaving no descriptor open."""
    fifo = tmp_path / "step-50.safetensors"
    os.mkfifo(fifo)
    before = open_descriptors()
    for path in (fifo, tmp_path, Path("/dev/null")):
        with pytest.raises(CheckpointError) as caught:
            LocalFile(path)
        assert str(caught.value) == f"{path}: is not a regular file"
    assert open_descriptors() == before


def test_a_file_that_cannot_be_opened_names_itself(tmp_path: Path) -> None:
    """A missing file and a link to nothing are errors with the reason."""
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("missing", "dangling"):
        with pytest.raises(CheckpointError) as caught:
            LocalFile(tmp_path / name)
        assert str(caught.value) == f"{tmp_path / name}: cannot be opened: No such file or directory"


@pytest.mark.parametrize("name", ["step-50.safetensors", "step-50.pt", "step-50"])
def test_no_reader_waits_for_a_fifo(name: str, tmp_path: Path) -> None:
    """A FIFO under the name of a checkpoint is refused by every reader, and nothing hangs."""
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
