"""Composer's EMA, transcribed for the tests from its algorithm: what a run with it switched on would have held.

And runs without files, made of clocks alone, for it to be compared with the plan on.

Its rules, in its own order: the first event of the interval's kind at or after `ema_start` copies the model,
whatever the interval; then, in the same event, the update rule is asked. An update happens where the counter
is a multiple of the interval, param by param, over parameters and buffers, in torch and in place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from ema_cli.checkpoint import Checkpoint, Clock, Progress
from ema_cli.law.time import Unit
from ema_cli.runs.order import order_units
from ema_cli.runs.run import Run

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class BatchEnd:
    """The model after a batch; `epoch` is the count of completed epochs where this batch completes one."""

    batch: int
    model: Tensors
    epoch: int | None = None


def composer_ema(
    batches: Iterable[BatchEnd], half_life: int, interval: int, unit: str = "ba", start: int = 0
) -> dict[str, torch.Tensor]:
    """Return what Composer's EMA holds at the end; half-life, interval and start are counts of `unit`."""
    smoothing = math.exp(-math.log(2) * (interval / half_life))
    ema: dict[str, torch.Tensor] | None = None
    for event in batches:
        counter = event.batch if unit == "ba" else event.epoch
        if counter is None:  # no EPOCH_END after this batch
            continue
        if ema is None and counter >= start:
            ema = {name: tensor.detach().clone() for name, tensor in event.model.items()}
        if ema is not None and counter % interval == 0:
            _compute_ema(event.model, ema, smoothing)
    assert ema is not None, "the run ends before ema_start"
    return ema


def _compute_ema(model: Tensors, ema: Tensors, smoothing: float) -> None:
    with torch.no_grad():
        for name, param in model.items():
            ema[name].copy_(ema[name] * smoothing + param.data * (1.0 - smoothing))


def event_by_event(
    clocks: Sequence[Fraction], half_life: Fraction, interval: Fraction, start: Fraction
) -> dict[Fraction, Decimal]:
    """Walk through the events one at a time, on symbols: the share of each checkpoint at the end.

    At event n the model is that of the first checkpoint which has come as far as n intervals; the average
    begins as a copy of the first checkpoint at or after the start, the first unit or interval, and 0.
    """
    with localcontext() as context:
        context.prec = 60
        ratio = interval / half_life
        kept = (-Decimal(2).ln() * ratio.numerator / ratio.denominator).exp()
        usable = [t for t in clocks if t > 0 and t >= start and (t >= interval or t >= 1)]
        if not usable:
            return {}
        ema = {usable[0]: Decimal(1)}
        event = 1
        while event * interval <= usable[0]:  # what the first copy has passed
            event += 1
        while event * interval <= usable[-1]:
            model = next(t for t in usable if t >= event * interval)
            ema = {t: share * kept for t, share in ema.items()}
            ema[model] = ema.get(model, Decimal(0)) + (1 - kept)
            event += 1
        return ema


Clocks = Mapping[str, float | Fraction]


def make_run(*checkpoints: Clocks) -> Run:
    """Make a run without files: each checkpoint is its clocks, and is named after the first of them."""
    made = []
    for clocks in checkpoints:
        name = next((f"{value}{unit}" for unit, value in clocks.items()), f"file-{len(made)}")
        progress = Progress({Unit(unit): Clock(Fraction(value), "file") for unit, value in clocks.items()})
        weights: Any = None  # a plan reads no tensors
        made.append(Checkpoint(name, Path("run", name), weights, (), "torch zip", progress=progress))
    return Run(Path("run"), tuple(made), order_units(made))
