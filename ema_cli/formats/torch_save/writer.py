"""Lay out files as `torch.save` writes them, before any tensor is read: all bytes but the tensors' and their checksums.

Such a file is a zip archive: the pickle that describes a state dict, a record for each tensor, and the record with our
mark, which torch passes over. The folder in the archive has one name, whatever the file is called.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from ema_cli.checkpoint import TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.errors import OutputError, option
from ema_cli.formats.mark import RECORD
from ema_cli.formats.output_file import Stream, Table
from ema_cli.formats.torch_save.pickle_writer import NoTorchType, pickle_state_dict, pickle_tensor
from ema_cli.formats.torch_save.zip_writer import (
    ALIGNMENT,
    END_SIZE,
    ZipRecord,
    directory_end,
    place_records,
    whole_record,
)
from ema_cli.system.threads import thread_errors

_FOLDER = "archive"  # as torch calls it where it does not know the file's name
_BLOCK_BYTES = 1 << 20
_AHEAD = 64  # tensors, or blocks with several

Part = tuple[int, bytes | memoryview]
"""The byte of a file at which something begins, and what stands there."""

Frame = Callable[[Callable[[int, int], int]], Iterable[Part]]
"""Yields what stands around tensors, given what returns the CRC-32 of so many bytes from a byte of the file on."""


@dataclass(frozen=True, slots=True)
class TorchTable(Table):
    """The tensors of a file of torch's; `text` holds the records before them.

    Attributes:
        entries: the entries of those records in the archive's directory.
        entries_size: the size of those entries and of the tensors' own.
    """

    entries: bytes
    entries_size: int


@dataclass(frozen=True, slots=True)
class TorchOutput:
    """One file to write as `torch.save` does; an `OutputFile`.

    Attributes:
        mark: the content of our record, None without one.
        key: where the state dict stands in the dict that is saved; empty: it is all that is saved.
    """

    name: str
    table: TorchTable
    mark: bytes | None
    key: str = ""

    @property
    def header(self) -> bytes:
        """Return the records before those of the tensors."""
        return self.table.text

    @property
    def header_size(self) -> int:
        """Return the size of the header."""
        return len(self.table.text)

    @property
    def size(self) -> int:
        """Return the size of the file."""
        last = self._last_records()
        return last[-1][0].end + self.table.entries_size + sum(record.entry_size for record, _ in last) + END_SIZE

    def finish(self, stream: Stream) -> None:
        """Write the checksums between the tensors, which are all written, and the directory behind them."""
        write_frame(stream, self.frame, self.summed())

    def summed(self) -> Iterator[tuple[int, int]]:
        """Yield where each tensor lies: the first byte, and how many."""
        records = _tensor_records(self.table.specs, self.header_size)
        return ((record.begin, record.size) for record in records)

    def frame(self, checksum_of: Callable[[int, int], int]) -> Iterator[Part]:
        """Yield all bytes behind the header that are no tensor's, each part with its offset.

        Args:
            checksum_of: returns the CRC-32 of a tensor, which has so many bytes from a byte of the file on.
        """
        directory = bytearray(self.table.entries)
        gap, at = b"", self.header_size
        for record in _tensor_records(self.table.specs, self.header_size):
            yield at, gap + record.header
            checksum = checksum_of(record.begin, record.size)
            gap, at = record.descriptor(checksum), record.begin + record.size
            directory += record.entry(checksum)
        last = self._last_records()
        whole, more = _whole_records(last)
        directory += more
        begin, count = last[-1][0].end, len(_first_contents(b"")) + len(self.table.specs) + len(last)
        yield at, gap + whole
        directory += directory_end(begin, len(directory), count)
        yield begin, memoryview(directory)

    def _last_records(self) -> list[tuple[ZipRecord, bytes]]:
        """Return the records behind the tensors, with their content."""
        contents = {f"{_FOLDER}/version": b"3\n"} | ({} if self.mark is None else {f"{_FOLDER}/{RECORD}": self.mark})
        return _place(contents, self.header_size + self.table.nbytes)


def lay_out_torch_file(
    name: str, specs: Mapping[str, TensorSpec], mark: str, tables: Sequence[Table] = ()
) -> TorchOutput:
    """Return the layout of a file of torch's.

    Args:
        name: the name of the file.
        specs: its tensors, in the order in which they are stored.
        mark: the content of our record in it.
        tables: tables of other files; one of the same tensors in the same order is used again.

    Raises:
        OutputError: for a tensor that torch has no type for.
    """
    for table in tables:
        if isinstance(table, TorchTable) and list(table.specs.items()) == list(specs.items()):
            return TorchOutput(name, table, mark.encode())
    return TorchOutput(name, _make_table(name, specs), mark.encode())


def lay_out_checkpoint(
    name: str, specs: Mapping[str, TensorSpec], mark: str, key: str, beside: Mapping[str, bytes]
) -> TorchOutput:
    """Return the layout of a file of torch's with a state dict and more in a dict around it.

    Args:
        name, specs, mark: as of `lay_out_torch_file`, whose errors it raises.
        key: where the state dict stands.
        beside: the other entries, as instructions of a pickle.
    """
    with _no_torch_type(name):
        return TorchOutput(name, _table(pickle_state_dict(specs, key, beside), specs), mark.encode(), key)


def lay_out_tensor(name: str, spec: TensorSpec) -> TorchOutput:
    """Return the layout of an archive of one tensor, as `torch.save` writes it; raise as `lay_out_torch_file`."""
    specs = {name: spec}
    with _no_torch_type(name):
        return TorchOutput(name, _table(pickle_tensor(name, spec), specs), None)


def _make_table(file: str, specs: Mapping[str, TensorSpec]) -> TorchTable:
    with _no_torch_type(file):
        return _table(pickle_state_dict(specs), specs)


@contextmanager
def _no_torch_type(subject: str) -> Iterator[None]:
    try:
        yield
    except NoTorchType as error:
        hint = f"write it as safetensors: {option('o', 'NAME.safetensors')}"
        raise OutputError(f"{error}", subject=subject, hint=hint) from error


def _table(pickle: bytes, specs: Mapping[str, TensorSpec]) -> TorchTable:
    first = _place(_first_contents(pickle), 0)
    text, entries = _whole_records(first)
    begins: dict[str, int] = {}
    end, entries_size = len(text), len(entries)
    for tensor, record in zip(specs, _tensor_records(specs, len(text)), strict=True):
        begins[tensor] = record.begin - len(text)
        end, entries_size = record.end, entries_size + record.entry_size
    return TorchTable(text, begins, specs, end - len(text), entries, entries_size)


def write_frame(stream: Stream, frame: Frame, tensors: Iterator[tuple[int, int]]) -> None:
    """Write what stands around tensors, which are all written.

    A thread of its own makes the checksums of the next tensors, while the file is summed up as far as it is whole.

    Args:
        stream: the file.
        frame: yields the bytes, each part with its offset, given what returns the checksum of a tensor.
        tensors: first byte and size of each tensor, in order.
    """
    pool = ThreadPoolExecutor(1, "checksum")
    batches = _batches(tensors)
    ahead: deque[Future[list[int]]] = deque()

    def checksums() -> Iterator[int]:
        for batch in batches:
            ahead.append(pool.submit(_checksums, stream, batch))
            if len(ahead) == _AHEAD:
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()

    known = checksums()

    def checksum_of(_begin: int, _size: int) -> int:
        return next(known)

    try:
        with thread_errors():
            for offset, data in frame(checksum_of):
                stream.write(offset, data)
    finally:
        pool.shutdown(cancel_futures=True)


def _batches(tensors: Iterable[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Yield tensors that lie in a block together, as small ones do; a larger one by itself."""
    batch: list[tuple[int, int]] = []
    for begin, size in tensors:
        if batch and begin + size - batch[0][0] > _BLOCK_BYTES:
            yield batch
            batch = []
        batch.append((begin, size))
    if batch:
        yield batch


