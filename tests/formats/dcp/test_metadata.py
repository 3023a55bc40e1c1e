"""The `.metadata` of torch.distributed.checkpoint: what it says is taken as torch means it, or refused by name."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties

from ema_cli.errors import CheckpointError
from ema_cli.formats import boxes
from ema_cli.formats.dcp.content import Metadata
from ema_cli.formats.dcp.metadata import read_metadata
from ema_cli.formats.dcp.pieces import Record
from ema_cli.storage.location import location
from tests.formats.containers import DTYPE_NAMES
from tests.formats.dcp_folders import Pieces, save_folder
from tests.formats.pickles.pickled import Call
from tests.hostile import stand_ins


def read(folder: Path) -> Metadata:
    """Return what the folder's `.metadata` says."""
    return read_metadata(location(folder / ".metadata").open())


def refusal(folder: Path, name: str | None = None) -> str:
    """Return the message of the error that reading it gives, or that asking for tensor `name` gives."""
    with pytest.raises(CheckpointError) as caught:
        read(folder) if name is None else read(folder).tensor(name)
    assert str(caught.value).startswith(f"{folder / '.metadata'}: ")
    assert str(caught.value).isprintable()
    return str(caught.value)


def two_pieces(folder: Path) -> Pieces:
    """Return a folder with 'w', 4 x 3, as two rows here and two there, and an item."""
    pieces = Pieces(folder)
    pieces.add("w", torch.arange(12.0).reshape(4, 3), [((0, 0), (2, 3)), ((2, 0), (2, 3))])
    pieces.add_item("step", 7)
    return pieces


@pytest.mark.parametrize("dtype", [*DTYPE_NAMES, torch.complex128, torch.float8_e4m3fn])
def test_every_dtype_and_shape(dtype: torch.dtype, tmp_path: Path) -> None:
    """Each dtype has the name it has elsewhere; scalars have one piece, tensors without elements none."""
    pieces = Pieces(tmp_path)
    pieces.add("w", torch.zeros(2, 3, dtype=dtype))
    pieces.add("scalar", torch.zeros((), dtype=dtype))
    pieces.add("empty", torch.zeros(0, 3, dtype=dtype))
    metadata = read(pieces.write())
    names = {**DTYPE_NAMES, torch.complex128: "C128", torch.float8_e4m3fn: "F8_E4M3"}
    found = {name: metadata.tensor(name) for name in metadata.tensors}
    assert {each.spec.dtype.name for each in found.values()} == {names[dtype]}
    assert [(each.spec.shape, len(each.pieces)) for each in found.values()] == [((2, 3), 1), ((), 1), ((0, 3), 0)]


def test_pieces_and_records(tmp_path: Path) -> None:
    """Each piece comes with its place in the tensor and its record; what is no tensor has a record alone."""
    pieces = two_pieces(tmp_path)
    metadata = read(pieces.write())
    tensor = metadata.tensor("w")
    assert [(each.offsets, each.shape, each.begin, each.end) for each in tensor.pieces] == [
        ((0, 0), (2, 3), 0, 6),
        ((2, 0), (2, 3), 6, 12),
    ]
    stored = {
        index: Record(info.relative_path, info.offset, info.length)
        for index, info in pieces.metadata.storage_data.items()
    }
    assert list(tensor.records) == [stored[MetadataIndex("w", (0, 0))], stored[MetadataIndex("w", (2, 0))]]
    assert metadata.items == {"step": stored[MetadataIndex("step")]}
    assert [record.file for record in tensor.records] == ["__0_0.distcp", "__1_0.distcp"]


def test_pieces_come_in_the_order_of_the_tensor(tmp_path: Path) -> None:
    """However a process listed them, pieces are sorted by where they begin."""
    pieces = Pieces(tmp_path)
    pieces.add("w", torch.zeros(2, 4), [((1, 2), (1, 2)), ((0, 2), (1, 2)), ((1, 0), (1, 2)), ((0, 0), (1, 2))])
    assert [each.offsets for each in read(pieces.write()).tensor("w").pieces] == [(0, 0), (0, 2), (1, 0), (1, 2)]


def test_empty_shares_are_no_pieces(tmp_path: Path) -> None:
    """One row on four processes: three hold nothing, list that nothing, and need not have stored it."""
    pieces = Pieces(tmp_path)
    pieces.add("w", torch.ones(1, 4))
    entry = pieces.metadata.state_dict_metadata["w"]
    entry.chunks += [ChunkStorageMetadata(torch.Size((1, 0)), torch.Size((0, 4))) for _ in range(3)]
    assert [each.offsets for each in read(pieces.write()).tensor("w").pieces] == [(0, 0)]


