"""Tuning, on one page: make candidates, let the user's evaluation judge them, publish the winner."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypedDict, Unpack

from ema_cli.errors import EmaError, GateError, RunError, option
from ema_cli.job import prepare
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time, as_time
from ema_cli.manifest.types import TuneRow
from ema_cli.planning.plan import Plan, make_plan
from ema_cli.runs.run import Run
from ema_cli.storage.location import location
from ema_cli.system.progress import ProgressCallback, no_progress
from ema_cli.tuning.half_lives import Range, check_half_lives
from ema_cli.tuning.journal import Journal
from ema_cli.tuning.metric import EvaluationFailed
from ema_cli.tuning.results import LAST, Result, choose
from ema_cli.tuning.workshop import Workshop
from ema_cli.writing.outputs import OutputOptions
from ema_cli.writing.target import Target, parse_target

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
        jobs: how many evaluations run at once.
        stop: ends the evaluations that run, where the tuning is interrupted.
        command, metric: what the manifest says of it.
    """

    evaluate: Evaluate
    maximize: bool = False
    repeats: int = 1
    jobs: int = 1
    stop: Callable[[], None] = lambda: None
    command: str | None = None
    metric: str | None = None


@dataclass(frozen=True, slots=True)
class Candidates:
    """What is evaluated.

    Attributes:
        plan: gives the plan of a half-life.
        half_lives: those that the user names, or a range to search.
        last: the plan of the last checkpoint alone, None where there is none.
    """

    plan: Callable[[Time], Plan]
    half_lives: Sequence[Time] | Range
    last: Plan | None


@dataclass(frozen=True, slots=True)
class Watcher:
    """Who is told what happens: of each reading, its progress; and each result, once it is there."""

    reading: Callable[[], AbstractContextManager[ProgressCallback]] = lambda: nullcontext(no_progress)
    result: Callable[[Result], None] = lambda result: None


@dataclass(frozen=True, slots=True)
class Tuned:
    """What was tuned.

    Attributes:
        target: the output; nothing is there where there is a problem.
        results: of each candidate; the last checkpoint first, then by half-life.
        maximize: whether more is better.
        best: the candidate that wins; None where none has a metric.
        plan: of the candidate that wins.
        problem: why nothing was published.
    """

    target: Target
    results: tuple[Result, ...]
    maximize: bool
    best: Result | None
    plan: Plan | None = None
    problem: EmaError | None = None


class FixedKeywords(TypedDict, total=False):
    """What is the same in the recipe of each half-life; see `Recipe`."""

    update_interval: Time | str | None
    start: Time | str | None
    stop: Time | str | None
    last: int | None
    bias_correction: bool


def tune(
    run: Run,
    target: str | Path,
    *,
    evaluate: Callable[[Any], float],
    half_lives: Sequence[Time | str] = (),
    between: tuple[Time | str, Time | str] | None = None,
    tries: int = 12,
    maximize: bool = False,
    repeats: int = 1,
    state_dict: bool = False,
    allow_last: bool = False,
    force: bool = False,
    **fixed: Unpack[FixedKeywords],
) -> Tuned:
    """Evaluate averages of several half-lives and the last checkpoint, and write the best average to `target`.

        tune(open_run("ckpts"), "best", evaluate=loss_of, half_lives=["200ba", "2000ba"])

    Args:
        run: the checkpoints.
        target: as of `average`.
        evaluate: gets the path of a candidate, a file or folder as `target` would be, and returns its metric. What it
            raises ends the tuning.
        half_lives: those to evaluate.
        between: instead, the ends of a range to search.
        tries: how many half-lives of a range to evaluate at most.
        maximize: whether more is better.
        repeats: how many times each is evaluated; what differs by no more than the spread is a tie.
        state_dict: `evaluate` gets the tensors by name instead of the path. Needs torch.
        allow_last: write the last checkpoint where it is the best.
        force: replace an output that is there.
        fixed: the rest of each recipe; see `FixedKeywords`.

    Raises:
        UsageError: for values or combinations that make no sense.
        GateError: where no candidate has a finite metric, or the last checkpoint is the best, unless `allow_last`.
        EmaError: as `averaging.average`.
    """
    if between is not None:
        low, high = (as_time(end, "between") for end in between)
        searched: Sequence[Time] | Range = Range(low, high, tries)
    else:
        searched = [as_time(half_life, "half_life") for half_life in half_lives]
        check_half_lives(searched)
    plans = Candidates(
        lambda half_life: make_plan(run, Recipe(half_life=half_life, **fixed)),
        searched,
        make_plan(run, Recipe(profile="uniform", last=1, start=fixed.get("start"), stop=fixed.get("stop"))),
    )
    read: Callable[[Path], Any] = Path
    if state_dict:
        from ema_cli.integrations.state_dicts import read_state_dict as read  # which imports torch

    def judge(path: Path, name: str) -> float:
        value = float(evaluate(read(path)))
        if not math.isfinite(value):
            raise EvaluationFailed(f"its metric is {value}")
        return value

    output = parse_target(target)
    prepare([plans.plan(longest(searched))], output, force=force)
    with location(output.path).staging() as staging:
        tuned = perform(
            plans,
            Evaluation(judge, maximize=maximize, repeats=repeats),
            Workshop(staging, output, OutputOptions()),
            force=force,
            allow_last=allow_last,
        )
    if tuned.problem is not None:
        raise tuned.problem
    return tuned


