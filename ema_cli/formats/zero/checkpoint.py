"""Open a folder in which DeepSpeed's ZeRO keeps a model in parts: its tensors, whole, from the files of all ranks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from ema_cli.checkpoint import Checkpoint, TensorSpec
from ema_cli.errors import OTHER_SAVES, CheckpointError
from ema_cli.formats.options import ReadOptions, no_masters_error
from ema_cli.formats.trainers.folders import DEEPSPEED_OPTIMIZER
from ema_cli.formats.trainers.nested import dig
from ema_cli.formats.zero.assembly import Assembly
from ema_cli.formats.zero.cutting import cut_each, cut_rows, dtype_of, join_fragments
from ema_cli.formats.zero.experts import has_automatic_experts, universal_hint
from ema_cli.formats.zero.saved import RankFile, open_model_states, open_optimizer_states
from ema_cli.formats.zero.tables import ModelTables, Vector, read_model_tables, vectors_at

_QUANTIZED = "ds_config/zero_optimization/zero_quantized_nontrainable_weights"


def open_parts(folder: Path, names: Collection[str], options: ReadOptions) -> Checkpoint:
    """Open a model that stage 3 cut: its weights are the float32 ones of the optimizer, and parts that do not train.

    Raises:
        IncompleteCheckpoint: where the files of a rank are missing.
        CheckpointError: where the files do not fit each other, or what they hold is not read.
    """
    models = open_model_states(folder, names, options.before)
    tables = tables_of(models)
    files, partitions = open_optimizer_states(folder, names, options.before)
    if partitions[0].stage != 3 or len(partitions) != len(models):
        raise CheckpointError(
            f"holds model states of {len(models)} ranks in stage 3, and optimizer states of {len(partitions)} in stage "
            f"{partitions[0].stage}",
            subject=folder,
            hint=OTHER_SAVES,
        )
    assembly = Assembly(folder, [*files, *(model.file for model in models)], are_placeholders=True, others=models[1:])
    assembly.add(cut_each(tables.groups, partitions), tables.shapes, dtype_of(partitions))
    assembly.marks += [partition.mark for partition in partitions]
    add_frozen(assembly, models, len(files), tables)
    return assembly.finish(models[0], tables, options)


def open_masters(folder: Path, names: Collection[str], model: RankFile, options: ReadOptions) -> Checkpoint:
    """Open the float32 weights that the optimizer keeps in stages 1 and 2, where the model itself lies in one file.

    Raises:
        NoSuchWeights: where no optimizer states are there.
        IncompleteCheckpoint: where those of a rank are missing.
        CheckpointError: where the files do not fit each other.
    """
    if not any(map(DEEPSPEED_OPTIMIZER.search, names)):
        raise no_masters_error(folder)
    tables = tables_of([model])
    files, partitions = open_optimizer_states(folder, names, options.before)
    assembly = Assembly(folder, [*files, model.file], are_placeholders=False)
    assembly.add(cut_rows(tables.groups, partitions), tables.shapes, dtype_of(partitions))
    assembly.marks += [partition.mark for partition in partitions]
    return assembly.finish(model, tables, options)


def tables_of(models: Sequence[RankFile], *, with_experts: bool = False) -> ModelTables:
    """Return the tables of the model, which all ranks must have alike; refuse what they do not say the whole of.

    `with_experts` says that automatic experts are put together elsewhere.
    """
    first = models[0]
    root, path = first.content.root, first.file.path
    if not with_experts and has_automatic_experts(root):
        raise CheckpointError(
            "the model has experts, of which each rank has others", subject=path, hint=universal_hint(path, path.parent)
        )
    tables = read_model_tables(first.content)
    for other in models[1:]:
        theirs = read_model_tables(other.content)
        if (theirs.groups, theirs.frozen) != (tables.groups, tables.frozen):
            raise CheckpointError(
                f"its tables of parameters are not those of {path.name}", subject=other.file.path, hint=OTHER_SAVES
            )
    return tables


def add_frozen(assembly: Assembly, models: Sequence[RankFile], first: int, tables: ModelTables) -> None:
    """Add the parameters that do not train, of which each rank's model states have a fragment.

    `first` is the number of the first rank's model states among the files; the others follow.
    """
    if not tables.frozen:
        return
    fragments = [_fragments(model, tables) for model in models]
    for name, shape in tables.frozen.items():
        dtype = fragments[0][name].dtype
        rank = next((rank for rank, own in enumerate(fragments) if own[name].dtype != dtype), None)
        path = models[rank or 0].file.path
        if dig(models[0].content.root, _QUANTIZED) is True or (not dtype.averaged and TensorSpec(dtype, shape).count):
            raise CheckpointError(
                f"'{name}' does not train, and is quantized ({dtype.name}), with scales that are not in the file",
                subject=path,
                hint="train without zero_quantized_nontrainable_weights",
            )
        numbered = [(first + rank, own[name]) for rank, own in enumerate(fragments)]
        pieces = join_fragments(name, shape, numbered)
        if rank is not None or pieces is None:
            count = sum(vector.count for _, vector in numbered)
            raise CheckpointError(
                f"the fragments of '{name}' have {count} elements for the shape {list(shape)}, or several types",
                subject=path,
                hint=OTHER_SAVES,
            )
        assembly.add({name: pieces}, {name: shape}, dtype)


def _fragments(model: RankFile, tables: ModelTables) -> dict[str, Vector]:
    """Return one rank's fragments of all parameters that do not train."""
    stored = model.content.root.get("frozen_param_fragments")
    missing = next((name for name in tables.frozen if not isinstance(stored, dict) or name not in stored), None)
    if missing is not None:
        raise CheckpointError(f"has no fragment of '{missing}'", subject=model.file.path, hint=OTHER_SAVES)
    return vectors_at(model.content, {name: stored[name] for name in tables.frozen})
