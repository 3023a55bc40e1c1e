"""ema-cli tune."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ema_cli.checkpoint import Checkpoint
from ema_cli.cli import outcomes, requests
from ema_cli.cli.law_options import RecipeOptions
from ema_cli.cli.option_groups import RunOptions
from ema_cli.cli.output import make_printer
from ema_cli.cli.printer import Printer
from ema_cli.cli.sources import RawSource, StoredSource
from ema_cli.cli.tune_options import EvaluationOptions, TunedLawOptions, TuneOptions
from ema_cli.dataclass import dataclass
from ema_cli.errors import EmaError, RunError, UsageError, option
from ema_cli.job import checkpoints_read, prepare
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time
from ema_cli.manifest.fingerprint import fingerprints
from ema_cli.planning.plan import Plan
from ema_cli.planning.series import Series, plan_series
from ema_cli.runs.run import Run
from ema_cli.storage.location import location
from ema_cli.system import signals
from ema_cli.system.processors import default_threads
from ema_cli.text import parse_size
from ema_cli.tuning.command import Command
from ema_cli.tuning.factors import Factor, Factors, Line
from ema_cli.tuning.half_lives import TRIES, Range, check_half_lives
from ema_cli.tuning.journal import Journal
from ema_cli.tuning.rounds import Candidates, Evaluation, Watcher
from ema_cli.tuning.tune import Searched, Tuned, last_checkpoint, line_of, longest, no_range, perform, recipe_of
from ema_cli.tuning.workshop import Workshop
from ema_cli.writing.outputs import OutputOptions
from ema_cli.writing.target import Target, default_target, parse_target

_DEFAULT_NAME = "ema-tuned"


@dataclass(frozen=True, slots=True)
class TuneRequest:
    """What `tune` is to do.

    Attributes:
        source: what is averaged.
        raw: the raw checkpoints there, the last of which is the bar to beat.
        half_lives: those to evaluate, or the range of them, or of factors.
        line: on which factors are searched; None where half-lives are.
        series: at which clocks each half-life is evaluated; None for the end of the run.
        fixed: the rest of each recipe, as `Recipe` takes it.
    """

    source: RawSource | StoredSource
    raw: RawSource | StoredSource
    half_lives: Searched
    line: Line | None
    series: Series | None
    fixed: dict[str, Any]
    evaluation: EvaluationOptions
    output: OutputOptions
    target: Target | None
    threads: int | None
    max_memory: int | None
    force: bool

    @classmethod
    def resolve(cls, options: TuneOptions) -> TuneRequest:
        """Read the options, and check what goes together.

        Raises:
            UsageError: for a value that makes no sense, or two options that exclude each other.
        """
        requests.check_threads(options.threads)
        law = options.law
        fixed = {name: getattr(law, name) for name in ("update_interval", "start", "stop", "last", "bias_correction")}
        half_lives, line = _searched(law)
        for turned in _ends(half_lives):
            recipe_of(turned, line, fixed)  # which checks what goes together
        _check_evaluation(options.evaluation)
        series = requests.series(RecipeOptions(source=law.source, series=law.series, series_every=law.series_every))
        if series is not None:
            no_range(half_lives)
        source = requests.source(_run_options(options, law.source), allow_approximate=False)
        raw = requests.source(_run_options(options, "raw"), allow_approximate=False)
        return cls(
            source,
            raw,
            half_lives,
            line,
            series,
            fixed,
            options.evaluation,
            OutputOptions.parse(**asdict(options.form)),
            parse_target(options.output, like_input=options.form.like_input) if options.output is not None else None,
            options.threads,
            None if options.max_memory is None else parse_size(options.max_memory, "max_memory"),
            options.force,
        )

    def series_of(self, run: Run) -> list[Plan]:
        """Return the plans of the series, none where none is asked for."""
        if self.series is None:
            return []
        return plan_series(run, list(map(self.recipe, no_range(self.half_lives))), self.series)

    def recipe(self, turned: Time | Factor) -> Recipe:
        """Return the recipe of a half-life, or of a factor."""
        return recipe_of(turned, self.line, self.fixed)


def run(options: TuneOptions) -> int:
    """Choose a half-life, write its average, and show all results; return the exit code."""
    printer = make_printer("tune", as_json=options.as_json, quiet=options.quiet)
    tuned = tune_requested(TuneRequest.resolve(options), printer, dry_run=options.dry_run)
    if tuned is None:
        return 0
    printer.tuned(tuned)
    return tuned.problem.exit_code if tuned.problem else 0


def tune_requested(request: TuneRequest, printer: Printer, *, dry_run: bool = False) -> Tuned | None:
    """Do what is requested; return None from a `dry_run`, which only shows it."""
    run, planner = request.source.planner()
    last = _last_plan(request)

    def plan(turned: Time | Factor) -> Plan:
        return planner(request.recipe(turned))

    if isinstance(request.source, StoredSource):
        first, inputs = last or plan(longest(request.half_lives)), list(run.checkpoints)
    else:
        first = plan(longest(request.half_lives))
        inputs = checkpoints_read([first])
    series = request.series_of(run)
    named = request.target or _default_target(first, request.output)
    job = prepare([first], named, request.output, force=request.force)
    target = job.target  # in the form of the input it is a file or a folder as that is
    command = _command(request.evaluation, target.path.with_name(f"{target.path.name}.tune"))
    evaluation = Evaluation(
        command,
        maximize=request.evaluation.maximize,
        repeats=request.evaluation.repeats or 1,
        jobs=request.evaluation.jobs or max(len(command.devices), 1),
        stop=command.stop,
        command=command.text,
        metric=command.metric,
    )
    candidates = outcomes.Candidates(request.half_lives, len(series), job)
    if dry_run:
        plans = series or [made for half_life in _first(request.half_lives) for made in _plan_if_any(plan, half_life)]
        printer.tuning_planned(replace(candidates, plans=plans or [first]))
        return None
    inputs += [] if last is None else [last.newest]
    journal = Journal.open(command.logs, _what(request, evaluation, inputs, target))
    printer.tuning(candidates)
    with signals.unwinding(), location(target.path).staging() as staging:
        return perform(
            Candidates(plan, request.half_lives, last, series),
            evaluation,
            Workshop(staging, target, request.output, request.evaluation.keep, request.threads, request.max_memory),
            journal=journal,
            watcher=Watcher(lambda: printer.progress("averaging"), printer.evaluated),
            force=request.force,
            allow_last=request.evaluation.allow_last,
        )


def _run_options(options: TuneOptions, source: str | None) -> RunOptions:
    law = RecipeOptions(source=source)
    return RunOptions(options.paths, law, options.entering, options.clocks, options.model, options.copy)


def _searched(law: TunedLawOptions) -> tuple[Searched, Line | None]:
    """Return what is searched: half-lives, or factors on a line."""
    if law.extrapolate is None:
        if law.extrapolate_from is not None:
            raise UsageError(f"goes with {option('extrapolate')}", option="extrapolate_from", hint="leave out one")
        return _half_lives(law), None
    half_lives = _half_lives(replace(law, tries=None))
    line = line_of(half_lives, law.extrapolate_from, series=law.series or law.series_every is not None)
    return Factors.parse(law.extrapolate, TRIES if law.tries is None else law.tries), line


def _half_lives(law: TunedLawOptions) -> tuple[Time, ...] | Range:
    """Return the half-lives to evaluate.

    Raises:
        UsageError: for none, both ways to say them, and values that make no sense.
    """
    if law.between is None:
        if law.tries is not None:
            raise UsageError(f"is for {option('between')}", option="tries", hint="name each half-life, or a range")
        shares = [text for text in law.half_life if "%" in text]
        if shares:
            raise UsageError(
                f"'{shares[0][:60]}' is a share of the training so far, and tune compares times",
                option="half_life",
                hint="name half-lives as 500ba; average takes a share",
            )
        named = [Time.parse(text, "half_life") for text in law.half_life]
        check_half_lives(named)
        return tuple(named)
    if law.half_life:
        raise UsageError(f"excludes {option('half_life')}", option="between", hint="name half-lives, or a range")
    low, high = (Time.parse(text, "between") for text in law.between)
    return Range(low, high, TRIES if law.tries is None else law.tries)


def _ends(searched: Searched) -> Sequence[Time | Factor]:
    if isinstance(searched, Factors):
        return Factor(searched.low), Factor(searched.high)
    return (searched.low, searched.high) if isinstance(searched, Range) else searched


def _plan_if_any(plan: Callable[[Time | Factor], Plan], half_life: Time | Factor) -> list[Plan]:
    """Return the plan of a half-life; none where it would fail, as one that stored averages are too far from."""
    try:
        return [plan(half_life)]
    except RunError:
        return []


def _first(searched: Searched) -> Sequence[Time | Factor]:
    return searched.grid() if isinstance(searched, Range | Factors) else searched


def _check_evaluation(evaluation: EvaluationOptions) -> None:
    """Raise a UsageError for options of the evaluation that make no sense."""
    for name in ("repeats", "jobs", "keep"):
        number = getattr(evaluation, name)
        if number is not None and number < 1:
            raise UsageError(f"{number} is too few", option=name, hint="at least 1")


def _last_plan(request: TuneRequest) -> Plan | None:
    """Return the plan of the last checkpoint alone; None where only averages are stored."""
    try:
        return request.raw.planner()[1](last_checkpoint(request.fixed["start"], request.fixed["stop"]))
    except EmaError:
        if isinstance(request.source, RawSource):
            raise
        return None


def _default_target(plan: Plan, output: OutputOptions) -> Target:
    """Return the output where the user names none: in the form that `average` would choose."""
    default = default_target([plan], like_input=output.like_input)
    suffix = "" if default.is_folder else default.path.suffix
    return Target(Path(f"{_DEFAULT_NAME}{suffix}"), default.is_folder)


def _command(evaluation: EvaluationOptions, logs: Path) -> Command:
    if evaluation.command is None:
        raise UsageError(
            "which evaluation?",
            hint=f"a command that gets the path of a model and prints its metric: "
            f"{option('eval', 'python eval.py {path}')}",
        )
    devices = [device.strip() for device in (evaluation.devices or "").split(",") if device.strip()]
    return Command(evaluation.command, evaluation.metric, logs, evaluation.shell, evaluation.timeout, devices)


def _on_line(line: Line | None) -> dict[str, str | None]:
    if line is None:
        return {}
    return {
        "half_life": str(line.half_life),
        "extrapolate_from": None if line.away_from is None else str(line.away_from),
    }


def _what(request: TuneRequest, evaluation: Evaluation, inputs: Sequence[Checkpoint], target: Target) -> dict[str, Any]:
    """Return what decides a metric, as the journal has it: it goes on only with the same."""
    threads = request.threads or default_threads()
    digest = hashlib.sha256()
    for checkpoint, fingerprint in zip(inputs, fingerprints(inputs, threads), strict=True):
        digest.update(f"{checkpoint.name}\0{fingerprint}\n".encode(errors="surrogateescape"))
    return {
        "tune": 1,
        "checkpoints": digest.hexdigest(),
        "law": {
            **request.fixed,
            **_on_line(request.line),
            "from": "stored" if isinstance(request.source, StoredSource) else "raw",
        },
        "output": {**request.output.to_dict(), "suffix": target.path.suffix if not target.is_folder else None},
        "command": evaluation.command,
        "metric": evaluation.metric,
        "maximize": evaluation.maximize,
        "repeats": evaluation.repeats,
    }
