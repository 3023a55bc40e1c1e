"""Blocks that the kernel reads by itself: the same bytes and the same errors as where Python reads them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import CheckpointError
from ema_cli.folding import reading
from ema_cli.folding.blocks import Group, Piece
from ema_cli.folding.buffers import BufferSizes
from ema_cli.folding.kernel.choice import chosen_kernel
from ema_cli.folding.kernel.numpy_kernel import NUMPY
from ema_cli.folding.reading import FoldReader
from ema_cli.folding.spans import spans_in
from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import ReadOptions
from ema_cli.storage.local_file import LocalFile
from ema_cli.storage.source import FileRegion
from tests.folding.in_memory import fold
from tests.formats.dcp_folders import Pieces

pytestmark = pytest.mark.skipif(chosen_kernel().kernel is NUMPY, reason="numpy reads no files")
SIZES = BufferSizes(threads=2, most_workers=2, rows=16, row_bytes=1 << 14)


def run(folder: Path, number: int, form: str = "safetensors") -> list[Checkpoint]:
    """Return checkpoints with tensors of several dtypes, one of them larger than a block, at odd offsets."""
    random = torch.Generator().manual_seed(0)
    for step in range(number):
        tensors = {
            "large": torch.randn(20_001, generator=random).bfloat16(),
            "odd": torch.randint(0, 9, (3,), dtype=torch.uint8, generator=random),
            "wide": torch.randn(777, generator=random),
            **{f"small.{each}": torch.randn(5, generator=random) for each in range(4)},
        }
        path = folder / f"step-{step:02}.{form}"
        if form == "safetensors":
            save_file(tensors, path)
        elif form == "pt":
            torch.save(tensors, path)
        else:
            write_parts(path, tensors)
    return [open_checkpoint(path, ReadOptions()) for path in sorted(folder.iterdir())]


def write_parts(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a folder of torch.distributed.checkpoint: tensors cut at odd places, and one matrix in its columns."""
    parts = Pieces(folder)
    for name, tensor in tensors.items():
        cut = len(tensor) // 3
        parts.add(name, tensor, [((0,), (cut,)), ((cut,), (len(tensor) - cut,))])
    matrix = tensors["wide"].view(21, 37)
    parts.add("matrix", matrix, [((0, 0), (21, 10)), ((0, 10), (21, 27))])
    parts.write()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the blocks that the kernel reads by itself."""
    found: list[int] = []
    real = reading.read_and_add

    def counted(*arguments: object) -> object:
        found.append(1)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(reading, "read_and_add", counted)
    return found


@pytest.mark.parametrize("form", ["safetensors", "pt", "parts"])
@pytest.mark.parametrize("number", [3, 35])
def test_the_average_is_that_of_what_python_reads(
    tmp_path: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch, form: str, number: int
):
    """For more checkpoints than one call takes, and in each format; the same bytes are counted as read."""
    checkpoints = run(tmp_path, number, form)
    weights = [1 / number] * number
    found, done = fold(checkpoints, weights, sizes=SIZES)
    assert calls
    monkeypatch.setattr(FoldReader, "read_and_add", lambda *_: False)
    expected, again = fold(checkpoints, weights, sizes=SIZES)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert done.bytes_read == again.bytes_read


def test_a_file_that_is_cut_short_meanwhile_is_an_error(tmp_path: Path, calls: list[int]):
    """Its name, the byte at which it ends now, and the first tensor that is not whole."""
    checkpoints = run(tmp_path, 3)
    os.truncate(tmp_path / "step-01.safetensors", 20_000)
    with pytest.raises(CheckpointError, match="ends at byte 20000 while it is read, in 'large'") as raised:
        fold(checkpoints, [0.2, 0.3, 0.5], sizes=SIZES)
    assert raised.value.subject == tmp_path / "step-01.safetensors"
    assert calls


def test_a_file_that_is_replaced_meanwhile_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where its descriptor was closed, and it is opened again."""
    with monkeypatch.context() as patch:
        patch.setattr("ema_cli.storage.local_file._MAX_OPEN", 1)
        checkpoints = run(tmp_path, 3)
    path = tmp_path / "step-00.safetensors"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="changed while it was used"):
        fold(checkpoints, [0.2, 0.3, 0.5], sizes=SIZES)


def test_blocks_of_too_many_files_are_read_in_python(tmp_path: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch):
    """A row a file: threads that read sixteen of eight shards each would come to the system's limit."""
    checkpoints = run(tmp_path, 5)
    expected, done = fold(checkpoints, [0.2] * 5, sizes=SIZES)
    monkeypatch.setattr("ema_cli.storage.local_file._MAX_OPEN", 4)
    monkeypatch.setattr("ema_cli.folding.spans.Spans", None)  # nothing comes so far
    calls.clear()
    found, again = fold(checkpoints, [0.2] * 5, sizes=SIZES)
    assert calls
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert done.bytes_read == again.bytes_read


def spans(checkpoint: Checkpoint, names: Sequence[str]) -> object:
    """Return where whole tensors lie."""
    tensors, pieces = checkpoint.tensors, []
    for name in names:
        spec = tensors.specs[name]
        pieces.append(Piece(Group((name,), spec, ((0, spec.count),), spec.dtype, averaged=True), 0, spec.count))
    return spans_in(LocalFile, tensors, pieces, pieces[0].group.spec.dtype)


def test_many_small_runs_are_left_to_others(tmp_path: Path):
    """Tensors that do not touch are no spans from the ninth on: several of them come with one read elsewhere."""
    torch.save({f"{number:02}": torch.zeros(3) for number in range(9)}, tmp_path / "model.pt")
    checkpoint, names = open_checkpoint(tmp_path / "model.pt", ReadOptions()), [f"{number:02}" for number in range(9)]
    found = spans(checkpoint, names[:8])
    assert isinstance(found, list)
    assert [size for _, _, size in found] == [12] * 8
    assert spans(checkpoint, names) is None


def test_spans_are_where_the_tensors_lie(tmp_path: Path):
    """Neighbours are one span; a region of a file is the file; what lies in no local file has none."""
    (checkpoint,) = run(tmp_path, 1)
    tensors = checkpoint.tensors
    file, start = tensors.locate("wide")  # type: ignore[misc]
    assert spans(checkpoint, ["wide"]) == [(file, start, 4 * 777)]
    _, first = tensors.locate("small.0")  # type: ignore[misc]
    assert spans(checkpoint, [f"small.{each}" for each in range(4)]) == [(file, first, 80)]

    class Inside:
        specs = tensors.specs
        size = 4 * 777

        def runs(self, _: str, at: int, nbytes: int) -> list[tuple[FileRegion, int, int]]:
            return [(FileRegion(FileRegion(file, 1, file.size - 1), start - 1, self.size), at, nbytes)]

    inside = Inside()
    placed = replace(checkpoint, tensors=inside)  # type: ignore[arg-type]
    assert spans(placed, ["wide"]) == [(file, start, 4 * 777)]
    inside.size -= 1
    assert spans(placed, ["wide"]) is None