def longest(half_lives: Sequence[Time] | Range) -> Time:
    """Return the longest half-life, whose average takes in the most checkpoints."""
    return half_lives.high if isinstance(half_lives, Range) else max(half_lives, key=lambda time: time.value)


def perform(
    candidates: Candidates,
    evaluation: Evaluation,
    workshop: Workshop,
    *,
    journal: Journal | None = None,
    watcher: Watcher | None = None,
    force: bool = False,
    allow_last: bool = False,
) -> Tuned:
    """Evaluate candidates, and publish the one that wins: all of it or nothing.

    Args:
        candidates: what is evaluated.
        evaluation: how.
        workshop: where candidates lie, and where the winner goes.
        journal: knows results already, and gets those that come.
        watcher: is told what happens.
        force: whether an output that is there is replaced.
        allow_last: whether the last checkpoint is published where it is the best.

    Raises:
        EmaError: as `averaging.average`.
    """
    tuning = _Tuning(candidates, evaluation, workshop, journal, watcher or Watcher())
    tuning.run()
    best, results = tuning.best(), tuning.ordered()
    tuned = Tuned(workshop.target, results, evaluation.maximize, best)
    problem = _problem(tuned, allow_last=allow_last)
    if best is None or problem is not None:
        return replace(tuned, problem=problem)
    name = best.same_as or best.name
    plan = tuning.plans[name]
    if name not in workshop.made:  # as it was evaluated before an interruption, or there was no room to keep it
        workshop.make({name: plan}, no_progress)
    row: TuneRow = {
        "command": evaluation.command,
        "metric": evaluation.metric,
        "maximize": evaluation.maximize,
        "winner": best.name,
        "candidates": [result.to_dict() for result in results],
    }
    workshop.publish(name, row, force=force)
    return replace(tuned, plan=plan)


def _problem(tuned: Tuned, *, allow_last: bool) -> EmaError | None:
    """Return why nothing is published, if so."""
    if tuned.best is None:
        reasons = [result.failed for result in tuned.results if result.failed]
        return GateError(
            f"no candidate has a metric: {reasons[0]}",
            hint="try the evaluation by hand on a checkpoint; it gets the path of a model, and prints a number",
        )
    if tuned.best.is_last and not allow_last:
        averages = [result for result in tuned.results if not result.is_last]
        best = choose(averages, maximize=tuned.maximize)
        what = f"the best average, {best.name}, has {best.mean:.6g}" if best else "no average has a metric"
        return GateError(
            f"the last checkpoint is the best: its metric is {tuned.best.mean:.6g}, {what}; nothing was written",
            hint=f"try other half-lives, or write it all the same: {option('allow_last', True)}",
        )
    return None


