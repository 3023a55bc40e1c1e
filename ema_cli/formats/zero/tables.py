"""What DeepSpeed's files say of a model that ZeRO cut: tables of the model, and of the partition of each rank.

Nothing in a file is believed before its type and its size were checked: `zero_to_fp32.py`, which reads the same tables,
runs what lies in the files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, NoReturn

from ema_cli.checkpoint import MAX_DIMENSIONS, MAX_ELEMENTS, MAX_TENSORS, check_tensor_name
from ema_cli.dataclass import dataclass
from ema_cli.dtypes import DType
from ema_cli.errors import CheckpointError
from ema_cli.formats.pickles.values import Inert, TensorRef
from ema_cli.formats.torch_save.content import TorchFile
from ema_cli.formats.trainers.nested import dig

Shape = tuple[int, ...]
_MAX_RANKS = 1 << 20
_STATES = "optimizer_state_dict"
_FLAT, _SINGLE = "fp32_flat_groups", "single_partition_of_fp32_groups"  # of stage 3, and of the stages before
# Where an optimizer counts its steps: each rank's file must say the same.
_STEPS = (
    f"{_STATES}/{_STATES}/state", f"{_STATES}/base_optimizer_state/state",
    f"{_STATES}/{_STATES}/param_groups/-1/step", f"{_STATES}/base_optimizer_state/param_groups/-1/step",
    f"{_STATES}/base_optimizer_state_step",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelTables:
    """What a file of model states says of the model's tensors.

    Attributes:
        groups: the shapes of the parameters of each group of the optimizer, in the order in which they are flattened.
        frozen: the shapes of the parameters that do not train.
        shared: further names of parameters, with the name under which they are stored.
        buffers: the names of buffers, which lie whole in the file.
    """

    groups: tuple[Mapping[str, Shape], ...]
    frozen: Mapping[str, Shape]
    shared: Mapping[str, str]
    buffers: frozenset[str]

    @property
    def shapes(self) -> dict[str, Shape]:
        """Return the shapes of the parameters that train."""
        return {name: shape for group in self.groups for name, shape in group.items()}


@dataclass(frozen=True, slots=True)
class Vector:
    """Elements of one type in a row, from a byte of a file on."""

    start: int
    count: int
    dtype: DType


@dataclass(frozen=True, slots=True)
class Partition:
    """What one rank's file of optimizer states holds of the float32 weights.

    Attributes:
        path: the file.
        stage: the stage of ZeRO, 0 where the file does not say it.
        ranks: the number of ranks.
        vectors: the rank's part of each flattened group.
        between: elements that follow each parameter of each group unused; none where the file has no such table.
        unused: elements at the end of each group that no parameter has, by the file's own word.
        step: the number of the optimizer's steps, None where it is not known.
        mark: the content of our mark, where the file was written over again with averages.
    """

    path: Path
    stage: int
    ranks: int
    vectors: tuple[Vector, ...]
    between: tuple[Sequence[int], ...]
    unused: tuple[int, ...]
    step: object
    mark: Mapping[str, object] | None


def read_model_tables(file: TorchFile) -> ModelTables:
    """Return the tables in a file of model states.

    Raises:
        CheckpointError: where one is not there, or is none.
    """
    path, root = file.source.path, file.root
    groups = root.get("param_shapes")
    groups = [groups] if isinstance(groups, dict) else groups
    if not isinstance(groups, list):
        raise CheckpointError("has no 'param_shapes', by which the parts are put together", subject=path)
    frozen, shared, buffers = (root.get(key) or {} for key in ("frozen_param_shapes", "shared_params", "buffer_names"))
    tables = ModelTables(
        tuple(_shapes(group, "param_shapes", path) for group in groups),
        _shapes(frozen, "frozen_param_shapes", path),
        _names(shared, path),
        frozenset(name for name in buffers if isinstance(name, str)) if isinstance(buffers, list) else frozenset(),
    )
    count = sum(map(len, (*tables.groups, tables.frozen, tables.shared)))
    if count > MAX_TENSORS:
        raise CheckpointError(f"names {count} tensors; at most {MAX_TENSORS} are read", subject=path)
    return tables


def read_partition(file: TorchFile) -> Partition:
    """Return what a file of optimizer states holds of the weights.

    Raises:
        CheckpointError: where that is not there, or cannot be read.
    """
    path = file.source.path
    states = dig(file.root, _STATES)
    if not isinstance(states, dict):
        raise CheckpointError(f"has no '{_STATES}', in which ZeRO keeps the weights", subject=path)
    key = _FLAT if _FLAT in states else _SINGLE
    groups = states.get(key)
    if not isinstance(groups, list):
        raise CheckpointError("holds no flattened float32 weights, as stages 1 to 3 of ZeRO keep them", subject=path)
    ranks = states.get("partition_count")
    ranks = max(ranks, default=0) if isinstance(ranks, list) and all(type(n) is int for n in ranks) else ranks
    if type(ranks) is not int or not 0 < ranks <= _MAX_RANKS:
        raise CheckpointError("does not say into how many parts the weights are cut", subject=path)
    return Partition(
        path,
        3 if key == _FLAT else min(_stage(states.get("zero_stage")), 2),
        ranks,
        tuple(vectors_at(file, {f"{key}[{number}]": value for number, value in enumerate(groups)}).values()),
        _paddings(states.get("param_alignment_paddings"), path),
        tuple(n if type(n) is int and n > 0 else 0 for n in _list(states.get("group_paddings"))),
        _step(file),
        file.mark,
    )


def vectors_at(file: TorchFile, values: Mapping[str, object]) -> dict[str, Vector]:
    """Return where tensors lie, which are read as their elements in a row; their names are for messages.

    Raises:
        CheckpointError: for what is no tensor, or does not lie in order.
    """
    tensors = file.tensors(values)
    vectors = {}
    for name, spec in tensors.specs.items():
        located = tensors.locate(name)
        if located is None:
            raise CheckpointError(f"'{name}' does not lie in order", subject=file.source.path)
        vectors[name] = Vector(located[1], spec.count, spec.dtype)
    return vectors


def _shapes(table: Any, key: str, path: Path) -> dict[str, Shape]:
    """Return a table of shapes by names, checked."""
    if not isinstance(table, dict):
        _refuse(key, path)
    for name, shape in table.items():
        if not isinstance(name, str):
            _refuse(key, path)
        check_tensor_name(name, path)
        is_shape = isinstance(shape, tuple) and len(shape) <= MAX_DIMENSIONS
        if not is_shape or any(type(n) is not int or not 0 <= n <= MAX_ELEMENTS for n in shape):
            raise CheckpointError(f"'{name}' has no shape in '{key}'", subject=path)
        if prod(shape) > MAX_ELEMENTS:
            raise CheckpointError(f"'{name}' has more elements than any file holds", subject=path)
    return table


def _names(table: Any, path: Path) -> dict[str, str]:
    """Return a table of names by names, checked; older versions have a list of pairs."""
    pairs = list(table.items()) if isinstance(table, dict) else table
    if not isinstance(pairs, list):
        _refuse("shared_params", path)
    names = {}
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(isinstance(name, str) for name in pair):
            _refuse("shared_params", path)
        check_tensor_name(pair[0], path)
        names[pair[0]] = pair[1]
    return names


def _refuse(key: str, path: Path) -> NoReturn:
    raise CheckpointError(f"its '{key}' is no such table as DeepSpeed writes", subject=path)


def _paddings(value: Any, path: Path) -> tuple[Sequence[int], ...]:
    if value is None:
        return ()
    groups = _list(value)
    if not all(isinstance(group, list) and all(type(n) is int and n >= 0 for n in group) for group in groups):
        _refuse("param_alignment_paddings", path)
    return tuple(groups)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _stage(value: Any) -> int:
    """Return the stage, which is a number or DeepSpeed's name for one; 0 where neither is there."""
    value = value.args[0] if isinstance(value, Inert) and value.args else value
    return value if type(value) is int else 0


def _step(file: TorchFile) -> object:
    """Return how many steps the optimizer counted, None where it does not say so."""
    for place in _STEPS:
        value = dig(file.root, place)
        if isinstance(value, dict):
            value = next((state.get("step") for state in value.values() if isinstance(state, dict)), None)
        value = file.scalar("step", value) if isinstance(value, TensorRef) else value
        if type(value) in (int, float):
            return value
    return None
