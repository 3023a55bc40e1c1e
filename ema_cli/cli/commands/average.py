"""ema-cli average."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ParamSpec

import typer

from ema_cli.cli.commands.shared import print_json, raw_plans, stored_plans
from ema_cli.cli.github import annotate_all
from ema_cli.cli.options import (
    READ,
    RELEASE,
    SELECT,
    WRITE,
    AsJson,
    BiasCorrection,
    Component,
    Copy,
    EpochLength,
    ExpectKeys,
    From,
    HalfLife,
    KeepPrefix,
    Key,
    Last,
    MaxShare,
    MinCount,
    Paths,
    Profile,
    SigmaRel,
    Smoothing,
    Spacing,
    Start,
    Stop,
    Strict,
    Threads,
    UpdateInterval,
    Version,
    WeightsChoice,
    check_threads,
    offer,
    parse_dtype,
    parse_from,
    parse_gates,
    parse_read_options,
    parse_recipes,
)
from ema_cli.errors import UsageError, option
from ema_cli.system import signals

if TYPE_CHECKING:
    from ema_cli.planning.plan import Plan
    from ema_cli.release.replay import Replay
    from ema_cli.writing.outputs import OutputOptions
    from ema_cli.writing.target import Target

EXAMPLES = """\
Examples: the plan; the average; several in one pass; the same once more

  ema-cli average ckpts/ --half-life 50ba --dry-run
  ema-cli average ckpts/ --half-life 50ba -o release
  ema-cli average ckpts/ --half-life 20ba --half-life 50ba -o averages
  ema-cli average ckpts/ --recipe release/ema-manifest.json -o again

One of --half-life, --smoothing, --profile and --recipe says what is averaged. The manifest (ema-manifest.json) and \
the sums (SHA256SUMS) lie in a folder's average, or beside a file: release.safetensors.manifest.json, \
release.safetensors.sha256."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is to be averaged, however it was said."""

    plans: Sequence[Plan]
    options: OutputOptions
    target: Target
    replay: Replay | None = None


_Options = ParamSpec("_Options")


def _told_in_summary(command: Callable[_Options, None]) -> Callable[_Options, None]:
    """Append why to the file of --summary, too, where the command fails."""

    @wraps(command)
    def told(*arguments: _Options.args, **options: _Options.kwargs) -> None:
        summary = options.get("summary")
        if not isinstance(summary, Path):
            return command(*arguments, **options)
        from ema_cli.report.markdown import check_summary, failure_told

        check_summary(summary)
        with failure_told(summary):
            return command(*arguments, **options)

    return told


