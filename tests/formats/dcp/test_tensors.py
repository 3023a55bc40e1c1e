"""Tensors in pieces: however a tensor was cut, any range of it reads as it would from the whole."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ema_cli.errors import CheckpointError
from ema_cli.formats.dcp import tensors as module
from ema_cli.formats.dcp.metadata import read_metadata
from ema_cli.formats.dcp.tensors import DcpTables, DcpTensors
from ema_cli.storage.local_file import LocalFile
from ema_cli.storage.location import location
from tests.formats.dcp_folders import Box, Pieces
from tests.formats.reading import read_range

DTYPES = (torch.float32, torch.bfloat16, torch.complex64, torch.complex128, torch.float64, torch.int16, torch.bool)


def open_weights(folder: Path) -> DcpTensors:
    """Return all tensors in the folder."""
    metadata = read_metadata(location(folder / ".metadata").open())
    tables = DcpTables.of({name: metadata.tensor(name) for name in metadata.tensors})
    return DcpTensors.of(tables, {name: location(folder / name).open() for name in tables.ends})


def filled(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Return a tensor of which each byte is random, so that no element stands for another."""
    count = int(np.prod(shape, dtype=int)) * torch.empty(0, dtype=dtype).element_size()
    data = np.random.default_rng(seed).integers(0, 2 if dtype is torch.bool else 256, count, dtype=np.uint8)
    # torch gives an array without elements a stride of 0, and no view of another dtype.
    return torch.from_numpy(data.copy()).view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Return the tensor as an array of opaque elements, which numpy slices as it does numbers."""
    raw = tensor.contiguous().view(-1).view(torch.uint8).numpy()
    return raw.view(f"V{tensor.element_size()}").reshape(tensor.shape)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, ...]:
    """Draw a shape of up to four dimensions, without elements now and then."""
    return tuple(draw(st.lists(st.integers(0 if draw(st.integers(0, 9)) == 0 else 1, 6), max_size=4)))


@st.composite
def grids(draw: st.DrawFn, shape: tuple[int, ...]) -> list[Box]:
    """Draw cuts through each dimension, unevenly; some of the boxes may be empty."""
    sides = []
    for length in shape:
        cuts = [0, *sorted(draw(st.lists(st.integers(0, length), max_size=3))), length]
        sides.append([(at, end - at) for at, end in itertools.pairwise(cuts)])
    boxes: dict[tuple[int, ...], tuple[int, ...]] = {}
    for each in itertools.product(*sides):
        offsets, sizes = tuple(at for at, _ in each), tuple(size for _, size in each)
        # Two pieces cannot begin at one place, as the place is how they are found; the larger one counts.
        boxes[offsets] = max(boxes.get(offsets, sizes), sizes)
    return list(boxes.items())


@st.composite
def splits(draw: st.DrawFn, shape: tuple[int, ...]) -> list[Box]:
    """Draw boxes by splitting one of those that there are, again and again: they form no grid."""
    boxes: list[Box] = [((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, 6))):
        offsets, sizes = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        cuttable = [dimension for dimension, size in enumerate(sizes) if size > 1]
        if not cuttable:
            boxes.append((offsets, sizes))
            continue
        dimension = draw(st.sampled_from(cuttable))
        cut = draw(st.integers(1, sizes[dimension] - 1))
        first, second = list(sizes), list(sizes)
        first[dimension], second[dimension] = cut, sizes[dimension] - cut
        moved = list(offsets)
        moved[dimension] += cut
        boxes += [(offsets, tuple(first)), (tuple(moved), tuple(second))]
    return draw(st.permutations(boxes))


@pytest.mark.slow
@given(data=st.data())
def test_any_range_of_any_partition(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever its shape, its dtype and its pieces, a range of a tensor is what numpy cuts from the whole."""
    shape = data.draw(shapes())
    tensor = filled(shape, data.draw(st.sampled_from(DTYPES)))
    folder = Pieces(tmp_path_factory.mktemp("pieces"))
    folder.add("w", tensor, data.draw(st.one_of(grids(shape), splits(shape))))
    weights = open_weights(folder.write())
    flat, size = as_numpy(tensor).reshape(-1), tensor.element_size()
    assert weights.specs["w"].shape == shape
    assert weights.specs["w"].nbytes == flat.nbytes
    for _ in range(5):
        first = data.draw(st.integers(0, len(flat)))
        last = data.draw(st.integers(first, len(flat)))
        assert read_range(weights, "w", first * size, last * size) == flat[first:last].tobytes()


