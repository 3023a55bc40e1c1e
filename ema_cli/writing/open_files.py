"""The open files of a sink: made one by one, given up and closed together."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ema_cli.storage.location import location
from ema_cli.storage.output_stream import OutputStream

if TYPE_CHECKING:
    from ema_cli.storage.store_stream import StoreStream


class OpenFiles:
    """New files in a folder, in the order in which they were made."""

    def __init__(self, folder: Path, *, summed: bool) -> None:
        """Take the folder, and whether the sha256 of each file is kept up to date while it is written."""
        self.folder = folder
        self.summed = summed
        self.streams: list[OutputStream | StoreStream] = []

    def make(self, name: str) -> OutputStream:
        """Make the file `name`, and the folders around it.

        Raises:
            OutputError: where it cannot be made.
        """
        path = self.folder / name
        location(path.parent).make_folder()
        stream = OutputStream(path, summed=self.summed)
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
