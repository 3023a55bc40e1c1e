"""A checkpoint that is one file of torch.save, in either of its containers and under any suffix.

What reads pickles is imported when there is one to read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from ema_cli.checkpoint import AdapterSettings, Averages, Checkpoint, Clock, Pretrained, Progress
from ema_cli.errors import CheckpointError, EmaError, IncompleteCheckpoint, UsageError
from ema_cli.formats.beginning import first_bytes
from ema_cli.formats.mark import MADE_HERE
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.reader import Reader
from ema_cli.formats.trainers.choice import settle_averages
from ema_cli.formats.trainers.layouts import COMPOSER, MEGATRON_PART, PARTS, WENET_SIDECAR
from ema_cli.law.time import Unit
from ema_cli.storage.location import location
from ema_cli.storage.source import ByteSource, InputFile

if TYPE_CHECKING:
    from ema_cli.formats.torch_save.tensors import TorchFile

_MAX_YAML_BYTES = 1 << 20
_YAML_COUNT = re.compile(r"^(epoch|step|accum_grad): (\d{1,18})$", re.MULTILINE)
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
    file = location(path).open()
    return from_torch(file, open_torch(file), options)


def from_torch(file: InputFile, opened: TorchFile, options: ReadOptions) -> Checkpoint:
    """Return the checkpoint in a file that is open already; what ema-cli itself averaged is recognised."""
    from ema_cli.formats.trainers.places import find_weights

    path = file.path
    if MEGATRON_PART.search(path.parent.name) and _is_megatron_part(path, opened.root):
        raise CheckpointError(
            "is one rank's part of a model of Megatron's",
            subject=path,
            hint="save it as torch_dist, or put it together with Megatron's tools/checkpoint first",
        )
    # In an average of ours there is nothing to choose from, nor to find under a --key that is meant for others.
    reading = options if opened.mark is None else replace(options, key=None, weights=None)
    try:
        found = find_weights(opened.root, reading, opened.scalar)
    except (UsageError, IncompleteCheckpoint):
        raise
    except EmaError as error:
        error.about(path)
        raise
    progress, sidecars = found.progress, tuple[InputFile, ...]()
    if found.trainer is None and not progress.clocks:
        progress, sidecars = _wenet_progress(path)
    checkpoint = Checkpoint(
        name=path.name,
        path=path,
        tensors=opened.tensors(found.tensors),
        files=(file, *sidecars),
        format="torch zip" if is_zip(file) else "torch legacy",
        trainer=found.trainer,
        progress=progress,
        averages=found.averages if opened.mark is None else Averages(MADE_HERE),
        notes=tuple(found.notes),
        mark=opened.mark,
        left_out=found.left_out,
    )
    if opened.mark is not None:
        return settle_averages(checkpoint, options)
    if found.trainer != COMPOSER.trainer or options.keep_prefix:
        return checkpoint
    return _with_pretrained(checkpoint, file, opened.root, found.tensors)


def _with_pretrained(checkpoint: Checkpoint, file: InputFile, root: object, names: Iterable[object]) -> Checkpoint:
    """Return the checkpoint with what Composer keeps in it for `from_pretrained`, if it does."""
    from ema_cli.formats.trainers.composer_files import ComposerFiles, adapter_settings, find_base

    base = find_base(root, names)
    if base is None:
        return checkpoint
    inner_files = ComposerFiles(base, file.path, lambda: open_torch(file).root)
    return replace(
        checkpoint,
        pretrained=Pretrained(base, inner_files=inner_files),
        adapter=AdapterSettings(adapter_settings(root)),
    )


def _is_megatron_part(path: Path, root: object) -> bool:
    """Return whether other ranks have other parts of the model, by their folders or by the arguments in the file."""
    from ema_cli.formats.pickles.values import Inert

    ranks = [entry for entry in location(path.parent.parent).entries() if MEGATRON_PART.search(entry.name)]
    args = root.get("args") if isinstance(root, dict) else None
    state = args.state if isinstance(args, Inert) and isinstance(args.state, dict) else {}
    sizes = [state.get(f"{kind}_model_parallel_size") for kind in ("tensor", "pipeline", "expert")]
    return len(ranks) > 1 or any(type(size) is int and size > 1 for size in sizes)


def _wenet_progress(path: Path) -> tuple[Progress, tuple[InputFile, ...]]:
    """Return the clocks in the .yaml that wenet writes beside each .pt, and that file; nothing for others' files."""
    sidecar = path.with_suffix(WENET_SIDECAR)
    if not location(sidecar).info().is_file:
        return Progress(), ()
    file = location(sidecar).open()
    text = file.read(0, file.size).decode("utf-8", "replace") if file.size <= _MAX_YAML_BYTES else ""
    fields = dict(_YAML_COUNT.findall(text))
    if not fields.keys() >= {"epoch", "step"}:
        return Progress(), ()
    steps_in_batch = max(int(fields.get("accum_grad", 1)), 1)
    clocks = {Unit.BATCH: Clock(Fraction(int(fields["step"]), steps_in_batch), "sidecar")}
    done = 0 if path.name.startswith("step_") else 1  # saved by steps, the epoch is in progress
    clocks[Unit.EPOCH] = Clock(Fraction(fields["epoch"]) + done, "sidecar")
    return Progress(clocks), (file,)


def open_torch(source: ByteSource) -> TorchFile:
    """Read what `torch.save` wrote into a file, or into a record of a shard."""
    if is_zip(source):
        from ema_cli.formats.torch_save.zip_container import open_zip

        return open_zip(source)
    from ema_cli.formats.torch_save.legacy_container import open_legacy

    return open_legacy(source)


def is_zip(source: ByteSource) -> bool:
    """Return whether the bytes begin as a zip archive."""
    return source.size >= len(_ZIP) and source.read(0, len(_ZIP)) == _ZIP


READER = Reader(matches, open_checkpoint)
