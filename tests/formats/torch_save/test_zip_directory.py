"""The directory of a zip archive: what torch writes is found where torch finds it; anything else is refused."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ema_cli.errors import CUT_SHORT, CheckpointError, EmaError, IncompleteCheckpoint, NoWeights
from ema_cli.formats import open_checkpoint
from ema_cli.formats.torch_save.zip_directory import data_offset, read_directory
from ema_cli.storage.location import location
from tests.formats.reading import read_all, read_range, stored_bytes

SAVED = {"w": torch.arange(6.0), "v": torch.ones(3, dtype=torch.int64)}
CENTRAL, LOCAL, END = b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"


def save(folder: Path) -> Path:
    """Let torch write two tensors."""
    path = folder / "a.pt"
    torch.save(SAVED, path)
    return path


def rewrite(path: Path, **changes: bytes) -> None:
    """Write the archive's entries again with Python's own zip writer, some of them changed or added."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (entries | changes).items():
            archive.writestr(name, content)


def central(data: bytes, name: str) -> int:
    """Return where the directory's record of entry `name` begins."""
    at = data.index(CENTRAL)
    while data[at + 46 : at + 46 + len(name)] != name.encode():
        at = data.index(CENTRAL, at + 1)
    return at


def patch(path: Path, at: int, layout: str, *values: int | bytes) -> None:
    """Overwrite bytes of the file at `at`."""
    data = bytearray(path.read_bytes())
    struct.pack_into(layout, data, at, *values)
    path.write_bytes(data)


def refusal(path: Path) -> EmaError:
    """Return the error that opening the file gives."""
    with pytest.raises(EmaError) as caught:
        open_checkpoint(path)
    return caught.value


def test_entries_lie_where_torch_finds_them(tmp_path: Path) -> None:
    """Names, sizes and places of all entries equal those that torch's own reader gives."""
    path = save(tmp_path)
    file = location(path).open()
    theirs = torch._C.PyTorchFileReader(str(path))
    ours = read_directory(file)
    assert sorted(ours) == sorted(f"a/{name}" for name in theirs.get_all_records())
    for name in theirs.get_all_records():
        entry = ours[f"a/{name}"]
        assert file.read(data_offset(file, entry), entry.size) == theirs.get_record(name)
        assert data_offset(file, entry) == theirs.get_record_offset(name)


