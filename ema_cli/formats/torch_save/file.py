"""Checkpoints that are one file of torch.save, in either of its containers and under any suffix.

The modules that read pickles are imported when there is a pickle to read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ema_cli.checkpoint import Averages, Checkpoint, Tensors
from ema_cli.errors import CheckpointError, EmaError
from ema_cli.formats.before import Before
from ema_cli.formats.beginning import first_bytes
from ema_cli.formats.mark import LIKE_INPUT, MADE_HERE
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.reader import Reader
from ema_cli.formats.trainers.choice import settle_averages
from ema_cli.formats.trainers.layout import StateDict
from ema_cli.formats.trainers.names import PARTS
from ema_cli.storage.location import location
from ema_cli.storage.source import ByteSource, InputFile

if TYPE_CHECKING:
    from ema_cli.formats.torch_save.content import TorchFile

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"  # the instruction with which a pickle of protocol 2 or newer begins


def matches(path: Path) -> bool:
    """Return whether the file begins as a zip archive or as a pickle."""
    return first_bytes(path, 4).startswith((_ZIP, _PICKLE))


def open_checkpoint(path: Path, options: ReadOptions) -> Checkpoint:
    """Unpickle the description, find the weights in it, and check that their bytes are there."""
    if PARTS.search(path.name):
        raise CheckpointError(
            "is one rank's part of a model, by its name",
            subject=path,
            hint="put the parts together first, with your trainer's own tools",
        )
    return open_part(path, options)


def open_part(path: Path, options: ReadOptions) -> Checkpoint:
    """Open a file that may be one of several, by its name."""
    file = location(path).open()
    return from_torch(file, open_torch(file, options.before), options)


def from_torch(
    file: InputFile,
    opened: TorchFile,
    options: ReadOptions,
    build: Callable[[StateDict], Tensors] | None = None,
    form: str | None = None,
) -> Checkpoint:
    """Return the checkpoint in a file that is open already. An average that ema-cli made is recognised.

    Args:
        file: the file.
        opened: its content.
        options: how it is read.
        build: makes the tensors of what the file has under their names; without it they lie in the file.
        form: the container in words, where it is none of torch's.
    """
    from ema_cli.formats.trainers.parts import refuse_megatron_part
    from ema_cli.formats.trainers.places import select_tensors

    path, made_here = file.path, opened.mark is not None
    refuse_megatron_part(path, opened.root)
    # A state dict of ours is one set of weights, and no key: options that are meant for other files do not apply.
    is_plain = opened.mark is not None and not opened.mark.get(LIKE_INPUT)
    reading = replace(options, key=None, weights=None, clock_key=()) if is_plain else options
    try:
        selection = select_tensors(opened.root, reading, opened)
    except EmaError as error:
        error.about(path)
        raise
    layout, progress, sidecars = selection.layout, selection.progress, tuple[InputFile, ...]()
    if layout is not None and layout.clocks_beside is not None and not progress.clocks:
        progress, sidecars = layout.clocks_beside(path)
    checkpoint = Checkpoint(
        name=path.name,
        path=path,
        tensors=(build or opened.tensors)(selection.tensors),
        files=(file, *sidecars),
        format=form or ("torch zip" if is_zip(file) else "torch legacy"),
        trainer=selection.trainer,
        progress=progress,
        averages=selection.averages,
        holds_both=selection.holds_both,
        resumable=selection.resumable,
        mark=opened.mark,
        warnings=tuple(selection.warnings),
        notes=tuple(selection.notes),
        left_out=selection.left_out,
    )
    if not (is_plain or layout is None or layout.complete is None or options.keep_prefix):
        checkpoint = layout.complete(checkpoint, opened.root, lambda: open_torch(file).root)
    return settle_averages(replace(checkpoint, averages=Averages(MADE_HERE)), options) if made_here else checkpoint


def open_torch(source: ByteSource, before: Before | None = None, names: set[str] | None = None) -> TorchFile:
    """Read what `torch.save` wrote into a file, or into a record of a shard.

    Args:
        source: the bytes.
        before: what the files of the run were that were read before.
        names: takes the classes and functions that it names.
    """
    if is_zip(source):
        from ema_cli.formats.torch_save.zip_container import open_zip

        return open_zip(source, before=before, names=names)
    from ema_cli.formats.torch_save.legacy_container import open_legacy

    return open_legacy(source, names)


def is_zip(source: ByteSource) -> bool:
    """Return whether the bytes begin as a zip archive."""
    return source.size >= len(_ZIP) and source.read(0, len(_ZIP)) == _ZIP


def is_pickle(source: ByteSource) -> bool:
    """Return whether the bytes begin as a pickle, which files of torch's old format do."""
    return source.size >= len(_PICKLE) and source.read(0, len(_PICKLE)) == _PICKLE


READER = Reader(matches, open_checkpoint, folders=False)
