"""Open a folder of DeepSpeed's universal format: a file for each parameter, whole, beside the model states of a save.

`ds_to_universal` makes it, and Megatron-DeepSpeed's trainings go on from it with other numbers of ranks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from ema_cli.checkpoint import Checkpoint
from ema_cli.dataclass import dataclass
from ema_cli.errors import OTHER_SAVES, CheckpointError, IncompleteCheckpoint
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.pickles.values import TensorRef
from ema_cli.formats.torch_save.content import TorchFile
from ema_cli.formats.torch_save.file import open_torch
from ema_cli.formats.trainers.folders import DEEPSPEED_PART, DEEPSPEED_UNIVERSAL, UNIVERSAL_WEIGHT
from ema_cli.formats.trainers.names import EXTRA_STATE
from ema_cli.formats.zero.assembly import Assembly
from ema_cli.formats.zero.checkpoint import add_frozen, tables_of
from ema_cli.formats.zero.cut_model import CutModel
from ema_cli.formats.zero.cutting import Row
from ema_cli.formats.zero.experts import SAVE_WHOLE, has_automatic_experts, names_of_routers, shape_of_all
from ema_cli.formats.zero.saved import RankFile, open_grid, open_tensor_ranks
from ema_cli.formats.zero.tables import ModelTables, Shape, vectors_at
from ema_cli.storage.location import location

_PARAM = "param"


def open_universal(folder: Path, names: Collection[str], options: ReadOptions) -> Checkpoint:
    """Open the model in a folder of the universal format.

    Raises:
        IncompleteCheckpoint: where the file of a parameter, or of a rank, is missing.
        CheckpointError: where files and tables do not fit each other.
    """
    is_stage_3 = any(map(DEEPSPEED_PART.search, names))
    grid = open_grid(folder, names, options.before) if is_stage_3 else []
    models = (
        [model for row in grid for model in row] if is_stage_3 else open_tensor_ranks(folder, names, options.before)
    )
    # Where ranks cut tensors, the model states have parts of them, and their tables are of these.
    is_cut = not is_stage_3 and len(models) > 1
    if (is_cut or len(grid) > 1) and has_automatic_experts(models[0].content.root):
        raise CheckpointError("ranks cut its tensors, and have experts of their own", subject=folder, hint=SAVE_WHOLE)
    tables = _tables(grid) if is_stage_3 else tables_of(models[:1], with_experts=True)
    routers = names_of_routers(models[0].content.root, tables.shapes)
    tables = replace(tables, shared={**tables.shared, **routers})
    files = [model.file for model in models]
    assembly = Assembly(folder, files, are_placeholders=is_stage_3, others=models[1:], are_cut=is_cut)
    cut = CutModel(assembly, models) if is_cut else None
    parameters, again = _stored_in(folder, models[0], tables, is_cut=is_cut)
    for name in parameters:
        file = _File.open(assembly, name)
        if cut is None:
            file.add(assembly, None if len(grid) > 1 else tables.shapes[name])
        elif name in tables.shapes:
            file.add(assembly, None)
            cut.note_trained(name, file.content, file.record, file.ref)
        else:
            cut.add_frozen(name, file.content, file.ref)
    if is_stage_3:
        add_frozen(assembly, models, 0, tables)
    if cut is not None:
        cut.finish(tables)
    module = models[0].content.root.get("module")
    for name in again:
        file = _File.open(assembly, name)
        known = module.get(name) if isinstance(module, dict) else None
        if not isinstance(known, TensorRef) or known.shape != file.ref.shape:
            continue
        if cut is None or name in tables.buffers:
            assembly.copies.append(file.content.tensors({name: file.ref}))
        else:
            cut.add_first_s(name, file.content, file.ref)
    return assembly.finish(models[0], tables, options)


def _tables(grid: Sequence[Sequence[RankFile]]) -> ModelTables:
    """Return the tables of a model that stage 3 cut; where ranks cut its tensors before that, those of the first rank.

    Raises:
        CheckpointError: where they are not alike, and where what does not train is cut twice.
    """
    first, *others = (tables_of(row, with_experts=True) for row in grid)
    path = grid[0][0].file.path
    for row, tables in zip(grid[1:], others, strict=True):
        if tables.shapes.keys() != first.shapes.keys():
            raise CheckpointError(
                f"its tables of parameters are not those of {path.name}", subject=row[0].file.path, hint=OTHER_SAVES
            )
    still = next((name for tables in (first, *others) for name in tables.frozen), None)
    if others and still is not None:
        raise CheckpointError(
            f"'{still}' does not train, and the converter leaves it in parts: ranks cut tensors, and stage 3 of ZeRO "
            "cut their parts",
            subject=path,
            hint="save with ZeRO stage 1 or 2, or let it train",
        )
    return first


@dataclass(frozen=True, slots=True)
class _File:
    """The file of a parameter: its number, what it holds, the parameter in it, and what is written beside that."""

    number: int
    content: TorchFile
    name: str
    ref: TensorRef
    record: Mapping[str, Any]

    @classmethod
    def open(cls, assembly: Assembly, name: str) -> _File:
        """Open the file of a parameter, as one of the files of the model.

        Raises:
            CheckpointError: for a file without a tensor.
        """
        file = location(assembly.folder / DEEPSPEED_UNIVERSAL / name / UNIVERSAL_WEIGHT).open()
        content = open_torch(file)
        record = content.root if isinstance(content.root, dict) else {}
        ref = record.get(_PARAM) if record else content.root
        if not isinstance(ref, TensorRef):
            raise CheckpointError("holds no tensor", subject=file.path)
        assembly.files.append(file)
        assembly.marks.append(content.mark)
        return cls(len(assembly.files) - 1, content, name, ref, record)

    def add(self, assembly: Assembly, shape: Shape | None) -> None:
        """Add the parameter; `shape` is that of its table, None where the table has that of a part.

        Raises:
            CheckpointError: where it has another shape.
        """
        shape = shape if shape is None else shape_of_all(self.record, shape, self.ref.shape)
        # From stage 3 it is stored as a row of its elements.
        is_row = self.ref is self.content.root and shape is not None and (prod(shape),) == self.ref.shape
        if shape is not None and self.ref.shape != shape and not is_row:
            raise CheckpointError(
                f"'{self.name}' is {list(self.ref.shape)} here, and {list(shape)} in the model states",
                subject=self.content.source.path,
                hint=OTHER_SAVES,
            )
        vector = vectors_at(self.content, {self.name: self.ref})[self.name]
        pieces = Row([(self.number, vector)]).cut(0, vector.count)
        shapes = {self.name: shape if shape is not None else self.ref.shape}
        assembly.add({self.name: list(pieces)}, shapes, vector.dtype)


def _stored_in(folder: Path, model: RankFile, tables: ModelTables, *, is_cut: bool) -> tuple[list[str], list[str]]:
    """Return the parameters that are taken from files of their own, and what else has some, as tied names and buffers.

    The first are those that train, or where ranks cut tensors all.

    Raises:
        IncompleteCheckpoint: where one that must have a file has none.
        CheckpointError: for a file of what is no parameter.
    """
    module = model.content.root.get("module")
    listed = {**tables.shapes, **(module if isinstance(module, dict) else {})}
    stored = [entry.name for entry in location(folder / DEEPSPEED_UNIVERSAL).entries() if entry.is_folder]
    other = next((name for name in sorted(stored) if name not in listed), None)
    if other is not None:
        raise CheckpointError(
            "is of no parameter that the model states list: stages of a pipeline are not read, nor experts that do not "
            "train",
            subject=folder / DEEPSPEED_UNIVERSAL / other,
            hint=SAVE_WHOLE,
        )
    whole = {*tables.buffers, *tables.shared}
    parameters = (
        [name for name in listed if isinstance(name, str) and name not in whole and EXTRA_STATE not in name]
        if is_cut
        else [*tables.shapes]
    )
    missing = next((name for name in parameters if name not in stored), None)
    if missing is not None:
        raise IncompleteCheckpoint(f"holds no {DEEPSPEED_UNIVERSAL}/{missing}/{UNIVERSAL_WEIGHT}", subject=folder)
    taken = set(parameters)
    return parameters, [name for name in sorted(stored) if name not in taken]
