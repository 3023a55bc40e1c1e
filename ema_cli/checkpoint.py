"""What a checkpoint is to us: named byte arrays that can be read by range, and a clock. No torch, no numpy."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from math import prod
from pathlib import Path
from typing import Literal, Protocol

from ema_cli.input_file import InputFile
from ema_cli.units import Unit


@dataclass(frozen=True, slots=True)
class DType:
    """An element type, under the name that safetensors gives it. `itemsize` is in bytes."""

    name: str
    itemsize: int
    kind: Literal["float", "complex", "integer"]

    @property
    def averaged(self) -> bool:
        """Return whether tensors of this type are averaged; the others are copied from the newest."""
        return self.kind != "integer"


# In the order in which safetensors lays tensors out in a file.
DTYPES: Mapping[str, DType] = {
    dtype.name: dtype
    for dtype in (
        DType("U64", 8, "integer"),
        DType("I64", 8, "integer"),
        DType("F64", 8, "float"),
        DType("C64", 8, "complex"),
        DType("F32", 4, "float"),
        DType("U32", 4, "integer"),
        DType("I32", 4, "integer"),
        DType("BF16", 2, "float"),
        DType("F16", 2, "float"),
        DType("U16", 2, "integer"),
        DType("I16", 2, "integer"),
        DType("I8", 1, "integer"),
        DType("U8", 1, "integer"),
        DType("BOOL", 1, "integer"),
    )
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Dtype and shape of a tensor, without its data."""

    dtype: DType
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Return the number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Return the size in bytes."""
        return self.count * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype.name} [{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class Clock:
    """One counter of a checkpoint, and where it was found: file, sidecar, name, spacing or epoch length."""

    value: Fraction
    source: str


@dataclass(frozen=True, slots=True)
class Progress:
    """A checkpoint's counters when it was saved.

    `epoch_origin_unknown`: the epoch may have been counted from 0 or from 1; the whole run tells.
    `batch_in_epoch`: batches into the current epoch, where the trainer says so (Composer).
    """

    clocks: Mapping[Unit, Clock] = field(default_factory=dict)
    epoch_origin_unknown: bool = False
    batch_in_epoch: int | None = None


class Weights(Protocol):
    """A set of named byte arrays that can be read by range: what each container format provides.

    A safetensors file, a stored entry of a torch zip, a shard or an object in a bucket all fit.
    `read_into` is called from several threads at once.
    """

    specs: Mapping[str, TensorSpec]  # of every tensor, from headers alone

    def share(self, other: Weights) -> None:
        """Use the tables of `other` in place of equal ones: a thousand checkpoints of one model need one."""

    def place(self, name: str) -> Hashable:
        """Return where the bytes of tensor `name` lie; tensors with equal places share them."""

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes of tensor `name` from byte `start`, in C order.

        `start` and the length of `out` are multiples of the element size.

        Raises:
            CheckpointError: where the file ends early, has changed or cannot be read.
        """


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One saved state of a model: its weights, its clock, and what a user should know of it.

    `name` is how it is shown: relative to the run. `averaged` says why the weights are averages already.
    """

    name: str
    path: Path
    weights: Weights
    files: tuple[InputFile, ...]
    format: str
    trainer: str | None = None
    progress: Progress = field(default_factory=Progress)
    averaged: str | None = None
    notes: tuple[str, ...] = ()
    recipe: Mapping[str, object] | None = None

    @property
    def nbytes(self) -> int:
        """Return the size of the weights in bytes."""
        return sum(spec.nbytes for spec in self.weights.specs.values())

    def clock(self, unit: Unit) -> Fraction | None:
        """Return the counter in `unit`, or None where it is not known."""
        found = self.progress.clocks.get(unit)
        return found.value if found else None
