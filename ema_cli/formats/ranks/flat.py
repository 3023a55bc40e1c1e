"""Read what FSDP flattened where the files say of which parameters: OLMo's local sharded checkpoints.

FSDP puts the parameters of a module in a row, and cuts the row into as many parts as there are ranks. The file of a
rank has its part of each row, and says which elements of which parameters lie in that.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any, TypeGuard

from ema_cli.checkpoint import MAX_DIMENSIONS, MAX_ELEMENTS, MAX_TENSORS, Progress, TensorSpec, check_tensor_name
from ema_cli.dataclass import dataclass
from ema_cli.errors import CheckpointError
from ema_cli.formats.boxes import Damaged, Shape
from ema_cli.formats.pickles.values import Inert, TensorRef
from ema_cli.formats.ranks.table import Part, RankTable
from ema_cli.formats.torch_save.content import TorchFile
from ema_cli.formats.trainers.nested import dig
from ema_cli.storage.source import InputFile

_KEY = "flat_param."
_WRAPPER = "_fsdp_wrapped_module."
_MAX_MODULE = 1 << 12  # characters of a module's name, with FSDP's wrapper before each part
_INFO = "_ShardParamInfo"  # of torch from 2.1 on; before, two lists say the same


@dataclass(frozen=True, slots=True)
class _Piece:
    """Elements of a parameter that lie in a rank's part of a row.

    Attributes:
        name: of the parameter.
        shape: of the whole.
        at: the first element in the part.
        begin: the same element of the whole, in C order.
        count: how many there are; 0 for a parameter that lies at other ranks alone.
    """

    name: str
    shape: Shape
    at: int = 0
    begin: int = 0
    count: int = 0


def read_flat(file: InputFile, opened: TorchFile, ranks: int) -> RankTable:
    """Return what the file of a rank has.

    Args:
        file: the file.
        opened: its content.
        ranks: how many there are.

    Raises:
        CheckpointError: where it does not say which parameters lie in it, or not in order.
    """
    try:
        rows = list(_rows(opened.root))
        flat = {row.words: row.handle[f"{_KEY}data"] for row in rows}
        tensors = opened.tensors(flat)
        storages = opened.locate(dict.fromkeys(ref.storage.key for ref in flat.values()))
        parts, shapes = [], dict[str, Shape]()
        for row in rows:
            ref, spec, located = flat[row.words], tensors.specs[row.words], tensors.locate(row.words)
            first, stored = storages[ref.storage.key]
            # One by one: rows may repeat each other without end.
            for piece in _pieces(row.handle, row.module.replace(_WRAPPER, "")):
                check_tensor_name(piece.name, file.path)
                if piece.name in shapes:
                    raise Damaged(f"'{piece.name}' is in two rows of parameters")
                shapes[piece.name] = piece.shape
                if piece.at + piece.count > spec.count or located is None:
                    raise Damaged(f"'{piece.name}' is said to lie in {row.words}, which has {spec.count} elements")
                start = located[1] - first + spec.dtype.nbytes(piece.at)
                boxes = array("q", [start, piece.begin, piece.count] if piece.count else [])
                whole = TensorSpec(spec.dtype, (prod(piece.shape),))
                parts.append(Part(piece.name, whole, True, ref.storage.key, stored, boxes))
    except Damaged as error:
        raise CheckpointError(str(error), subject=file.path) from None
    return RankTable(tuple(shapes), tuple(parts), ranks, Progress(), shapes)


@dataclass(frozen=True, slots=True)
class _Row:
    """What is known of a row.

    Attributes:
        words: for it, other ones than those of any other.
        module: the name of that whose parameters it has.
        handle: its tables, and its part.
    """

    words: str
    module: str
    handle: Mapping[Any, Any]


def _rows(root: Any) -> Iterator[_Row]:
    """Yield the rows in a file."""
    modules = dig(root, "modules")
    count = 0
    for module in modules if isinstance(modules, list) else ():
        name, handles = dig(module, "name"), dig(module, "handles")
        if not isinstance(name, str) or len(name) > _MAX_MODULE or not isinstance(handles, list):
            raise Damaged("its 'modules' are none of FSDP's")
        for handle in handles:
            if not isinstance(handle, dict) or not isinstance(handle.get(f"{_KEY}data"), TensorRef):
                raise Damaged(f"the parameters of '{name[:200]}' are no tensor")
            yield _Row(f"row {count}, of '{name[:80]}'", name, handle)
            count += 1
            if count > MAX_TENSORS:
                raise Damaged(f"it has more than {MAX_TENSORS} rows of parameters")


def _pieces(handle: Mapping[Any, Any], prefix: str) -> Iterator[_Piece]:
    """Yield all parameters of a row, with the elements of each that lie in the rank's part.

    Raises:
        Damaged: where a table is missing, or is none.
    """
    names, shapes = handle.get(f"{_KEY}_fqns"), handle.get(f"{_KEY}_shapes")
    if not _is_list(names) or not _is_list(shapes) or len(names) != len(shapes):
        raise Damaged("it does not say of which parameters its rows are")
    places = dict(_places(handle, len(names)))
    for number, (name, shape) in enumerate(zip(names, shapes, strict=True)):
        is_shape = isinstance(shape, tuple) and len(shape) <= MAX_DIMENSIONS and all(map(_is_count, shape))
        if not isinstance(name, str) or not is_shape or prod(shape) > MAX_ELEMENTS:
            raise Damaged("it does not say of which parameters its rows are")
        at, begin, count = places.get(number, (0, 0, 0))
        yield _Piece(f"{prefix}.{name}" if prefix else name, shape, at, begin, count)


def _places(handle: Mapping[Any, Any], parameters: int) -> Iterator[tuple[int, tuple[int, int, int]]]:
    """Yield the number of each parameter that lies in the part; where there, where in the whole, how many elements."""
    infos = handle.get(f"{_KEY}_shard_param_infos")
    if _is_list(infos) and len(infos) == parameters:
        for number, info in enumerate(infos):
            args = info.args if isinstance(info, Inert) and info.kind.endswith(_INFO) else ()
            if len(args) != 5 or (args[0] is True and not all(map(_is_count, args[1:]))):
                raise Damaged("it does not say which elements of its parameters it has")
            if args[0] is True:
                at, count, begin, end = args[1:]
                yield number, (at, begin, _checked(begin, end, count))
        return
    indices, offsets = handle.get(f"{_KEY}_shard_indices"), handle.get(f"{_KEY}_shard_param_offsets")
    if not _is_list(indices) or not _is_list(offsets) or not indices or len(offsets) > parameters:
        raise Damaged("it does not say which elements of its parameters it has")
    at = 0
    for number, offset in enumerate(offsets):
        pair: Any = offset if _is_list(offset) and len(offset) == 2 else (None, None)
        if not all(map(_is_count, (indices[0], *pair))) or indices[0] + number >= parameters:
            raise Damaged("it does not say which elements of its parameters it has")
        begin, end = pair
        count = _checked(begin, end, end - begin + 1)
        yield indices[0] + number, (at, begin, count)
        at += count


def _checked(begin: int, end: int, count: int) -> int:
    """Return the number of elements from one to another, which is the last."""
    if count <= 0 or end - begin + 1 != count:
        raise Damaged("it does not say which elements of its parameters it has")
    return count


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, list | tuple)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_ELEMENTS
