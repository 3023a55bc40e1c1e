"""Open the records of a DCP shard: small archives of torch's, one for each piece of a tensor.

A run of hundreds of gigabytes has tens of thousands of them, alike in all but the bytes of their tensors. So the bytes
around the tensor, its frame, are parsed once; a record with an equal frame is not parsed again.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import field, replace
from pathlib import Path
from threading import Lock

from ema_cli.checkpoint import TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.errors import CheckpointError
from ema_cli.formats.pickles.values import TensorRef
from ema_cli.formats.torch_save.tensors import IN_ORDER, TorchTensors, View
from ema_cli.formats.torch_save.zip_container import open_zip
from ema_cli.formats.torch_save.zip_directory import checksum_offsets
from ema_cli.storage.ranges import join_ranges, read_each
from ema_cli.storage.source import ByteSource, FileRegion

_MAX_FRAMES = 64  # of the shapes and dtypes of a model's pieces
_MAX_FRAME_BYTES = 1 << 14  # some 2,000 are usual
_MAX_PICKLE_BYTES = 1 << 16  # of one tensor
_CHECKSUM_BYTES = 4

_lock = Lock()


@dataclass(slots=True)
class RecordReader:
    """Opens records, and remembers the frames of records that it parsed. Safe to use from several threads."""

    _known: dict[int, _Frames] = field(default_factory=dict)  # by the size of their records

    def open(self, name: str, region: FileRegion) -> TorchTensors | None:
        """Return the tensor in a record, under `name`; None where it holds something else.

        Raises:
            CheckpointError: as `open_zip` and `TorchFile.tensors`.
        """
        (frame,) = self.recognise(region.file, [(region.start, region.size)])
        if frame is not None:
            return frame.tensor(name, region)
        watched = _Watched(region)
        try:
            saved = open_zip(watched, _MAX_PICKLE_BYTES)
        except CheckpointError as error:
            error.fact += f", in the record of '{name}'"
            raise
        if not isinstance(saved.root, TensorRef):
            return None
        tensors = replace(saved.tensors({name: saved.root}), source=region)
        frame = Frame.of(watched, tensors)
        if frame is not None:
            self._remember(region.size, frame)
        return tensors

    def _remember(self, size: int, frame: Frame) -> None:
        """Keep a frame of records of this size, once: several threads may have parsed it at the same time."""
        with _lock:
            known = self._known.get(size, _NONE).all
            if frame in known:
                return
            if sum(len(frames.all) for frames in self._known.values()) >= _MAX_FRAMES:
                self._known.clear()
                known = ()
            self._known[size] = _Frames.of([*known, frame])

    def recognise(self, file: ByteSource, places: Sequence[tuple[int, int]]) -> list[Frame | None]:
        """Return the frame of each record, None where it has none of those that are known.

        Args:
            file: the shard.
            places: the first byte and the size of each record. Where one follows another, there is one read for both.

        Raises:
            CheckpointError: where the file cannot be read.
        """
        known = [self._known.get(size, _NONE) for _, size in places]
        spans = [
            span
            for (start, size), frames in zip(places, known, strict=True)
            if frames.all
            for span in ((file, start, frames.head), (file, start + frames.tail, size - frames.tail))
        ]
        data = read_each(file, [span[1:] for span in join_ranges(spans)])
        found, at = list[Frame | None](), 0
        for (_, size), frames in zip(places, known, strict=True):
            if frames.all:
                behind, end = at + frames.head, at + frames.head + size - frames.tail
                found.append(frames.find(data[at:behind], data[behind:end]))
                at = end
            else:
                found.append(None)
        return found


@dataclass(frozen=True, slots=True)
class _Frames:
    """Frames of records of one size: all are looked for in what lies before byte `head`, and from byte `tail` on."""

    head: int
    tail: int
    all: Sequence[Frame]

    @classmethod
    def of(cls, frames: Sequence[Frame]) -> _Frames:
        """Return these frames."""
        return cls(max(frame.head for frame in frames), min(frame.tail for frame in frames), frames)

    def find(self, begin: bytes, end: bytes) -> Frame | None:
        """Return the frame of a record that begins and ends with these bytes."""
        return next((frame for frame in self.all if frame.fits(begin, end[frame.tail - self.tail :])), None)


_NONE = _Frames(0, 0, ())


@dataclass(frozen=True, slots=True)
class Frame:
    """The bytes of a record that decide where its tensor lies, its dtype and its shape: all that was read to parse it.

    Records of equal size and frame are parsed to equal results.

    Attributes:
        head: these bytes lie before this byte of the record,
        tail: and from this byte on.
        mask: over both parts as one number: all bits of the bytes that count. Bytes that were not read do not, nor do
            checksums, which are not used.
        value: both parts as one number, masked.
        spec: of the tensor.
        begin: the byte of the record at which its first element lies.
        view: how it differs from bytes in order.
    """

    head: int
    tail: int
    mask: int
    value: int
    spec: TensorSpec
    begin: int
    view: View

    @classmethod
    def of(cls, watched: _Watched, tensors: TorchTensors) -> Frame | None:
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
        number, region = int.from_bytes(mask), watched.region
        data = region.read(0, head) + region.read(tail, region.size - tail)
        ((name, spec),) = tensors.specs.items()
        view = tensors.views.get(name, IN_ORDER)
        return cls(head, tail, number, int.from_bytes(data) & number, spec, begin, view)

    def fits(self, begin: bytes, end: bytes) -> bool:
        """Return whether a record has this frame that begins so, at least up to `head`, and ends so, from `tail` on."""
        return int.from_bytes(begin[: self.head] + end) & self.mask == self.value

    def tensor(self, name: str, region: FileRegion) -> TorchTensors:
        """Return the tensor in a record that has this frame, under `name`."""
        views = {name: self.view} if self.view != IN_ORDER else {}
        return TorchTensors({name: self.spec}, {name: 0}, array("q", [self.begin]), views, region)


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