@_told_in_summary
def average(
    paths: Paths = None,
    half_life: HalfLife = None,
    update_interval: UpdateInterval = None,
    smoothing: Smoothing = None,
    profile: Profile = None,
    sigma_rel: SigmaRel = None,
    bias_correction: BiasCorrection = False,
    source: From = None,
    start: Start = None,
    stop: Stop = None,
    last: Last = None,
    epoch_length: EpochLength = None,
    spacing: Spacing = None,
    key: Key = None,
    weights: WeightsChoice = None,
    component: Component = None,
    keep_prefix: KeepPrefix = False,
    copy: Copy = None,
    allow_approximate: Annotated[
        bool,
        typer.Option(
            "--allow-approximate",
            help="With --from stored: take the nearest, even where it is more than 5 % off.",
            rich_help_panel=SELECT,
        ),
    ] = False,
    allow_non_finite: Annotated[
        bool,
        typer.Option(
            "--allow-non-finite",
            help="Let NaN and infinity pass, with a warning. Default: they are an error (exit 6).",
            rich_help_panel=READ,
        ),
    ] = False,
    threads: Threads = None,
    max_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Of the whole process, at most: 200MB, 1GiB. Default: 64 MiB for buffers, and what Python and "
            "headers take.",
            rich_help_panel=READ,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="NAME.safetensors or NAME.pt for one file, a name without suffix for a folder. Of several half-lives: "
            "a new folder for all, or a pattern as in averages/ema-{half_life}. Default: ema-HALF_LIFE.",
            rich_help_panel=WRITE,
        ),
    ] = None,
    max_shard_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Most bytes in one file of a folder: 5GB. Default: the shards of the newest checkpoint.",
            rich_help_panel=WRITE,
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            autocompletion=offer("float32", "bfloat16", "float16"),
            help="Type of floating tensors: float32, bfloat16, float16. Default: as stored.",
            rich_help_panel=WRITE,
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            "-f",
            help="Replace an output that is there. Default: that is an error (exit 5).",
            rich_help_panel=WRITE,
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the plan; read no tensor, write nothing.", rich_help_panel=WRITE),
    ] = False,
    min_count: MinCount = None,
    max_share: MaxShare = None,
    strict: Strict = False,
    expect_keys: ExpectKeys = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="MANIFEST",
            help="Repeat the average that a manifest tells of, from the same inputs found below PATHS, to the byte.",
            rich_help_panel=RELEASE,
        ),
    ] = None,
    checksum: Annotated[
        bool,
        typer.Option(
            "--checksum",
            help="Put the sums of all that is read into the manifest, not only a fingerprint of each input.",
            rich_help_panel=RELEASE,
        ),
    ] = False,
    no_manifest: Annotated[
        bool,
        typer.Option("--no-manifest", help="Write no manifest and no sums.", rich_help_panel=RELEASE),
    ] = False,
    summary: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Append what was done as Markdown: $GITHUB_STEP_SUMMARY.", rich_help_panel=RELEASE
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print the output's path only.", rich_help_panel=WRITE)
    ] = False,
    version: Version = False,
) -> None:
    """Write the average of a run's checkpoints, ready to load, and print where; of several half-lives in one pass."""
    check_threads(threads)
    if no_manifest and checksum:
        raise UsageError(
            f"goes into the manifest, and {option('manifest', False)} writes none",
            option="checksum",
            hint="leave out one",
        )
    if no_manifest and recipe is not None:
        raise UsageError(
            f"compares the manifests of both, and {option('manifest', False)} makes none",
            option="recipe",
            hint="leave out one",
        )
    if no_manifest and summary is not None:
        raise UsageError(
            f"is made of the manifest, and {option('manifest', False)} makes none",
            option="summary",
            hint="leave out one",
        )
    if strict and allow_non_finite:
        raise UsageError(
            f"is for nothing to warn of, {option('allow_non_finite', True)} for what is",
            option="strict",
            hint="leave out one",
        )
    from ema_cli import averaging, job
    from ema_cli.cli import json_facts, sentences, terminal
    from ema_cli.planning import advice
    from ema_cli.runs import warnings
    from ema_cli.text import parse_size
    from ema_cli.writing.outputs import OutputOptions
    from ema_cli.writing.target import default_target, parse_target, place, published

    gates = parse_gates(min_count, max_share, strict, expect_keys)
    most_memory = parse_size(max_memory, "max_memory") if max_memory is not None else None
    target = parse_target(output) if output is not None else None
    reading = {"key": key, "weights": weights, "component": component, "keep_prefix": keep_prefix}
    reading |= {"epoch_length": epoch_length, "spacing": spacing}
    if recipe is not None:
        told = {"half_life": half_life, "update_interval": update_interval, "smoothing": smoothing}
        told |= {"profile": profile, "sigma_rel": sigma_rel, "bias_correction": bias_correction}
        told |= {"from": source, "start": start, "stop": stop, "last": last, **reading, "copy": copy}
        told |= {"allow_approximate": allow_approximate, "allow_non_finite": allow_non_finite, "dtype": dtype}
        replay = _open_replay(recipe, paths, {**told, "max_shard_size": max_shard_size}, threads)
        asked = _Asked([replay.plan], replay.options, target or replay.target, replay)
    else:
        recipes = parse_recipes(
            half_life, update_interval, smoothing, start, stop, last, bias_correction, profile, sigma_rel
        )
        if allow_approximate and source != "stored":
            raise UsageError(
                "raw checkpoints have the weights that are asked for", option="allow_approximate", hint="leave it out"
            )
        most_bytes = parse_size(max_shard_size, "max_shard_size") if max_shard_size is not None else None
        options = OutputOptions(parse_dtype(dtype), tuple(copy or ()), most_bytes, allow_non_finite)
        read = parse_read_options(key, weights, component, keep_prefix, copy)
        if parse_from(source, reading):
            found = stored_plans(paths, recipes, allow_approximate=allow_approximate)
        else:
            found = raw_plans(paths, recipes, read, epoch_length, spacing)
        asked = _Asked(found, options, target or default_target(found))
    plans, run = asked.plans, asked.plans[0].run
    for plan in plans:
        job.refuse_averaged(plan)
    if summary is not None:
        from ema_cli.report import markdown as summaries

        whole = published(place(asked.target, plans))
        summaries.check_summary(summary, whole, [each.path for each in run.checkpoints])
    told_plans = [json_facts.plan_facts(plan) for plan in plans]
    odd = warnings.run_warnings(run, job.checkpoints_read(plans))
    if gates.demand_anything or dry_run:
        work = job.prepare(plans, asked.target, asked.options, force=force, manifest=not no_manifest)
        odd_then = [*odd, *advice.twin_warnings([twins for plan in plans for twins in plan.twins])] if dry_run else odd
        names = {name for file in work.outputs[0].files for name in file.table.specs}
        failed = gates.problem(told_plans, odd_then, names)
        if failed:
            raise failed
    if dry_run:
        would = json_facts.work_facts(work, job.memory_needed(plans, threads, most_memory))
        if as_json:
            return print_json("average", {"plans": told_plans, "would_write": would, "warnings": odd_then})
        terminal.plan_report(told_plans, [each.name for each in run.checkpoints])
        terminal.warnings([] if quiet else odd_then)
        terminal.lines([] if quiet else [sentences.room_line(would)])
        return typer.echo(sentences.would_line(would))
    if not (quiet or as_json):
        terminal.warnings([*odd, *sentences.plan_warnings(told_plans)])
    with signals.unwinding(), terminal.progress(quiet=quiet or as_json) as report:
        result = averaging.average(
            plans,
            asked.target,
            dtype=asked.options.dtype,
            copy=asked.options.copy,
            max_shard_size=asked.options.max_shard_size,
            allow_non_finite=asked.options.allow_non_finite,
            threads=threads,
            max_memory=most_memory,
            force=force,
            manifest=not no_manifest,
            checksum=checksum or (asked.replay is not None and asked.replay.checksum),
            warnings=asked.replay.manifest["warnings"] if asked.replay else (),
            check=asked.replay.check if asked.replay else lambda manifest: None,
            report=report,
        )
    if summary is not None:
        paths_written = [output.target.path for output in result.outputs]
        summaries.append(summary, summaries.summary_text(list(zip(paths_written, result.manifests, strict=True))))
    done = json_facts.result_facts(result)
    passed = advice.non_finite_warnings(result.non_finite)
    if as_json:
        return print_json("average", {"plans": told_plans, "written": done, "warnings": [*odd, *passed]})
    if not quiet:
        terminal.warnings(passed)
        more = sentences.advice(told_plans) if len(told_plans) > 1 else []
        annotate_all({"plans": told_plans if len(told_plans) > 1 else []})  # whose warnings are on their lines
        terminal.lines([*sentences.plan_lines(told_plans), *more, sentences.result_line(done)])
    return typer.echo(done["path"])


def _open_replay(recipe: Path, paths: Sequence[Path] | None, told: Mapping[str, object], threads: int | None) -> Replay:
    """Return the average that a manifest tells of; what is `told` by options has no place beside it."""
    given = [name for name, value in told.items() if not (value is None or value is False or value == [])]
    if given:
        rest = " ".join(option(name) for name in given)
        raise UsageError(f"{option('recipe')} says it", option=given[0], hint=f"leave out {rest}")
    if not paths:
        raise UsageError(
            "which checkpoints?", hint=f"name the folder that holds them: ema-cli average ckpts/ {option('recipe')} ..."
        )
    from ema_cli.manifest.manifest import read_manifest
    from ema_cli.release.replay import open_replay
    from ema_cli.system.processors import default_threads

    manifest = {**read_manifest(recipe), "tensors": []}  # nobody asks for them here, and many take memory
    return open_replay(manifest, paths, threads=threads or default_threads())
