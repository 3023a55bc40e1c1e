"""Read zarr arrays by range with the package tensorstore, from OCDBT or from folders, as Orbax writes them.

Each array is compressed in blocks, which tensorstore decompresses whole and keeps for the next range: as many as fit
into what the user lets the process take, else few. Large ones are read one after the other. What has blocks of more
than an eighth of the machine's memory is refused.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from importlib import import_module
from itertools import islice
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any

from ema_cli.checkpoint import MAX_ELEMENTS
from ema_cli.dataclass import dataclass
from ema_cli.dtypes import TORCH_DTYPES
from ema_cli.errors import CheckpointError, IncompleteCheckpoint, UsageError
from ema_cli.formats.arrays.kvstores import kvstore_of
from ema_cli.formats.arrays.numpy_types import OTHER_SAVE
from ema_cli.storage.source import Filled
from ema_cli.system.memory import memory_bytes
from ema_cli.text import size as size_text

_MAX_INFLATED, _MOST_TIMES = 1 << 30, 16  # as of arrays of numpy's
_MOST_OPEN = 256  # arrays
_AT_ONCE = 64  # that are being opened
_KEPT_BYTES = 16 << 20  # of decompressed blocks, where the user does not say
_LARGE_BYTES = 2 << 20  # of a block, of which one is read at a time
_BLOCK_SHARE = 8  # of the memory, for one block: one part of so many
_TIMES_OF_BLOCK = 4  # compressed, decompressed, the one before, and what malloc holds
_FAILURES = (ValueError, RuntimeError, TypeError, OverflowError, MemoryError, IndexError, OSError)
_open_arrays: OrderedDict[tuple[str, str], Any] = OrderedDict()
_context: list[Any] = []
_lock, _reading = Lock(), Lock()
_largest = [0]  # block that an array of this process has, in bytes


@dataclass(frozen=True, slots=True)
class Store:
    """How the arrays of an item are stored."""

    folder: Path
    driver: str
    in_ocdbt: bool
    may_lack_blocks: bool

    def spec(self, name: str) -> dict[str, Any]:
        """Return what tensorstore is asked for to open an array."""
        base = kvstore_of(self.folder)
        in_folder = {**base, "path": f"{base['path']}{name}/"}
        kept = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
        return {
            "driver": self.driver,
            "kvstore": kept if self.in_ocdbt else in_folder,
            "recheck_cached_data": False,
            "fill_missing_data_reads": self.may_lack_blocks,
        }


@dataclass(frozen=True, slots=True)
class ZarrArray(Filled):
    """An array as the bytes of its elements in C order."""

    store: Store
    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    block: int

    @property
    def size(self) -> int:
        """Return the number of bytes."""
        return prod(self.shape) * TORCH_DTYPES[self.dtype].itemsize

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` from byte `offset`; both are multiples of the size of an element.

        Raises:
            CheckpointError: where a block is damaged or missing.
        """
        item, done = TORCH_DTYPES[self.dtype].itemsize, 0
        first = offset // item
        array = _opened(self)
        for box in _boxes(self.shape, first, first + len(out) // item):
            try:
                with _reading if self.block > _LARGE_BYTES else nullcontext():
                    data = array[box].read(order="C").result().tobytes()
            except _FAILURES as error:
                raise _failure(error, self.name, self.path) from error
            out[done : done + len(data)] = data
            done += len(data)


def open_arrays(names: Iterable[str], store: Store, path: Path, stored: int) -> dict[str, ZarrArray]:
    """Read the headers of arrays, several at once; check that what they become fits."""
    arrays: dict[str, ZarrArray] = {}
    inflated = 0
    rest = iter(names)
    while some := list(islice(rest, _AT_ONCE)):
        opening = [_start(store, name, path) for name in some]
        for name, future in zip(some, opening, strict=True):
            try:
                opened = future.result()
            except _FAILURES as error:
                raise _failure(error, name, path) from error
            block = _block_bytes(opened)
            array = ZarrArray(store, name, str(opened.dtype.name), tuple(opened.shape), path, block)
            if array.dtype not in TORCH_DTYPES:
                fact = f"'{name}' is of type '{array.dtype[:40]}', which no tensor has"
                raise CheckpointError(fact, subject=path, hint=OTHER_SAVE)
            if prod(array.shape) > MAX_ELEMENTS:
                raise CheckpointError(f"'{name}' has a shape that no tensor has", subject=path)
            inflated += array.size
            _check_block(array)
            arrays[name] = array
    if inflated > max(_MAX_INFLATED, _MOST_TIMES * stored):
        raise CheckpointError(f"{stored} bytes in it become {inflated}, more than numbers of a model do", subject=path)
    return arrays


def _block_bytes(opened: Any) -> int:
    """Return the size of the blocks in which a range of an open array lies."""
    block, shape = opened.chunk_layout.read_chunk.shape, opened.shape
    if not block or not shape or 0 in shape:
        return 0
    return int(min(block[0], shape[0]) * prod(shape[1:]) * opened.dtype.numpy_dtype.itemsize)


def _check_block(array: ZarrArray) -> None:
    """Check that the blocks in which a range of an array lies fit into memory."""
    most = memory_bytes() // _BLOCK_SHARE
    _largest[0] = max(_largest[0], array.block)
    if array.block > most:
        raise CheckpointError(
            f"'{array.name}' is compressed in blocks of which {size_text(array.block)} are needed at once, and "
            f"{size_text(most)} are read at most",
            subject=array.path,
            hint="save with smaller blocks (chunk_byte_size of Orbax), or use a machine with more memory",
        )


def note_of(arrays: Iterable[ZarrArray]) -> tuple[str, ...]:
    """Return what a user should know of large blocks, if there are any."""
    largest = max((array.block for array in arrays), default=0)
    if largest <= _LARGE_BYTES:
        return ()
    text = size_text(largest)
    return (
        f"compressed in blocks of up to {text}, which are decompressed anew for each range of them: a --max-memory "
        f"with room for one of each checkpoint keeps them, which is faster",
    )


def needed_bytes() -> int:
    """Return the memory that reading takes beside the buffers: for what is kept, and for the largest block."""
    return _KEPT_BYTES + _TIMES_OF_BLOCK * _largest[0]


def keep_more(nbytes: int) -> None:
    """Keep more decompressed blocks from now on, as many as `nbytes` more of memory allow."""
    tensorstore = import_module("tensorstore")
    more = max(0, nbytes * 3 // 4 - _TIMES_OF_BLOCK * _largest[0])  # it keeps a little more than its limit
    with _lock:
        _open_arrays.clear()
        _context[:] = [_make_context(tensorstore, _KEPT_BYTES + more)]


def _make_context(tensorstore: Any, kept: int) -> Any:
    return tensorstore.Context({"cache_pool": {"total_bytes_limit": kept}, "data_copy_concurrency": {"limit": 1}})


def _opened(array: ZarrArray) -> Any:
    """Return an array that is open, one of those that were used last."""
    key = str(array.store.folder), array.name
    with _lock:
        if key in _open_arrays:
            _open_arrays.move_to_end(key)
            return _open_arrays[key]
    try:
        opened = _start(array.store, array.name, array.path).result()
    except _FAILURES as error:
        raise _failure(error, array.name, array.path) from error
    if (str(opened.dtype.name), tuple(opened.shape)) != (array.dtype, array.shape):
        raise CheckpointError(f"'{array.name}' has changed while it was read", subject=array.path)
    with _lock:
        _open_arrays[key] = opened
        while len(_open_arrays) > _MOST_OPEN:
            _open_arrays.popitem(last=False)
    return opened


def _start(store: Store, name: str, path: Path) -> Any:
    """Begin to open an array; return tensorstore's future."""
    tensorstore = load_tensorstore(path)
    with _lock:
        if not _context:
            _context.append(_make_context(tensorstore, _KEPT_BYTES))
    try:
        return tensorstore.open(store.spec(name), open=True, read=True, context=_context[0])
    except _FAILURES as error:
        raise _failure(error, name, path) from error


def _failure(error: Exception, name: str, path: Path) -> CheckpointError:
    """Return the error for an array that tensorstore does not read."""
    kind = IncompleteCheckpoint if "NOT_FOUND" in str(error) else CheckpointError
    reason = str(error).partition(" [")[0][:300]
    return kind(f"'{name[:200]}' cannot be read: {reason}", subject=path)


def _boxes(shape: tuple[int, ...], first: int, last: int) -> Iterator[tuple[slice, ...]]:
    """Yield the boxes whose elements, one after the other in C order, are those from number `first` to `last`."""
    if first >= last or not shape:
        if not shape and first < last:
            yield ()
        return
    row = prod(shape[1:])
    low, high = first // row, last // row
    inner_first, inner_last = first - low * row, last - high * row
    if low == high:
        yield from ((slice(low, low + 1), *box) for box in _boxes(shape[1:], inner_first, inner_last))
        return
    if inner_first:
        yield from ((slice(low, low + 1), *box) for box in _boxes(shape[1:], inner_first, row))
        low += 1
    if low < high:
        yield (slice(low, high), *(slice(0, length) for length in shape[1:]))
    if inner_last:
        yield from ((slice(high, high + 1), *box) for box in _boxes(shape[1:], 0, inner_last))


def load_tensorstore(path: Path) -> Any:
    """Return the package tensorstore."""
    try:
        return import_module("tensorstore")
    except ImportError as error:
        raise UsageError(
            f"is a checkpoint of Orbax's, which the package tensorstore reads ({error})",
            subject=path,
            hint="install it: pip install 'ema-cli[jax]'",
        ) from error
