"""What an output as `torch.save` writes it will be, before a tensor is read: all but the checksums of the tensors.

A zip archive: the pickle that describes a state dict, a record for each tensor, and one of our own that says how they
were averaged, which torch passes over. The archive's folder has one name, whatever the file's.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ema_cli.checkpoint import TensorSpec
from ema_cli.errors import OutputError, option
from ema_cli.formats.mark import RECORD
from ema_cli.formats.output_file import Stream, Table
from ema_cli.formats.torch_save.pickle_writer import NoTorchType, pickle_state_dict
from ema_cli.formats.torch_save.zip_writer import (
    ALIGNMENT,
    END_SIZE,
    ZipRecord,
    directory_end,
    place_records,
    whole_record,
)

_FOLDER = "archive"  # as torch calls it where it does not know the file's name
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class TorchTable(Table):
    """The tensors of a file of torch's: the records before them, and those records' entries in the directory."""

    entries: bytes
    entries_size: int  # with those of the tensors


@dataclass(frozen=True, slots=True)
class TorchOutput:
    """One file to write as `torch.save` does; those of several averages share their table."""

    name: str
    table: TorchTable
    mark: bytes

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
        """Write what stands between and behind the tensors, which are all written: their checksums, the directory."""
        entries = [self.table.entries]
        gap, at = b"", self.header_size
        for record in _tensor_records(self.table.specs, self.header_size):
            stream.write(at, gap + record.header)
            checksum = _checksum(stream, record.begin, record.size)
            gap, at = record.descriptor(checksum), record.begin + record.size
            entries.append(record.entry(checksum))
        last = self._last_records()
        whole, more = _whole_records(last)
        directory = b"".join([*entries, more])
        count = len(_first_contents(b"")) + len(self.table.specs) + len(last)
        stream.write(at, gap + whole + directory + directory_end(last[-1][0].end, len(directory), count))

    def _last_records(self) -> list[tuple[ZipRecord, bytes]]:
        """Return the records behind the tensors, with what is in them."""
        contents = {f"{_FOLDER}/version": b"3\n", f"{_FOLDER}/{RECORD}": self.mark}
        return _place(contents, self.header_size + self.table.nbytes)


def lay_out_torch_file(
    name: str, specs: Mapping[str, TensorSpec], mark: str, tables: Sequence[Table] = ()
) -> TorchOutput:
    """Return the layout of a file of torch's, the tensors in the order of `specs`, marked with `mark`.

    Of the `tables`, one of these tensors in this order is used again.

    Raises:
        OutputError: for a tensor that torch has no type for.
    """
    for table in tables:
        if isinstance(table, TorchTable) and list(table.specs.items()) == list(specs.items()):
            return TorchOutput(name, table, mark.encode())
    return TorchOutput(name, _make_table(name, specs), mark.encode())


def _make_table(file: str, specs: Mapping[str, TensorSpec]) -> TorchTable:
    try:
        pickle = pickle_state_dict(specs)
    except NoTorchType as error:
        raise OutputError(
            f"{error}", subject=file, hint=f"write it as safetensors: {option('o', 'NAME.safetensors')}"
        ) from error
    first = _place(_first_contents(pickle), 0)
    text, entries = _whole_records(first)
    begins: dict[str, int] = {}
    end, entries_size = len(text), len(entries)
    for tensor, record in zip(specs, _tensor_records(specs, len(text)), strict=True):
        begins[tensor] = record.begin - len(text)
        end, entries_size = record.end, entries_size + record.entry_size
    return TorchTable(text, begins, specs, end - len(text), entries, entries_size)


def _checksum(stream: Stream, at: int, size: int) -> int:
    """Return the checksum of `size` bytes that were written at byte `at`."""
    checksum, end = 0, at + size
    while at < end:
        block = stream.read(at, min(_BLOCK_BYTES, end - at))
        if not block:
            raise OutputError(f"ends at byte {at} while it is written", subject=stream.path)
        checksum = zlib.crc32(block, checksum)
        at += len(block)
    return checksum


def _first_contents(pickle: bytes) -> dict[str, bytes]:
    """Return what is in the records before the tensors: those that torch needs to find them."""
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
    """Return records with what is in them, and their entries in the directory."""
    parts = [whole_record(record, content) for record, content in placed]
    return b"".join(whole for whole, _ in parts), b"".join(entry for _, entry in parts)
