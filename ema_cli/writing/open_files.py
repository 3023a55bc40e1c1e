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
from ema_cli.storage.output_stream import OutputStream
from ema_cli.storage.segments import Segments
from ema_cli.storage.staging import Sender
from ema_cli.system.threads import reading_pool

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from ema_cli.storage.store_stream import StoreStream


@dataclass(frozen=True, slots=True)
class Storing:
    """How the files of an average get to where they are made.

    summed: whether to keep the sha256 of each up to date while it is written.
    synced: whether the disk has to have them in the end.
    sender: makes what sends them to a store instead; None where they are made in a folder.
    segments: the memory of large ones, which are written past the page cache; None where none are.
    """

    summed: bool
    synced: bool = True
    sender: Sender | None = None
    segments: Segments | None = None


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
        self.streams: list[OutputStream | StoreStream] = []

    def begin(self, file: OutputFile) -> OutputStream | StoreStream:
        """Begin a file with its header.

        Raises:
            OutputError: where it cannot be written.
        """
        around, sender = file if isinstance(file, FramedFile) else None, self.storing.sender
        if sender is not None:
            sent = sender(self.folder / file.name, file.size, file.header, around, summed=self.storing.summed)
            self.streams.append(sent)
            return sent
        # What stands around tensors follows from them: the file is read again for it.
        stream = self.make(file.name, file.size if around is None else 0)
        stream.write(0, file.header)
        return stream

    def make(self, name: str, size: int = 0) -> OutputStream:
        """Make the file `name`, and the folders around it; `size` is that of one that may go past the page cache.

        Raises:
            OutputError: where it cannot be made.
        """
        path, how = self.folder / name, self.storing
        location(path.parent).make_folder()
        if how.segments is not None and how.synced and is_direct(size):
            stream: OutputStream = DirectStream(path, size, how.segments, summed=how.summed)
        else:
            stream = OutputStream(path, summed=how.summed, synced=how.synced)
        self.streams.append(stream)
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
def finishing(streams: Sequence[OutputStream | StoreStream], threads: int) -> Iterator[ThreadPoolExecutor]:
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
