"""A row of `layouts.py`, and the tensors that are selected from a saved object by such a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ema_cli.checkpoint import Averages, Checkpoint, Progress
from ema_cli.dataclass import dataclass
from ema_cli.law.time import Unit
from ema_cli.storage.source import ByteSource, InputFile

if TYPE_CHECKING:
    from ema_cli.formats.pickles.values import TensorRef

StateDict = Mapping[str, object]
"""What a saved object has under the names of tensors: descriptions of tensors, and whatever else stands there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockPlaces:
    """Where one trainer keeps clocks in an object or a file.

    A place is a path of keys: a slash descends, -1 is the last of a list.

    Attributes:
        clocks: places of each counter; the first that is there counts.
        epochs: what the number of an epoch says. "completed": how many are done. "from 0": the number, from 0, of the
            one that was just completed. "next": the number, from 1, of the one that comes next. "in progress": the
            number, from 0, of the one that has begun. "running": the number, from 1, of the one that runs or was just
            completed. "unknown": from 0 or from 1, as only the whole run shows.
        unfinished: a place that holds False where the epoch was not complete.
        batch_in_epoch: a place of the number of batches into the current epoch.
        epoch_length: a place of the number of batches in an epoch, from which epochs follow where none is there.
    """

    clocks: Mapping[Unit, tuple[str, ...]]
    epochs: Literal["completed", "from 0", "next", "in progress", "running", "unknown"] = "completed"
    unfinished: str | None = None
    batch_in_epoch: str | None = None
    epoch_length: str | None = None


@dataclass(frozen=True, slots=True)
class Sets:
    """The sets of weights in one checkpoint, of which one is there at least.

    Attributes:
        raw: the raw weights, None where there are none.
        averages: the averages, None where there are none.
        why: how it is known that averages are in the place of the model; None where the raw weights are.
        where: the place of the averages beside the raw weights.
        sure: whether `why` is certain; else the user's `weights="raw"` is believed.
        equal: whether `why` is only that the weights equal the averages that are kept elsewhere.
        begun: whether the averages have been updated once, so that they are not the untrained model.
        warning: why an average of these may not be what its user wants.
    """

    raw: StateDict | None = None
    averages: StateDict | None = None
    why: str | None = None
    where: str = ""
    sure: bool = True
    equal: bool = False
    begun: bool = True
    warning: str | None = None

    def below(self, prefix: str) -> Sets:
        """Return the sets with a prefix in all names."""
        sets = [
            state and {f"{prefix}{name}": value for name, value in state.items()} for state in (self.raw, self.averages)
        ]
        return replace(self, raw=sets[0], averages=sets[1], where=f"{prefix}{self.where}")


@dataclass(frozen=True, slots=True, eq=False)
class NamedTensor:
    """A tensor of a file whose header lists tensors by name, in the place of a pickle's description of one."""

    name: str
    shape: tuple[int, ...]


class Unpickled(Protocol):
    """A file from which an object was unpickled: what is needed of its bytes."""

    @property
    def source(self) -> ByteSource:
        """Return the bytes."""

    def scalar(self, name: str, ref: TensorRef) -> int | float | None:
        """Return the value of a tensor of one number, None for any other tensor."""

    def beginning(self, name: str, ref: TensorRef, size: int) -> bytes:
        """Return the first bytes of a tensor, at most `size`."""


@dataclass(frozen=True, slots=True)
class Layout(ClockPlaces):
    """Where one trainer keeps weights, clocks and averages in the object that it pickles.

    Attributes:
        trainer: None for a training loop of one's own.
        marks: places that are all there if the trainer saved the object.
        model: places of the model's state dict, of which one is there.
        beside: places of averages that are kept beside the raw weights.
        raw: the place of the raw weights where averages took theirs.
        raw_prefix: what the names of the raw weights begin with there.
        averages_counter: the place of a dict that counts the updates of averages which took the model's place.
        joined: places of further parts of the model, with the prefix of their names in it.
        averaged_if: returns how it is known that the trainer saved its averages as the model, None where it did not.
        surely_averaged: whether that is certain.
        only_averages: whether the trainer saves no raw weights at all.
        note: what a user of the average should know.
        sets: returns raw weights and averages where no place in the row can say it, from the model's tensors.
        clocks_beside: reads the clocks from a file beside the checkpoint, where the object holds none.
        complete: adds what else the object holds for the output; is given the object and a function that reads it
            again.
    """

    trainer: str | None
    marks: tuple[str, ...]
    model: tuple[str, ...]
    beside: tuple[str, ...] = ()
    raw: str | None = None
    raw_prefix: str = ""
    joined: Mapping[str, str] = field(default_factory=dict)
    averages_counter: str | None = None
    averaged_if: Callable[[Mapping[Any, Any]], str | None] | None = None
    surely_averaged: bool = True
    only_averages: bool = False
    note: str | None = None
    sets: Callable[[StateDict, Mapping[Any, Any]], Sets | None] | None = None
    clocks_beside: Callable[[Path], tuple[Progress, tuple[InputFile, ...]]] | None = None
    complete: Callable[[Checkpoint, Any, Callable[[], Any]], Checkpoint] | None = None


@dataclass(slots=True)
class Selection:
    """The tensors that are taken from one saved object, and what is known of them.

    Attributes:
        tensors: what is taken, by name.
        averages: set where these are averages although nobody asked for them.
        holds_both: whether raw weights and averages are there.
        resumable: whether what the trainer needs to go on is there.
        warnings, notes: as of a `Checkpoint`.
        left_out: names of values among the tensors that are no tensors.
        layout: the row of the table by which they were found, if it was one.
    """

    trainer: str | None
    tensors: StateDict
    progress: Progress
    averages: Averages | None = None
    holds_both: bool = False
    resumable: bool = False
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: tuple[str, ...] = ()
    layout: Layout | None = None
