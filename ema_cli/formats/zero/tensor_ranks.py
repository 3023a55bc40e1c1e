"""How ranks cut tensors between them (tensor parallel) that are whole in DeepSpeed's universal format.

Told by what `ds_to_universal` wrote beside a parameter, or by maps of DeepSpeed's own tensor parallel training in the
model states: for each rank the blocks of a parameter that it holds. Both are in DeepSpeed's `checkpoint/` (0.19.8).
Nothing in a file is believed before its type and its size were checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from math import prod
from typing import Any

from ema_cli.checkpoint import MAX_ELEMENTS
from ema_cli.formats.boxes import Box, make_box
from ema_cli.formats.cut import Part
from ema_cli.formats.pickles.values import Inert
from ema_cli.formats.trainers.nested import dig
from ema_cli.formats.zero.tables import Shape

INFO = "universal_checkpoint_info"
_MAPS, _WIDTHS = f"{INFO}/affine_map/params", f"{INFO}/sub_param_shard_widths"
_DIMENSION, _SUBS, _SUB_SHAPE, _PADDED = "cat_dim", "param_n_sub_params", "sub_param_shape", "vocab_tensor"
_MOST_SUBS = 1 << 10


class Unknown(Exception):
    """Why nobody can tell how ranks cut a parameter, in words."""


def map_of(root: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """Return the map of a parameter in model states; None where there is none."""
    maps = dig(root, _MAPS)
    # The keys are patterns, each of one name: as such they are not run, which could take for ever.
    found = maps.get(f"^{re.escape(name)}$") if isinstance(maps, dict) else None
    return found if isinstance(found, dict) else None


def whole_shape(found: Mapping[str, Any]) -> Shape:
    """Return the shape of the whole parameter that a map describes.

    Raises:
        Unknown: where it is none.
    """
    return _numbers(found.get("logical_shape"))


def parts_in_map(found: Mapping[str, Any], shape: Shape, slices: Sequence[Shape]) -> list[Part]:
    """Return the parts of all ranks that a map describes.

    Args:
        found: the map.
        shape: that of the whole parameter.
        slices: the shapes of what each rank has.

    Raises:
        Unknown: where the map is not of these shapes, or has what is not read.
    """
    ranks = found.get("ranks")
    if whole_shape(found) != shape or not isinstance(ranks, dict) or set(ranks) != set(range(len(slices))):
        raise Unknown("its map is of another shape")
    parts = []
    for rank, own in enumerate(slices):
        entry = ranks[rank] if isinstance(ranks[rank], dict) else {}
        pieces = entry.get("pieces")
        if _numbers(entry.get("shard_shape")) != own or not isinstance(pieces, list):
            raise Unknown(f"its map is not of what rank {rank} has")
        mine = sorted((_piece(piece, rank, shape) for piece in pieces), key=_start)
        ends = [0, *accumulate(prod(part.box.shape) for part in mine)]
        if [part.start for part in mine] != ends[:-1] or ends[-1] != prod(own):
            raise Unknown(f"the blocks of rank {rank} do not lie one after another")
        parts += mine
    return parts


def parts_by_record(
    record: Mapping[str, Any], root: Mapping[str, Any], shape: Shape, slices: Sequence[Shape]
) -> list[Part] | None:
    """Return the parts of all ranks by what the converter wrote beside a parameter; None where it wrote nothing.

    Args:
        record: what lies in the parameter's file.
        root: the model states.
        shape: that of the whole parameter.
        slices: the shapes of what each rank has.

    Raises:
        Unknown: where that does not fit these shapes, or is not read.
    """
    sub_shape = record.get(_SUB_SHAPE)
    if sub_shape is not None:
        dimension, sizes, widths = _sub_parameters(sub_shape, root, len(shape), len(slices))
    elif _DIMENSION in record:
        dimension, subs = record[_DIMENSION], record.get(_SUBS, 1)
        if type(dimension) is not int or not 0 <= dimension < len(shape) or type(subs) is not int:
            raise Unknown(f"its '{_DIMENSION}' is none of its dimensions")
        lengths = _lengths(dimension, shape, slices)
        if not 1 <= subs <= _MOST_SUBS or any(length % subs for length in (shape[dimension], *lengths)):
            raise Unknown(f"its '{_SUBS}' does not divide it")
        sizes, widths = [shape[dimension] // subs] * subs, [[length // subs for length in lengths]] * subs
    else:
        return None
    lengths = _lengths(dimension, shape, slices)
    # Rows that the ranks have beyond the whole are padding of a vocabulary, which the converter leaves out.
    is_padded = record.get(_PADDED) is True and len(sizes) == 1 and dimension == 0
    together = [sum(each) for each in widths]
    is_whole = sum(sizes) == shape[dimension] and (together == sizes or (is_padded and together > sizes))
    if not is_whole or [sum(each) for each in zip(*widths, strict=True)] != lengths:
        raise Unknown(f"what the ranks have is not {list(shape)} together")
    return list(_cut(dimension, shape, slices, sizes, widths))


def whole_parts(shape: Shape, slices: Sequence[Shape]) -> list[Part]:
    """Return the parts of ranks that each have the whole parameter.

    Raises:
        Unknown: where they have not.
    """
    if any(own != shape for own in slices):
        raise Unknown("nothing says along which dimension it is cut")
    return [Part(rank, 0, _box((0,) * len(shape), shape, shape)) for rank in range(len(slices))]


def _sub_parameters(
    value: Any, root: Mapping[str, Any], dimensions: int, ranks: int
) -> tuple[int, list[int], list[list[int]]]:
    """Return the dimension along which sub-parameters follow each other, their sizes there, and those of each rank."""
    state = value.state if isinstance(value, Inert) and isinstance(value.state, dict) else {}
    dimension, lengths = state.get("partition_dim"), state.get("shape")
    if not isinstance(lengths, tuple | list) or len(lengths) != dimensions:
        raise Unknown(f"its '{_SUB_SHAPE}' is not read")
    if type(dimension) is not int or not 0 <= dimension < dimensions:
        raise Unknown(f"its '{_SUB_SHAPE}' is not read")
    size = lengths[dimension]
    sizes = list(_numbers(size if isinstance(size, tuple | list) else [size]))
    patterns, known = state.get("patterns"), dig(root, _WIDTHS)
    named = [pattern for pattern in patterns if isinstance(pattern, str)] if isinstance(patterns, list) else []
    widths = next((known[pattern] for pattern in named if pattern in known), None) if isinstance(known, dict) else None
    if widths is None:
        if any(size % ranks for size in sizes):
            raise Unknown("nothing says how its sub-parameters are cut")
        return dimension, sizes, [[size // ranks] * ranks for size in sizes]
    if not isinstance(widths, list) or len(widths) != len(sizes):
        raise Unknown("its sub-parameters are cut otherwise than it says")
    return dimension, sizes, [list(_numbers(each, ranks)) for each in widths]


def _cut(
    dimension: int, shape: Shape, slices: Sequence[Shape], sizes: Sequence[int], widths: Sequence[Sequence[int]]
) -> Iterator[Part]:
    """Yield the parts of ranks that have a stretch of each sub-parameter; what reaches past the end is padding."""
    if len(sizes) > 1 and prod(shape[:dimension]) != 1:
        raise Unknown("its sub-parameters alternate in what each rank has")
    after = prod(shape[dimension + 1 :])
    for rank in range(len(slices)):
        begin = position = 0
        for size, each in zip(sizes, widths, strict=True):
            at, length = sum(each[:rank]), each[rank]
            length = max(0, min(length, size - at))
            offsets, part = [0] * len(shape), list(shape)
            offsets[dimension], part[dimension] = begin + at, length
            if length:
                yield Part(rank, position * after, _box(tuple(offsets), tuple(part), shape))
            begin, position = begin + size, position + each[rank]


def _piece(piece: Any, rank: int, shape: Shape) -> Part:
    """Return one block of a map."""
    entry = piece if isinstance(piece, dict) else {}
    if entry.get("scale", 1.0) != 1.0:
        raise Unknown("ranks have it divided by a number")
    part = _numbers(entry.get("shape"), len(shape))
    (begin, steps), (start, own) = _place(entry.get("source"), part), _place(entry.get("dest"), part)
    strides, offsets, rest = _strides(shape), [], begin
    for stride in strides:
        offsets.append(rest // max(stride, 1))
        rest %= max(stride, 1)
    is_inside = not rest and all(at + n <= whole for at, n, whole in zip(offsets, part, shape, strict=True))
    if not is_inside or not (_is_alike(steps, strides, part) and _is_alike(own, _strides(part), part)):
        raise Unknown("its blocks do not lie in order")
    return Part(rank, start, _box(tuple(offsets), part, shape))


def _place(value: Any, part: Shape) -> tuple[int, Shape]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise Unknown("its map is not read")
    return _numbers([value[0]])[0], _numbers(value[1], len(part))


def _is_alike(steps: Shape, strides: Shape, part: Shape) -> bool:
    """Return whether strides are those of rows one after another, where a block has more than one element."""
    return all(step == stride or n == 1 for step, stride, n in zip(steps, strides, part, strict=True))


def _numbers(value: Any, count: int | None = None) -> Shape:
    """Return a list of numbers that lie in a file, checked."""
    if not isinstance(value, list | tuple) or (count is not None and len(value) != count):
        raise Unknown("its map is not read")
    if any(type(n) is not int or not 0 <= n <= MAX_ELEMENTS for n in value):
        raise Unknown("its map is not read")
    return tuple(value)


def _lengths(dimension: int, shape: Shape, slices: Sequence[Shape]) -> list[int]:
    """Return how long along one dimension the parts of the ranks are; the others must be those of the whole."""
    for own in slices:
        if len(own) != len(shape) or any(
            n != whole for at, (n, whole) in enumerate(zip(own, shape, strict=True)) if at != dimension
        ):
            raise Unknown(f"a rank has {list(own)} of {list(shape)}")
    return [own[dimension] for own in slices]


def _strides(shape: Shape) -> Shape:
    return tuple(prod(shape[dimension + 1 :]) for dimension in range(len(shape)))


def _box(offsets: Shape, part: Shape, shape: Shape) -> Box:
    return make_box(offsets, part, _strides(shape))


def _start(part: Part) -> int:
    return part.start
