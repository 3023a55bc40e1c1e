"""The open files of a sink: made one by one, finished, given up and closed together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ema_cli.dataclass import dataclass
from ema_cli.formats.output_file import FramedFile, OutputFile
from ema_cli.storage.direct_stream import DirectStream, is_direct
from ema_cli.storage.location import location
from ema_cli.storage.output_stream import NewFile, OutputStream
from ema_cli.storage.segments import Segments
from ema_cli.storage.staging.local import Sender
from ema_cli.system.threads import reading_pool

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor


@dataclass(frozen=True, slots=True)
class Storing:
    """How the files of an average get to where they are made.

    Attributes:
        summed: whether to keep the sha256 of each up to date while it is written.
        synced: whether the disk has to have them in the end.
        sender: makes what sends them to a store instead; None where they are made in a folder.
        segments: the memory of large ones, which are written past the page cache; None where none are.
    """

    summed: bool
    synced: bool = True
    sender: Sender | None = None
    segments: Segments | None = None


def goes_past_cache(file: OutputFile) -> bool:
    """Return whether a file may be written past the page cache: it is large, and is not read again.

    What stands around the tensors of others follows from these, as sums of them do.
    """
    return is_direct(file.size) and not isinstance(file, FramedFile)


class OpenFiles:
    """New files in a folder, in the order in which they were made."""

    def __init__(self, folder: Path, storing: Storing) -> None:
        """Take what all files have in common.

        Args:
            folder: where they are made.
            storing: how they get there.
        """
        self.folder = folder
        self.storing = storing
        self.streams: list[NewFile] = []

    def begin(self, file: OutputFile) -> NewFile:
        """Begin a file with its header.

        Raises:
            OutputError: where it cannot be written.
        """
        path, how = self.folder / file.name, self.storing
        if how.sender is not None:
            around = file if isinstance(file, FramedFile) else None
            self.streams.append(how.sender(path, file.size, file.header, around, summed=how.summed))
            return self.streams[-1]
        location(path.parent).make_folder()
        if how.segments is not None and goes_past_cache(file):
            stream: OutputStream = DirectStream(path, file.size, how.segments, summed=how.summed, synced=how.synced)
        else:
            stream = OutputStream(path, summed=how.summed, synced=how.synced)
        self.streams.append(stream)
        stream.write(0, file.header)
        return stream

    def give_up(self) -> None:
        """End the threads that sum up the files: nobody needs the sums any more."""
        for stream in self.streams:
            stream.give_up()

    def close(self) -> None:
        """Close the files."""
        with ExitStack() as stack:
            for stream in self.streams:
                stack.callback(stream.close)


@contextmanager
def finishing(streams: Sequence[NewFile], threads: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool whose threads bring files to the disk and sum them up. After an error none waits for a sum, and
    nobody for a thread: one may copy from a store that does not answer.

    Raises:
        EmaError: where no thread can be started.
    """
    with reading_pool(threads, "finish") as pool:
        try:
            yield pool
        except BaseException:
            for stream in streams:
                stream.give_up()
            raise
