"""Where each trainer records clocks in files beside the weights: a row for each trainer. Read it as a page.

Files that a reader opens as a part of its format are not here: trainer_state.json of the Hugging Face Trainer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ema_cli.checkpoint import Checkpoint
from ema_cli.dataclass import dataclass
from ema_cli.formats.json_text import read_json
from ema_cli.formats.trainers.layout import ClockPlaces
from ema_cli.law.time import Unit
from ema_cli.storage.location import location
from ema_cli.storage.names import absolute_name
from ema_cli.storage.source import InputFile
from ema_cli.text import lazy_pattern

EP, BA, SP = Unit.EPOCH, Unit.BATCH, Unit.SAMPLE
_MAX_BYTES = 16 << 20
_LINE = lazy_pattern(r"^([\w-]+): *(\S+)$", re.MULTILINE)
_NUMBER = lazy_pattern(r"\d{1,18}")

Unpickle = Callable[[InputFile], Any]


@dataclass(frozen=True, slots=True)
class Sidecar(ClockPlaces):
    """Where one trainer records clocks beside the weights.

    Attributes:
        trainer: the trainer.
        path: matches the end of the path of its checkpoints.
        files: files from the folder of the checkpoint, or in a checkpoint that is a folder, by the first key of the
            places in them. A backslash and a number stand for a group of `path`.
    """

    trainer: str
    path: re.Pattern[str]
    files: Mapping[str, str]


SIDECARS = (
    Sidecar(
        "SpeechBrain",
        path=lazy_pattern(r"(?:^|/)CKPT\+[^/]+/[^/]+\.ckpt$"),
        files={"brain": "brain.ckpt", "counter": "counter.ckpt", "meta": "CKPT.yaml"},
        # The step begins again in each epoch; the counter is of the epoch that runs, from 1.
        clocks={BA: ("brain/optimizer_step",), EP: ("counter", "meta/epoch")},
        epochs="running",
        unfinished="meta/end-of-epoch",
    ),
    Sidecar(
        "LeRobot",
        path=lazy_pattern(r"(?:^|/)pretrained_model$"),
        files={"state": "../training_state/training_step.json"},
        clocks={BA: ("state/step",)},
    ),
    Sidecar(
        "nanochat",
        path=lazy_pattern(r"(?:^|/)model_(\d{6,})\.pt$"),
        files={"meta": r"meta_\1.json"},
        clocks={BA: ("meta/step",)},
    ),
    Sidecar(
        "openpi",
        path=lazy_pattern(r"(?:^|/)\d+$"),
        files={"meta": "metadata.pt"},
        clocks={BA: ("meta/global_step",)},
    ),
    Sidecar(
        "Megatron",
        path=lazy_pattern(r"(?:^|/)iter_\d{7}$"),
        files={"common": "common.pt"},
        clocks={BA: ("common/iteration",), SP: ("common/args/consumed_train_samples",)},
    ),
)


def add_sidecar_clocks(checkpoint: Checkpoint, unpickle: Unpickle) -> Checkpoint:
    """Return the checkpoint with the clocks that lie beside it, in units in which it has none itself.

    Args:
        checkpoint: an opened checkpoint.
        unpickle: returns the object in a file of torch.save.
    """
    whole = absolute_name(checkpoint.path)
    for row in SIDECARS:
        match = row.path.search(whole)
        if match is None or BA in checkpoint.progress.clocks:
            continue
        path = checkpoint.path.absolute()
        folder = path if location(path).info().is_folder else path.parent
        found = {key: location(folder / match.expand(name)) for key, name in row.files.items()}
        files = {key: where.open() for key, where in found.items() if where.info().is_file}
        if not files:
            continue
        from ema_cli.formats.trainers.progress import read_progress

        root = {key: _content(file, unpickle) for key, file in files.items()}
        progress = read_progress(row, root, source="sidecar")
        if progress.clocks:
            own = checkpoint.progress
            return replace(
                checkpoint,
                trainer=row.trainer,
                files=(*checkpoint.files, *files.values()),
                progress=replace(own if EP in own.clocks else progress, clocks={**progress.clocks, **own.clocks}),
            )
    return checkpoint


def _content(file: InputFile, unpickle: Unpickle) -> Any:
    """Return what a sidecar holds: JSON, a pickled object, a number, or lines as `step: 5`."""
    if file.path.suffix == ".json":
        return read_json(file, _MAX_BYTES, constants=True)
    if file.path.suffix == ".pt":
        return unpickle(file)
    text = file.read(0, file.size).decode("utf-8", "replace") if file.size <= _MAX_BYTES else ""
    return _value(text.strip()) if ":" not in text else {name: _value(value) for name, value in _LINE.findall(text)}


def _value(text: str) -> Any:
    return int(text) if _NUMBER.fullmatch(text) else {"true": True, "false": False}.get(text)
