"""Read the `.metadata` of torch.distributed.checkpoint: which pieces of which tensor lie where. No torch here.

It is a pickle of a few dataclasses. torch loads it with `pickle.load`, which runs whatever the file names. Here each
stays an inert placeholder, which is known by the fields that it carries: trainers write classes of their own modules
where torch has the same.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import field, replace
from hashlib import blake2b
from math import prod
from typing import Any, TypeGuard

from ema_cli.checkpoint import MAX_DIMENSIONS, MAX_ELEMENTS, MAX_TENSORS, TensorSpec, check_tensor_name
from ema_cli.dataclass import dataclass
from ema_cli.dtypes import TORCH_DTYPES
from ema_cli.errors import CheckpointError
from ema_cli.formats.before import Before
from ema_cli.formats.boxes import Box, CoverCheck, Damaged, Shape, make_box
from ema_cli.formats.dcp.pieces import Record, StoredTensor, find_clash, shown
from ema_cli.formats.pickles.beginnings import Beginning, unpickle_beginning
from ema_cli.formats.pickles.unpickle import unpickle
from ema_cli.formats.pickles.values import Inert, Name, PickleError
from ema_cli.formats.shards import is_plain_name
from ema_cli.storage.source import ByteSource, HeldBytes, InputFile

# The fields by which each class is known, torch's or a trainer's own.
_METADATA = ("state_dict_metadata", "storage_data")
_OF_TENSORS = (*_METADATA, "planner_data")
_KNOWN = (*_OF_TENSORS, "storage_meta", "version")
_TENSOR = ("properties", "size", "chunks")
_PIECE = ("offsets", "sizes")
_INDEX = ("fqn",)
_STORAGE = ("relative_path", "offset", "length")
_MAX_SIDES = 4_000_000  # of all pieces of all tensors, however often one piece, or one list of them, is repeated
_MAX_PATH = 256
_MAX_BYTES = 128 << 20  # of the file; for each piece there are some 150
_OBJECT = b"\x81\x94}\x94("  # how a pickle begins to make an object with attributes; for a piece there are three
_MAX_OBJECTS = 1_200_000
_OWN = b"\x8c\x0cstorage_meta"  # where the identity of each save begins, after all that is said of the tensors
_LAST = b"ub."  # how a pickle ends that has nothing of its own
_MAX_INSTRUCTIONS = 40_000_000  # of the pickle; for each object there are some 23

State = Mapping[object, object]
"""The attributes of an object in `.metadata`, as unpickled: names to anything."""


@dataclass(slots=True)
class Metadata:
    """The content of `.metadata`.

    Attributes:
        file: the file itself.
        tensors: the entry of each tensor, as unpickled; `tensor` makes a `StoredTensor` of it.
        items: the record of each value that is no tensor.
        paths: the keys that led to a value in the nested dict that was saved, by name, where they are recorded.
        digest: of the bytes of the file that was parsed: this one, or one before it that says the same of tensors.
        more: the name of something that torch's own metadata do not say; empty where there is nothing.
    """

    file: InputFile
    digest: bytes
    tensors: dict[str, Inert] = field(default_factory=dict)
    items: dict[str, Record] = field(default_factory=dict)
    paths: dict[str, tuple[object, ...]] = field(default_factory=dict)
    more: str = ""
    # Offsets as bytes: tuples of numbers can be chosen so that all their hashes are equal.
    _records: dict[tuple[str, bytes], Record] = field(default_factory=dict)
    _sides: int = 0
    _cover: CoverCheck = field(default_factory=CoverCheck)

    def tensor(self, name: str) -> StoredTensor:
        """Return spec and pieces of tensor `name`.

        Raises:
            CheckpointError: where they do not fit together.
        """
        try:
            return self._tensor(name, _state(self.tensors[name], _TENSOR))
        except Damaged as error:
            raise CheckpointError(f"'{name}': {error}", subject=self.file.path) from None

    def _tensor(self, name: str, state: State) -> StoredTensor:
        properties = state.get("properties")
        if not isinstance(properties, Inert):
            raise Damaged("it has no properties")
        # A tuple as torch writes it today, a dict in older versions.
        values = properties.state
        dtype = values[0] if isinstance(values, tuple) and values else _get(values, "dtype")
        known = TORCH_DTYPES.get(dtype.path.removeprefix("torch.")) if isinstance(dtype, Name) else None
        if known is None or known.torch_group > 1:
            raise Damaged(f"it has a dtype that is not read, {getattr(dtype, 'path', 'none')}")
        spec = TensorSpec(known, _shape(state.get("size")))
        if spec.count > MAX_ELEMENTS:
            raise Damaged(f"it is {spec}, more than any file holds")
        chunks = _list(state.get("chunks"))
        self._sides += len(chunks) * (len(spec.shape) + 1)
        if self._sides > _MAX_SIDES:
            raise Damaged("it is cut into too many pieces, all tensors before it included")
        strides = [prod(spec.shape[dimension + 1 :]) for dimension in range(len(spec.shape))]
        states = [_state(chunk, _PIECE) for chunk in chunks]
        pieces = [make_box(_shape(state.get("offsets")), _shape(state.get("sizes")), strides) for state in states]
        # A rank whose share is empty may be listed all the same.
        pieces = sorted((piece for piece in pieces if prod(piece.shape)), key=lambda piece: piece.offsets)
        records = tuple(self._record(name, piece) for piece in pieces)
        self._cover.check(spec.shape, pieces)
        for piece, record in zip(pieces, records, strict=True):
            if spec.dtype.nbytes(prod(piece.shape)) > record.size:
                raise Damaged(f"its piece at {list(piece.offsets)} is larger than what is stored of it")
        return StoredTensor(spec, tuple(pieces), records)

    def _record(self, name: str, piece: Box) -> Record:
        record = self._records.get((name, _bytes_of(piece.offsets)))
        if record is None:
            raise Damaged(f"its piece at {list(piece.offsets)} is nowhere stored")
        return record


def read_metadata(file: InputFile, before: Before | None = None) -> Metadata:
    """Read the `.metadata` file of a folder.

    Args:
        file: the file.
        before: what the files of the run were that were read before. Folders of one run mostly have equal ones.

    Raises:
        CheckpointError: for what is no such file, leads out of the folder, or is compressed or encrypted.
    """
    if file.size > _MAX_BYTES:
        raise CheckpointError(f"of {file.size} bytes; at most {_MAX_BYTES} are read", subject=file.path)
    data = file.read(0, file.size)
    own = data.rfind(_OWN)
    end = own if own > 0 else max(len(data) - len(_LAST), 0)
    held, digest = HeldBytes(file.path, data), blake2b(memoryview(data)[:end])
    key = end, digest.digest()
    known = before.get(_Known, key) if before is not None else None
    again = known.of(file, held) if known is not None else None
    if again is not None:
        return again
    digest.update(memoryview(data)[end:])
    objects = data.count(_OBJECT)
    if objects > _MAX_OBJECTS:
        raise CheckpointError(f"describes {objects} things; at most {_MAX_OBJECTS} are read", subject=file.path)
    try:
        root, beginning = _unpickle(held, end)
        metadata = _parse(file, digest.digest(), _state(root, _METADATA))
    except (PickleError, Damaged) as error:
        raise CheckpointError(f"cannot be read: {error}", subject=file.path) from error
    if before is not None and beginning is not None:
        known = _Known(metadata, beginning)
        if known.of(file, held) is not None:  # its own end changes nothing
            before.keep(key, known, file.size)
    return metadata


@dataclass(frozen=True, slots=True)
class _Known:
    """What a file was that was read before, and how it began: all but what each save has of its own, at its end."""

    metadata: Metadata
    beginning: Beginning

    def of(self, file: InputFile, data: ByteSource) -> Metadata | None:
        """Return what a file is that begins as this one did; None where its end tells something else of the tensors.

        Args:
            file: the file.
            data: its bytes.
        """
        try:
            root = self.beginning.go_on(data)
        except PickleError:
            return None
        state = root.state if isinstance(root, Inert) else None
        values = self.beginning.values
        taken = dict(zip(values[::2], values[1::2], strict=True))
        if not (isinstance(state, dict) and state.keys() <= {*_KNOWN}):
            return None
        is_same = all(state.get(name) is taken.get(name) for name in _OF_TENSORS)
        return replace(self.metadata, file=file, _sides=0, _cover=CoverCheck()) if is_same else None


def _unpickle(data: ByteSource, end: int) -> tuple[Any, Beginning | None]:
    try:
        return unpickle_beginning(data, end, _MAX_INSTRUCTIONS)
    except PickleError:
        return unpickle(data, most=_MAX_INSTRUCTIONS)[0], None  # the byte may lie within an instruction


def _parse(file: InputFile, digest: bytes, state: State) -> Metadata:
    metadata = Metadata(file, digest)
    metadata.more = ", ".join(f"{name}"[:_MAX_PATH] for name, value in state.items() if name not in _KNOWN and value)
    blobs = set()
    for name, entry in _dict(state.get("state_dict_metadata")).items():
        if isinstance(name, str) and _has(entry, _TENSOR):
            metadata.tensors[name] = entry
        elif isinstance(name, str) and _is_empty(entry):
            blobs.add(name)  # of a value that is no tensor nothing is said
        else:
            raise Damaged(f"{shown(name)} is described by a {_kind(entry)}, which is unknown")
    if len(metadata.tensors) > 4 * MAX_TENSORS:  # the optimizer has some for each of the model's
        raise Damaged(f"it names {len(metadata.tensors)} tensors; at most {4 * MAX_TENSORS} are read")
    plain: set[str] = set()
    for key, info in _dict(state.get("storage_data")).items():
        index = _state(key, _INDEX)
        name = index.get("fqn")
        if not isinstance(name, str):
            raise Damaged("it stores something without a name")
        record = _record(name, _state(info, _STORAGE), plain)
        if name in blobs:
            metadata.items[name] = record
        else:
            metadata._records[(name, _bytes_of(_shape(index.get("offset") or ())))] = record
    clash = find_clash([(record, name) for name, record in metadata.items.items()])
    if clash is not None:
        raise Damaged(clash[1])
    paths = state.get("planner_data")
    if isinstance(paths, dict):
        metadata.paths = {name: path for name, path in paths.items() if isinstance(name, str)}
    # Where torch records for one tensor where it stood, it records it for all.
    has_paths = any(name in metadata.paths for name in metadata.tensors)
    for name in metadata.tensors:
        check_tensor_name(name, file.path)
        _check_path(name, metadata.paths.get(name) if has_paths else (name,))
    return metadata


def _check_path(name: str, path: object) -> None:
    """Check that a tensor's name is made of its path, as torch makes it."""
    if not _is_path(path) or _joined_length(path) != len(name) or ".".join(map(str, path)) != name:
        raise Damaged(f"the tensor {shown(name)} is said to have stood elsewhere in what was saved")


