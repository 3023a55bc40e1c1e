"""A rank's share of a tensor that is cut between ranks, from torch's description of it: DTensor and ShardedTensor.

A DTensor is a mesh of ranks, a placement for each dimension of the mesh, and the rank's own part. A ShardedTensor lists
the offsets and sizes of parts. Both come from a pickle as inert placeholders, known by their fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, TypeGuard

from ema_cli.checkpoint import MAX_DIMENSIONS, MAX_ELEMENTS
from ema_cli.dataclass import dataclass
from ema_cli.formats.boxes import Damaged
from ema_cli.formats.pickles.values import Inert, TensorRef, Wrapped
from ema_cli.formats.placements import Placement, Spans, spans_of

Shape = tuple[int, ...]
_CUT = ("DTensor", "ShardedTensor")
_MAX_RANKS = 1 << 20
_MAX_MESH = 16  # dimensions
# Where placements of DTensor were before torch 2.5. Then FSDP that cut what tensor parallelism had cut wrote the same
# placements as another order of the two would have.
_BEFORE_STRIDED = "torch.distributed._tensor."


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank has of a tensor.

    Attributes:
        shape: of the whole tensor.
        parts: the tensors that the rank stored, each with the indices of the whole that it has.
        ranks: how many ranks the whole has, as far as the description says it.
        work: how much computing the share took, in blocks.
    """

    shape: Shape
    parts: tuple[tuple[TensorRef, Spans], ...]
    ranks: int
    work: int = 1


def is_cut(value: object) -> TypeGuard[Wrapped]:
    """Return whether a value is a tensor that may be cut between ranks."""
    return isinstance(value, Wrapped) and value.kind.rpartition(".")[2] in _CUT


@dataclass(frozen=True, slots=True)
class _Described:
    """A DTensor as it is described.

    Attributes:
        shape: of the whole.
        local: the rank's own part, as unpickled.
        cuts: for each dimension of the mesh, in the order in which they cut: the number of ranks along it, which of
            them the rank is, and the placement; None for a rank outside of the mesh.
        ranks: how many ranks the mesh around has.
    """

    shape: Shape
    local: object
    cuts: Sequence[tuple[int, int, Placement]] | None
    ranks: int


def whole_of(value: Wrapped) -> TensorRef | None:
    """Return the tensor in a share that is all of it, as on a mesh of one rank; None for any other."""
    try:
        if _is_sharded(value):
            parts = _sharded(value).parts
            return parts[0][0] if len(parts) == 1 and parts[0][0].shape == _shape(value.args[2]) else None
        described = _described(value)
    except Damaged:
        return None
    local, cuts = described.local, described.cuts
    if not isinstance(local, TensorRef) or local.shape != described.shape or cuts is None:
        return None
    return local if all(ranks == 1 or placement.dimension is None for ranks, _, placement in cuts) else None


def share_of(value: Wrapped) -> Share:
    """Return what a rank has of a tensor.

    Raises:
        Damaged: where the description does not say it, or says what is not read.
    """
    if _is_sharded(value):
        return _sharded(value)
    described = _described(value)
    shape, local, cuts = described.shape, described.local, described.cuts
    if cuts is None:
        return Share(shape, (), described.ranks)
    spans = spans_of(shape, cuts)
    if not isinstance(local, TensorRef):
        raise Damaged("what the rank has of it is no plain tensor")
    lengths = tuple(sum(length for _, length in own) for own in spans)
    if local.shape != lengths and prod(lengths) + prod(local.shape):  # of nothing, any shape is right
        raise Damaged(f"the rank has {list(local.shape)} of it, and by its placements {list(lengths)}")
    parts = ((local, spans),) if prod(lengths) or not prod(shape) else ()
    return Share(shape, parts, described.ranks, sum(placement.blocks for _, _, placement in cuts))


def _described(value: Wrapped) -> _Described:
    """Return a DTensor as its fields describe it, checked."""
    if len(value.args) < 3:
        raise Damaged(f"its description is not that of a {value.kind}")
    shape, fields = _shape(value.args[2]), _fields(value.state)
    spec = _fields(fields.get("_spec"))
    mesh, meta = _fields(spec.get("mesh")), spec.get("tensor_meta")
    if isinstance(meta, Inert) and meta.args and _shape(meta.args[0]) != shape:
        raise Damaged("it is said to have two shapes")
    placements = [_placement(item) for item in _sequence(spec.get("placements"), "placements")]
    sizes, at = _mesh_sizes(mesh), mesh.get("_coordinate_on_dim")
    ranks = max(prod(sizes), prod(_mesh_sizes(_fields(mesh["_root_mesh"]))) if mesh.get("_root_mesh") else 0)
    if at is None:
        return _Described(shape, fields.get("_local_tensor"), None, ranks)
    coordinate = _shape(at, "its rank's place in the mesh")
    if not len(sizes) == len(coordinate) == len(placements) <= _MAX_MESH:
        raise Damaged("its placements are not those of its mesh")
    cut = [placement.dimension for placement in placements if placement.dimension is not None]
    if value.kind.startswith(_BEFORE_STRIDED) and len(set(cut)) < len(cut):
        raise Damaged("it is cut twice along one dimension, and in which order torch before 2.5 did not write")
    cuts = list(zip(sizes, coordinate, placements, strict=True))
    ordered = [cuts[number] for number in _order(spec.get("shard_order"), len(cuts))]
    return _Described(shape, fields.get("_local_tensor"), ordered, ranks)


