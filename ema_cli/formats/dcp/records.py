"""Open the records of a DCP shard: small archives of torch's, one for each piece of a tensor.

A run of hundreds of gigabytes has tens of thousands of them, alike in all but the bytes of their tensors. So the bytes
around the tensor, its frame, are parsed once; a record with an equal frame is not parsed again.
"""

from __future__ import annotations

from dataclasses import field, replace
from pathlib import Path

from ema_cli.dataclass import dataclass
from ema_cli.formats.pickles.values import TensorRef
from ema_cli.formats.torch_save.tensors import TorchTensors
from ema_cli.formats.torch_save.zip_container import open_zip
from ema_cli.formats.torch_save.zip_directory import checksum_offsets
from ema_cli.storage.source import FileRegion

_MAX_FRAMES = 64  # a fold reads one tensor in all checkpoints, then the next
_MAX_FRAME_BYTES = 1 << 14  # some 2,000 are usual
_MAX_PICKLE_BYTES = 1 << 16  # of one tensor
_CHECKSUM_BYTES = 4


@dataclass(slots=True)
class RecordReader:
    """Opens records, and remembers the frames of records that it parsed. Safe to use from several threads."""

    _frames: dict[tuple[str, int], _Frame] = field(default_factory=dict)

    def open(self, name: str, region: FileRegion) -> TorchTensors | None:
        """Return the tensor in a record, under `name`; None where it holds something else.

        Raises:
            CheckpointError: as `open_zip` and `TorchFile.tensors`.
        """
        frame = self._frames.get((name, region.size))
        if frame is not None and frame.fits(region):
            return replace(frame.tensors, source=region)
        watched = _Watched(region)
        saved = open_zip(watched, _MAX_PICKLE_BYTES)
        if not isinstance(saved.root, TensorRef):
            return None
        tensors = replace(saved.tensors({name: saved.root}), source=region)
        frame = _Frame.of(watched, tensors)
        if frame is not None:
            if len(self._frames) >= _MAX_FRAMES:
                self._frames.clear()
            self._frames[name, region.size] = frame
        return tensors


@dataclass(frozen=True, slots=True)
class _Frame:
    """The bytes of a record that decide where its tensor lies, its dtype and its shape: all that was read to parse it.

    Records of equal size and frame are parsed to equal results.

    Attributes:
        head: these bytes lie before this byte of the record,
        tail: and from this byte on.
        mask: over both parts as one number: all bits of the bytes that count. Bytes that were not read do not, nor do
            checksums, which are not used.
        value: both parts as one number, masked.
        tensors: the result.
    """

    head: int
    tail: int
    mask: int
    value: int
    tensors: TorchTensors

    @classmethod
    def of(cls, watched: _Watched, tensors: TorchTensors) -> _Frame | None:
        """Return the frame of a record that was watched while it was parsed, None where it is too large to be kept."""
        (begin,) = tensors.offsets
        head = max((end for _, end in watched.spans if end <= begin), default=0)
        tail = min((start for start, _ in watched.spans if start >= begin), default=watched.size)
        size = head + watched.size - tail
        if size > _MAX_FRAME_BYTES or any(start < begin < end for start, end in watched.spans):
            return None
        mask = bytearray(size)
        for start, end in watched.spans:
            at = start if end <= head else start - tail + head
            mask[at : at + end - start] = b"\xff" * (end - start)
        for start in watched.checksums:
            at = start if start < head else start - tail + head
            mask[at : at + _CHECKSUM_BYTES] = bytes(_CHECKSUM_BYTES)
        number = int.from_bytes(mask)
        return cls(head, tail, number, _bytes_around(watched.region, head, tail) & number, tensors)

    def fits(self, region: FileRegion) -> bool:
        """Return whether a record of the same size has the same frame."""
        return _bytes_around(region, self.head, self.tail) & self.mask == self.value


def _bytes_around(region: FileRegion, head: int, tail: int) -> int:
    return int.from_bytes(region.read(0, head) + region.read(tail, region.size - tail))


@dataclass(slots=True)
class _Watched:
    """A region of a file that notes which bytes of it are read, and where checksums stand among them."""

    region: FileRegion
    spans: list[tuple[int, int]] = field(default_factory=list)
    checksums: list[int] = field(default_factory=list)

    @property
    def path(self) -> Path:
        return self.region.path

    @property
    def size(self) -> int:
        return self.region.size

    def read(self, offset: int, size: int) -> bytes:
        data = self.region.read(offset, size)
        self.spans.append((offset, offset + size))
        self.checksums.extend(offset + at for at in checksum_offsets(data))
        return data

    def read_into(self, offset: int, out: memoryview) -> None:
        out[:] = self.read(offset, len(out))
