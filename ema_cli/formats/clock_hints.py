"""What a checkpoint's own file holds that may be a clock: for the hint that names it."""

from __future__ import annotations

from collections.abc import Mapping

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import EmaError
from ema_cli.formats.arrays.reader import FORMATS, open_container
from ema_cli.formats.safetensors.tensors import SafetensorsTensors
from ema_cli.formats.torch_save.file import open_torch


def counters_of(checkpoint: Checkpoint) -> Mapping[str, int]:
    """Return the integers that a checkpoint holds beside its tensors, by their places; none where it cannot be read."""
    from ema_cli.formats.trainers.counters import counters_in
    from ema_cli.formats.trainers.headers import numbers_in

    if isinstance(checkpoint.tensors, SafetensorsTensors):
        return dict(counters_in(numbers_in(checkpoint.tensors.metadata)))
    try:
        if checkpoint.format == "DCP":
            from ema_cli.formats.dcp.checkpoint import beside_the_model

            return dict(counters_in(beside_the_model(checkpoint.files[0])))
        if checkpoint.format in FORMATS:
            return dict(counters_in(open_container(checkpoint.files[0]).root))
        if not checkpoint.format.startswith("torch") or not checkpoint.files:
            return {}
        return dict(counters_in(open_torch(checkpoint.files[0]).root))
    except EmaError:
        return {}
