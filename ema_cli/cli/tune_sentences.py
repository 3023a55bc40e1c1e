"""What `tune` says, in sentences for people. No rich."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import ceil
from typing import TYPE_CHECKING

from ema_cli.cli.sentences import free_words
from ema_cli.text import size

if TYPE_CHECKING:
    from ema_cli.cli.outcomes import Candidates
    from ema_cli.tuning.results import Result
    from ema_cli.tuning.tune import Tuned

LAST_WORDS = "the last checkpoint"
_LONG = 60.0  # seconds


class Pace:
    """How fast evaluations come, and so how long the rest of them will take."""

    def __init__(self, count: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._count, self._clock = count, clock
        self._done, self._began = 0, clock()

    def after_another(self) -> str:
        """Return how many are there and how long the rest will take, at most; nothing where that is not long."""
        self._done += 1
        left = (self._clock() - self._began) / self._done * (self._count - self._done)
        if left < _LONG:
            return ""
        return f" ({self._done} of {self._count}, about {ceil(left / 60)} min left)"


def tuning_line(candidates: Candidates) -> str:
    """Return what will be evaluated, and what room the candidates take."""
    return f"evaluating {_what(candidates)}"


def would_line(candidates: Candidates) -> str:
    """Return what would be evaluated, what room the candidates take, and what there is."""
    return f"Would evaluate {_what(candidates)}; {free_words(candidates.job)}"


def _what(candidates: Candidates) -> str:
    searched, most = candidates.searched, candidates.most
    if isinstance(searched, Sequence):
        of = searched[0]
        what = f"a series of {most} averages" if candidates.of_series else f"{'one' if most == 1 else most} "
        what += "" if candidates.of_series else of.noun if most == 1 else of.nouns
    else:
        what = f"at most {searched.tries} {searched.low.nouns} from {searched.low.text} to {searched.high.text}"
        what += f", a series of {most} averages at most" if candidates.of_series else ""
    each, together = size(candidates.job.bytes_to_write), size(candidates.bytes_at_once)
    beaten = f" and {LAST_WORDS}" if candidates.last else ""
    return f"{what}{beaten}: {each} of disk each, {together} for all at once"


def result_line(result: Result) -> str:
    """Return what a candidate came to, as it comes."""
    note = result_note(result, None)
    metric = f"{result.mean:.6g}" if result.values else "no metric"
    return f"{result.name}: {metric}{f' ({note})' if note else ''}"


def result_note(result: Result, best: Result | None) -> str:
    """Return what else there is to know of a candidate."""
    if result.failed is not None:
        return f"failed: {result.failed}"
    if result is best:
        return "best"
    return f"the same weights as {result.same_as}" if result.same_as else ""


def best_line(tuned: Tuned) -> str:
    """Return the best candidate, and the bar that it beat."""
    from ema_cli.tuning.results import LAST

    best = tuned.best
    assert best is not None  # else there is a problem
    last = next((result for result in tuned.results if result.name == LAST and result.values), None)
    beaten = f"; {LAST_WORDS} has {last.mean:.6g}" if last is not None and not best.is_last else ""
    means = [result.mean for result in tuned.results if result.values and result.same_as is None]
    alike = len(means) > 1 == len(set(means))
    doubt = "; every metric is the same: does the command look at {path}?" if alike else ""
    return f"best: {best.name} with {best.mean:.6g}{beaten}{doubt}"