def _is_sharded(value: Wrapped) -> bool:
    return value.kind.endswith("ShardedTensor")


def _sharded(value: Wrapped) -> Share:
    """Return a rank's share of a ShardedTensor."""
    state = _sequence(value.state, "attributes")
    if len(state) < 3:
        raise Damaged("its attributes are not those of a ShardedTensor")
    shape = _shape(_fields(state[1]).get("size"))
    parts = []
    for item in _sequence(state[0], "shards"):
        shard = _fields(item)
        tensor, metadata = shard.get("tensor"), _fields(shard.get("metadata"))
        offsets, sizes = (_shape(metadata.get(key)) for key in ("shard_offsets", "shard_sizes"))
        if not isinstance(tensor, TensorRef) or tensor.shape != sizes or len(offsets) != len(sizes) != len(shape):
            raise Damaged("one of its shards is not what its metadata says")
        parts.append((tensor, [[side] for side in zip(offsets, sizes, strict=True)]))
    ranks = _fields(state[2]).get("global_world_size")
    return Share(shape, tuple(parts), ranks if _is_count(ranks) else 0)


def _placement(value: object) -> Placement:
    """Return a placement, known by its class and its fields."""
    kind = value.kind.rpartition(".")[2] if isinstance(value, Inert) else ""
    fields = _fields(value)
    dimension, blocks = fields.get("dim"), fields.get("split_factor", 1)
    if kind == "Replicate":
        return Placement()
    if kind in ("Shard", "_StridedShard") and _is_count(dimension) and _is_count(blocks):
        return Placement(dimension, blocks)
    if kind.endswith("Partial"):
        raise Damaged("each rank has a summand of it, and not a part (Partial)")
    raise Damaged(f"its placement {kind[:60] or 'is none'} is not known")


def _order(stored: object, count: int) -> Sequence[int]:
    """Return the order in which dimensions of a mesh cut, where it is stored; else they cut from the first on."""
    entries = stored if isinstance(stored, tuple) else ()
    sides = [entry.args[-1] for entry in entries if isinstance(entry, Inert) and entry.args]
    order = [number for side in sides for number in _shape(side)]
    if len(sides) < len(entries):
        raise Damaged("its shards are in an order that is not described as torch does it")
    if len(set(order)) < len(order) or any(number >= count for number in order):
        raise Damaged("its shards are in an order that is none")
    return [*order, *(number for number in range(count) if number not in order)]


def _mesh_sizes(mesh: Mapping[str, Any]) -> list[int]:
    """Return how many ranks a mesh has along each dimension, by its layout or, before torch 2.9, by its tensor."""
    layout = _fields(mesh.get("_layout"))
    if "axes" in layout:
        sizes = [_count_in(_fields(axis).get("shape")) for axis in _sequence(layout["axes"], "mesh")]
    elif "shape" in layout:
        shape = layout["shape"]
        sizes = [_count_in(side) for side in (shape if isinstance(shape, tuple) else (shape,))]
    else:
        tensor = mesh.get("mesh")
        sizes = list(tensor.shape) if isinstance(tensor, TensorRef) else []
    if not sizes or len(sizes) > _MAX_MESH or not 0 < prod(sizes) <= _MAX_RANKS:
        raise Damaged("its mesh of ranks is not described as torch does it")
    return sizes


def _count_in(value: object) -> int:
    """Return the number of ranks in a side of a mesh, which may itself be made of sides."""
    todo, count = [value], 1
    while todo and 0 < count <= _MAX_RANKS:
        side = todo.pop()
        if isinstance(side, tuple) and len(side) <= _MAX_MESH:
            todo += side
        elif _is_count(side):
            count *= side
        else:
            raise Damaged("its mesh of ranks has a side that is no number")
    return count


def _fields(value: object) -> Mapping[str, Any]:
    """Return the attributes of a placeholder, or of its state: those of its dict and of its slots."""
    state = value.state if isinstance(value, Inert) else value
    fields: dict[str, Any] = {}
    for attributes in state if isinstance(state, tuple) else (state,):
        if isinstance(attributes, dict):
            fields |= attributes
    return fields


def _sequence(value: object, what: str) -> Sequence[Any]:
    if isinstance(value, tuple | list):
        return value
    raise Damaged(f"it has no {what}")


def _shape(value: Any, what: str = "a shape or an offset in it") -> Shape:
    is_shape = isinstance(value, tuple | list) and len(value) <= MAX_DIMENSIONS and all(map(_is_count, value))
    if not is_shape or prod(value) > MAX_ELEMENTS:
        raise Damaged(f"{what} is no tuple of counts")
    return tuple(value)


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= MAX_ELEMENTS
