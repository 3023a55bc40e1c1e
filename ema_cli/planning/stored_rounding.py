"""What the files of stored averages say of their size, as rounding errors for the fit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ema_cli.law.law import LiveLaw
from ema_cli.law.profile import Moment
from ema_cli.law.rounding import Measured, spread_of
from ema_cli.law.synthesis import Rounding
from ema_cli.runs.stored_file import StoredAverage

_LEAST_ERROR = 1e-3  # of the largest: what is stored exactly is summed with a rounding all the same
_LEAST_SPREAD = 1e-6  # of the largest: a model that rested, as while its rate was 0, has averages there all the same


def measure_rounding(
    averages: Sequence[StoredAverage], moments: Sequence[Moment], laws: Sequence[LiveLaw]
) -> Rounding | None:
    """Return the rounding errors of stored averages, and what averaging by each of `laws` changes.

    None where the newest averages say no norm, as those of earlier versions do not. Others that say none, and the first
    copy, are taken to be as large as the largest.
    """
    norms = [average.norm for average in averages if average.norm is not None]
    newest = [average for average in averages if average.updates == moments[-1].updates]
    if any(average.norm is None or average.spread is None for average in newest) or not any(norms):
        return None
    at = {moment.updates: moment for moment in moments}
    measured = [_measured(average, at[average.updates], moments[0], max(norms)) for average in averages]
    with_spread = [one for one, average in zip(measured, averages, strict=True) if average.spread is not None]
    last = [one for one in with_spread if one.law is not None and one.clock == moments[-1].clock]
    changes = {law: spread_of(law, last) for law in laws}
    errors = np.array([one.error for one in measured])
    return Rounding(np.maximum(errors, _LEAST_ERROR * errors.max()), changes, _spreads(with_spread, moments))


def _measured(average: StoredAverage, moment: Moment, first: Moment, norm: float) -> Measured:
    precisions = [spec.dtype.precision for spec in average.checkpoint.tensors.specs.values() if spec.dtype.averaged]
    return Measured(
        average.law,
        moment.clock,
        moment.due_updates,
        (moment.due - first.due) / moment.updates if moment.updates else 0.0,
        max(precisions, default=0.0),
        norm if average.norm is None else average.norm,
        average.spread or 0.0,
    )


def _spreads(measured: Sequence[Measured], moments: Sequence[Moment]) -> list[tuple[float, float]]:
    """Return how far the model was from its averages at both ends of each cell, the largest at the last being 1.

    It is the spread of the average that is nearest to the model; before the first moment it is not known.
    """
    at: dict[float, float] = {}
    for one in measured:
        at[one.clock] = min(at.get(one.clock, one.spread), one.spread)
    known = [at.get(moment.clock) for moment in moments[1:]]
    last = known[-1] or 1.0
    filled = [last if spread is None else spread for spread in known]
    if not any(filled):
        return [(1.0, 1.0)] * len(filled)
    filled = [max(spread, _LEAST_SPREAD * max(filled)) for spread in filled]
    unit = max(filled[-2:])
    return [(begin / unit, end / unit) for begin, end in zip([filled[0], *filled], filled, strict=False)]
