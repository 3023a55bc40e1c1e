"""The kernel of numpy against one of plain loops: any other kernel can take its place."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from ema_cli.dtypes import DTYPES, DType
from ema_cli.folding.fold import Average
from ema_cli.folding.fold import fold as run_fold
from ema_cli.folding.kernel import Kernel, Load, NonFiniteElements, ReadEnd, Spans, SumSpec, WeightTable, WorkspaceSize
from ema_cli.folding.kernel.numpy_buffers import Buffers
from ema_cli.folding.kernel.numpy_kernel import NUMPY
from tests.folding.in_memory import MemorySink, checkpoint, small


def rounded(number: float) -> float:
    """Round to float32."""
    return float(np.float32(number))


@dataclass
class LoopSums:
    """The sums of one block, a number at a time, each step computed in float64 and rounded to float32."""

    spec: SumSpec
    stored: list[bytearray] = field(default_factory=list)
    values: dict[int, list[float]] = field(default_factory=dict)

    def rows(self, numbers: Sequence[int], offsets: Sequence[int]) -> list[memoryview]:
        self.stored = [bytearray(self.spec.dtypes[number].nbytes(self.spec.count)) for number in numbers]
        return [memoryview(row) for row in self.stored]

    def add(self, numbers: Sequence[int]) -> None:
        for number, row in zip(numbers, self.stored, strict=True):
            if self.spec.dtypes[number].name == "BF16":
                row = b"".join(b"\0\0" + row[at : at + 2] for at in range(0, len(row), 2))
            self.values[number] = list(struct.unpack(f"<{self.spec.count}f", row))

    def reads(self, numbers: Sequence[int]) -> bool:
        return False

    def read_and_add(self, numbers: Sequence[int], spans: Spans, stop: bytearray) -> ReadEnd:
        raise AssertionError("it reads no files")

    def complete(self, average: int) -> bool:
        return True

    def settle(self, average: int, load: Load) -> NonFiniteElements:
        raise AssertionError("all sums are complete")

    def encode(self, average: int) -> memoryview:
        weights, base = self.spec.weights.rows[average], self.spec.weights.newest[average]
        plain = self.spec.target.name == "BF16"
        sums = []
        for position, newest in enumerate(self.values[base]):
            total = 0.0
            for number in range(base, -1, -1):
                value = self.values[number][position]
                term = value if plain else rounded(value - newest)
                total = rounded(total + rounded(rounded(weights[number]) * term))
            sums.append(total if plain else rounded(newest + total))
        tensor = torch.tensor(sums, dtype=torch.float32)
        stored = tensor.bfloat16().view(torch.int16) if plain else tensor
        return memoryview(stored.numpy().tobytes())


class LoopWorkspace:
    """The memory of one thread."""

    def begin(self, spec: SumSpec) -> LoopSums:
        return LoopSums(spec)

    def stored(self, nbytes: int, offset: int) -> memoryview:
        return memoryview(bytearray(nbytes))

    def is_finite(self, dtype: DType, stored: memoryview) -> bool:
        return True

    def find_non_finite(self, dtype: DType, stored: memoryview) -> NonFiniteElements:
        raise AssertionError("all blocks are finite")


class LoopKernel:
    """Finite float32 and bfloat16, by the rules that all kernels obey."""

    def worker_bytes(self, size: WorkspaceSize) -> int:
        return 0

    def workspace(self, size: WorkspaceSize) -> LoopWorkspace:
        return LoopWorkspace()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("row_bytes", [64, 1 << 10])
def test_a_kernel_of_plain_loops_gives_the_same_bytes(dtype: torch.dtype, row_bytes: int):
    """The rules of kernels fix every bit: two averages in one fold are those of numbers that are rounded one by one."""
    random = torch.Generator().manual_seed(2)
    saved = [
        checkpoint({"w": torch.randn(50, generator=random).to(dtype), "n": torch.tensor([step])}) for step in range(5)
    ]
    specs = saved[-1].tensors.specs

    def folded(kernel: Kernel) -> list[dict[str, bytearray]]:
        written = [{name: bytearray(spec.nbytes) for name, spec in specs.items()} for _ in range(2)]
        averages = [
            Average(weights, MemorySink(tensors))
            for weights, tensors in zip(([0.1, 0.2, 0.3, 0.2, 0.2], [0.7, 0.0, 0.2, 0.1, 0.0]), written, strict=True)
        ]
        targets = {name: spec.dtype for name, spec in specs.items()}
        run_fold(saved, averages, targets, sizes=small(row_bytes), kernel=kernel)
        return written

    assert folded(NUMPY) == folded(LoopKernel())


def test_the_memory_of_a_workspace_is_what_it_says():
    """What is planned for a thread is what its buffers take."""
    for size in (WorkspaceSize(4, 1 << 16, 1, 1), WorkspaceSize(2, 1 << 12, 3, 2)):
        buffers = Buffers(size)
        arrays = [value for value in vars(buffers).values() if isinstance(value, np.ndarray)]
        assert sum(array.nbytes for array in arrays) == NUMPY.worker_bytes(size)


def test_the_newest_checkpoint_that_enters_has_a_weight():
    """A table of weights knows the newest of each average, and which different ones there are."""
    table = WeightTable.of([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert table.newest == (1, 0, 1)
    assert table.bases == [1, 0]


def test_nan_in_a_lone_checkpoint_is_found_and_its_infinity_is_not():
    """NaN is wrong; an infinity is equal in all of one checkpoint. A complex element counts as one."""
    workspace = NUMPY.workspace(WorkspaceSize(2, 1 << 10, 1, 1))
    values = torch.tensor([1, complex(0, torch.nan), complex(torch.inf, 0), 2], dtype=torch.complex64)
    stored = memoryview(values.view(torch.uint8).numpy())
    assert not workspace.is_finite(DTYPES["C64"], stored)
    assert workspace.is_finite(DTYPES["C64"], stored[:8])
    found = workspace.find_non_finite(DTYPES["C64"], stored)
    assert (found.wrong.tolist(), found.culprits.tolist(), found.infinite.tolist()) == ([1], [0], [2])
