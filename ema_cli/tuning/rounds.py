"""The rounds of a tuning: candidates are made and judged, as many at once as there is room for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import field, replace
from itertools import islice
from pathlib import Path
from typing import Protocol

from ema_cli.dataclass import dataclass
from ema_cli.errors import RunError
from ema_cli.planning.plan import Plan
from ema_cli.system.progress import ProgressCallback, no_progress
from ema_cli.tuning.journal import Journal
from ema_cli.tuning.metric import EvaluationFailed
from ema_cli.tuning.results import LAST, Result, choose, series_name
from ema_cli.tuning.search import Range, Searched
from ema_cli.tuning.settings import Setting
from ema_cli.tuning.workshop import Workshop

_LOOK_SECONDS = 0.5
_SAME_WEIGHTS = 2.0**-24  # of a share: float32 cannot tell averages with such weights apart


class Evaluate(Protocol):
    """The user's evaluation of a candidate: its path and its name, as 50ba, to its metric."""

    def __call__(self, path: Path, name: str) -> float:
        """Return the metric.

        Raises:
            EvaluationFailed: with the reason, where there is none.
        """
        ...


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How candidates are judged.

    Attributes:
        evaluate: gives the metric of a candidate.
        maximize: whether more is better.
        repeats: how many times each is evaluated.
        jobs: how many evaluations run at once, each in a thread of its own; None for one, in the caller's thread, as
            what torch.no_grad, a device or a debugger set for a thread must hold in a function of the caller's.
        stop: ends the evaluations that run, where the tuning is interrupted.
        command, metric: what the manifest says of it.
    """

    evaluate: Evaluate
    maximize: bool = False
    repeats: int = 1
    jobs: int | None = 1
    stop: Callable[[], None] = lambda: None
    command: str | None = None
    metric: str | None = None


@dataclass(frozen=True, slots=True)
class Candidates:
    """What is evaluated.

    Attributes:
        plans: gives the plan of a setting; of a series the plans, one for each clock.
        searched: the settings that the user names, or a range of them.
        last: the plan of the last checkpoint alone, None where there is none.
        of_series: whether it is a series.
    """

    plans: Callable[[Setting], Sequence[Plan]]
    searched: Searched
    last: Plan | None
    of_series: bool = False


@dataclass(frozen=True, slots=True)
class Watcher:
    """Who is told what happens: of each reading, its progress; and each result, once it is there."""

    reading: Callable[[], AbstractContextManager[ProgressCallback]] = lambda: nullcontext(no_progress)
    result: Callable[[Result], None] = lambda result: None


@dataclass(slots=True)
class Rounds:
    """What was done so far: the plans of what is evaluated, and the results, by name."""

    candidates: Candidates
    evaluation: Evaluation
    workshop: Workshop
    journal: Journal | None
    watcher: Watcher
    plans: dict[str, Plan] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)

    def run(self) -> None:
        """Evaluate all candidates."""
        searched = self.candidates.searched
        if not isinstance(searched, Range):
            self._evaluate_all(self._plans_of(searched), self.candidates.last)
            return
        self._evaluate_all(self._plans_of(searched.grid()), self.candidates.last)
        while (following := searched.refined(self._scores())) is not None:
            self._evaluate_all(self._plans_of([following]))

    def best(self) -> Result | None:
        """Return the result that wins so far."""
        return choose(list(self.results.values()), maximize=self.evaluation.maximize)

    def ordered(self) -> tuple[Result, ...]:
        """Return all results, the last checkpoint first, then by setting and clock."""
        return tuple(sorted(self.results.values(), key=lambda result: result.place))

    def _scores(self) -> dict[Setting, float]:
        """Return what the search knows: less is better, a failure is worst, and of a series its best clock counts."""
        sign = -1 if self.evaluation.maximize else 1
        scores: dict[Setting, float] = {}
        for result in self.results.values():
            if (setting := result.setting) is not None:
                score = sign * result.mean if result.values else math.inf
                scores[setting] = min(score, scores.get(setting, math.inf))
        return scores

    def _evaluate_all(self, averages: Mapping[str, Plan], last: Plan | None = None) -> None:
        """Evaluate some averages, and the last checkpoint where it is given: in one reading, where there is room.

        What is known already, or has the weights of another candidate, is not evaluated.
        """
        plans = {LAST: last, **averages} if last is not None else averages
        known = self.journal.results if self.journal else {}
        waiting: dict[str, Plan] = {}
        alike: dict[str, str] = {}
        for name, plan in plans.items():
            same = next((other for other in self.plans if _same_weights(self.plans[other], plan)), None)
            if same is not None:
                alike[name] = same
                continue
            self.plans[name] = plan
            if name in known:
                self._note(replace(known[name], same_as=None), again=True)  # it stands for itself this time
            else:
                waiting[name] = plan
        self._evaluate(waiting)
        for name, same in alike.items():
            self._note(replace(self.results[same], name=name, same_as=same), again=name in known)

    def _plans_of(self, settings: Sequence[Setting]) -> dict[str, Plan]:
        """Return the plans by name; a setting that has none failed.

        Raises:
            RunError: where none of the first has one.
        """
        plans: dict[str, Plan] = {}
        failures: dict[Setting, RunError] = {}
        for setting in settings:
            try:
                made = self.candidates.plans(setting)
            except RunError as error:
                failures[setting] = error
                continue
            of_series = self.candidates.of_series
            plans |= {series_name(setting, plan) if of_series else setting.name: plan for plan in made}
        if failures and not plans and not self.results:
            raise next(iter(failures.values()))
        for setting, failure in failures.items():
            self._note(Result(setting.name, failed=str(failure)))
        return plans

    def _evaluate(self, plans: Mapping[str, Plan]) -> None:
        """Make candidates, as many at once as there is room for, and evaluate them; the best so far is kept."""
        left = dict(plans)
        while left:
            best = self.best()
            self.workshop.keep(None if best is None else best.same_as or best.name)
            first = next(iter(left.values()))
            of_one_run = {name: plan for name, plan in left.items() if _of_one_run(plan, first)}
            largest = max(of_one_run.values(), key=lambda plan: len(plan.read))  # it names what it was made of
            batch = dict(islice(of_one_run.items(), self.workshop.room(largest)))
            left = {name: plan for name, plan in left.items() if name not in batch}
            with self.watcher.reading() as progress:
                self.workshop.make(batch, progress)
            for result in self._judged(batch):
                self._note(result)

    def _judged(self, names: Iterable[str]) -> Iterator[Result]:
        """Yield the result of each candidate as it comes."""
        if self.evaluation.jobs is None:
            yield from map(self._judge, names)
            return
        with ThreadPoolExecutor(self.evaluation.jobs, "evaluation") as pool:
            try:
                futures = [pool.submit(self._judge, name) for name in names]
                while futures:
                    # Not for ever: a signal that comes as the wait begins is seen when it ends.
                    done, _ = wait(futures, _LOOK_SECONDS, FIRST_COMPLETED)
                    for future in filter(done.__contains__, tuple(futures)):
                        futures.remove(future)
                        yield future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self.evaluation.stop()
                raise

    def _judge(self, name: str) -> Result:
        """Return the result of one candidate."""
        path = self.workshop.made[name].path.absolute()
        try:
            values = [self.evaluation.evaluate(path, name) for _ in range(self.evaluation.repeats)]
        except EvaluationFailed as error:
            return Result(name, failed=str(error))
        return Result(name, tuple(map(float, values)))

    def _note(self, result: Result, *, again: bool = False) -> None:
        """Take a result; one that is not there `again` is written down."""
        self.results[result.name] = result
        if self.journal is not None and not again:
            self.journal.add(result)
        self.watcher.result(result)


def _of_one_run(one: Plan, other: Plan) -> bool:
    """Return whether one reading can make both."""
    return one.run.checkpoints is other.run.checkpoints


def _same_weights(one: Plan, other: Plan) -> bool:
    """Return whether float32 cannot tell the averages of two plans apart."""
    if one.newest is not other.newest and min(abs(plan.read[-1].weight) for plan in (one, other)) > _SAME_WEIGHTS:
        return False  # the later one does not enter the other: as of most pairs in a series
    weights = {entry.checkpoint: entry.weight for entry in one.read}
    for entry in other.read:
        weights[entry.checkpoint] = weights.get(entry.checkpoint, 0.0) - entry.weight
    return all(abs(difference) <= _SAME_WEIGHTS for difference in weights.values())
