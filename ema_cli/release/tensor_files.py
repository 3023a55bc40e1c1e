"""Open the files of tensors of a published average, and say what is wrong with them."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path

from ema_cli.checkpoint import Checkpoint, TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.errors import CheckpointError, EmaError, Unreadable, at_terminal
from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.safetensors import file as safetensors_file
from ema_cli.formats.safetensors.official import different_tensors, digest_of, official_digest
from ema_cli.formats.torch_save import file as torch_file
from ema_cli.release.positions import Positions
from ema_cli.release.published import Published
from ema_cli.storage.names import StorePath

SAFETENSORS = ".safetensors"


@dataclass(slots=True)
class Problems:
    """The problems met while reading."""

    published: Published
    sentences: list[str] = field(default_factory=list)

    def add(self, name: str, fact: str) -> None:
        self.sentences.append(f"{self.published.folder / name}: {fact}")

    def add_error(self, name: str, path: Path, error: EmaError) -> None:
        """Turn an error into a problem of the file `name`.

        A file that only this process cannot read is no problem of the average: that error is raised.
        """
        if isinstance(error, Unreadable):
            raise error
        self.add(name, error.message(at_terminal, known=path))


def open_tensors(path: Path, name: str, problems: Problems, read: ReadOptions | None) -> Checkpoint | None:
    """Open a file of tensors with our own reader; add a problem if the official reader sees other tensors.

    Args:
        path: the file.
        name: its name.
        problems: takes what is wrong.
        read: how what is in the form of its input, file or folder, is read; None for a file of a form of our own.
    """
    is_safetensors = name.lower().endswith(SAFETENSORS)
    reader = safetensors_file if is_safetensors else torch_file
    try:
        if read is not None:
            return open_checkpoint(path, read)
        official = _official_digest(path, name, problems) if is_safetensors else None
        checkpoint: Checkpoint = reader.open_checkpoint(path, ReadOptions())
        if official is not None and official != digest_of(checkpoint.tensors.specs):
            different = different_tensors(path, checkpoint.tensors.specs)
            problems.add(name, f"reads otherwise with safetensors: '{min(different, default='')}'")
    except EmaError as error:
        problems.add_error(name, path, error)
        return None
    return checkpoint


def _official_digest(path: Path, name: str, problems: Problems) -> bytes | None:
    """Return what the official reader of safetensors sees in a file; None where it sees nothing, which is a problem.

    It opens local files only: of one in a store there is nothing to compare. Ours has read the file before it, and
    reads it again behind it: of many tensors the tables of both would be too much at once.

    Raises:
        EmaError: where our own reader refuses the file.
    """
    if isinstance(path, StorePath):
        return None
    tensors = len(safetensors_file.open_checkpoint(path, ReadOptions()).tensors.specs)
    try:
        return official_digest(path, tensors)
    except Unreadable:
        raise
    except CheckpointError as error:
        problems.add(name, f"is not read by safetensors: {error.fact}")
        return None


def positions_in(name: str, checkpoint: Checkpoint, problems: Problems) -> Positions:
    """Return the first byte and the spec of each tensor in a file; add a problem for a view or shared bytes."""
    tensors, end = checkpoint.tensors, 0
    positions: dict[str, tuple[int, TensorSpec]] = {}
    located = [(place[1] if place else -1, tensor) for tensor in tensors.specs for place in [tensors.locate(tensor)]]
    for begin, tensor in sorted(located):
        spec = tensors.specs[tensor]
        # Only torch files allow views and shared bytes; ema-cli gives each tensor its own bytes, in order.
        if begin < 0 or (begin < end and spec.nbytes):
            problems.add(name, f"'{tensor}' {'is a view' if begin < 0 else 'shares its bytes with another'}")
            continue
        positions[tensor] = (begin, spec)
        end = begin + spec.nbytes
    return positions
