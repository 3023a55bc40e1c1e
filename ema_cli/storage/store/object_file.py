"""Objects in stores that are read by range. Every read is bound to the object that was seen first, by its ETag.

A request costs as much as many bytes. So the small reads by which a format is recognised and its header is read take
more than they ask for, and that is kept for the next ones.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Self

from ema_cli.errors import CheckpointError
from ema_cli.storage.info import Identity
from ema_cli.storage.names import StorePath, remember_query
from ema_cli.storage.source import NOT_REGULAR
from ema_cli.storage.store import header_cache
from ema_cli.storage.store.clients import place_of
from ema_cli.storage.store.hub import check_same_on_hub, read_from_hub
from ema_cli.storage.store.listing import FIRST_BYTES, FOLDER, listing_of
from ema_cli.storage.store.object_pieces import ObjectPieces, Pieces, check_same
from ema_cli.storage.store.stored_object import StoredObject

_KEPT_BYTES = 32 << 20  # of beginnings and ends of files, in all
_PIECE_BYTES = 1 << 22  # of what the Hub sends, whole
_NEAR_BYTES = 1 << 13  # before a small range in the middle of a file, and seven times that behind it


class ObjectFile:
    """An object that must not change while we use it; an `InputFile`. Safe to read from several threads.

    Raises:
        CheckpointError: where another object has taken its place, it is gone, or it cannot be read.
    """

    def __init__(self, path: StorePath, stored: StoredObject) -> None:
        self._path = path
        self._stored = stored
        if stored.first_bytes:
            _kept.put((path, stored.tag), 0, stored.first_bytes)

    @classmethod
    def of(cls, path: StorePath) -> Self:
        """Return the object at an address. It takes no request, unless nothing is known of it.

        Raises:
            Missing: where nothing is there.
            CheckpointError: where a folder is.
            Unreadable: where the store does not say.
        """
        stored = listing_of(path).object(path)
        if stored is FOLDER:
            raise CheckpointError(NOT_REGULAR, subject=path)
        return cls(path, stored)

    def __getstate__(self) -> tuple[StorePath, StoredObject, str]:
        """Return what another process needs to read the object: of a web address its query, too."""
        return self._path, self._stored, self._path.query

    def __setstate__(self, state: tuple[StorePath, StoredObject, str]) -> None:
        self._path, self._stored, query = state
        if query:
            remember_query(self._path, query)

    @property
    def path(self) -> StorePath:
        """Return where the object lies."""
        return self._path

    @property
    def stored(self) -> StoredObject:
        """Return what the store said of the object when it was opened."""
        return self._stored

    @property
    def size(self) -> int:
        """Return the size in bytes."""
        return self._stored.size

    @property
    def identity(self) -> Identity:
        """Return what tells the object from every other, and from what takes its place."""
        return identity_of(self._path, self._stored)

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes from byte `offset`; what lies around them is kept for the next reads."""
        is_header = self._stored.is_identified and self._path.scheme != "memory" and header_cache.is_kept(size)
        data = self._kept(offset, size)
        if data is None and is_header and (known := header_cache.find(self._name(), offset, size)) is not None:
            return known
        if data is None:
            data = self._read_around(offset, size)
        if is_header:
            header_cache.keep(self._name(), offset, data)  # also what came with an earlier read
        return data

    def _read_around(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from byte `offset`, and keep in memory what lies around them."""
        begin, end = self._around(offset, offset + size)
        data = bytearray(end - begin)
        self._request(begin, memoryview(data))
        if size <= FIRST_BYTES:
            _kept.put((self._path, self._stored.tag), begin, bytes(data))
        return bytes(memoryview(data)[offset - begin : offset - begin + size])

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` from byte `offset`."""
        if header_cache.is_kept(len(out)):
            out[:] = self.read(offset, len(out))
            return
        kept = self._kept(offset, len(out)) if len(out) else b""
        if kept is None:
            self._request(offset, out)
        else:
            out[:] = kept

    def pieces(self, begin: int, end: int) -> Pieces:
        """Return the bytes from `begin` to `end` in pieces as one request brings them; what is small may be known."""
        if end - begin > FIRST_BYTES and end <= self.size and not self._stored.pinned:
            return ObjectPieces(self._path, self._stored, begin, end)
        return Pieces(self._whole_pieces(begin, end))

    def _whole_pieces(self, begin: int, end: int) -> Iterator[memoryview]:
        while begin < end:
            data = memoryview(bytearray(min(_PIECE_BYTES, end - begin)))
            self.read_into(begin, data)
            yield data
            begin += len(data)

    def check_unchanged(self) -> None:
        """Check a file of a bucket on the Hub; all else that was read is of the object that was opened."""
        if self._stored.pinned:
            check_same_on_hub(self._path, self._stored.pinned, self._stored.tag)

    def _name(self) -> str:
        """Return what tells the object from every other that anybody may read on this machine."""
        return "\0".join((place_of(self._path), str(self._path), str(self.size), self._stored.tag))

    def _around(self, begin: int, end: int) -> tuple[int, int]:
        """Return what is read for the bytes from `begin` to `end`: headers are at an end of a file, or near others."""
        if begin < FIRST_BYTES:
            return begin, max(end, min(FIRST_BYTES, self.size))
        if end > self.size - FIRST_BYTES:
            return min(begin, max(0, self.size - FIRST_BYTES)), max(end, self.size)
        return (begin - _NEAR_BYTES, end + 7 * _NEAR_BYTES) if end - begin < _NEAR_BYTES else (begin, end)

    def _kept(self, offset: int, size: int) -> bytes | None:
        return _kept.get((self._path, self._stored.tag), offset, size)

    def _request(self, begin: int, out: memoryview) -> None:
        """Fill `out` from byte `begin` with one request."""
        path, end = self._path, begin + len(out)
        if end > self.size:
            raise CheckpointError(f"ends at byte {self.size} while it is read", subject=path)
        if self._stored.pinned:
            read_from_hub(path, self._stored.pinned, begin, out)
            return
        position = 0
        for piece in ObjectPieces(path, self._stored, begin, end):
            out[position : position + len(piece)] = piece
            position += len(piece)


class ObjectReadByOthers(ObjectFile):
    """An object whose bytes another program reads, which asks for no version of it: it is compared in the end."""

    def check_unchanged(self) -> None:
        """Ask the store whether the object is the one that was opened."""
        check_same(self.path, self.stored)


class _Kept:
    """Ranges of objects that were read, those that were used last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ranges: OrderedDict[tuple[StorePath, str], dict[int, bytes]] = OrderedDict()
        self._bytes = 0

    def put(self, key: tuple[StorePath, str], begin: int, data: bytes) -> None:
        """Keep the bytes of an object from byte `begin`."""
        with self._lock:
            ranges = self._ranges.setdefault(key, {})
            self._bytes += len(data) - len(ranges.get(begin, b""))
            ranges[begin] = data
            self._ranges.move_to_end(key)
            while self._bytes > _KEPT_BYTES and len(self._ranges) > 1:
                _, dropped = self._ranges.popitem(last=False)
                self._bytes -= sum(map(len, dropped.values()))

    def get(self, key: tuple[StorePath, str], offset: int, size: int) -> bytes | None:
        """Return bytes of an object, None unless all of them are kept."""
        with self._lock:
            for begin, data in self._ranges.get(key, {}).items():
                if begin <= offset and offset + size <= begin + len(data):
                    return data[offset - begin : offset - begin + size]
        return None


_kept = _Kept()


def identity_of(path: StorePath, stored: StoredObject) -> Identity:
    """Return what tells an object from every other, and from what takes its place."""
    return Identity((str(path), stored.size, stored.tag))
