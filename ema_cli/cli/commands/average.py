"""ema-cli average."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from ema_cli import averaging, job
from ema_cli.cli import json_facts, requests, sentences, terminal
from ema_cli.cli.command_line import AverageOptions
from ema_cli.cli.commands.shared import print_json
from ema_cli.cli.github import annotate_all
from ema_cli.cli.sources import RawSource, StoredSource
from ema_cli.dtypes import OUTPUT_DTYPES, DType
from ema_cli.errors import UsageError, option
from ema_cli.law.recipe import Recipe
from ema_cli.manifest.manifest import read_manifest
from ema_cli.manifest.types import Manifest
from ema_cli.planning import advice
from ema_cli.planning.gates import Gates
from ema_cli.planning.plan import Plan
from ema_cli.release.replay import Replay, open_replay
from ema_cli.report import markdown
from ema_cli.runs import warnings
from ema_cli.system import signals
from ema_cli.system.processors import default_threads
from ema_cli.text import parse_size
from ema_cli.writing.outputs import OutputOptions
from ema_cli.writing.target import Target, assign_targets, default_target, parse_target, published_target


@dataclass(frozen=True, slots=True)
class ManifestSource:
    """The average that a manifest tells of, whose inputs lie at or below some paths."""

    manifest: Path
    paths: tuple[Path, ...]
    threads: int

    def open(self) -> Replay:
        """Return the average to be repeated.

        Raises:
            UsageError: without a path.
            EmaError: as `open_replay`.
        """
        if not self.paths:
            raise UsageError(
                "which checkpoints?",
                hint=f"name the folder that holds them: ema-cli average ckpts/ {option('recipe')} ...",
            )
        manifest = read_manifest(self.manifest)
        manifest["tensors"] = []  # they are not needed here, and may be many
        return open_replay(manifest, self.paths, threads=self.threads)


@dataclass(frozen=True, slots=True)
class AverageRequest:
    """What `average` is to do.

    Attributes:
        source: what is averaged.
        recipes: one for each average; none where a manifest has it.
        output: the form of the output; not used where a manifest says it.
        target: where the averages go; None for the default.
        threads: how many; None for the default.
        max_memory: of the whole process, in bytes; None for the default.
    """

    source: RawSource | StoredSource | ManifestSource
    recipes: tuple[Recipe, ...]
    output: OutputOptions
    target: Target | None
    gates: Gates
    threads: int | None
    max_memory: int | None
    force: bool
    dry_run: bool
    manifest: bool
    checksum: bool

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
        target = parse_target(options.output) if options.output is not None else None
        recipes: tuple[Recipe, ...] = ()
        output = OutputOptions()
        source: RawSource | StoredSource | ManifestSource
        if options.recipe is not None:
            _check_recipe_alone(options)
            source = ManifestSource(options.recipe, options.run.paths, options.threads or default_threads())
        else:
            recipes = requests.recipes(options.run.law)
            if options.allow_approximate and options.run.law.source != "stored":
                raise UsageError(
                    "raw checkpoints have the weights that are asked for",
                    option="allow_approximate",
                    hint="leave it out",
                )
            output = _output_options(options)
            source = requests.source(options.run, allow_approximate=options.allow_approximate)
        return cls(
            source,
            recipes,
            output,
            target,
            gates,
            options.threads,
            max_memory,
            options.force,
            options.dry_run,
            not options.no_manifest,
            options.checksum,
        )


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is to be averaged, however it was said."""

    plans: Sequence[Plan]
    options: OutputOptions
    target: Target
    checksum: bool = False
    warnings: Sequence[str] = ()
    check: Callable[[Manifest], None] = lambda manifest: None


def run(options: AverageOptions) -> None:
    """Write the average, or print the plan of it; append why to the summary, too, where that fails."""
    if options.summary is not None:
        markdown.check_summary(options.summary)
    with markdown.failure_told(options.summary):
        _average(options, AverageRequest.resolve(options))


