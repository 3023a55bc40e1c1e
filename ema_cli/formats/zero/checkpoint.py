"""Open a folder in which DeepSpeed's ZeRO keeps a model in parts: its tensors, whole, from the files of all ranks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ema_cli.checkpoint import Checkpoint, SpecTable, Tensors, TensorSpec
from ema_cli.dtypes import DType
from ema_cli.errors import CheckpointError
from ema_cli.formats.options import ReadOptions, no_masters_error
from ema_cli.formats.shards import ShardedTensors
from ema_cli.formats.torch_save.file import from_torch
from ema_cli.formats.trainers.nested import dig
from ema_cli.formats.zero.cutting import OTHER_SAVES, cut_each, cut_rows, dtype_of, join_fragments
from ema_cli.formats.zero.saved import OPTIMIZER, RankFile, open_model_states, open_optimizer_states
from ema_cli.formats.zero.tables import ModelTables, Shape, Vector, read_model_tables
from ema_cli.formats.zero.tensors import Piece, PiecedTensors, PieceTable
from ema_cli.storage.source import InputFile

_EXPERTS = ("ds_autoep_layers", "autoep_layers")
_QUANTIZED = "ds_config/zero_optimization/zero_quantized_nontrainable_weights"
_MICS = "ds_config/zero_optimization/mics_shard_size"
_KEPT_WIDE = "the optimizer's float32 weights are averaged, and written in the model's {dtype} (--masters: in float32)"
_MASTERS = "the optimizer's float32 weights are taken, and not the model's"


@dataclass(frozen=True, slots=True)
class _Stored:
    """A tensor in pieces, and what it is."""

    spec: TensorSpec
    pieces: Sequence[Piece]


@dataclass(slots=True)
class _Builder:
    """Puts a model's tensors into tables.

    Attributes:
        files: the files, by the numbers that pieces have for them.
        are_placeholders: whether the model states have empty tensors in the place of parameters.
        stored: the tensors that are put together, by the names under which they are stored.
    """

    files: list[InputFile]
    are_placeholders: bool
    stored: dict[str, _Stored] = field(default_factory=dict)
    _specs: SpecTable = field(default_factory=SpecTable)

    def add(self, pieces: Mapping[str, Sequence[Piece]], shapes: Mapping[str, Shape], dtype: DType) -> None:
        """Add tensors of one type."""
        for name, parts in pieces.items():
            self.stored[name] = _Stored(self._specs.spec(dtype, shapes[name]), parts)

    def build(self, whole: Tensors, name_of_file: str, tables: ModelTables) -> ShardedTensors:
        """Return all tensors: those of the model states, in their order, and what is stored besides.

        Args:
            whole: the tensors of the model states: those that are not cut, and placeholders of the others.
            name_of_file: where these lie.
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
                    numbers[kept] = table.add(stored.pieces)
                specs[name], tensor_of[name], part_of[name] = stored.spec, numbers[kept], 0
            elif name in whole.specs:  # else the other name of what was not saved
                self._check_lies(name, whole, tables)
                specs[name], part_of[name] = whole.specs[name], 1
        pieced = PiecedTensors({name: specs[name] for name in tensor_of}, tensor_of, table, self.files, name_of_file)
        return ShardedTensors(specs, part_of, [pieced, whole])

    def _check_lies(self, name: str, whole: Tensors, tables: ModelTables) -> None:
        if self.are_placeholders and whole.specs[name].shape == (0,) and name not in tables.buffers:
            raise CheckpointError(
                f"'{name}' is a parameter, but no table there says where its parts lie",
                subject=self.files[-1].path.parent,
                hint="let a newer DeepSpeed save it: older ones leave out what does not train",
            )


def open_parts(folder: Path, names: Collection[str], options: ReadOptions) -> Checkpoint:
    """Open a model that stage 3 cut: its weights are the float32 ones of the optimizer, and parts that do not train.

    Raises:
        IncompleteCheckpoint: where the files of a rank are missing.
        CheckpointError: where the files do not fit each other, or what they hold is not read.
    """
    models = open_model_states(folder, names)
    tables = _tables_of(models)
    files, partitions = open_optimizer_states(folder, names)
    if partitions[0].stage != 3 or len(partitions) != len(models):
        raise CheckpointError(
            f"holds model states of {len(models)} ranks in stage 3, and optimizer states of {len(partitions)} in stage "
            f"{partitions[0].stage}",
            subject=folder,
            hint=OTHER_SAVES,
        )
    builder = _Builder([*files, *(model.file for model in models)], are_placeholders=True)
    builder.add(cut_each(tables.groups, partitions), tables.shapes, dtype_of(partitions))
    _add_frozen(builder, models, tables)
    return _finish(builder, models[0], tables, options)