def test_any_zip_writer_will_do(tmp_path: Path) -> None:
    """An archive that another program packed again, uncompressed, reads the same; a comment at its end, too."""
    path = save(tmp_path)
    rewrite(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"c" * 65535
    assert read_all(open_checkpoint(path).tensors) == {name: stored_bytes(t) for name, t in SAVED.items()}


def test_an_archive_cut_anywhere_is_incomplete(tmp_path: Path) -> None:
    """Whatever the length it was cut to, a good file is incomplete: the directory is written last."""
    path = save(tmp_path)
    whole = path.read_bytes()
    lengths = {len(whole) * tenth // 10 for tenth in range(10)} | set(range(len(whole) - 200, len(whole)))
    for length in sorted(lengths):
        path.write_bytes(whole[:length])
        error = refusal(path)
        assert type(error) is IncompleteCheckpoint, length
        assert str(path) in str(error)
        assert error.hint == CUT_SHORT


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_compressed_entry_is_refused(method: int, tmp_path: Path) -> None:
    """A compressed entry, which could inflate to anything, is refused by name, with a way on."""
    path = save(tmp_path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a/data/9", bytes(1000), compress_type=method)
    error = refusal(path)
    assert type(error) is CheckpointError
    assert str(error) == f"{path}: the zip entry 'a/data/9' is compressed; torch stores entries as they are"
    assert error.hint == "load it with torch and save it again"


def with_encryption(path: Path) -> None:
    """Set the bit that says the entry is encrypted."""
    patch(path, central(path.read_bytes(), "a/data/0") + 8, "<H", 1)


def with_duplicate(path: Path) -> None:
    """Give entry data/1 the name of data/0."""
    patch(path, central(path.read_bytes(), "a/data/1") + 46, "<8s", b"a/data/0")


def with_two_sizes(path: Path) -> None:
    """Let compressed and plain size of a stored entry differ."""
    patch(path, central(path.read_bytes(), "a/data/0") + 24, "<L", 4)


def with_same_place(path: Path) -> None:
    """Let entry data/1 begin where data/0 does."""
    data = path.read_bytes()
    first = central(data, "a/data/0")
    patch(path, central(data, "a/data/1") + 42, "<4s", data[first + 42 : first + 46])


def with_overlap(path: Path) -> None:
    """Let entry data/0 grow over its neighbour."""
    patch(path, central(path.read_bytes(), "a/data/0") + 20, "<2L", 200, 200)


def with_place_outside(path: Path) -> None:
    """Let entry data/1 begin behind the end."""
    patch(path, central(path.read_bytes(), "a/data/1") + 42, "<L", 1 << 30)


def with_size_outside(path: Path) -> None:
    """Let the entry that stands last be larger than the file."""
    data = path.read_bytes()
    patch(path, data.rindex(CENTRAL) + 20, "<2L", 1 << 30, 1 << 30)


def with_other_local_name(path: Path) -> None:
    """Let the name before the entry's bytes be another one."""
    patch(path, path.read_bytes().index(b"a/data/0"), "<8s", b"a/data/7")


def with_local_compression(path: Path) -> None:
    """Let only the header before the bytes say that they are compressed."""
    patch(path, path.read_bytes().index(b"a/data/0") - 30 + 8, "<H", 8)


def with_broken_local_header(path: Path) -> None:
    """Destroy the signature before the entry's bytes."""
    patch(path, path.read_bytes().index(b"a/data/0") - 30, "<4s", b"XXXX")


def with_name_not_text(path: Path) -> None:
    """Give an entry a name that is not UTF-8."""
    patch(path, central(path.read_bytes(), "a/data/0") + 46, "<8s", b"a/data/\xff")


def with_broken_record(path: Path) -> None:
    """Destroy a signature in the directory."""
    patch(path, central(path.read_bytes(), "a/data/0"), "<4s", b"XXXX")


def with_directory_outside(path: Path) -> None:
    """Let the directory begin behind the end of the file."""
    rewrite(path)  # Python writes no second, 64-bit, end record over a small archive
    patch(path, path.read_bytes().rindex(END) + 16, "<L", 1 << 30)


def with_directory_too_short(path: Path) -> None:
    """Let the directory have more entries than fit into it."""
    rewrite(path)
    patch(path, path.read_bytes().rindex(END) + 8, "<2H", 9999, 9999)


def with_several_parts(path: Path) -> None:
    """Let the archive be one part of several."""
    rewrite(path)
    patch(path, path.read_bytes().rindex(END) + 4, "<H", 3)


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (with_encryption, "'a/data/0' is encrypted"),
        (with_duplicate, "'a/data/0' stands twice"),
        (with_two_sizes, "'a/data/0' gives two sizes, 4 and 24"),
        (with_same_place, "overlaps another"),
        (with_overlap, "overlaps another"),
        (with_place_outside, "'a/data/1' reaches past the end"),
        (with_size_outside, "reaches past the end"),
        (with_other_local_name, "'a/data/0' is damaged"),
        (with_local_compression, "'a/data/0' is damaged"),
        (with_broken_local_header, "'a/data/0' is damaged"),
        (with_name_not_text, "name is not UTF-8"),
        (with_broken_record, "zip directory is damaged"),
        (with_directory_outside, "zip directory lies outside the file"),
        (with_directory_too_short, "zip directory is damaged"),
        (with_several_parts, "in several parts"),
    ],
)
def test_forged_archives_are_refused(forge: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    """An archive that contradicts itself is refused with the file, the entry and the contradiction."""
    path = save(tmp_path)
    forge(path)
    error = refusal(path)
    assert type(error) is CheckpointError
    assert str(error).startswith(f"{path}: ")
    assert message in str(error)


def test_a_zip_of_something_else_holds_no_weights(tmp_path: Path) -> None:
    """A zip archive that torch did not write is passed over in a search, and refused by name."""
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", b"hello")
    error = refusal(path)
    assert (type(error), str(error)) == (NoWeights, f"{path}: a zip archive, but not one that torch.save wrote")


def test_arrays_of_numpy_s_are_named_as_such(tmp_path: Path) -> None:
    """Under another suffix they are not read: the error says what to do with them."""
    path = tmp_path / "a.pt"
    with path.open("wb") as file:
        np.savez(file, w=np.ones(3))
    error = refusal(path)
    assert (type(error), str(error)) == (NoWeights, f"{path}: an archive of numpy's")
    assert ".npz" in (error.hint or "")


@pytest.mark.slow
def test_beyond_four_gigabytes(tmp_path: Path) -> None:
    """Sizes and places that do not fit 32 bits are read as torch writes them (the file is sparse)."""
    path = tmp_path / "large.pt"
    with torch.serialization.skip_data():
        torch.save({"large": torch.empty((9 << 30) // 4, 2, dtype=torch.float16), "small": torch.empty(2)}, path)
    last = (9 << 30) - 4
    offsets = torch._C.PyTorchFileReader(str(path))
    with path.open("r+b") as file:
        file.seek(offsets.get_record_offset("data/0") + last)
        file.write(b"last")
        file.seek(offsets.get_record_offset("data/1"))
        file.write(b"12345678")
    weights = open_checkpoint(path).tensors
    assert read_range(weights, "large", last, last + 4) == b"last"
    assert read_range(weights, "small", 0, 8) == b"12345678"
    loaded = torch.load(path, weights_only=True, mmap=True)
    assert stored_bytes(loaded["large"][-1]) == b"last"
    assert stored_bytes(loaded["small"]) == b"12345678"