def _average(options: AverageOptions, request: AverageRequest) -> None:
    asked = _open(request)
    plans, run = asked.plans, asked.plans[0].run
    for plan in plans:
        job.refuse_averaged(plan)
    if options.summary is not None:
        whole = published_target(assign_targets(asked.target, plans))
        markdown.check_summary(options.summary, whole, [each.path for each in run.checkpoints])
    told_plans = [json_facts.plan_facts(plan) for plan in plans]
    odd = warnings.run_warnings(run, job.checkpoints_read(plans))
    if request.gates.demand_anything or request.dry_run:
        work = job.prepare(plans, asked.target, asked.options, force=request.force, manifest=request.manifest)
        odd_then = (
            [*odd, *advice.twin_warnings([twins for plan in plans for twins in plan.twins])] if request.dry_run else odd
        )
        names = {name for file in work.outputs[0].files for name in file.table.specs}
        failed = request.gates.problem(told_plans, odd_then, names)
        if failed:
            raise failed
    if request.dry_run:
        would = json_facts.work_facts(work, job.memory_needed(plans, request.threads, request.max_memory))
        if options.as_json:
            return print_json("average", {"plans": told_plans, "would_write": would, "warnings": odd_then})
        terminal.plan_report(told_plans, [each.name for each in run.checkpoints])
        terminal.warnings([] if options.quiet else odd_then)
        terminal.lines([] if options.quiet else [sentences.room_line(would)])
        return typer.echo(sentences.would_line(would))
    silent = options.quiet or options.as_json
    if not silent:
        terminal.warnings([*odd, *sentences.plan_warnings(told_plans)])
    with signals.unwinding(), terminal.progress(quiet=silent) as report:
        result = averaging.average(
            plans,
            asked.target,
            dtype=asked.options.dtype,
            copy=asked.options.copy,
            max_shard_size=asked.options.max_shard_size,
            allow_non_finite=asked.options.allow_non_finite,
            threads=request.threads,
            max_memory=request.max_memory,
            force=request.force,
            manifest=request.manifest,
            checksum=request.checksum or asked.checksum,
            warnings=asked.warnings,
            check=asked.check,
            report=report,
        )
    if options.summary is not None:
        paths_written = [output.target.path for output in result.outputs]
        text = markdown.summary_text(list(zip(paths_written, result.manifests, strict=True)))
        markdown.append(options.summary, text)
    done = json_facts.result_facts(result)
    passed = advice.non_finite_warnings(result.non_finite)
    if options.as_json:
        return print_json("average", {"plans": told_plans, "written": done, "warnings": [*odd, *passed]})
    if not options.quiet:
        terminal.warnings(passed)
        more = sentences.advice(told_plans) if len(told_plans) > 1 else []
        annotate_all({"plans": told_plans if len(told_plans) > 1 else []})  # whose warnings are on their lines
        terminal.lines([*sentences.plan_lines(told_plans), *more, sentences.result_line(done)])
    return typer.echo(done["path"])


def _open(request: AverageRequest) -> _Asked:
    if isinstance(request.source, ManifestSource):
        replay = request.source.open()
        target = request.target or replay.target
        return _Asked([replay.plan], replay.options, target, replay.checksum, replay.manifest["warnings"], replay.check)
    plans = request.source.plans(request.recipes)
    return _Asked(plans, request.output, request.target or default_target(plans))


def _check_exclusions(options: AverageOptions) -> None:
    """Raise a UsageError for options of `average` that contradict each other."""
    no_manifest = option("manifest", False)
    exclusions = (
        ("checksum", options.checksum, f"goes into the manifest, and {no_manifest} writes none"),
        ("recipe", options.recipe is not None, f"compares the manifests of both, and {no_manifest} makes none"),
        ("summary", options.summary is not None, f"is made of the manifest, and {no_manifest} makes none"),
    )
    for name, given, fact in exclusions:
        if options.no_manifest and given:
            raise UsageError(fact, option=name, hint="leave out one")
    if options.gates.strict and options.allow_non_finite:
        raise UsageError(
            f"is for nothing to warn of, {option('allow_non_finite', True)} for what is",
            option="strict",
            hint="leave out one",
        )


def _check_recipe_alone(options: AverageOptions) -> None:
    """Raise a UsageError for options that say what the manifest given by --recipe says already."""
    own = ("allow_approximate", "allow_non_finite", "dtype", "max_shard_size")
    given = [*requests.given(options.run.law), *requests.given(options.run.model), *requests.given(options.run.clocks)]
    given += ["copy"] if options.run.copy else []
    given += [name for name in own if requests.is_given(getattr(options, name))]
    if given:
        rest = " ".join(option(name) for name in given)
        raise UsageError(f"{option('recipe')} says it", option=given[0], hint=f"leave out {rest}")


def _output_options(options: AverageOptions) -> OutputOptions:
    max_shard_size = _size(options.max_shard_size, "max_shard_size")
    return OutputOptions(_dtype(options.dtype), options.run.copy, max_shard_size, options.allow_non_finite)


def _dtype(name: str | None) -> DType | None:
    if name is None:
        return None
    if name not in OUTPUT_DTYPES:
        raise UsageError(f"'{name}' cannot be written", option="dtype", hint=f"one of {', '.join(OUTPUT_DTYPES)}")
    return OUTPUT_DTYPES[name]


def _size(text: str | None, name: str) -> int | None:
    return None if text is None else parse_size(text, name)