def open_masters(folder: Path, names: Collection[str], model: RankFile, options: ReadOptions) -> Checkpoint:
    """Open the float32 weights that the optimizer keeps in stages 1 and 2, where the model itself lies in one file.

    Raises:
        NoSuchWeights: where no optimizer states are there.
        IncompleteCheckpoint: where those of a rank are missing.
        CheckpointError: where the files do not fit each other.
    """
    if not any(map(OPTIMIZER.search, names)):
        raise no_masters_error(folder)
    tables = _tables_of([model])
    files, partitions = open_optimizer_states(folder, names)
    builder = _Builder([*files, model.file], are_placeholders=False)
    builder.add(cut_rows(tables.groups, partitions), tables.shapes, dtype_of(partitions))
    return _finish(builder, model, tables, options)


def _tables_of(models: Sequence[RankFile]) -> ModelTables:
    """Return the tables of the model, which all ranks must have alike; refuse what they do not say the whole of."""
    first = models[0]
    root, path = first.content.root, first.file.path
    if any(root.get(key) for key in _EXPERTS):
        raise CheckpointError("the model has experts, of which each rank has others; that is not read", subject=path)
    shard = dig(root, _MICS)
    if type(shard) is int and shard > 0:
        raise CheckpointError("groups of ranks hold the model once each (MiCS); that is not read", subject=path)
    tables = read_model_tables(first.content)
    for other in models[1:]:
        theirs = read_model_tables(other.content)
        if (theirs.groups, theirs.frozen) != (tables.groups, tables.frozen):
            raise CheckpointError(
                f"its tables of parameters are not those of {path.name}", subject=other.file.path, hint=OTHER_SAVES
            )
    return tables


def _add_frozen(builder: _Builder, models: Sequence[RankFile], tables: ModelTables) -> None:
    """Add the parameters that do not train, of which each rank's model states have a fragment."""
    if not tables.frozen:
        return
    first = len(builder.files) - len(models)
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
        builder.add({name: pieces}, {name: shape}, dtype)


def _fragments(model: RankFile, tables: ModelTables) -> dict[str, Vector]:
    """Return one rank's fragments of all parameters that do not train."""
    stored = model.content.root.get("frozen_param_fragments")
    missing = next((name for name in tables.frozen if not isinstance(stored, dict) or name not in stored), None)
    if missing is not None:
        raise CheckpointError(f"has no fragment of '{missing}'", subject=model.file.path, hint=OTHER_SAVES)
    tensors = model.content.tensors({name: stored[name] for name in tables.frozen})
    vectors = {}
    for name, spec in tensors.specs.items():
        located = tensors.locate(name)
        if located is None:
            raise CheckpointError(f"'{name}' does not lie in order", subject=model.file.path)
        vectors[name] = Vector(located[1], spec.count, spec.dtype)
    return vectors


def _finish(builder: _Builder, model: RankFile, tables: ModelTables, options: ReadOptions) -> Checkpoint:
    """Return the checkpoint: what the model states say of it, with the tensors that were put together."""
    whole = from_torch(model.file, model.content, options)
    tensors = builder.build(whole.tensors, model.file.path.name, tables)
    narrow = {
        name: spec.dtype
        for name, spec in whole.tensors.specs.items()
        if spec.dtype.is_narrow and tensors.specs[name].dtype != spec.dtype
    }
    notes, dtypes = list(whole.notes), dict[str, DType]()
    if narrow and options.masters:
        notes.append(_MASTERS)
    elif narrow:
        dtypes = narrow
        notes.append(_KEPT_WIDE.format(dtype=next(iter(narrow.values())).torch))
    return replace(whole, tensors=tensors, files=tuple(builder.files), notes=tuple(notes), output_dtypes=dtypes)
