"""Headers of objects in stores, kept on the disk of this user for the next command.

What is read of an object while a checkpoint is opened is kept under the identity of the object: its address, size and
ETag. An object that is replaced has another, so what is found here is what the store would send. All of it may be lost:
nothing that goes wrong here is an error.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ContextDecorator, contextmanager, suppress
from pathlib import Path
from typing import Any

_MOST_BYTES = 256 << 20  # of all that is kept
_MOST_AT_ONCE = 8 << 20  # of one range: larger ones are no headers
_LOOKED_AT = 16  # ranges of an object, whether a new one lies in them
_PATIENCE_SECONDS = 1.0  # for another process that writes
_TABLE = """
create table if not exists ranges (
    object blob, begin integer, data blob, sum blob, used real, primary key (object, begin)) without rowid
"""
_lock = threading.RLock()
_wanted = False
_opening = 0  # calls that open checkpoints now
_connection: Any = None
_written: dict[bytes, list[tuple[int, int]]] = {}  # of each object, where what this process has kept begins and ends
_path: Path | None = None
_is_broken = False


def keep_headers(*, wanted: bool) -> None:
    """Keep headers from now on, and look for them, or do not."""
    global _wanted, _is_broken
    with _lock:
        _wanted, _is_broken = wanted, False
    if not wanted:
        close()


class opening(ContextDecorator):  # noqa: N801 - a decorator
    """While a checkpoint is opened: what is read meanwhile is a header."""

    def __enter__(self) -> None:
        global _opening
        with _lock:
            _opening += 1

    def __exit__(self, *_: object) -> None:
        global _opening
        with _lock:
            _opening -= 1


def is_kept(size: int) -> bool:
    """Return whether a range of so many bytes that is read now is kept."""
    return _wanted and _opening > 0 and 0 < size <= _MOST_AT_ONCE


def find(identity: str, begin: int, size: int) -> bytes | None:
    """Return `size` bytes of an object from byte `begin`, None where they are not kept."""
    with _lock, _failures():
        database = _open()
        if database is None:
            return None
        key = _key(identity)
        rows = database.execute(
            "select begin, data, sum from ranges where object = ? and begin <= ? and begin + length(data) >= ?",
            (key, begin, begin + size),
        )
        for first, data, checked in rows:
            # A file that somebody else made may hold anything in any column.
            is_range = isinstance(first, int) and first >= 0 and isinstance(data, bytes)
            if is_range and checked == _sum(key, first, data):
                return bytes(data[begin - first : begin - first + size])
    return None


def keep(identity: str, begin: int, data: bytes) -> None:
    """Keep a range of an object, unless this process has kept one around it."""
    with _lock, _failures():
        database = _open()
        if database is None:
            return
        key, end = _key(identity), begin + len(data)
        written = _written.setdefault(key, [])
        if any(first <= begin and end <= last for first, last in written[-_LOOKED_AT:]):
            return
        row = (key, begin, data, _sum(key, begin, data), time.time())
        database.execute("insert or replace into ranges values (?, ?, ?, ?, ?)", row)
        written.append((begin, end))


def close() -> None:
    """Close the file, and remove the oldest of what is too much."""
    global _connection
    with _lock, _failures():
        database, _connection = _connection, None
        _written.clear()
        if database is not None:
            _shrink(database)
            database.close()


def _shrink(database: Any) -> None:
    """Remove what was kept first, until what is left takes three quarters of what may be kept."""
    (total,) = database.execute("select coalesce(sum(length(data)), 0) from ranges").fetchone()
    if total <= _MOST_BYTES:
        return
    rows = database.execute("select object, begin, length(data) from ranges order by used").fetchall()
    gone = []
    for key, begin, size in rows:
        if total <= _MOST_BYTES * 3 // 4:
            break
        gone.append((key, begin))
        total -= size
    database.executemany("delete from ranges where object = ? and begin = ?", gone)
    database.execute("vacuum")


def _open() -> Any:
    """Return the open file; None where there is none, and can be none."""
    global _connection, _path
    if _is_broken:
        return None
    path = _place()
    if _connection is not None and path == _path:
        return _connection
    close()
    if path is None:
        return None
    import sqlite3  # which only those need who read from a store

    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    if path.stat().st_uid != os.getuid():
        return None
    _path = path
    database = sqlite3.connect(path, timeout=_PATIENCE_SECONDS, isolation_level=None, check_same_thread=False)
    database.execute("pragma journal_mode = wal")
    database.execute("pragma synchronous = off")  # what a power cut takes is read again; each range has its sum
    database.execute(_TABLE)
    _connection = database
    return database


def _place() -> Path | None:
    """Return the path of the file; None where the user has no folder for it."""
    folder = os.environ.get("XDG_CACHE_HOME", "")
    home = os.environ.get("HOME", "")
    if not os.path.isabs(folder):
        if not os.path.isabs(home):
            return None
        folder = os.path.join(home, ".cache")
    return Path(folder, "ema-cli", "headers.sqlite")


@contextmanager
def _failures() -> Iterator[None]:
    """Give up for this process where the file cannot be used; remove it where it is damaged."""
    global _is_broken, _connection
    try:
        yield
    except Exception as error:
        import sqlite3

        if not isinstance(error, (OSError, sqlite3.Error)):
            raise
        _is_broken, _connection = True, None
        _written.clear()
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError) and _path:
            for name in (_path.name, f"{_path.name}-wal", f"{_path.name}-shm"):
                with suppress(OSError):
                    _path.with_name(name).unlink()


def _key(identity: str) -> bytes:
    return hashlib.blake2b(identity.encode(errors="surrogateescape"), digest_size=20).digest()


def _sum(key: bytes, begin: int, data: bytes) -> bytes:
    return hashlib.blake2b(key + begin.to_bytes(8, "little") + data, digest_size=16).digest()
