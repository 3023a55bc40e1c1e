"""ema-cli average."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ema_cli.averaging import perform
from ema_cli.cli import requests
from ema_cli.cli.average_options import AverageOptions
from ema_cli.cli.outcomes import Averaged, DryRun
from ema_cli.cli.output import make_printer
from ema_cli.cli.printer import Printer
from ema_cli.cli.sources import ManifestSource, RawSource, StoredSource
from ema_cli.cli.stderr import ask_password
from ema_cli.dataclass import dataclass
from ema_cli.engines.opening import only_works, open_engine
from ema_cli.errors import UsageError, option
from ema_cli.law.recipe import Recipe
from ema_cli.making import Recording
from ema_cli.passes import plan_passes
from ema_cli.planning.advice import twin_warnings
from ema_cli.planning.gates import Gates
from ema_cli.planning.plan import Plan
from ema_cli.planning.series import Series
from ema_cli.preparing import prepare
from ema_cli.runs.run import Run
from ema_cli.runs.warnings import Remarks
from ema_cli.system import signals
from ema_cli.system.processors import default_threads
from ema_cli.text import parse_size
from ema_cli.writing.output_options import OutputOptions
from ema_cli.writing.target import Target, default_target, parse_target

if TYPE_CHECKING:
    from ema_cli.engines.engine import Engine
    from ema_cli.engines.part import Part
    from ema_cli.manifest.signing import Signer


@dataclass(frozen=True, slots=True)
class AverageRequest:
    """What `average` is to do.

    Attributes:
        source: what is averaged.
        recipes: one for each average; none where a manifest has it.
        series: at which clocks there is an average of each recipe; None for one at the end.
        output: the form of the output; not used where a manifest says it.
        target: where the averages go; None for the default.
        signer: signs them; None where nobody does.
        by: opens the engine that does it, or yields the part that this process does; nothing where it does all.
        is_part: whether it is a part.
        goes_on: whether it goes on with what others, or an earlier run, have made: those of an engine, and parts.
        threads: how many; None for the default.
        max_memory: of the whole process, in bytes; None for the default.
    """

    source: RawSource | StoredSource | ManifestSource
    recipes: tuple[Recipe, ...]
    series: Series | None
    output: OutputOptions
    target: Target | None
    gates: Gates
    threads: int | None
    max_memory: int | None
    force: bool
    dry_run: bool
    manifest: bool
    checksum: bool
    signer: Signer | None
    by: AbstractContextManager[Engine | Part | None] = field(default_factory=nullcontext)
    is_part: bool = False
    goes_on: bool = False

    @classmethod
    def resolve(cls, options: AverageOptions) -> AverageRequest:
        """Read the options, and check what goes together.

        Raises:
            UsageError: for a value that makes no sense, or two options that exclude each other.
        """
        requests.check_threads(options.threads)
        _check_exclusions(options)
        gates = requests.gates(options.gates)
        max_memory = _size(options.max_memory, "max_memory")
        any_suffix = options.form.like_input or options.recipe is not None  # a manifest may say it, too
        target = parse_target(options.output, like_input=any_suffix) if options.output is not None else None
        recipes: tuple[Recipe, ...] = ()
        output = OutputOptions()
        source: RawSource | StoredSource | ManifestSource
        if options.recipe is not None:
            _check_recipe_alone(options)
            source = ManifestSource(
                options.recipe, options.run.paths, options.run.merge_into, options.threads or default_threads()
            )
        else:
            recipes = requests.recipes(options.run.law)
            if options.allow_approximate and options.run.law.source != "stored":
                raise UsageError(
                    "raw checkpoints have the weights that are asked for",
                    option="allow_approximate",
                    hint="leave it out",
                )
            output = OutputOptions.parse(**asdict(options.form))
            source = requests.source(options.run, allow_approximate=options.allow_approximate)
        return cls(
            source,
            recipes,
            requests.series(options.run.law),
            output,
            target,
            gates,
            options.threads,
            max_memory,
            options.force,
            options.dry_run,
            not options.no_manifest,
            options.checksum,
            _signer(options.sign),
            _by(options),
            options.part is not None,
            options.part is not None or options.on is not None,
        )


@dataclass(frozen=True, slots=True)
class _Opened:
    """What is averaged, opened; the form of the output; where it goes, and what its manifest tells besides."""

    run: Run
    plans: Sequence[Plan]
    output: OutputOptions
    target: Target
    recording: Recording


def run(options: AverageOptions) -> None:
    """Write the average, or show the plan of it."""
    if only_works(options.on):
        return
    printer = make_printer("average", as_json=options.as_json, quiet=options.quiet, summary=options.summary)
    with printer.summarized():
        average(AverageRequest.resolve(options), printer)


def average(request: AverageRequest, printer: Printer) -> None:
    """Do what is requested."""
    opened = _open(request)
    plans, run = opened.plans, opened.run
    job = prepare(
        plans,
        opened.target,
        opened.output,
        force=request.force,
        manifest=request.manifest,
        may_be_made=request.is_part,
        goes_on=request.goes_on,
    )
    passes = plan_passes(job, request.threads, request.max_memory)
    printer.check_summary(job)
    remarks = Remarks.of(run, job.checkpoints)
    if opened.output.exact_lora is not None:
        remarks = remarks.of_products()
    if request.dry_run:
        twins = twin_warnings(pair for plan in plans for pair in plan.twins)
        remarks = replace(remarks, warnings=(*remarks.warnings, *twins))
    failed = request.gates.problem(
        plans, remarks.warnings, {name for file in job.outputs[0].files for name in file.table.specs}
    )
    if failed:
        raise failed
    if request.dry_run:
        printer.planned(DryRun(job, passes, remarks))
        return
    printer.averaging(DryRun(job, passes, remarks))
    with signals.unwinding(), request.by as by, printer.progress("averaging") as progress:
        result = perform(
            job,
            threads=request.threads,
            max_memory=request.max_memory,
            recording=opened.recording,
            by=by,
            progress=progress,
        )
    printer.averaged(Averaged(plans, result, remarks))


def _open(request: AverageRequest) -> _Opened:
    if isinstance(request.source, ManifestSource):
        replay = request.source.open()
        recording = Recording(
            request.checksum or replay.checksum,
            replay.remarks,
            replay.check,
            request.signer,
            demand=request.gates.demand,
        )
        like_input = replay.options.like_input
        target = request.target or replay.target
        if not target.is_dcp:
            target = parse_target(target.path, like_input=like_input)
        return _Opened(replay.plan.run, [replay.plan], replay.options, target, recording)
    if request.output.like_input and isinstance(request.source, RawSource):
        request.source.options.read.before.stay()
    run, plans = request.source.open_with(request.recipes, request.series)
    if request.series is None:  # else each plan is of the run up to its clock, and the last has not the rest
        run = plans[-1].run
    target = request.target or default_target(plans, like_input=request.output.like_input)
    recording = Recording(request.checksum, signer=request.signer, demand=request.gates.demand)
    return _Opened(run, plans, request.output, target, recording)


def _by(options: AverageOptions) -> AbstractContextManager[Engine | Part | None]:
    """Return what opens who does the work: an engine, a part; nobody but this process.

    Raises:
        UsageError: for an unknown engine, for no part, and for both.
    """
    if options.part is not None:
        if options.on is not None:
            raise UsageError(
                f"is for those who have no engine, and {option('on')} names one",
                option="part",
                hint=f"leave out {option('part')}, or {option('on')}",
            )
        from ema_cli.engines.part import Part

        return nullcontext(Part.parse(options.part))
    return nullcontext() if options.on is None else open_engine(options.on)


def _check_exclusions(options: AverageOptions) -> None:
    """Raise a UsageError for options of `average` that contradict each other."""
    no_manifest = option("manifest", False)
    exclusions = (
        ("checksum", options.checksum, f"goes into the manifest, and {no_manifest} writes none"),
        ("sign", options.sign is not None, f"covers manifest and sums, and {no_manifest} writes none"),
        ("recipe", options.recipe is not None, f"compares the manifests of both, and {no_manifest} makes none"),
        ("summary", options.summary is not None, f"is made of the manifest, and {no_manifest} makes none"),
    )
    for name, given, fact in exclusions:
        if options.no_manifest and given:
            raise UsageError(fact, option=name, hint="leave out one")
    if options.gates.strict and options.form.allow_non_finite:
        raise UsageError(
            f"is for nothing to warn of, {option('allow_non_finite', True)} for what is",
            option="strict",
            hint="leave out one",
        )


def _check_recipe_alone(options: AverageOptions) -> None:
    """Raise a UsageError for options that say what the manifest given by --recipe says already."""
    run = options.run
    given = [
        *requests.given(run.law),
        *requests.given(run.model),
        *requests.given(run.clocks),
        *requests.given(run.entering),
    ]
    given += ["copy"] if run.copy else []
    given += ["allow_approximate"] if options.allow_approximate else []
    given += requests.given(options.form)
    if given:
        rest = " ".join(option(name) for name in given)
        raise UsageError(f"{option('recipe')} says it", option=given[0], hint=f"leave out {rest}")


def _signer(key: Path | None) -> Signer | None:
    if key is None:
        return None
    from ema_cli.manifest.signing import open_signer

    return open_signer(key, ask_password)


def _size(text: str | None, name: str) -> int | None:
    return None if text is None else parse_size(text, name)
