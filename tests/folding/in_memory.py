"""Checkpoints in memory, and folds of them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from ema_cli.checkpoint import Checkpoint, TensorSpec
from ema_cli.dtypes import DTYPES, DType
from ema_cli.errors import CheckpointError
from ema_cli.folding.buffers import BufferSizes
from ema_cli.folding.fold import Average, Folded
from ema_cli.folding.fold import fold as run_fold
from ema_cli.folding.sink import TensorRange

NAMES = {
    torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16",
    torch.complex64: "C64", torch.complex128: "C128", torch.int64: "I64", torch.bool: "BOOL", torch.uint8: "U8",
}  # fmt: skip


class MemoryTensors:
    """Tensors that lie in memory, and count how often each byte is read."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], ties: Mapping[str, str] | None = None) -> None:
        self.bytes = {name: tensor.contiguous().view(-1).view(torch.uint8).numpy() for name, tensor in tensors.items()}
        self.specs: Mapping[str, TensorSpec] = {
            name: TensorSpec(DTYPES[NAMES[tensor.dtype]], tuple(tensor.shape)) for name, tensor in tensors.items()
        }
        self.ties = ties or {}
        self.reads = {name: np.zeros(len(data), dtype=int) for name, data in self.bytes.items()}
        self.fails_at: str | None = None

    def place(self, name: str) -> Hashable:
        return self.ties.get(name, name)

    def offset(self, name: str, start: int) -> int:
        """Return 0: there is no file."""
        return 0

    def runs(self, name: str, start: int, size: int) -> None:
        return None

    def locate(self, name: str) -> None:
        return None

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        if name == self.fails_at:
            raise CheckpointError(f"step: '{name}' cannot be read")
        self.reads[name][start : start + len(out)] += 1
        out[:] = memoryview(self.bytes[name])[start : start + len(out)]


def checkpoint(
    tensors: Mapping[str, torch.Tensor], name: str = "step-1", ties: Mapping[str, str] | None = None
) -> Checkpoint:
    return Checkpoint(name, Path(name), MemoryTensors(tensors, ties), (), "memory")


class MemorySink:
    """A sink that puts what a fold writes into `written`, of the size of each tensor."""

    def __init__(self, written: Mapping[str, bytearray]) -> None:
        self.written = written

    def write(self, ranges: Sequence[TensorRange], data: memoryview) -> None:
        position = 0
        for part in ranges:
            self.written[part.name][part.start : part.start + part.size] = data[position : position + part.size]
            position += part.size
        assert position == len(data)

    def give_up(self) -> None: ...


def small(nbytes: int, threads: int = 1, rows: int = 2) -> BufferSizes:
    """Return sizes with rows of so few bytes that tensors do not fit into one."""
    return BufferSizes(threads, threads, rows, nbytes)


def fold(
    checkpoints: Sequence[Checkpoint],
    weights: Sequence[float],
    dtype: str | None = None,
    sizes: BufferSizes | None = None,
    **options: object,
) -> tuple[dict[str, torch.Tensor], Folded]:
    """Fold into memory and return the tensors."""
    specs = checkpoints[-1].tensors.specs
    targets: dict[str, DType] = {
        name: DTYPES[dtype] if dtype and spec.dtype.kind == "float" else spec.dtype for name, spec in specs.items()
    }
    written = {name: bytearray(spec.count * targets[name].itemsize) for name, spec in specs.items()}

    steps: list[tuple[int, int]] = []
    done = run_fold(
        checkpoints,
        [Average(weights, MemorySink(written))],
        targets,
        sizes=sizes,
        progress=lambda *step: steps.append(step),
        **options,  # type: ignore[arg-type]
    )
    assert steps[-1] == (done.bytes_read, done.bytes_read), "all that was announced has been read"
    torch_dtypes = {name: dtype for dtype, name in NAMES.items()}
    tensors = {
        name: torch.frombuffer(data, dtype=torch_dtypes[targets[name].name]).view(specs[name].shape)
        for name, data in written.items()
        if data
    }
    return tensors, done


def model(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(37, 11, generator=random, dtype=torch.float64).to(dtype),
        "scalar": torch.tensor(float(seed)).to(dtype),
        "empty": torch.empty(0, 3, dtype=dtype),
        "count": torch.tensor([seed, -seed]),
        "mask": torch.tensor([seed % 2 == 0, True, False]),
    }


WEIGHTS = [0.125, 0.25, 0.1, 0.525]
