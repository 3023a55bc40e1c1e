"""A checkpoint: named tensors that can be read by range, and clocks. No torch, no numpy."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from fractions import Fraction
from math import prod
from pathlib import Path
from typing import Protocol, TypeVar

from ema_cli.dataclass import dataclass
from ema_cli.dtypes import DType
from ema_cli.errors import CheckpointError
from ema_cli.law.time import Unit
from ema_cli.storage.replicas import Replicas, no_replicas
from ema_cli.storage.source import ByteSource, InputFile
from ema_cli.text import plural

MAX_TENSORS = 1 << 19  # in one checkpoint; the largest models have a third of that
MAX_DIMENSIONS = 64  # of a tensor, as in torch and numpy
MAX_ELEMENTS = 1 << 62  # of a tensor; more than any file holds
MAX_NAME_CHARS = 1024  # of a tensor; ten times the longest that is met
MIN_CLOCK = Fraction(1, 10**30)  # above 0; a time has no smaller exponent either


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


def check_tensor_name(name: str, subject: object) -> None:
    """Check that an output can hold a tensor of this name.

    Raises:
        CheckpointError: about `subject`, for a name that is too long, is no valid text, or is safetensors' own.
    """
    if len(name) > MAX_NAME_CHARS:
        raise CheckpointError(f"'{name[:40]}...' is a name of {len(name)} characters", subject=subject)
    try:
        name.encode()
    except UnicodeEncodeError:
        raise CheckpointError(f"the tensor name '{name[:60]}' is not valid text", subject=subject) from None
    if name == "__metadata__":
        raise CheckpointError("a tensor is named '__metadata__', which safetensors keeps for itself", subject=subject)


@dataclass(frozen=True, slots=True)
class Clock:
    """One counter of a checkpoint. `source` says where it comes from: file, sidecar, name, spacing, epoch length."""

    value: Fraction
    source: str


@dataclass(frozen=True, slots=True)
class Progress:
    """A checkpoint's counters when it was saved.

    Attributes:
        clocks: the counters, by their unit.
        epoch_origin_unknown: the epoch may have been counted from 0 or from 1; only the whole run shows which.
        batch_in_epoch: batches into the current epoch, where the trainer records them (Composer).
    """

    clocks: Mapping[Unit, Clock] = field(default_factory=dict)
    epoch_origin_unknown: bool = False
    batch_in_epoch: int | None = None


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """Bytes of a file for which the file itself has a checksum.

    Attributes:
        tensor: the name of a tensor that lies in them.
        source: the file, or a region of it.
        start, size: where in `source` the bytes are.
        checksum: their CRC-32 by the file; 0 where its writer computed none.
    """

    tensor: str
    source: ByteSource
    start: int
    size: int
    checksum: int


Run = tuple[ByteSource, int, int]
"""A run of bytes: the file, the first byte in it, and the number of bytes."""


class Tensors(Protocol):
    """A set of named tensors that can be read by range: what each container format provides.

    `specs` comes from headers alone. `read_into` is called from several threads at once.
    """

    specs: Mapping[str, TensorSpec]

    def share(self, other: Tensors) -> None:
        """Use the tables of `other` in place of equal ones: a thousand checkpoints of one model need one."""

    def place(self, name: str) -> Hashable:
        """Return where the bytes of tensor `name` lie; tied tensors, which are stored once, have equal places."""

    def locate(self, name: str) -> tuple[ByteSource, int] | None:
        """Return the file that holds tensor `name` in C order, and its first byte there; None if no file does."""

    def runs(self, name: str, start: int, size: int) -> Sequence[Run] | None:
        """Return the runs of bytes that make up `size` bytes of tensor `name` from byte `start`; None if none do.

        Raises:
            CheckpointError: where that has to be looked up in a file, and it cannot be read.
        """

    def offset(self, name: str, start: int) -> int:
        """Return where in its file byte `start` of tensor `name` lies, modulo 64 at least; 0 where nobody knows."""

    def shard(self, name: str) -> str:
        """Return the name of the file that holds tensor `name`, relative to the checkpoint's folder."""

    def stored_records(self) -> Iterator[StoredRecord]:
        """Yield the stored records in which the tensors lie, where the format has a checksum for each."""

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes of tensor `name` from byte `start`, in C order.

        `start` and the length of `out` are multiples of the element size.

        Raises:
            CheckpointError: where the file ends early, has changed or cannot be read.
        """


T = TypeVar("T")


def shared(mine: T, theirs: T) -> T:
    """Return `theirs` if it equals `mine`, so that equal tables of two checkpoints become one object."""
    return theirs if mine == theirs else mine


@dataclass(frozen=True, slots=True)
class Averages:
    """That the tensors of a checkpoint are averages already, although nobody asked for averages.

    Attributes:
        reason: how that is known, in words.
        has_raw: whether the raw weights lie beside them, so that `weights="raw"` takes those.
        sure: whether the contents show it; else the user's `weights="raw"` is believed.
        equal: whether all that shows it is that the weights equal the averages kept beside them, as they do, too, where
            those have just begun.
        begun: whether they have been updated once, so that they are averages of anything.
    """

    reason: str
    has_raw: bool = False
    sure: bool = True
    equal: bool = False
    begun: bool = True


class InnerFiles(Protocol):
    """Configuration and tokenizer that lie inside a checkpoint, where a folder that loads has files."""

    def read(self) -> Mapping[str, bytes]:
        """Return the content of the files, by name.

        Raises:
            CheckpointError: where the content is damaged, too much, or not kept as the trainer keeps it.
        """

    def loaded_name(self, name: str) -> str:
        """Return the name that the tensor `name` of the checkpoint has in a folder with these files."""


@dataclass(frozen=True, slots=True)
class Pretrained:
    """What makes a folder with the tensors one that `from_pretrained` loads.

    Attributes:
        base: the name of the file of tensors in such a folder, without its suffix: model, adapter_model, ...
        folder: where configuration and tokenizer lie, None where there is no such folder.
        inner_files: the same, where they lie inside the checkpoint.
        bases: the same as `base` of further models, by the folders in that folder in which they lie. The name of a
            tensor there begins with the folder.
    """

    base: str
    folder: Path | None = None
    inner_files: InnerFiles | None = None
    bases: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """What the tensors of an adapter mean.

    Attributes:
        values: must be equal in all checkpoints of a run, as names, dtypes and shapes must.
        headers: what the header of a safetensors file with such tensors must say, by the folder in which it lies in
            the checkpoint; empty for the checkpoint's own.
    """

    values: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """One saved state of a model: its tensors, its clocks, and what a user should know of it.

    Compared, and hashed, by identity: a checkpoint can be a key.

    Attributes:
        name: how it is shown: its path from the folder of the run.
        files: all files that were read; none may change while they are averaged.
        format: the container, in words.
        averages: set where the tensors are averages already.
        holds_both: whether it holds raw weights and averages, so that its contents say which these are.
        resumable: whether it holds what its trainer needs to go on: it was not saved for its weights alone.
        mark: what ema-cli's mark in it says of how it was averaged; None where ema-cli did not make it.
        warnings: why an average with it may not be what its user wants, in words.
        notes: what is worth saying of it, where nothing is wrong.
        left_out: names of values among the tensors that are no tensors.
        pretrained: set where a folder that `from_pretrained` loads can be written.
        adapter: settings of an adapter; empty for a whole model.
        output_dtypes: the dtype in which a tensor is written that is stored in a wider one, by name.
        unchanged: names of tensors that are the same in all checkpoints of the run: those of a base model that none of
            its adapters changes.
        base: the model into which it was merged, where it is an adapter.
        replicas: finds, in headers that are read anew, what further ranks have of what is read of the first.
    """

    name: str
    path: Path
    tensors: Tensors
    files: tuple[InputFile, ...]
    format: str
    trainer: str | None = None
    progress: Progress = field(default_factory=Progress)
    averages: Averages | None = None
    holds_both: bool = False
    resumable: bool = False
    mark: Mapping[str, object] | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    pretrained: Pretrained | None = None
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    output_dtypes: Mapping[str, DType] = field(default_factory=dict)
    unchanged: frozenset[str] = frozenset()
    base: Checkpoint | None = None
    replicas: Callable[[], Iterable[Replicas]] = no_replicas

    def __repr__(self) -> str:
        clocks = ", ".join(f"{clock.value}{unit}" for unit, clock in self.progress.clocks.items()) or "no clock"
        return f"<Checkpoint {self.name}: {clocks}, {plural(len(self.tensors.specs), 'tensor')}>"

    @property
    def averaged(self) -> str | None:
        """Return how it is known that the tensors are averages already, None where they are not."""
        return self.averages.reason if self.averages else None

    @property
    def nbytes(self) -> int:
        """Return the size of the tensors in bytes."""
        return sum(spec.nbytes for spec in self.tensors.specs.values())

    def clock(self, unit: Unit) -> Fraction | None:
        """Return the counter in `unit`, or None where it is not known."""
        clock = self.progress.clocks.get(unit)
        return clock.value if clock else None
