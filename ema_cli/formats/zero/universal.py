"""Open a folder of DeepSpeed's universal format: a file for each parameter, whole, beside the model states of a save.

`ds_to_universal` makes it, and Megatron-DeepSpeed's trainings go on from it with other numbers of ranks.
"""

from __future__ import annotations

from collections.abc import Collection
from math import prod
from pathlib import Path

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import CheckpointError, IncompleteCheckpoint
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.pickles.values import TensorRef
from ema_cli.formats.torch_save.file import open_torch
from ema_cli.formats.trainers.folders import DEEPSPEED_MODEL, DEEPSPEED_PART, DEEPSPEED_UNIVERSAL
from ema_cli.formats.trainers.names import EXTRA_STATE
from ema_cli.formats.zero.assembly import Assembly
from ema_cli.formats.zero.checkpoint import add_frozen, tables_of
from ema_cli.formats.zero.cutting import OTHER_SAVES, Row
from ema_cli.formats.zero.saved import RankFile, open_model_states
from ema_cli.formats.zero.tables import ModelTables, Shape, vectors_at
from ema_cli.storage.location import location

_WEIGHT = "fp32.pt"  # in each, beside the states of the optimizer
_PARAM = "param"


def open_universal(folder: Path, names: Collection[str], options: ReadOptions) -> Checkpoint:
    """Open the model in a folder of the universal format.

    Raises:
        IncompleteCheckpoint: where the file of a parameter is missing.
        CheckpointError: where files and tables do not fit each other.
    """
    is_stage_3 = any(map(DEEPSPEED_PART.search, names))
    first = min((name for name in names if DEEPSPEED_MODEL.search(name)), default="")
    models = (
        open_model_states(folder, names, options.before)
        if is_stage_3
        else [RankFile.open(folder / first, options.before)]
    )
    tables = tables_of(models)
    # Where ranks cut tensors, the model states have parts of them, and only what was put together is whole.
    is_cut = sum(1 for name in names if DEEPSPEED_MODEL.search(name)) > 1
    assembly = Assembly(
        folder, [model.file for model in models], are_placeholders=is_stage_3, others=models[1:], is_all=not is_cut
    )
    for name in _parameters(folder, models[0], tables, is_cut=is_cut):
        _add(assembly, folder / DEEPSPEED_UNIVERSAL / name / _WEIGHT, name, None if is_cut else tables.shapes[name])
    if is_stage_3:
        add_frozen(assembly, models, 0, tables)
    return assembly.finish(models[0], tables, options)


def _parameters(folder: Path, model: RankFile, tables: ModelTables, *, is_cut: bool) -> list[str]:
    """Return the parameters that have files of their own: those that train, or where ranks cut tensors all.

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
            "is of no parameter that the model states list: stages of a pipeline and experts are not read",
            subject=folder / DEEPSPEED_UNIVERSAL / other,
        )
    whole = {*tables.buffers, *tables.shared}
    parameters = (
        [name for name in listed if isinstance(name, str) and name not in whole and EXTRA_STATE not in name]
        if is_cut
        else [*tables.shapes]
    )
    missing = next((name for name in parameters if name not in stored), None)
    if missing is not None:
        raise IncompleteCheckpoint(f"holds no {DEEPSPEED_UNIVERSAL}/{missing}/{_WEIGHT}", subject=folder)
    return parameters


def _add(assembly: Assembly, path: Path, name: str, shape: Shape | None) -> None:
    """Add the parameter in a file; `shape` is that of its table, None where the table has that of a part.

    Raises:
        CheckpointError: for a file without a tensor, or one of another shape.
    """
    file = location(path).open()
    content = open_torch(file)
    value = content.root.get(_PARAM) if isinstance(content.root, dict) else content.root
    if not isinstance(value, TensorRef):
        raise CheckpointError("holds no tensor", subject=path)
    # From stage 3 it is stored as a row of its elements.
    is_row = value is content.root and shape is not None and (prod(shape),) == value.shape
    if shape is not None and value.shape != shape and not is_row:
        raise CheckpointError(
            f"'{name}' is {list(value.shape)} here, and {list(shape)} in the model states",
            subject=path,
            hint=OTHER_SAVES,
        )
    vector = vectors_at(content, {name: value})[name]
    number = len(assembly.files)
    assembly.files.append(file)
    pieces = Row([(number, vector)]).cut(0, vector.count)
    assembly.add({name: list(pieces)}, {name: shape if shape is not None else value.shape}, vector.dtype)
