"""Tuning, on one page: make candidates, let the user's evaluation judge them, publish the winner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from ema_cli.dataclass import dataclass
from ema_cli.errors import EmaError, GateError, UsageError, option
from ema_cli.kinds import as_count, check_flags, check_instance, check_keywords
from ema_cli.law.time import Time
from ema_cli.manifest.types import TuneRow
from ema_cli.planning.plan import Plan, make_plan
from ema_cli.planning.series import make_series
from ema_cli.preparing import prepare
from ema_cli.runs.run import Run
from ema_cli.runs.warnings import Remarks
from ema_cli.storage.location import location
from ema_cli.tuning.asked import Asked
from ema_cli.tuning.journal import Journal
from ema_cli.tuning.metric import as_metric
from ema_cli.tuning.results import Result, choose
from ema_cli.tuning.rounds import Candidates, Evaluation, Rounds, Watcher
from ema_cli.tuning.settings import Setting
from ema_cli.tuning.workshop import Workshop
from ema_cli.writing.output_options import OutputOptions
from ema_cli.writing.target import Target, parse_target


@dataclass(frozen=True, slots=True)
class Tuned:
    """What was tuned.

    Attributes:
        target: the output; nothing is there where there is a problem.
        results: of each candidate; the last checkpoint first, then by half-life, window or factor.
        maximize: whether more is better.
        best: the candidate that wins; None where none has a metric.
        plan: of the candidate that wins.
        problem: why nothing was published.
        remarks: what is said of the candidate that was published, but for what is said of the run and of its plan.
    """

    target: Target
    results: tuple[Result, ...]
    maximize: bool
    best: Result | None
    plan: Plan | None = None
    problem: EmaError | None = None
    remarks: Remarks = Remarks()


class FixedKeywords(TypedDict, total=False):
    """What is the same in the recipe of each candidate; see `Recipe`."""

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
    windows: Sequence[Time | str] = (),
    profile: str | None = None,
    between: tuple[Time | str, Time | str] | None = None,
    tries: int | None = None,
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
    """Evaluate averages of several half-lives, or windows, and the last checkpoint; write the best average to `target`.

        tune(open_run("ckpts"), "best", evaluate=loss_of, half_lives=["200ba", "2000ba"])
        tune(open_run("ckpts"), "best", evaluate=loss_of, between=("2%ba", "20%ba"))
        tune(open_run("ckpts"), "best", evaluate=loss_of, profile="linear", windows=["500ba", "2000ba"])

    Args:
        run: the checkpoints.
        target: as of `average`.
        evaluate: gets the path of a candidate, a file or folder as `target` would be, and returns its metric. It is
            called in the thread that calls `tune`. What it raises ends the tuning.
        half_lives: those to evaluate; 5%ba is a share of the training so far.
        windows: instead, those of the `profile`, one of linear, 1-sqrt, cosine, inverse-sqrt and uniform.
        between: instead, the ends of a range to search: of windows where there is a `profile`, else of half-lives.
        tries: how many of a range to evaluate at most; by default 12.
        maximize: whether more is better.
        repeats: how many times each is evaluated; what differs by no more than the spread is a tie.
        series: evaluate each of them at each clock of the run, of the run up to there; a search goes on around the one
            whose best clock is the best.
        series_every: the same, with an average every so much; see `make_series`.
        extrapolate: the ends of a range of factors to search, beyond the average of the one half-life, or window, that
            is named.
        extrapolate_from: the half-life, or window, of the other average on that line; see `Recipe`.
        state_dict: `evaluate` gets the tensors by name instead of the path. Needs torch.
        allow_last: write the last checkpoint where it is the best.
        force: replace an output that is there.
        fixed: the rest of each recipe; see `FixedKeywords`.

    Raises:
        UsageError: for values or combinations that make no sense.
        GateError: where no candidate has a finite metric, or the last checkpoint is the best, unless `allow_last`.
        EmaError: as `averaging.average`.
        TypeError: for an option that there is not.
    """
    check_keywords("tune", fixed, FixedKeywords)
    check_instance(run, Run, "what open_run returns")
    if not callable(evaluate):
        raise UsageError("is no function", option="evaluate", hint="a function of the path of a model")
    repeats = as_count(repeats, "repeats", "evaluations")
    check_flags(maximize=maximize, series=series, state_dict=state_dict, allow_last=allow_last, force=force)
    asked = Asked.of(
        half_lives=half_lives,
        windows=windows,
        profile=profile,
        between=between,
        tries=tries,
        extrapolate=extrapolate,
        extrapolate_from=extrapolate_from,
        **fixed,
    )
    of_series = series or series_every is not None

    def plans(setting: Setting) -> Sequence[Plan]:
        recipe = asked.recipe(setting)
        return make_series(run, recipe, every=series_every) if of_series else [make_plan(run, recipe)]

    read: Callable[[Path], Any] = Path
    if state_dict:
        from ema_cli.integrations.state_dicts import read_state_dict as read  # which imports torch

    def judge(path: Path, name: str) -> float:
        return as_metric(evaluate(read(path)))

    output = parse_target(target)
    prepare([make_plan(run, asked.recipe(asked.widest))], output, force=force)
    with location(output.path).staging() as staging:
        tuned = perform(
            Candidates(plans, asked.searched, make_plan(run, asked.last_checkpoint()), of_series),
            Evaluation(judge, maximize=maximize, repeats=repeats, jobs=None),
            Workshop(staging, output, OutputOptions()),
            force=force,
            allow_last=allow_last,
        )
    if tuned.problem is not None:
        raise tuned.problem
    return tuned


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
    problem = _problem(tuned, evaluation.command, allow_last=allow_last)
    if best is None or problem is not None:
        return replace(tuned, problem=problem)
    name = best.same_as or best.name
    plan = rounds.plans[name]
    row: TuneRow = {
        "command": evaluation.command,
        "metric": evaluation.metric,
        "maximize": evaluation.maximize,
        "winner": best.name,
        "candidates": [result.to_dict() for result in results],
    }
    remarks = workshop.publish(name, plan, row, force=force)
    return replace(tuned, plan=plan, remarks=remarks)


def _problem(tuned: Tuned, command: str | None, *, allow_last: bool) -> EmaError | None:
    """Return why nothing is published, if so."""
    if tuned.best is None:
        reasons = [result.failed for result in tuned.results if result.failed]
        is_told = command is None or "{path}" in command or "EMA_PATH" in command
        hint = "" if is_told else "the command has no {path}, in the place of which the path of a model would come; "
        return GateError(
            f"no candidate has a metric: {reasons[0]}",
            hint=f"{hint}try the evaluation by hand on a checkpoint; it gets the path of a model, and prints a number",
        )
    if tuned.best.is_last and not allow_last:
        averages = [result for result in tuned.results if not result.is_last]
        best = choose(averages, maximize=tuned.maximize)
        same = any(result.same_as for result in tuned.results if not result.failed)
        none = "all averages are the same weights" if same else "no average has a metric"
        what = f"the best average, {best.name}, has {best.mean:.6g}" if best else none
        return GateError(
            f"the last checkpoint is the best: its metric is {tuned.best.mean:.6g}, {what}; nothing was written",
            hint=f"try other half-lives, or write it all the same: {option('allow_last', True)}",
        )
    return None
