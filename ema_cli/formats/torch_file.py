"""A checkpoint that is one file of torch.save, in either of its containers and under any suffix."""

from __future__ import annotations

import re
import stat
from fractions import Fraction
from pathlib import Path

from ema_cli.checkpoint import Checkpoint, Clock, Progress
from ema_cli.errors import CheckpointError, EmaError, IncompleteCheckpoint, UsageError
from ema_cli.formats.layouts import PARTS, WENET_SIDECAR
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.places import find_weights
from ema_cli.formats.torch_legacy import open_legacy
from ema_cli.formats.torch_tensors import TorchFile
from ema_cli.formats.torch_zip import SIGNATURE, open_zip
from ema_cli.input_file import ByteSource, InputFile
from ema_cli.units import Unit

_MAX_YAML_BYTES = 1 << 20
_YAML_COUNT = re.compile(r"^(epoch|step): (\d{1,18})$", re.MULTILINE)
_PICKLE = b"\x80"  # the instruction with which a pickle of protocol 2 or newer begins


def matches(path: Path) -> bool:
    """Return whether the file begins as a zip archive or as a pickle."""
    return first_bytes(path, 4).startswith((SIGNATURE, _PICKLE))


def open_checkpoint(path: Path, options: ReadOptions) -> Checkpoint:
    """Unpickle the description, find the weights in it, and check that their bytes are there."""
    if PARTS.search(path.name):
        raise CheckpointError(
            f"{path}: is one rank's part of a model, by its name",
            hint="put the parts together first, with your trainer's own tools",
        )
    file = InputFile(path)
    opened = open_torch(file)
    try:
        found = find_weights(opened.root, options, opened.scalar)
    except (UsageError, IncompleteCheckpoint):
        raise
    except EmaError as error:
        message = str(error) if str(error).startswith(f"{path}: ") else f"{path}: {error}"
        raise type(error)(message, hint=error.hint) from error
    progress, sidecars = found.progress, tuple[InputFile, ...]()
    if found.trainer is None and not progress.clocks:
        progress, sidecars = _wenet_progress(path)
    return Checkpoint(
        name=path.name,
        path=path,
        weights=opened.weights(found.tensors),
        files=(file, *sidecars),
        format="torch zip" if is_zip(file) else "torch legacy",
        trainer=found.trainer,
        progress=progress,
        averaged=found.averaged,
        notes=tuple(found.notes),
        left_out=found.left_out,
    )


def _wenet_progress(path: Path) -> tuple[Progress, tuple[InputFile, ...]]:
    """Return the clocks in the .yaml that wenet writes beside each .pt, and that file; nothing for others' files."""
    sidecar = path.with_suffix(WENET_SIDECAR)
    if not sidecar.is_file():
        return Progress(), ()
    file = InputFile(sidecar)
    text = file.read(0, file.size).decode("utf-8", "replace") if file.size <= _MAX_YAML_BYTES else ""
    fields = dict(_YAML_COUNT.findall(text))
    if not fields.keys() >= {"epoch", "step"}:
        return Progress(), ()
    clocks = {Unit.BATCH: Clock(Fraction(fields["step"]), "sidecar")}
    done = 0 if path.name.startswith("step_") else 1  # saved by steps, the epoch is in progress
    clocks[Unit.EPOCH] = Clock(Fraction(fields["epoch"]) + done, "sidecar")
    return Progress(clocks), (file,)


def open_torch(source: ByteSource) -> TorchFile:
    """Read what `torch.save` wrote into a file, or into a record of a shard."""
    return open_zip(source) if is_zip(source) else open_legacy(source)


def is_zip(source: ByteSource) -> bool:
    """Return whether the bytes begin as a zip archive."""
    return source.size >= len(SIGNATURE) and source.read(0, len(SIGNATURE)) == SIGNATURE


def first_bytes(path: Path, count: int) -> bytes:
    """Return the beginning of a regular file, nothing for anything else (a FIFO would make us wait)."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return b""
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return b""
