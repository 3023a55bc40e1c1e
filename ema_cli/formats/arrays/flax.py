"""Read what `flax.serialization.to_bytes` makes: a tree of arrays in msgpack, whose bytes are read where they lie."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ema_cli.dtypes import TORCH_DTYPES
from ema_cli.errors import CUT_SHORT, CheckpointError, IncompleteCheckpoint
from ema_cli.formats.arrays.inflating import JoinedSources
from ema_cli.formats.arrays.numpy_types import OTHER_SAVE, describe
from ema_cli.formats.arrays.trees import model_in_tree
from ema_cli.formats.pickles.values import Blob, TensorRef
from ema_cli.formats.torch_save.archive import Span
from ema_cli.formats.torch_save.content import TorchFile, locate_in
from ema_cli.storage.source import ByteSource, FileRegion

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3  # the extensions that Flax has; a complex number of Python's is no tensor
_CHUNKED = "__msgpack_chunked_array__"  # beside the shape and the chunks of an array of more than a gigabyte
_PARTS = 3  # of an array: shape, type, bytes
_BLOCK_BYTES = 1 << 12
_MAX_TEXT_BYTES = 1 << 20
_MAX_DEPTH = 64
_MAX_VALUES = 1 << 21  # an array takes some eight


def open_msgpack(file: ByteSource) -> TorchFile:
    """Read the tree, but for the bytes of the arrays.

    Raises:
        IncompleteCheckpoint: where it has no end.
        CheckpointError: for what is no tree of arrays, and arrays that are not read.
    """
    contents = _Contents(file)
    try:
        reader = _Reader(file, contents)
        root = reader.value(0)
        if reader.position != file.size:
            raise CheckpointError(f"{file.size - reader.position} bytes follow the tree in it")
        root = model_in_tree(root)
    except CheckpointError as error:
        error.about(file.path)
        raise
    except (UnicodeDecodeError, struct.error) as error:
        raise CheckpointError(f"the msgpack in it is damaged: {error}", subject=file.path) from error
    return TorchFile(contents.joined(), root, locate_in(contents.spans))


class _Contents:
    """Where the bytes of the arrays lie: those of an array in chunks behind the file, one chunk after the other.

    Attributes:
        spans: for each key of a storage, where it lies.
    """

    def __init__(self, file: ByteSource) -> None:
        self._sources: list[ByteSource] = [file]
        self._end = file.size
        self.spans: dict[str, Span] = {}

    def add(self, blobs: list[Blob]) -> str:
        """Return the key of a storage that lies in these places."""
        start, size = (blobs[0].offset if blobs else 0), sum(blob.size for blob in blobs)
        if len(blobs) > 1:
            start = self._end
            self._sources += [FileRegion(self._sources[0], blob.offset, blob.size) for blob in blobs if blob.size]
            self._end += size
        key = str(start) if size else ""
        self.spans[key] = start, size
        return key

    def chunks(self, keys: Iterable[str]) -> list[Blob]:
        """Return the places of storages."""
        return [Blob(*self.spans[key]) for key in keys]

    def joined(self) -> ByteSource:
        """Return what the places are in."""
        return JoinedSources.of(self._sources[0].path, self._sources) if len(self._sources) > 1 else self._sources[0]


class _Reader:
    """Reads values of msgpack one after the other; arrays become descriptions, other bytes are passed over.

    Lists become dicts by the numbers of their places, as Flax itself makes them.
    """

    def __init__(self, file: ByteSource, contents: _Contents) -> None:
        self._file, self._contents = file, contents
        self.position = 0
        self._data, self._base = b"", 0
        self._values = 0

    def value(self, depth: int) -> Any:
        """Return the next value."""
        self._values += 1
        if depth > _MAX_DEPTH or self._values > _MAX_VALUES:
            raise CheckpointError("the msgpack in it is nested, or goes on, without end")
        code = self._take(1)[0]
        if code < 0x80 or code >= 0xE0:
            return code if code < 0x80 else code - 0x100
        if code < 0x90:
            return self.pairs(code & 15, depth)
        if code < 0xA0:
            return self.items(code & 15, depth)
        if code < 0xC0:
            return self.text(code & 31)
        action = _CODES.get(code)
        if action is None:
            raise CheckpointError(f"the msgpack in it is damaged: no value begins with {code:#x}")
        return action(self, depth)

    def number(self, layout: str) -> Any:
        """Return the next number."""
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def pairs(self, count: int, depth: int) -> Any:
        """Return a map of so many pairs, or the array that it stands for."""
        values: dict[str, Any] = {}
        for _ in range(count):
            key = self.value(depth + 1)
            key = str(key) if type(key) is int else key
            if not isinstance(key, str) or key in values:
                what = f"the key '{key[:200]}' twice" if isinstance(key, str) else "a key that is no text"
                raise CheckpointError(f"the msgpack in it has {what}")
            values[key] = self.value(depth + 1)
        return self._joined(values) if _CHUNKED in values else values

    def items(self, count: int, depth: int) -> dict[str, Any]:
        """Return a list of so many values."""
        return {str(number): self.value(depth + 1) for number in range(count)}

    def text(self, size: int) -> str:
        """Return a text of so many bytes."""
        if size > _MAX_TEXT_BYTES:
            raise CheckpointError(f"the msgpack in it has a text of {size} bytes")
        return self._take(size).decode()

    def blob(self, size: int) -> Blob:
        """Pass over so many bytes."""
        blob = Blob(self.position, size)
        if self.position + size > self._file.size:
            raise _no_end()
        self.position += size
        return blob

    def extension(self, size: int, depth: int) -> Any:
        """Return an array, or a text in the place of a complex number, of so many bytes."""
        kind, end = self.number("b"), self.position + size
        if end > self._file.size:
            raise _no_end()
        if kind not in (_ARRAY, _COMPLEX, _SCALAR):  # passed over, a tensor would be missing without a word
            raise CheckpointError(f"the msgpack in it has an extension {kind}, which Flax has not")
        parts = self.value(depth + 1)
        match parts:
            case {"0": int() | float(), "1": int() | float()} if kind == _COMPLEX and self.position == end:
                return "a complex number"
            case _ if kind == _COMPLEX:
                raise CheckpointError("a complex number in it is not stored as Flax stores it")
            case {"0": dict() as lengths, "1": str(dtype), "2": Blob() as data} if len(parts) == _PARTS:
                pass
            case _:
                raise CheckpointError("an array in it is not stored as Flax stores it")
        if self.position != end:
            raise CheckpointError("an array in it is longer or shorter than it says")
        return self._describe(lengths, dtype, [data])

    def _describe(self, lengths: dict[str, Any], dtype: str, blobs: list[Blob]) -> TensorRef:
        if dtype not in TORCH_DTYPES:
            raise CheckpointError(
                f"an array in it is of numpy's type '{dtype[:40]}', which no tensor has", hint=OTHER_SAVE
            )
        shape = tuple(lengths.values())
        if not all(type(length) is int for length in shape) or list(lengths) != [str(at) for at in range(len(lengths))]:
            raise CheckpointError("an array in it has a shape that is none")
        return describe(self._contents.add(blobs), dtype, shape)

    def _joined(self, pairs: dict[str, Any]) -> TensorRef:
        """Return the description of an array in chunks, each an array of the elements that follow."""
        match pairs:
            case {"shape": dict() as lengths, "chunks": dict() as chunks}:
                parts = [chunks.get(str(number)) for number in range(len(chunks))]
            case _:
                raise CheckpointError("an array in chunks is not stored as Flax stores it")
        refs = [part for part in parts if isinstance(part, TensorRef)]
        if not refs or len(refs) < len(parts) or len({ref.dtype for ref in refs}) > 1:
            raise CheckpointError("an array in chunks is not stored as Flax stores it")
        return self._describe(lengths, refs[0].dtype, self._contents.chunks(ref.storage.key for ref in refs))

    def _take(self, size: int) -> bytes:
        """Return the next bytes."""
        begin = self.position - self._base
        if begin + size > len(self._data):
            if self.position + size > self._file.size:
                raise _no_end()
            self._base, begin = self.position, 0
            self._data = self._file.read(self._base, min(max(size, _BLOCK_BYTES), self._file.size - self._base))
        self.position += size
        return self._data[begin : begin + size]


def _no_end() -> IncompleteCheckpoint:
    return IncompleteCheckpoint("cut short: the msgpack in it has no end", hint=CUT_SHORT)


def _number(layout: str) -> Callable[[_Reader, int], Any]:
    return lambda reader, depth: reader.number(layout)


_CODES: Mapping[int, Callable[[_Reader, int], Any]] = {
    0xC0: lambda reader, depth: None,
    0xC2: lambda reader, depth: False,
    0xC3: lambda reader, depth: True,
    0xC4: lambda reader, depth: reader.blob(reader.number(">B")),
    0xC5: lambda reader, depth: reader.blob(reader.number(">H")),
    0xC6: lambda reader, depth: reader.blob(reader.number(">I")),
    0xC7: lambda reader, depth: reader.extension(reader.number(">B"), depth),
    0xC8: lambda reader, depth: reader.extension(reader.number(">H"), depth),
    0xC9: lambda reader, depth: reader.extension(reader.number(">I"), depth),
    **dict(enumerate(map(_number, (">f", ">d", ">B", ">H", ">I", ">Q", ">b", ">h", ">i", ">q")), 0xCA)),
    0xD4: lambda reader, depth: reader.extension(1, depth),
    0xD5: lambda reader, depth: reader.extension(2, depth),
    0xD6: lambda reader, depth: reader.extension(4, depth),
    0xD7: lambda reader, depth: reader.extension(8, depth),
    0xD8: lambda reader, depth: reader.extension(16, depth),
    0xD9: lambda reader, depth: reader.text(reader.number(">B")),
    0xDA: lambda reader, depth: reader.text(reader.number(">H")),
    0xDB: lambda reader, depth: reader.text(reader.number(">I")),
    0xDC: lambda reader, depth: reader.items(reader.number(">H"), depth),
    0xDD: lambda reader, depth: reader.items(reader.number(">I"), depth),
    0xDE: lambda reader, depth: reader.pairs(reader.number(">H"), depth),
    0xDF: lambda reader, depth: reader.pairs(reader.number(">I"), depth),
}
