"""Write averages to where the tensors of the newest checkpoint lie in copies of its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from ema_cli.folding.sink import TensorRange
from ema_cli.formats.copies.copied_file import CopiedFile, Frame
from ema_cli.formats.copies.stored import StoredPiece
from ema_cli.storage.output_stream import NewFile
from ema_cli.writing.open_files import OpenFiles, Storing

_Write: TypeAlias = "tuple[NewFile, int, memoryview]"


class PieceSink(OpenFiles):
    """Writes the averaged tensors of one average into copies of files, in any order; a `Sink`.

    What is copied from the newest checkpoint stands in the copies anyhow, and is not written here.
    """

    def __init__(
        self,
        files: Sequence[CopiedFile],
        pieces: Mapping[str, Sequence[StoredPiece]],
        folder: Path,
        storing: Storing,
    ) -> None:
        """Make the files in `folder`.

        Args:
            files: the copies.
            pieces: where each averaged tensor goes.
            folder: where the files are made.
            storing: how they get there.

        Raises:
            OutputError: where a file cannot be made.
        """
        super().__init__(folder, storing)
        self._pieces = pieces
        # By the original: the copy, and where its bytes go.
        self._files: dict[Path, tuple[NewFile, Frame]] = {}
        try:
            for file in files:
                self._files[file.source.path] = self.begin(file), file.around
        except BaseException:
            self.close()
            raise

    def write(self, ranges: Sequence[TensorRange], data: memoryview) -> None:
        """Write ranges of tensors, whose bytes lie one after another in `data`."""
        for stream, offset, part in _joined(self._writes(ranges, data), data):
            stream.write(offset, part, ahead=ranges[0].tied)

    def _writes(self, ranges: Sequence[TensorRange], data: memoryview) -> Iterator[tuple[NewFile, int, int, int]]:
        """Yield what is to be written in one stretch: the file, the byte in it, the byte in `data`, the size.

        Elements that lie apart are written at once.
        """
        position = 0
        for part in ranges:
            for piece in self._pieces.get(part.name, ()):
                stream, frame = self._files[piece.file.path]
                shift = frame.shift(piece.base)
                size = piece.dtype.itemsize
                first = part.start // size
                for inner, whole, count in piece.parts(first, first + part.size // size):
                    at = position + (whole - first) * size
                    if piece.in_order:
                        yield stream, piece.base + shift + inner * size, at, count * size
                    else:
                        self._scatter(piece, stream, shift, inner, data[at : at + count * size])
            position += part.size

    @staticmethod
    def _scatter(piece: StoredPiece, stream: NewFile, shift: int, first: int, data: memoryview) -> None:
        piece.write(lambda offset, part: stream.write(offset + shift, part, noted=False), first, data)


def _joined(writes: Iterator[tuple[NewFile, int, int, int]], data: memoryview) -> Iterator[_Write]:
    """Yield the writes, those joined that are neighbours in the file and in `data`."""
    current: tuple[NewFile, int, int, int] | None = None
    for stream, offset, at, size in writes:
        if current is not None and current[0] is stream and current[1] - offset == current[2] - at == -current[3]:
            current = (stream, current[1], current[2], current[3] + size)
            continue
        if current is not None:
            yield current[0], current[1], data[current[2] : current[2] + current[3]]
        current = (stream, offset, at, size)
    if current is not None:
        yield current[0], current[1], data[current[2] : current[2] + current[3]]
