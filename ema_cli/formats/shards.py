"""A model in several files: an index that maps each tensor to a shard, and the shards beside it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path

from ema_cli.checkpoint import MAX_TENSORS, Checkpoint, Run, StoredRecord, Tensors, TensorSpec, shared
from ema_cli.dataclass import dataclass
from ema_cli.errors import CheckpointError, IncompleteCheckpoint
from ema_cli.formats.cut import CutTensors
from ema_cli.formats.json_text import read_json
from ema_cli.storage.location import location
from ema_cli.storage.side_by_side import side_by_side
from ema_cli.storage.source import ByteSource

_MAX_INDEX_BYTES = 100_000_000
_MAX_SHARDS = 1 << 16
_MAX_FILE_NAME = 255


@dataclass(slots=True)
class ShardedTensors:
    """The tensors of several files as one model.

    Attributes:
        part_of: of each tensor the number of its part.
        copies: some of the tensors once more, in the same type or a narrower one: they are not read, but whoever
            writes the checkpoint over again has to write them, too.
    """

    specs: Mapping[str, TensorSpec]
    part_of: Mapping[str, int]
    parts: Sequence[Tensors]
    copies: Sequence[Tensors | CutTensors] = ()

    def share(self, other: Tensors) -> None:
        """Use the other's tables where they are equal."""
        self.specs = shared(self.specs, other.specs)
        if isinstance(other, ShardedTensors) and self.part_of == other.part_of:
            self.part_of = other.part_of
            for mine, theirs in zip(self.parts, other.parts, strict=False):
                mine.share(theirs)

    def place(self, name: str) -> Hashable:
        """Return the part and the place in it."""
        part = self.part_of[name]
        return part, self.parts[part].place(name)

    def locate(self, name: str) -> tuple[ByteSource, int] | None:
        """Return the part's file and the byte in it where tensor `name` begins."""
        return self.parts[self.part_of[name]].locate(name)

    def runs(self, name: str, start: int, size: int) -> Sequence[Run] | None:
        """Return where bytes of tensor `name` lie."""
        return self.parts[self.part_of[name]].runs(name, start, size)

    def offset(self, name: str, start: int) -> int:
        """Return where in its file byte `start` of tensor `name` lies."""
        return self.parts[self.part_of[name]].offset(name, start)

    def shard(self, name: str) -> str:
        """Return the name of the file that holds tensor `name`."""
        return self.parts[self.part_of[name]].shard(name)

    def stored_records(self) -> Iterator[StoredRecord]:
        """Yield the stored records of all parts."""
        return (record for part in self.parts for record in part.stored_records())

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        """Fill `out` from byte `start` of tensor `name`."""
        self.parts[self.part_of[name]].read_into(name, start, out)


@dataclass(slots=True)
class PlacedTensors:
    """The tensors of a model in a folder of its own within a checkpoint: their names begin with the folder."""

    folder: str
    specs: Mapping[str, TensorSpec]
    tensors: Tensors

    @classmethod
    def of(cls, folder: str, tensors: Tensors) -> PlacedTensors:
        """Return the tensors of the model in `folder`, which is relative to the checkpoint's."""
        return cls(folder, {f"{folder}/{name}": spec for name, spec in tensors.specs.items()}, tensors)

    def share(self, other: Tensors) -> None:
        """Use the other's tables where they are equal."""
        self.specs = shared(self.specs, other.specs)
        if isinstance(other, PlacedTensors):
            self.tensors.share(other.tensors)

    def place(self, name: str) -> Hashable:
        """Return where the bytes lie."""
        return self.tensors.place(self._inner(name))

    def locate(self, name: str) -> tuple[ByteSource, int] | None:
        """Return the file and the byte in it where tensor `name` begins."""
        return self.tensors.locate(self._inner(name))

    def runs(self, name: str, start: int, size: int) -> Sequence[Run] | None:
        """Return where bytes of tensor `name` lie."""
        return self.tensors.runs(self._inner(name), start, size)

    def offset(self, name: str, start: int) -> int:
        """Return where in its file byte `start` of tensor `name` lies."""
        return self.tensors.offset(self._inner(name), start)

    def shard(self, name: str) -> str:
        """Return the name of the file that holds tensor `name`, with its folder."""
        return f"{self.folder}/{self.tensors.shard(self._inner(name))}"

    def stored_records(self) -> Iterator[StoredRecord]:
        """Yield the stored records of the tensors."""
        return self.tensors.stored_records()

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        """Fill `out` from byte `start` of tensor `name`."""
        self.tensors.read_into(self._inner(name), start, out)

    def _inner(self, name: str) -> str:
        return name[len(self.folder) + 1 :]


