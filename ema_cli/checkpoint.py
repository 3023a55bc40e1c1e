"""What a checkpoint is to us: named byte arrays that can be read by range, and a clock. No torch, no numpy."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from math import prod
from pathlib import Path
from typing import Protocol

from ema_cli.dtypes import DType
from ema_cli.law.time import Unit
from ema_cli.storage.source import ByteSource, InputFile

MAX_TENSORS = 1 << 19  # in one checkpoint; the largest models have a third of that
MIN_CLOCK = Fraction(1, 10**30)  # above 0; a time has no smaller exponent either
MAX_NAME_CHARS = 1024  # of a tensor; ten times the longest that is met


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
        return self.dtype.nbytes(self.count)

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


class Tensors(Protocol):
    """A set of named byte arrays that can be read by range: what each container format provides.

    A safetensors file, a stored entry of a torch zip, a shard or an object in a bucket all fit.
    `read_into` is called from several threads at once.
    """

    specs: Mapping[str, TensorSpec]  # of every tensor, from headers alone

    def share(self, other: Tensors) -> None:
        """Use the tables of `other` in place of equal ones: a thousand checkpoints of one model need one."""

    def place(self, name: str) -> Hashable:
        """Return where the bytes of tensor `name` lie; tensors with equal places share them."""

    def locate(self, name: str) -> tuple[ByteSource, int] | None:
        """Return the file in which the bytes of tensor `name` lie in C order, and the first; None if they do not."""

    def shard(self, name: str) -> str:
        """Return the name of the file that holds tensor `name`."""

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes of tensor `name` from byte `start`, in C order.

        `start` and the length of `out` are multiples of the element size.

        Raises:
            CheckpointError: where the file ends early, has changed or cannot be read.
        """


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """One saved state of a model: its tensors, its clock, and what a user should know of it.

    Compared, and hashed, by identity: a checkpoint can be a key.

    `name` is how it is shown: relative to the run. `averaged` says why the weights are averages already;
    `has_raw`, whether --weights raw finds the others. `files` are
    those that must not change while we work. `base` is how a folder that `from_pretrained` loads calls its weights
    (model, adapter_model, ...), None for anything else; `folder` is where its configuration lies. `settings` must be
    equal in all checkpoints of a run, beside names, dtypes and shapes. `left_out` are names of what is no tensor.
    `header` is what the output's header must say, too. `types` are those in which tensors are written that are held
    in wider ones. `inner_files` reads the configuration and the tokenizer, where they lie inside the checkpoint; a
    folder with them loads, with the names that `pretrained.loaded_name` gives.
    """

    name: str
    path: Path
    tensors: Tensors
    files: tuple[InputFile, ...]
    format: str
    trainer: str | None = None
    progress: Progress = field(default_factory=Progress)
    averaged: str | None = None
    notes: tuple[str, ...] = ()
    recipe: Mapping[str, object] | None = None
    base: str | None = None
    folder: Path | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    has_raw: bool = False
    header: Mapping[str, str] = field(default_factory=dict)
    types: Mapping[str, DType] = field(default_factory=dict)
    inner_files: Callable[[], Mapping[str, bytes]] | None = None

    @property
    def nbytes(self) -> int:
        """Return the size of the tensors in bytes."""
        return sum(spec.nbytes for spec in self.tensors.specs.values())

    def clock(self, unit: Unit) -> Fraction | None:
        """Return the counter in `unit`, or None where it is not known."""
        found = self.progress.clocks.get(unit)
        return found.value if found else None


@dataclass(slots=True)
class SpecTable:
    """The specs of one checkpoint's tensors."""

    # By text, whose hashes nobody can choose: those of numbers could all be made equal, which would take for ever.
    _known: dict[str, TensorSpec] = field(default_factory=dict)

    def spec(self, dtype: DType, shape: tuple[int, ...]) -> TensorSpec:
        """Return the spec with that dtype and shape."""
        key = f"{dtype.name}{shape}"
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = TensorSpec(dtype, shape)
        return found
