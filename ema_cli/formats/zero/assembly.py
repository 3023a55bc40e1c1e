"""Put a model together: tensors in pieces, those that lie whole in the model states, and what is known of the save."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, replace
from functools import partial
from pathlib import Path

from ema_cli.checkpoint import Checkpoint, Tensors, TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.dtypes import DType
from ema_cli.errors import OTHER_SAVES, CheckpointError
from ema_cli.formats.boxes import Box
from ema_cli.formats.cut import CutTensors
from ema_cli.formats.options import MASTERS_TAKEN, ReadOptions
from ema_cli.formats.pickles.values import TensorRef
from ema_cli.formats.pieces.tensors import PiecedTensors, PieceTable, Run
from ema_cli.formats.shards import ShardedTensors
from ema_cli.formats.spec_table import SpecTable
from ema_cli.formats.torch_save.file import from_torch
from ema_cli.formats.trainers.names import EXTRA_STATE
from ema_cli.formats.trainers.nested import dig
from ema_cli.formats.trainers.prefixes import Renamed
from ema_cli.formats.zero.saved import RankFile
from ema_cli.formats.zero.tables import ModelTables, Shape
from ema_cli.storage.replicas import Replica, Replicas, replica_in
from ema_cli.storage.source import InputFile

_KEPT_WIDE = (
    "the optimizer's float32 weights are averaged, and written in the model's {dtype} (--masters and --like-input: in "
    "float32)"
)


Placed = tuple[int, int, Box]
"""A box of a tensor: the number of its file, the first byte in it, and the box."""


@dataclass(frozen=True, slots=True)
class _Stored:
    """A tensor in pieces, and what it is: runs of it one after another, or boxes that cover it."""

    spec: TensorSpec
    pieces: Sequence[Run] = ()
    boxes: Sequence[Placed] = ()

    def add(self, table: PieceTable) -> int:
        """Add it to a table, and return its number there."""
        return table.add_boxes(self.spec, self.boxes) if self.boxes else table.add(self.pieces)


_Repeated = tuple[str, int, list[tuple[int, int]]]
"""A name, its bytes, and where they lie each time: the number of the file, and the first byte."""


@dataclass(slots=True)
class Assembly:
    """Puts a model's tensors into tables.

    Attributes:
        folder: the folder of the save.
        files: the files, by the numbers that pieces have for them.
        are_placeholders: whether the model states have empty tensors in the place of parameters.
        others: the model states of the other ranks, which have each the model's buffers.
        are_cut: whether each has a part of the model's tensors, and not of rows of them.
        why_not: why what is put together cannot be written over again, in words; empty where it can.
        copies: what is known to hold some of the tensors once more.
        marks: our marks in files beside the model states, None for each without. Where no tensor of a model lies in its
            model states, these are not written anew, and have none.
        stored: the tensors that are put together, by the names under which they are stored.
        repeated: what several ranks have of tensors that do not train: the name of each, its bytes, and where they lie,
            each time with the number of the file.
    """

    folder: Path
    files: list[InputFile]
    are_placeholders: bool
    others: Sequence[RankFile] = ()
    are_cut: bool = False
    why_not: str = ""
    copies: list[Tensors | CutTensors] = field(default_factory=list)
    marks: list[Mapping[str, object] | None] = field(default_factory=list)
    stored: dict[str, _Stored] = field(default_factory=dict)
    repeated: list[_Repeated] = field(default_factory=list)
    _buffers: list[tuple[Path, Tensors]] = field(default_factory=list)  # that the other ranks have
    _specs: SpecTable = field(default_factory=SpecTable)

    def add(self, pieces: Mapping[str, Sequence[Run]], shapes: Mapping[str, Shape], dtype: DType) -> None:
        """Add tensors of one type."""
        for name, parts in pieces.items():
            self.stored[name] = _Stored(self._specs.spec(dtype, shapes[name]), parts)

    def add_boxes(self, name: str, shape: Shape, dtype: DType, boxes: Sequence[Placed]) -> None:
        """Add a tensor that boxes cover."""
        self.stored[name] = _Stored(self._specs.spec(dtype, shape), boxes=boxes)

    def _build(self, whole: Tensors, model: RankFile, tables: ModelTables) -> ShardedTensors:
        """Return all tensors: those of the model states, in their order, and what is stored besides.

        Args:
            whole: the tensors of the model states: those that are not cut, and placeholders of the others.
            model: where these lie.
            tables: what that file says of the model.

        Raises:
            CheckpointError: for one that lies nowhere.
        """
        table = PieceTable()
        specs: dict[str, TensorSpec] = {}
        part_of: dict[str, int] = {}
        tensor_of: dict[str, int] = {}
        numbers: dict[str, int] = {}
        for name in dict.fromkeys((*whole.specs, *self.stored, *tables.shared)):
            kept = tables.shared.get(name, name)
            stored = self.stored.get(kept)
            if stored is not None:
                if kept not in numbers:
                    numbers[kept] = stored.add(table)
                specs[name], tensor_of[name], part_of[name] = stored.spec, numbers[kept], 0
            elif name in whole.specs:  # else the other name of what was not saved
                self._check_lies(name, whole, tables)
                specs[name], part_of[name] = whole.specs[name], 1
        self._add_buffers(whole, specs, part_of)
        copies = [*self.copies, *(theirs for _, theirs in self._buffers)]
        if not self.are_cut:
            copies += [*_weights(whole, specs, part_of), *([] if self.are_placeholders else _frozen(model, specs))]
        own, path = {name: specs[name] for name in tensor_of}, model.file.path
        pieced = PiecedTensors(own, tensor_of, table, self.files, path.name, self.why_not)
        return ShardedTensors(specs, part_of, [pieced, whole], copies)

    def _add_buffers(self, whole: Tensors, specs: Mapping[str, TensorSpec], part_of: Mapping[str, int]) -> None:
        """Add the buffers of the other ranks' model states."""
        buffers = [name for name in whole.specs if part_of[name] and specs[name].dtype.averaged]
        for other in self.others if buffers else ():
            module = dig(other.content.root, "module")
            if isinstance(module, dict) and all(name in module for name in buffers):
                theirs = other.content.tensors({name: module[name] for name in buffers})
                self._buffers.append((other.file.path, theirs))
                unlike = next((name for name in buffers if theirs.specs[name] != specs[name]), None)
                if unlike is not None:
                    self.why_not = f"'{unlike}' in {other.file.path.name} is of another shape or type"

    def _check_lies(self, name: str, whole: Tensors, tables: ModelTables) -> None:
        is_known = name in tables.buffers or EXTRA_STATE in name  # the latter is empty where a module has none
        if self.are_placeholders and whole.specs[name].shape == (0,) and not is_known:
            raise CheckpointError(
                f"'{name}' is a parameter, but no table there says where its parts lie",
                subject=self.folder,
                hint="let a newer DeepSpeed save it: older ones leave out what does not train",
            )

    def finish(self, model: RankFile, tables: ModelTables, options: ReadOptions) -> Checkpoint:
        """Return the checkpoint: what the model states say of it, with the tensors that were put together."""
        marks = (mark for mark in (model.content.mark, *self.marks) if mark is not None)
        whole = from_torch(model.file, replace(model.content, mark=next(marks, None)), options)
        tensors = self._build(whole.tensors, model, tables)
        narrow = {
            name: spec.dtype
            for name, spec in whole.tensors.specs.items()
            if spec.dtype.is_narrow and tensors.specs[name].dtype != spec.dtype
        }
        notes, dtypes = list(whole.notes), dict[str, DType]()
        if narrow and options.masters:
            notes.append(MASTERS_TAKEN)
        elif narrow:
            dtypes = narrow
            notes.append(_KEPT_WIDE.format(dtype=next(iter(narrow.values())).torch))
        return replace(
            whole,
            tensors=tensors,
            files=tuple(self.files),
            notes=tuple(notes),
            output_dtypes=dtypes,
            replicas=partial(
                _replicas, self.repeated, self.files, ((model.file.path, whole.tensors), *self._buffers), options
            ),
        )


