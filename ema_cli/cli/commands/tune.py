"""ema-cli tune."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from ema_cli.checkpoint import Checkpoint
from ema_cli.cli import outcomes, requests
from ema_cli.cli.law_options import RecipeOptions
from ema_cli.cli.option_groups import ClockOptions, ModelOptions, RunOptions
from ema_cli.cli.output import make_printer
from ema_cli.cli.printer import Printer
from ema_cli.cli.sources import Planner, RawSource, StoredSource
from ema_cli.cli.tune_options import EvaluationOptions, TunedLawOptions, TuneOptions
from ema_cli.dataclass import dataclass
from ema_cli.errors import EmaError, RunError, UsageError, option
from ema_cli.job import checkpoints_read
from ema_cli.manifest.fingerprint import fingerprints
from ema_cli.planning.plan import Plan
from ema_cli.planning.series import Series
from ema_cli.preparing import prepare
from ema_cli.runs.warnings import Remarks
from ema_cli.storage.location import location
from ema_cli.storage.names import StorePath
from ema_cli.system import signals
from ema_cli.system.processors import default_threads
from ema_cli.text import parse_size
from ema_cli.tuning.asked import Asked
from ema_cli.tuning.command import Command
from ema_cli.tuning.journal import Journal, alone
from ema_cli.tuning.rounds import Candidates, Evaluation, Watcher
from ema_cli.tuning.search import Range
from ema_cli.tuning.settings import Setting
from ema_cli.tuning.tune import Tuned, perform
from ema_cli.tuning.workshop import Workshop
from ema_cli.writing.output_options import OutputOptions
from ema_cli.writing.target import Target, default_target, parse_target

_DEFAULT_NAME = "ema-tuned"


@dataclass(frozen=True, slots=True)
class TuneRequest:
    """What `tune` is to do.

    Attributes:
        source: what is averaged.
        raw: the raw checkpoints there, the last of which is the bar to beat.
        asked: what is evaluated.
        series: at which clocks each setting is evaluated; None for the end of the run.
        read: the options that say how the checkpoints are read, and what their clocks are.
    """

    source: RawSource | StoredSource
    raw: RawSource | StoredSource
    asked: Asked
    series: Series | None
    read: Mapping[str, Any]
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
        asked = _asked(law)
        _check_evaluation(options.evaluation)
        series = requests.series(RecipeOptions(source=law.source, series=law.series, series_every=law.series_every))
        source = requests.source(_run_options(options, law.source), allow_approximate=False)
        raw = requests.source(_run_options(options, "raw"), allow_approximate=False)
        return cls(
            source,
            raw,
            asked,
            series,
            _given(options.clocks) | _given(options.model),
            options.evaluation,
            OutputOptions.parse(**asdict(options.form)),
            parse_target(options.output, like_input=options.form.like_input) if options.output is not None else None,
            options.threads,
            None if options.max_memory is None else parse_size(options.max_memory, "max_memory"),
            options.force,
        )

    def plans_of(self, planner: Planner, setting: Setting) -> Sequence[Plan]:
        """Return the plan of a setting; of a series the plans, one for each clock."""
        return planner.plans([self.asked.recipe(setting)], self.series)


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
    planner = request.source.planner()
    last = _last_plan(request, planner)
    plans = partial(request.plans_of, planner)
    made = list(_plans_if_any(plans, request.asked.first))
    if isinstance(request.source, StoredSource):
        first, inputs = last or made[0], list(planner.run.checkpoints)
    else:
        first = planner.plan(request.asked.recipe(request.asked.widest))
        inputs = checkpoints_read([first])
    named = request.target or _default_target(first, request.output)
    job = prepare([first], named, request.output, force=request.force)
    target = job.target  # in the form of the input it is a file or a folder as that is
    command = _command(request, last, _results_folder(target))
    evaluation = Evaluation(
        command,
        maximize=request.evaluation.maximize,
        repeats=request.evaluation.repeats or 1,
        jobs=request.evaluation.jobs or max(len(command.devices), 1),
        stop=command.stop,
        command=command.text,
        metric=command.metric,
    )
    remarks = Remarks.of(first.run, job.checkpoints)
    if request.output.exact_lora is not None:
        remarks = remarks.of_products()
    searched = request.asked.searched
    each = max(1, len(made) // len(request.asked.first))
    most = each * searched.tries if isinstance(searched, Range) else len(made)
    candidates = outcomes.Candidates(searched, most, request.series is not None, last is not None, job, remarks)
    if dry_run:
        printer.tuning_planned(replace(candidates, plans=made))
        return None
    inputs += [] if last is None else [last.newest]
    with alone(command.logs), signals.unwinding(), location(target.path).staging() as staging:
        journal = Journal.open(command.logs, _what(request, evaluation, inputs, target))
        printer.tuning(candidates)
        return perform(
            Candidates(plans, searched, last, request.series is not None),
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


def _given(family: ClockOptions | ModelOptions) -> dict[str, Any]:
    """Return the options that are given, by name."""
    return {name: getattr(family, name) for name in requests.given(family)}


def _asked(law: TunedLawOptions) -> Asked:
    """Return what is to be evaluated."""
    fixed = {name: getattr(law, name) for name in ("update_interval", "start", "stop", "last", "bias_correction")}
    return Asked.of(
        half_lives=law.half_life,
        windows=law.window,
        profile=law.profile,
        between=law.between,
        tries=law.tries,
        extrapolate=law.extrapolate,
        extrapolate_from=law.extrapolate_from,
        **fixed,
    )


def _check_evaluation(evaluation: EvaluationOptions) -> None:
    """Raise a UsageError for options of the evaluation that make no sense."""
    for name in ("repeats", "jobs", "keep"):
        number = getattr(evaluation, name)
        if number is not None and number < 1:
            raise UsageError(f"{number} is too few", option=name, hint="at least 1")


def _plans_if_any(plans: Callable[[Setting], Sequence[Plan]], settings: Sequence[Setting]) -> list[Plan]:
    """Return the plans of settings, but for those that have none, as they are too far from what is stored.

    Raises:
        RunError: where none has one.
    """
    made: list[Plan] = []
    failures: list[RunError] = []
    for setting in settings:
        try:
            made += plans(setting)
        except RunError as error:
            failures.append(error)
    if not made:
        raise failures[0]
    return made


def _last_plan(request: TuneRequest, planner: Planner) -> Plan | None:
    """Return the plan of the last checkpoint alone; None where only averages are stored."""
    recipe = request.asked.last_checkpoint()
    if isinstance(request.source, RawSource):
        return planner.plan(recipe)  # of the same run: averages with its weights are found
    try:
        return request.raw.planner().plan(recipe)
    except EmaError:
        return None


def _default_target(plan: Plan, output: OutputOptions) -> Target:
    """Return the output where the user names none: in the form that `average` would choose."""
    default = default_target([plan], like_input=output.like_input)
    suffix = "" if default.is_folder else default.path.suffix
    return Target(Path(f"{_DEFAULT_NAME}{suffix}"), default.is_folder)


def _results_folder(target: Target) -> Path:
    """Return where results and logs are kept: beside the output; of one in a store in the working folder."""
    folder = target.path.with_name(f"{target.path.name}.tune")
    return Path(folder.name) if isinstance(folder, StorePath) else folder


def _command(request: TuneRequest, last: Plan | None, logs: Path) -> Command:
    evaluation = request.evaluation
    if evaluation.command is None:
        raise UsageError(
            "which evaluation?",
            hint=f"a command that gets the path of a model and prints its metric: "
            f"{option('eval', 'python eval.py {path}')}",
        )
    devices = [] if evaluation.devices is None else [device.strip() for device in evaluation.devices.split(",")]
    if not all(devices):
        raise UsageError(f"'{evaluation.devices}' names no device somewhere", option="devices", hint="as 0,1")
    return Command(
        evaluation.command,
        evaluation.metric,
        logs,
        evaluation.shell,
        evaluation.timeout,
        devices,
        request.asked.widest.option,
        last.entries[-1].clock if last is not None and request.series is not None else None,
    )


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
            **request.asked.fixed,
            "from": "stored" if isinstance(request.source, StoredSource) else "raw",
        },
        "reading": request.read,
        "output": {**request.output.to_dict(), "suffix": target.path.suffix if not target.is_folder else None},
        "command": evaluation.command,
        "shell": request.evaluation.shell,
        "metric": evaluation.metric,
        "maximize": evaluation.maximize,
        "repeats": evaluation.repeats,
    }