PINWHEEL: list[Box] = [((0, 0), (1, 2)), ((0, 2), (2, 1)), ((2, 1), (1, 2)), ((1, 0), (2, 1)), ((1, 1), (1, 1))]


def test_boxes_that_no_cut_goes_through(tmp_path: Path) -> None:
    """A pinwheel, which no straight cut divides, reads whole and by every range."""
    tensor = filled((3, 3), torch.float32)
    folder = Pieces(tmp_path)
    folder.add("w", tensor, PINWHEEL)
    weights = open_weights(folder.write())
    flat = as_numpy(tensor).reshape(-1)
    for first, last in itertools.combinations_with_replacement(range(10), 2):
        assert read_range(weights, "w", 4 * first, 4 * last) == flat[first:last].tobytes()


def test_pieces_that_were_stored_out_of_order(tmp_path: Path) -> None:
    """A piece that torch stored transposed or conjugated is put in place as the numbers that it holds."""
    waves = torch.randn(4, 6, dtype=torch.complex64)
    folder = Pieces(tmp_path)
    folder.add("w", waves, [((0, 0), (4, 3)), ((0, 3), (4, 3))])
    parts = (waves[:, :3].t().contiguous().t(), waves[:, 3:].conj_physical().conj())
    for index, part in zip(list(folder.metadata.storage_data), parts, strict=True):
        folder.store(index, part)
    assert read_range(open_weights(folder.write()), "w", 0, 192) == waves.numpy().tobytes()


def test_more_pieces_than_stay_open_read_by_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of records, found and forgotten while eight threads read, give the right bytes."""
    monkeypatch.setattr(module, "_MAX_FRAMES", 40)
    tensor = filled((200, 3), torch.float64)
    folder = Pieces(tmp_path)
    folder.add("w", tensor, [((row, 0), (1, 3)) for row in range(200)])
    weights, flat = open_weights(folder.write()), as_numpy(tensor).reshape(-1)
    ranges = [(at, min(at + 7, 600)) for at in range(0, 600, 5)] * 3
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda span: read_range(weights, "w", 8 * span[0], 8 * span[1]), ranges))
    assert found == [flat[first:last].tobytes() for first, last in ranges]


def test_records_side_by_side_come_with_few_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of records in a file that are like one before them, sixteen are recognised with seventeen reads."""
    folder, tensors = Pieces(tmp_path), {f"w{number}": filled((64, 9), torch.float32, number) for number in range(64)}
    for name, tensor in tensors.items():
        folder.add(name, tensor)
    weights, reads = open_weights(folder.write()), list[int]()
    assert [len(own) for own in weights.in_file] == [32, 32]
    weights.runs("w0", 0, 4)  # is opened, as none was before
    read = LocalFile.read
    monkeypatch.setattr(LocalFile, "read", lambda *args: reads.append(args[1]) or read(*args))
    for name, tensor in tensors.items():
        [(file, start, size)] = weights.runs(name, 0, tensor.nbytes) or ()
        assert read(file, start, size) == tensor.numpy().tobytes()
    assert len(reads) == 4 * 17
    assert [*weights._opened] == [0]


def test_a_damaged_record_says_which_tensor_it_holds_and_leaves_its_neighbours_alone(tmp_path: Path) -> None:
    """A record whose beginning is overwritten is refused with file and tensor; those around it are read."""
    folder, tensors = Pieces(tmp_path), {f"w{number}": filled((8,), torch.float32, number) for number in range(20)}
    for name, tensor in tensors.items():
        folder.add(name, tensor)
    weights = open_weights(folder.write())
    file, start, _ = weights._record(weights.first["w7"])
    with file.path.open("r+b") as shard:
        shard.seek(start)
        shard.write(b"????")
    weights = open_weights(tmp_path)
    for name, tensor in tensors.items():
        if name != "w7":
            assert read_range(weights, name, 0, 32) == tensor.numpy().tobytes()
    with pytest.raises(CheckpointError, match=r"is damaged, in the record of 'w7'") as caught:
        read_range(weights, "w7", 0, 32)
    assert caught.value.subject == file.path