def _joined_length(path: tuple[str | int, ...]) -> int:
    # Before anything is joined: one long text can stand in a path again and again.
    return sum(len(part) if isinstance(part, str) else len(str(part)) for part in path) + len(path) - 1


def _record(name: str, info: State, plain: set[str]) -> Record:
    """Return the record that a storage info describes; `plain`: names of files that were seen to be names."""
    file, start, size = info.get("relative_path"), info.get("offset"), info.get("length")
    if not isinstance(file, str) or not (file in plain or is_plain_name(file)):
        raise Damaged(f"'{name}' is said to be in {shown(file)}, which is not a file name")
    if not (_is_count(start) and _is_count(size)):
        raise Damaged(f"'{name}' lies at no place in its file")
    if info.get("transform_descriptors"):
        raise Damaged(f"'{name}' is stored compressed or encrypted, which is not read")
    plain.add(file)
    return Record(file, start, size)


def _state(value: object, fields: tuple[str, ...]) -> State:
    """Return the state of a placeholder for an object that carries at least these fields."""
    if not _has(value, fields):
        raise Damaged(f"a {_kind(value)} stands where an object with {' and '.join(fields)} belongs")
    state: State = value.state
    return state


def _has(value: object, fields: tuple[str, ...]) -> TypeGuard[Inert]:
    return isinstance(value, Inert) and isinstance(value.state, dict) and all(name in value.state for name in fields)


def _is_empty(value: object) -> bool:
    return isinstance(value, Inert) and not (value.args or value.items or value.values or value.state)


def _kind(value: object) -> str:
    return value.kind if isinstance(value, Inert) else type(value).__name__


def _get(value: object, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _dict(value: object) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise Damaged("it lists no tensors")
    return value


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise Damaged("it has no list of pieces")
    return value


def _shape(value: object) -> Shape:
    if isinstance(value, tuple) and len(value) <= MAX_DIMENSIONS and all(map(_is_count, value)):
        return value
    raise Damaged("a shape or an offset in it is no tuple of counts")


def _bytes_of(offsets: Shape) -> bytes:
    return array("q", offsets).tobytes()


def _is_path(value: object) -> TypeGuard[tuple[str | int, ...]]:
    if not isinstance(value, tuple) or len(value) > _MAX_PATH:
        return False
    return all(isinstance(part, str) or _is_count(part) for part in value)


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 1 << 62