@dataclass(slots=True)
class _Tuning:
    """The state of one tuning: the plans of what is evaluated, and the results, by name."""

    candidates: Candidates
    evaluation: Evaluation
    workshop: Workshop
    journal: Journal | None
    watcher: Watcher
    plans: dict[str, Plan] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)

    def run(self) -> None:
        """Evaluate all candidates."""
        search = self.candidates.half_lives
        first = search.grid() if isinstance(search, Range) else list(search)
        self._evaluate_all(first, self.candidates.last)
        while isinstance(search, Range) and (following := search.refined(self._scores())) is not None:
            self._evaluate_all([following])

    def best(self) -> Result | None:
        """Return the result that wins so far."""
        return choose(list(self.results.values()), maximize=self.evaluation.maximize)

    def ordered(self) -> tuple[Result, ...]:
        """Return all results, the last checkpoint first, then by half-life."""
        return tuple(sorted(self.results.values(), key=lambda result: result.length))

    def _scores(self) -> dict[Time, float]:
        """Return what the search knows: less is better, and a failure is worst."""
        sign = -1 if self.evaluation.maximize else 1
        return {
            result.half_life: sign * result.mean if result.values else math.inf
            for result in self.results.values()
            if result.half_life is not None
        }

    def _evaluate_all(self, half_lives: Sequence[Time], last: Plan | None = None) -> None:
        """Evaluate some half-lives, and the last checkpoint where it is given: in one reading, where there is room.

        What is known already, or has the weights of another candidate, is not evaluated.
        """
        plans = {LAST: last} if last is not None else {}
        plans |= self._plans_of(half_lives)
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
                self._note(known[name], again=True)
            else:
                waiting[name] = plan
        self._evaluate(waiting)
        for name, same in alike.items():
            self._note(replace(self.results[same], name=name, same_as=same))

    def _plans_of(self, half_lives: Sequence[Time]) -> dict[str, Plan]:
        """Return the plans by name; what has none failed.

        Raises:
            RunError: where none of the first has one.
        """
        plans: dict[str, Plan] = {}
        failures: list[RunError] = []
        for half_life in half_lives:
            try:
                plans[str(half_life)] = self.candidates.plan(half_life)
            except RunError as error:
                failures.append(error)
        if failures and not plans and not self.results:
            raise failures[0]
        for half_life, failure in zip((time for time in half_lives if str(time) not in plans), failures, strict=True):
            self._note(Result(str(half_life), failed=str(failure)))
        return plans

    def _evaluate(self, plans: Mapping[str, Plan]) -> None:
        """Make candidates, as many at once as there is room for, and evaluate them; the best so far is kept."""
        left = dict(plans)
        while left:
            first = next(iter(left.values()))
            of_one_run = ((name, plan) for name, plan in left.items() if plan.run is first.run)
            batch = dict(islice(of_one_run, self.workshop.room(first)))
            left = {name: plan for name, plan in left.items() if name not in batch}
            with self.watcher.reading() as progress:
                self.workshop.make(batch, progress)
            for result in self._judged(batch):
                self._note(result)
            best = self.best()
            self.workshop.keep(best.name if best else None)

    def _judged(self, names: Iterable[str]) -> Iterator[Result]:
        """Yield the result of each candidate as it comes."""
        with ThreadPoolExecutor(self.evaluation.jobs, "evaluation") as pool:
            try:
                futures = [pool.submit(self._judge, name) for name in names]
                for future in as_completed(futures):
                    yield future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self.evaluation.stop()
                raise

    def _judge(self, name: str) -> Result:
        """Return the result of one candidate."""
        path = self.workshop.made[name].absolute()
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


def _same_weights(one: Plan, other: Plan) -> bool:
    """Return whether float32 cannot tell the averages of two plans apart."""
    weights = {entry.checkpoint: entry.weight for entry in one.read}
    for entry in other.read:
        weights[entry.checkpoint] = weights.get(entry.checkpoint, 0.0) - entry.weight
    return all(abs(difference) <= _SAME_WEIGHTS for difference in weights.values())