@pytest.mark.parametrize("stored", [torch.ones(3), torch.ones(2, dtype=torch.float64), [1, 2], {"w": torch.ones(2)}])
def test_a_record_of_another_save_is_refused(stored: object, tmp_path: Path) -> None:
    """A record that holds another shape or dtype than `.metadata` says, or no tensor, names tensor and file."""
    folder = Pieces(tmp_path)
    folder.add("w", torch.ones(2))
    (index,) = folder.metadata.storage_data
    folder.store(index, stored)
    weights = open_weights(folder.write())
    with pytest.raises(CheckpointError, match=r"__1_0\.distcp: 'w' is stored as something else") as caught:
        read_range(weights, "w", 0, 8)
    assert "different saves" in (caught.value.hint or "")


def test_equal_tables_are_shared_and_others_kept(tmp_path: Path) -> None:
    """A checkpoint that is cut as another takes its tables and reads its own bytes; one cut otherwise keeps its own."""
    cut = {"a": [((0,), (1,)), ((1,), (3,))], "b": [((0,), (1,)), ((1,), (3,))], "c": [((0,), (2,)), ((2,), (2,))]}
    opened = {}
    for seed, (name, boxes) in enumerate(cut.items()):
        folder = Pieces(tmp_path / name)
        folder.add("other", torch.zeros(2))
        folder.add("w", filled((4,), torch.float32, seed), boxes)
        opened[name] = open_weights(folder.write())
    opened["b"].share(opened["a"])
    opened["c"].share(opened["a"])
    assert opened["b"].specs is opened["a"].specs
    assert opened["b"].pieces is opened["a"].pieces
    assert opened["c"].pieces is not opened["a"].pieces
    for seed, weights in enumerate(opened.values()):
        assert read_range(weights, "w", 0, 16) == as_numpy(filled((4,), torch.float32, seed)).tobytes()
        assert weights.shard("w") == "__1_0.distcp"


def test_no_two_tensors_share_their_bytes(tmp_path: Path) -> None:
    """Each tensor has records of its own: tied ones are stored twice, and are folded each."""
    folder = Pieces(tmp_path)
    folder.add("a", torch.ones(2))
    folder.add("b", torch.ones(2))
    folder.add("empty", torch.ones(0, 2), [])
    weights = open_weights(folder.write())
    assert len({weights.place(name) for name in weights.specs}) == 3
    assert weights.shard("empty") == ""
    assert read_range(weights, "empty", 0, 0) == b""


def test_it_is_known_where_in_its_shard_a_byte_lies_modulo_64(tmp_path: Path):
    """Whole or cut by rows or columns, any byte: no record is read for it, and memory is placed as the file is."""
    tensor, pieces = filled((40, 33), torch.float32), Pieces(tmp_path / "ck")
    pieces.add("first", filled((7,), torch.uint8))
    pieces.add("whole", tensor)
    pieces.add("rows", tensor, [((0, 0), (11, 33)), ((11, 0), (29, 33))])
    pieces.add("columns", tensor, [((0, 0), (40, 5)), ((0, 5), (40, 28))])
    opened, data = open_weights(pieces.write()), as_numpy(tensor).tobytes()
    shards = {path.name: path.read_bytes() for path in (tmp_path / "ck").iterdir()}
    for name in ("whole", "rows", "columns"):
        for start in range(0, len(data), 36):
            place, size = opened.offset(name, start), 4
            assert not opened._opened
            found = [
                at
                for shard in shards.values()
                for at in range(place % 64, len(shard), 64)
                if shard[at : at + size] == data[start : start + size]
            ]
            assert found, (name, start)
    assert opened.offset("whole", len(data)) == 0
