"""Tuning, on one page: make candidates, let the user's evaluation judge them, publish the winner."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from ema_cli.dataclass import dataclass
from ema_cli.errors import EmaError, GateError, UsageError, option
from ema_cli.job import prepare
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time, as_time
from ema_cli.manifest.types import TuneRow
from ema_cli.planning.plan import Plan, make_plan
from ema_cli.planning.series import make_series
from ema_cli.runs.run import Run
from ema_cli.storage.location import location
from ema_cli.system.progress import no_progress
from ema_cli.tuning.factors import Factor, Factors, Line
from ema_cli.tuning.half_lives import TRIES, Range, check_half_lives
from ema_cli.tuning.journal import Journal
from ema_cli.tuning.metric import EvaluationFailed
from ema_cli.tuning.results import Result, choose
from ema_cli.tuning.rounds import Candidates, Evaluation, Rounds, Watcher
from ema_cli.tuning.workshop import Workshop
from ema_cli.writing.outputs import OutputOptions
from ema_cli.writing.target import Target, parse_target

Searched = Sequence[Time] | Range | Factors


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
    tries: int = TRIES,
    maximize: bool = False,
    repeats: int = 1,
    series: bool = False,
    series_every: Time | str | None = None,
    extrapolate: tuple[float, float] | None = None,
    extrapolate_from: Time | str | None = None,
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
        series: evaluate each half-life at each clock of the run, of the run up to there; excludes `between`.
        series_every: the same, with an average every so much; see `make_series`.
        extrapolate: the ends of a range of factors to search, beyond the average of the one half-life that is named.
        extrapolate_from: the half-life of the other average on that line; see `Recipe`.
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
        searched: Searched = Range(low, high, tries)
    else:
        named = [as_time(half_life, "half_life") for half_life in half_lives]
        check_half_lives(named)
        searched = named
    line = None
    if extrapolate is not None:
        line = line_of(searched, extrapolate_from, series=series or series_every is not None)
        searched = Factors(*extrapolate, tries)
    if series or series_every is not None:
        recipes = [Recipe(half_life=half_life, **fixed) for half_life in no_range(searched)]
        of_series = make_series(run, recipes, every=series_every)
    plans = Candidates(
        lambda turned: make_plan(run, recipe_of(turned, line, fixed)),
        searched,
        make_plan(run, last_checkpoint(fixed.get("start"), fixed.get("stop"))),
        of_series if series or series_every is not None else (),
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


def last_checkpoint(start: Time | str | None, stop: Time | str | None) -> Recipe:
    """Return the recipe of the last checkpoint alone, from `start` to `stop`."""
    return Recipe(profile="uniform", last=1, start=start, stop=stop)


def recipe_of(turned: Time | Factor, line: Line | None, fixed: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a half-life, or of a factor on a line."""
    if isinstance(turned, Time):
        return Recipe(half_life=turned, **fixed)
    assert line is not None  # factors are searched on one
    return line.recipe(turned, **fixed)


def line_of(searched: Searched, away_from: Time | str | None, *, series: bool) -> Line:
    """Return the line through the average of the one half-life that is named, and another one.

    Raises:
        UsageError: for another number of half-lives, a range, and a series.
    """
    if series or isinstance(searched, Range | Factors) or len(searched) != 1:
        raise UsageError(
            "goes on from the average of one half-life, at the end of the run",
            option="extrapolate",
            hint=f"{option('half_life', '500ba')} {option('extrapolate')} 0 1",
        )
    return Line(searched[0], away_from)


def no_range(half_lives: Searched) -> Sequence[Time]:
    """Return half-lives that are named, as those of a series must be.

    Raises:
        UsageError: for a range.
    """
    if isinstance(half_lives, Range | Factors):
        raise UsageError(
            f"excludes {option('between')}", option="series", hint=f"name half-lives: {option('half_life', '500ba')}"
        )
    return half_lives


def longest(searched: Searched) -> Time | Factor:
    """Return the longest half-life, whose average takes in the most checkpoints; of factors the largest."""
    if isinstance(searched, Factors):
        return Factor(searched.high)
    return searched.high if isinstance(searched, Range) else max(searched, key=lambda time: time.value)


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
    rounds = Rounds(candidates, evaluation, workshop, journal, watcher or Watcher())
    rounds.run()
    best, results = rounds.best(), rounds.ordered()
    tuned = Tuned(workshop.target, results, evaluation.maximize, best)
    problem = _problem(tuned, allow_last=allow_last)
    if best is None or problem is not None:
        return replace(tuned, problem=problem)
    name = best.same_as or best.name
    plan = rounds.plans[name]
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