def test_paths_of_nested_names(tmp_path: Path) -> None:
    """Where names were nested before they were flattened is known, numbers of lists included."""
    save_folder(
        tmp_path, {"app": {"model": {"a.b": torch.ones(1)}, "list": [torch.ones(1)]}, "flat.name": torch.ones(1)}
    )
    assert read(tmp_path).paths == {
        "app.model.a.b": ("app", "model", "a.b"),
        "app.list.0": ("app", "list", 0),
        "flat.name": ("flat.name",),
    }


def test_properties_of_older_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dtype that stands in a dict, as a dataclass without a state of its own is pickled, is read alike."""
    pieces = two_pieces(tmp_path)
    monkeypatch.delattr(TensorProperties, "__getstate__")
    pieces.metadata.state_dict_metadata["w"].properties.memory_format = None  # which pickle cannot store
    assert read(pieces.write()).tensor("w").spec.dtype.name == "F32"


def test_classes_are_known_by_their_fields(tmp_path: Path) -> None:
    """OLMo-core writes a `_StorageInfo` of its own module: whatever the module, the fields say what it is."""
    path = two_pieces(tmp_path).write() / ".metadata"
    tensor, items = read(tmp_path).tensor("w"), read(tmp_path).items
    text = path.read_bytes()
    assert text.count(b"torch.distributed.checkpoint") >= 2
    path.write_bytes(text.replace(b"torch.distributed.checkpoint", b"other.distributed.checkpoint"))
    metadata = read(tmp_path)
    assert (metadata.tensor("w"), metadata.items) == (tensor, items)


def change_chunks(*boxes: tuple[tuple[int, ...], tuple[int, ...]]) -> Callable[[Pieces], None]:
    """Return a change of the list of the pieces of 'w'."""

    def change(pieces: Pieces) -> None:
        chunks = [ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for offsets, sizes in boxes]
        pieces.metadata.state_dict_metadata["w"].chunks = chunks
        for number, (offsets, _) in enumerate(boxes, 1):
            # Apart from all others: that records lie over each other is another matter.
            record = _StorageInfo("__0_0.distcp", number << 40, 1 << 20)
            pieces.metadata.storage_data.setdefault(MetadataIndex("w", offsets), record)

    return change


def change_entry(**fields: Any) -> Callable[[Pieces], None]:
    """Return a change of the entry of 'w'."""
    return lambda pieces: pieces.metadata.state_dict_metadata["w"].__dict__.update(fields)


def drop_record(pieces: Pieces) -> None:
    """Forget where the second piece of 'w' is stored."""
    del pieces.metadata.storage_data[MetadataIndex("w", (2, 0))]


DAMAGED: dict[str, tuple[Callable[[Pieces], None], str]] = {
    "a piece is missing": (change_chunks(((0, 0), (2, 3))), "do not cover it exactly once"),
    "no piece": (change_chunks(), "do not cover it exactly once"),
    "a piece twice": (change_chunks(((0, 0), (2, 3)), ((0, 0), (2, 3))), "at [0, 0] and at [0, 0] overlap"),
    "pieces overlap": (change_chunks(((0, 0), (2, 3)), ((1, 0), (2, 3))), "at [1, 0] and at [0, 0] overlap"),
    "overlap hidden by a hole": (
        change_chunks(((0, 0), (2, 2)), ((0, 1), (2, 2)), ((2, 0), (2, 2))),
        "at [0, 1] and at [0, 0] overlap",
    ),
    "a piece reaches out": (change_chunks(((0, 0), (2, 3)), ((3, 0), (2, 3))), "at [3, 0] reaches out of it"),
    "other dimensions": (change_chunks(((0,), (12,))), "another number of dimensions"),
    "a piece is nowhere stored": (drop_record, "its piece at [2, 0] is nowhere stored"),
    "no list of pieces": (change_entry(chunks=None), "it has no list of pieces"),
    "pieces of another kind": (change_entry(chunks=[(0, 2)]), "a tuple stands where an object with offsets and"),
    "no properties": (change_entry(properties=None), "it has no properties"),
    "properties that are a number": (change_entry(properties=3), "it has no properties"),
    "a size that is no tuple": (change_entry(size=[4, 3]), "is no tuple of counts"),
    "a negative size": (change_entry(size=(-4, -3)), "is no tuple of counts"),
    "a size beyond all files": (change_entry(size=(1 << 62, 3)), "is no tuple of counts"),
    "65 dimensions": (change_entry(size=(1,) * 65), "is no tuple of counts"),
    "a dtype we do not read": (
        change_entry(properties=TensorProperties(torch.complex32)),
        "a dtype that is not read, torch.complex32",
    ),
}  # fmt: skip


@pytest.mark.parametrize("label", DAMAGED)
def test_a_tensor_that_does_not_fit_is_named(label: str, tmp_path: Path) -> None:
    """What does not fit together is an error with the file, the tensor and the piece; the other tensors are read."""
    change, message = DAMAGED[label]
    pieces = two_pieces(tmp_path)
    pieces.add("other", torch.ones(2))
    change(pieces)
    folder = pieces.write()
    found = refusal(folder, "w")
    assert "'w': " in found
    assert message in found
    assert read(folder).tensor("other").spec.shape == (2,)


def test_many_pieces_without_a_grid_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of such pieces is compared with each: too many, in all tensors, are refused; a grid may have more.

    Tensors that are cut alike are compared once.
    """
    monkeypatch.setattr(boxes, "_MAX_COMPARED", 2 * 29 * 28 // 2)
    pieces = Pieces(tmp_path)
    pieces.add("grid", torch.zeros(30, 1), [((row, 0), (1, 1)) for row in range(30)])
    for number in range(3):
        halves = [((row, side), (1, 1)) for row in range(15) for side in (0, 1) if row != number]
        for name in (f"ragged.{number}", f"alike.{number}"):
            pieces.add(name, torch.zeros(15, 2), [((number, 0), (1, 2)), *halves])
    metadata = read(pieces.write())
    assert len(metadata.tensor("grid").pieces) == 30
    for name in ("ragged.0", "alike.0", "ragged.1", "alike.1"):
        assert len(metadata.tensor(name).pieces) == 29
    with pytest.raises(CheckpointError, match=r"'ragged\.2': it is cut into 29 pieces that form no grid"):
        metadata.tensor("ragged.2")


def change_record(**fields: Any) -> Callable[[Pieces], None]:
    """Return a change of the record of the first piece of 'w'."""
    return lambda pieces: pieces.metadata.storage_data[MetadataIndex("w", (0, 0))].__dict__.update(fields)


BROKEN: dict[str, tuple[Callable[[Pieces], None], str]] = {
    "a file above": (change_record(relative_path="../x"), "'w' is said to be in '../x', which is not a file name"),
    "a file elsewhere": (change_record(relative_path="/etc/passwd"), "which is not a file name"),
    "a file that is no text": (change_record(relative_path=7), "which is not a file name"),
    "a negative offset": (change_record(offset=-1), "'w' lies at no place in its file"),
    "a size that is no number": (change_record(length=True), "'w' lies at no place in its file"),
    "a compressed record": (change_record(transform_descriptors=["zstd"]), "compressed or encrypted"),
    "no tensors": (lambda pieces: setattr(pieces.metadata, "state_dict_metadata", None), "it lists no tensors"),
    "no storage": (lambda pieces: setattr(pieces.metadata, "storage_data", None), "it lists no tensors"),
    "an entry of another kind": (
        lambda pieces: pieces.metadata.state_dict_metadata.update(x=3),
        "'x' is described by a int, which is unknown",
    ),
    "a name that is a number": (lambda pieces: pieces.metadata.state_dict_metadata.update({7: 3}), "is unknown"),
    "a record of another kind": (
        lambda pieces: pieces.metadata.storage_data.update({MetadataIndex("w", (0, 0)): 3}),
        "a int stands where an object with relative_path and offset and length belongs",
    ),
    "a record without an index": (
        lambda pieces: pieces.metadata.storage_data.update({"w": _StorageInfo("a", 0, 1)}),
        "a str stands where an object with fqn belongs",
    ),
    "a record without a name": (
        lambda pieces: pieces.metadata.storage_data.update({MetadataIndex(None): _StorageInfo("a", 0, 1)}),
        "it stores something without a name",
    ),
}  # fmt: skip


@pytest.mark.parametrize("label", BROKEN)
def test_a_damaged_file_is_refused(label: str, tmp_path: Path) -> None:
    """A record that leads out of the folder, lies nowhere or is compressed, and what is no list, is an error."""
    change, message = BROKEN[label]
    pieces = two_pieces(tmp_path)
    change(pieces)
    assert message in refusal(pieces.write())


@pytest.mark.parametrize("value", [None, {"w": 1}, torch.ones(2), Path("x")])
def test_another_pickle_is_refused(value: object, tmp_path: Path) -> None:
    """A pickle of anything else says what stands there instead."""
    (tmp_path / ".metadata").write_bytes(pickle.dumps(value))
    assert "cannot be read: " in refusal(tmp_path)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    """Whatever the length it was cut to, `.metadata` is an error that names it."""
    whole = (two_pieces(tmp_path).write() / ".metadata").read_bytes()
    for length in range(0, len(whole), 11):
        (tmp_path / ".metadata").write_bytes(whole[:length])
        refusal(tmp_path)


def test_nothing_in_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch loads this file with pickle, which runs what it names; here a call in it is a placeholder."""
    monkeypatch.chdir(tmp_path)
    pieces = two_pieces(tmp_path)
    pieces.metadata.planner_data = Call(stand_ins.create, "canary")
    pieces.metadata.storage_meta = Call(stand_ins.create, "canary")
    assert read(pieces.write()).tensor("w").spec.shape == (4, 3)
    assert not Path("canary").exists()
