"""Files of two ranks put together by hand, which share the rows of a matrix and of a vector."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tests.hostile import make
from tests.hostile.make import build, call, data, mapping, name, number, numbers, pack, storage, tensor

FILE = "model_world_size_2_rank_{}.pt"
FIRST, OTHER = FILE.format(0), FILE.format(1)
DTENSOR, SHARDED = "torch.distributed.tensor.DTensor", "torch.distributed._shard.sharded_tensor.api.ShardedTensor"
SHARD = "torch.distributed.tensor.placement_types.Shard"
SHAPES = {"w": (2, 3), "b": (3,)}
ROWS = {"w": (1, 1), "b": (2, 1)}  # of each rank


def mesh(sizes: bytes, at: bytes, **more: bytes) -> bytes:
    """Push a mesh of ranks."""
    layout = build("torch.distributed._mesh_layout._MeshLayout", mapping({"shape": sizes}))
    return build(
        "torch.distributed.device_mesh.DeviceMesh", mapping({"_layout": layout, "_coordinate_on_dim": at, **more})
    )


def placed(*dimensions: int, kind: str = SHARD, **more: bytes) -> bytes:
    """Push placements, one for each dimension of a mesh."""
    return pack(*(build(kind, mapping({"dim": number(dimension), **more})) for dimension in dimensions))


def wrapped(kind: str, shape: bytes, state: bytes) -> bytes:
    """Push a tensor of a class of its own, as torch rebuilds one."""
    args = pack(name(kind), name("torch.float32"), shape, numbers(1), number(0))
    return call("torch._tensor._rebuild_from_type_v2", name("torch._utils._rebuild_wrapper_subclass"), name(kind), args,
                state)  # fmt: skip


def share(shape: bytes, local: bytes, around: bytes, placements: bytes, kind: str = DTENSOR, **more: bytes) -> bytes:
    """Push a DTensor."""
    spec = build(
        "torch.distributed.tensor._dtensor_spec.DTensorSpec",
        mapping({"mesh": around, "placements": placements, **more}),
    )
    return wrapped(kind, shape, pack(b"N", mapping({"_local_tensor": local, "_spec": spec})))


def sharded(shape: bytes, local: bytes, offsets: bytes, sizes: bytes) -> bytes:
    """Push a ShardedTensor of one shard."""
    metadata = build("torch.ShardMetadata", mapping({"shard_offsets": offsets, "shard_sizes": sizes}))
    shard = build("torch.Shard", pack(b"N", mapping({"tensor": local, "metadata": metadata})))
    about = build("torch.ShardedTensorMetadata", mapping({"size": shape}))
    return wrapped(SHARDED, shape, pack(b"](" + shard + b"e", about, b"}"))


class Rank:
    """What the file of one rank holds: its parts of the model, and more beside the model."""

    def __init__(self, number_: int, step: int) -> None:
        self.rank = number_
        self.around = mesh(numbers(2), numbers(number_))
        self.more: dict[str, bytes] = {"step": number(step)}
        self.stored: dict[str, bytes] = {}
        self.values: dict[str, bytes] = {}
        for key, content in zip(SHAPES, data(step).values(), strict=True):
            rows, shape = ROWS[key], SHAPES[key]
            array = np.frombuffer(content, "<f4").reshape(shape)
            first = sum(rows[:number_])
            self.stored[key] = array[first : first + rows[number_]].tobytes()
            self.values[key] = share(numbers(*shape), self.local(key), self.around, placed(0))

    def local(self, key: str) -> bytes:
        """Push the rank's own part."""
        shape = (ROWS[key][self.rank], *SHAPES[key][1:])
        return tensor(storage(key, int(np.prod(shape))), shape=shape)

    def write(self, folder: Path) -> None:
        """Write the file."""
        pickle = make.whole(mapping({**self.more, "model": mapping(self.values)}))
        (folder / FILE.format(self.rank)).write_bytes(make.torch_zip(pickle, self.stored))


class Folder:
    """A folder to be written."""

    def __init__(self, step: int = 3) -> None:
        self.ranks = [Rank(number_, step) for number_ in (0, 1)]

    def write(self, path: Path) -> None:
        """Write the files."""
        path.mkdir()
        for rank in self.ranks:
            rank.write(path)

    def both(self, key: str, value: bytes | Mapping[int, bytes]) -> None:
        """Let both ranks have a value among the weights."""
        for rank in self.ranks:
            rank.values[key] = value if isinstance(value, bytes) else value[rank.rank]
