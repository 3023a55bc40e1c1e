"""Read a pickle without running anything in it.

A pickle is a program for a stack machine; its dangerous instructions call what the file names. The machine here calls
nothing. It knows plain containers and torch's recipes for a tensor, from which it keeps a *description* (dtype, shape,
strides, where the bytes lie); every other class or function becomes an `Inert` placeholder that keeps its arguments,
items and state. So it reads more than an allow-list does, and nothing in the file runs.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ema_cli.formats.pickles.batches import Batches
from ema_cli.formats.pickles.machine import Machine
from ema_cli.formats.pickles.run import MAX_INSTRUCTIONS, execute
from ema_cli.formats.pickles.values import Blob, Inert, Name, PickleEnds, PickleError, Storage, storage_dtype
from ema_cli.storage.source import ByteSource

_MAX_REASON_CHARS = 200


def describe_storage(identifier: Any) -> Storage | Name:
    """Return the storage that a persistent id of torch's describes: ('storage', class, key, location, count).

    The legacy format has two more: a view of a storage, as very old versions wrote, which is refused; and the
    class of a module with its source text, of which we keep the name.
    """
    match identifier:
        case ("storage", Name(path), str(key), _, int(count)) | ("storage", Name(path), str(key), _, int(count), None):
            # No file is larger; and the hashes of storages with larger counts could be chosen to be equal.
            if 0 <= count < 1 << 60:
                return Storage(storage_dtype(path), key, count)
        case ("storage", Name(), str(), _, int(), _):
            raise PickleError("a tensor's storage is a view of another, as torch before 0.4 wrote it")
        case ("module", Name() as name, *_):
            return name
    raise PickleError("it refers to something outside that is no tensor storage")


def unpickle(
    source: ByteSource,
    start: int = 0,
    persistent: Callable[[Any], object] = describe_storage,
    batches: Batches | None = None,
    most: int = MAX_INSTRUCTIONS,
    names: set[str] | None = None,
) -> tuple[Any, int]:
    """Return what the pickle at byte `start` of `source` describes, and the byte at which it ends.

    The value is made of plain containers and of what `values.py` has. Sets come as lists, OrderedDict and defaultdict
    as dicts.

    Args:
        source: holds the pickle.
        start: where it begins.
        persistent: says what an id of something outside the pickle stands for.
        batches: batches of the pickles that were read before, with the same `persistent`.
        most: how many instructions it may have.
        names: takes the classes and functions that the pickle names, as 'module.name'.

    Raises:
        PickleError: for anything that is not a pickle of protocol 0 to 5, as torch writes it.
        CheckpointError: where the file cannot be read.
    """
    machine = Machine(source, start, persistent)
    machine.names = names
    return _execute(machine, batches, most), machine.base + machine.position


def names_in_pickle(source: ByteSource, start: int = 0) -> tuple[set[str], Any, int]:
    """Return the classes and functions that a pickle names, as 'module.name', its value, and the byte at which it ends.

    Raises:
        PickleError, CheckpointError: as `unpickle`.
    """
    names = set[str]()
    value, end = unpickle(source, start, lambda identifier: Inert("persistent", (identifier,)), names=names)
    return names, value, end


def unpickle_around_bytes(source: ByteSource) -> Any:
    """Return what the pickle in `source` describes, with a `Blob` in the place of each value of bytes in it.

    Raises:
        PickleError, CheckpointError: as `unpickle`.
    """
    return _execute(_SkippingMachine(source, 0, lambda identifier: Inert("persistent", (identifier,))), None)


class _SkippingMachine(Machine):
    """A machine that passes over values of bytes, which may be gigabytes, and notes where they are."""

    block_bytes = 1 << 12  # between two arrays there are few

    def frame(self, size: int) -> None:
        if self.base + self.position + size > self.source.size:
            raise PickleEnds("it ends too early")

    def payload(self, size: int) -> Blob:
        begin = self.base + self.position
        if size < 0 or begin + size > self.source.size:
            raise PickleEnds("it ends too early")
        if self.position + size <= len(self.data):
            self.position += size
        else:
            self.base, self.position, self.data = begin + size, 0, b""
        self.limit = min(self.source.size, self.limit + size)
        return Blob(begin, size)


def _execute(machine: Machine, batches: Batches | None = None, most: int = MAX_INSTRUCTIONS) -> Any:
    with pickle_errors():
        return execute(machine, batches, most)


@contextmanager
def pickle_errors() -> Iterator[None]:
    """Make a PickleError of what a machine raises where its program is damaged."""
    try:
        yield
    except (
        IndexError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        struct.error,
        OverflowError,
        RecursionError,
    ) as error:
        raise PickleError(f"it is damaged: {str(error)[:_MAX_REASON_CHARS]}") from error