def _replicas(
    repeated: Sequence[_Repeated],
    files: Sequence[InputFile],
    states: Sequence[tuple[Path, Tensors]],
    options: ReadOptions,
) -> Iterator[Replicas]:
    """Yield what several ranks have of frozen parameters, and their buffers; see `Assembly.repeated`."""
    for name, nbytes, places in repeated:
        yield Replicas(name, nbytes, [replica_in(files[number], start) for number, start in places], OTHER_SAVES)
    yield from _buffers(states, options)


def _buffers(states: Sequence[tuple[Path, Tensors]], options: ReadOptions) -> Iterator[Replicas]:
    """Yield the buffers that the model states of all ranks have, each with its file."""
    (_, first), *others = states
    for name in dict.fromkeys(name for _, tensors in others for name in tensors.specs if not options.copies(name)):
        alike = [(path, tensors) for path, tensors in states if tensors.specs.get(name) == first.specs[name]]
        each = [Replica(path, partial(tensors.read_into, name)) for path, tensors in alike]
        yield Replicas(name, first.specs[name].nbytes, each, None)


def _frozen(model: RankFile, specs: Mapping[str, TensorSpec]) -> list[Tensors]:
    """Return what the model states hold once more, whole, of parameters that do not train: for DeepSpeed's script."""
    fragments = model.content.root.get("frozen_param_fragments")
    stored = {name: value for name, value in fragments.items() if name in specs} if isinstance(fragments, dict) else {}
    if not stored or not all(isinstance(value, TensorRef) for value in stored.values()):
        return []
    tensors = model.content.tensors(stored)
    alike = {name: name for name, spec in tensors.specs.items() if spec == specs[name]}
    return [Renamed({name: tensors.specs[name] for name in alike}, alike, tensors)] if alike else []


def _weights(whole: Tensors, specs: Mapping[str, TensorSpec], part_of: Mapping[str, int]) -> list[Tensors]:
    """Return what the model states hold once more: weights, in the model's type."""
    again = [name for name, spec in whole.specs.items() if not part_of[name] and spec.shape == specs[name].shape]
    names = dict(zip(again, again, strict=True))
    return [Renamed({name: whole.specs[name] for name in again}, names, whole)] if again else []