def _checksums(stream: Stream, batch: Sequence[tuple[int, int]]) -> list[int]:
    """Return the CRC-32 of tensors that were written, each of so many bytes from a byte on."""
    if len(batch) == 1:
        return [_checksum(stream, *batch[0])]
    first = batch[0][0]
    # What has no bytes may be said to begin where nothing was written yet.
    end = max((begin + size for begin, size in batch if size), default=first)
    block = memoryview(b"".join(_blocks(stream, first, end)))
    return [zlib.crc32(block[begin - first : begin - first + size]) for begin, size in batch]


def _checksum(stream: Stream, at: int, size: int) -> int:
    checksum = 0
    for block in _blocks(stream, at, at + size):
        checksum = zlib.crc32(block, checksum)
    return checksum


def _blocks(stream: Stream, at: int, end: int) -> Iterator[bytes]:
    """Yield the bytes from one to another of a file, which were written."""
    while at < end:
        block = stream.read(at, min(_BLOCK_BYTES, end - at))
        if not block:
            raise OutputError(f"ends at byte {at} while it is written", subject=stream.path)
        yield block
        at += len(block)


def _first_contents(pickle: bytes) -> dict[str, bytes]:
    """Return the content of the records before the tensors, which torch needs to find them."""
    return {
        f"{_FOLDER}/data.pkl": pickle,
        f"{_FOLDER}/.format_version": b"1",
        f"{_FOLDER}/.storage_alignment": str(ALIGNMENT).encode(),
        f"{_FOLDER}/byteorder": b"little",
    }


def _tensor_records(specs: Mapping[str, TensorSpec], at: int) -> Iterator[ZipRecord]:
    return place_records(((f"{_FOLDER}/data/{number}", spec.nbytes) for number, spec in enumerate(specs.values())), at)


def _place(contents: Mapping[str, bytes], at: int) -> list[tuple[ZipRecord, bytes]]:
    records = place_records(((name, len(content)) for name, content in contents.items()), at)
    return list(zip(records, contents.values(), strict=True))


def _whole_records(placed: Iterable[tuple[ZipRecord, bytes]]) -> tuple[bytes, bytes]:
    """Return the bytes of records with their content, and the bytes of their entries in the directory."""
    parts = [whole_record(record, content) for record, content in placed]
    return b"".join(whole for whole, _ in parts), b"".join(entry for _, entry in parts)