@dataclass(slots=True)
class ReplacedTensors(ShardedTensors):
    """The tensors of a model, of which some are read elsewhere; they are written where the model's own are."""

    @classmethod
    def of(cls, model: Tensors, replaced: Tensors) -> ReplacedTensors:
        """Return the tensors of a model, with those of `replaced` in the place of its own."""
        specs = {name: replaced.specs.get(name, spec) for name, spec in model.specs.items()}
        return cls(specs, {name: int(name not in replaced.specs) for name in specs}, (replaced, model))

    def shard(self, name: str) -> str:
        """Return the name of the file of the model that holds tensor `name`."""
        return self.parts[1].shard(name)


def open_index(path: Path, open_part: Callable[[Path], Checkpoint]) -> tuple[ShardedTensors, tuple[Checkpoint, ...]]:
    """Return the tensors of the model whose index is at `path`, and its shards; `open_part` opens one of these.

    Raises:
        IncompleteCheckpoint: where a shard is missing.
        CheckpointError: where index and shards disagree, or a shard lies outside the folder.
    """
    weight_map = _read_index(path)
    expected: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        expected.setdefault(shard, set()).add(name)
    if len(expected) > _MAX_SHARDS:
        raise CheckpointError(f"names {len(expected)} shards; at most {_MAX_SHARDS} are read", subject=path)
    opened = []
    part_of: dict[str, int] = {}
    specs: dict[str, TensorSpec] = {}

    def open_one(where: Path) -> Checkpoint:
        if not location(where).info().exists:
            raise IncompleteCheckpoint(f"shard '{where.name}' is missing", subject=path.parent)
        return open_part(where)

    shards = [path.parent / shard for shard in sorted(expected)]
    for number, (where, call) in enumerate(zip(shards, side_by_side(open_one, shards), strict=True)):
        part = call()
        stored = part.tensors.specs
        for name in sorted(expected[where.name].symmetric_difference(stored)):
            side = "is in the shard only" if name in stored else "is in the index only"
            raise CheckpointError(
                f"'{name[:200]}' {side}", subject=where, hint="index and shards are of different saves"
            )
        specs.update(stored)
        part_of.update(dict.fromkeys(stored, number))
        opened.append(part)
    return ShardedTensors(specs, part_of, [part.tensors for part in opened]), tuple(opened)


def join_parts(path: Path, parts: Sequence[Checkpoint]) -> ShardedTensors:
    """Return the tensors of several files or models of the checkpoint at `path` as one model.

    Raises:
        CheckpointError: where two of them hold one name.
    """
    specs: dict[str, TensorSpec] = {}
    part_of: dict[str, int] = {}
    for number, part in enumerate(parts):
        for name, spec in part.tensors.specs.items():
            if name in specs:
                first = parts[part_of[name]].path
                raise CheckpointError(f"'{name[:200]}' is in {first.name} and in {part.path.name}", subject=path)
            specs[name], part_of[name] = spec, number
    return ShardedTensors(specs, part_of, [part.tensors for part in parts])


def _read_index(path: Path) -> dict[str, str]:
    """Return the file name of each tensor's shard."""
    index = read_json(location(path).open(), _MAX_INDEX_BYTES)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("has no 'weight_map'", subject=path)
    if len(weight_map) > MAX_TENSORS:
        raise CheckpointError(f"names {len(weight_map)} tensors; at most {MAX_TENSORS} are read", subject=path)
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not is_plain_name(shard):
            shown = repr(shard[:200]) if isinstance(shard, str) else f"a {type(shard).__name__}"
            raise CheckpointError(f"'{name[:200]}' is said to be in {shown}, which is not a file name", subject=path)
        if shard.endswith(".json"):  # which could be this very index
            raise CheckpointError(f"'{name[:200]}' is said to be in '{shard}', which is no shard", subject=path)
    return weight_map


def is_plain_name(name: str) -> bool:
    """Return whether `name` can only be a file in the same folder: nothing may lead out of it."""
    if not 0 < len(name) <= _MAX_FILE_NAME or name.startswith(".") or "\0" in name or "\\" in name:
        return False
    return Path(name).name == name
