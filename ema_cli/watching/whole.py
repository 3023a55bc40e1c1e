"""The newest checkpoint as a whole: kept for an output that its trainer loads, as it may be gone when that is written.

Such an output is the checkpoint with averages in the place of its weights, or takes what else it needs from there.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import CheckpointError, OutputError
from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import ReadOptions
from ema_cli.storage.around import pieces
from ema_cli.storage.location import location
from ema_cli.storage.output_stream import output_errors, write_file
from ema_cli.storage.source import FileRegion, InputFile
from ema_cli.watching.past import Past

_FOLDER = ".newest"  # hidden from those who search the moments for stored averages


def bytes_of(checkpoint: Checkpoint) -> int:
    """Return how many bytes a checkpoint has with all that belongs to it.

    Raises:
        CheckpointError: where one of its files cannot be opened, or is a link that leads out of it.
    """
    return sum(file.size for file in _files(checkpoint).values())


def keep(inside: Path, checkpoint: Checkpoint, options: ReadOptions) -> None:
    """Copy a checkpoint, a file or a folder, into the folder of a moment.

    Args:
        inside: that folder.
        checkpoint: is read to its end; it may be deleted meanwhile.
        options: how it was read, and is read again.

    Raises:
        CheckpointError: where it cannot be read, or has changed meanwhile.
        OutputError: where the copy cannot be written, or does not hold the same tensors by itself.
    """
    place = inside / _FOLDER / (checkpoint.path.absolute().name or "checkpoint")
    for name, file in _files(checkpoint).items():
        path = place / name
        with output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, pieces(FileRegion(file, 0, file.size)))
        file.check_unchanged()
    if _opened(place, options).tensors.specs != checkpoint.tensors.specs:
        raise OutputError("has other tensors where nothing lies beside it, and cannot be kept", subject=checkpoint.path)


def kept(moment: Path, past: Past, options: ReadOptions) -> Checkpoint:
    """Return the checkpoint that is kept in the folder of a moment, under the name and with the clocks that it had.

    Raises:
        CheckpointError: where it cannot be read.
    """
    entries = [entry.path for entry in location(moment / _FOLDER).entries()]
    if len(entries) != 1:
        raise CheckpointError("holds not one checkpoint", subject=moment / _FOLDER)
    return past.named(_opened(entries[0], options))


def _files(checkpoint: Checkpoint) -> dict[str, InputFile]:
    """Return the files of a checkpoint by their names in its folder; of one that is a file that, without a name."""
    place = location(checkpoint.path)
    if place.info().is_file:
        return {str(PurePosixPath()): place.open()}
    from ema_cli.writing.like_input import parts_of  # which most watches do not need

    return parts_of(checkpoint.path)


def _opened(path: Path, options: ReadOptions) -> Checkpoint:
    try:
        return open_checkpoint(path, options)
    finally:
        options.before.clear()
