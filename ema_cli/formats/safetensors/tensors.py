"""The tensors of one safetensors file: where each lies, as the header says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ema_cli.checkpoint import Run, StoredRecord, Tensors, TensorSpec, shared
from ema_cli.dataclass import dataclass
from ema_cli.storage.source import InputFile


@dataclass(slots=True, weakref_slot=True)
class SafetensorsTensors:
    """The tensors of one safetensors file.

    Attributes:
        specs: dtype and shape of each tensor.
        offsets: where each tensor begins, in bytes after the header.
        data_start: the size of the header in bytes.
        file: the file.
        metadata: the header's `__metadata__`.
    """

    specs: Mapping[str, TensorSpec]
    offsets: Mapping[str, int]
    data_start: int
    file: InputFile
    metadata: Mapping[str, str]

    def share(self, other: Tensors) -> None:
        """Use the other's tables where they are equal."""
        self.specs = shared(self.specs, other.specs)
        if isinstance(other, SafetensorsTensors):
            self.offsets = shared(self.offsets, other.offsets)

    def place(self, name: str) -> int | str:
        """Return the offset; for a tensor without elements the name, since others may have the same offset."""
        return self.offsets[name] if self.specs[name].count else name

    def locate(self, name: str) -> tuple[InputFile, int]:
        """Return the file and the byte in it where tensor `name` begins."""
        return self.file, self.data_start + self.offsets[name]

    def runs(self, name: str, start: int, size: int) -> Sequence[Run]:
        """Return where bytes of tensor `name` lie."""
        return ((self.file, self.data_start + self.offsets[name] + start, size),)

    def offset(self, name: str, start: int) -> int:
        """Return where in its file byte `start` of tensor `name` lies."""
        return self.data_start + self.offsets[name] + start

    def shard(self, name: str) -> str:
        """Return the name of the file that holds tensor `name`."""
        return self.file.path.name

    def stored_records(self) -> Iterator[StoredRecord]:
        """Yield nothing: the format has no checksums."""
        return iter(())

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        """Fill `out` from byte `start` of tensor `name`."""
        self.file.read_into(self.data_start + self.offsets[name] + start, out)
