"""ema-cli average."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ema_cli import interrupts
from ema_cli.commands.shared import open_raw, print_json, stored_plans
from ema_cli.errors import UsageError
from ema_cli.options import (
    READ,
    SELECT,
    WRITE,
    AsJson,
    BiasCorrection,
    Component,
    Copy,
    EpochLength,
    From,
    HalfLife,
    KeepPrefix,
    Key,
    Last,
    Paths,
    Profile,
    SigmaRel,
    Smoothing,
    Spacing,
    Start,
    Stop,
    Threads,
    UpdateInterval,
    Version,
    WeightsChoice,
    check_threads,
    parse_dtype,
    parse_from,
    parse_read_options,
    parse_recipes,
)

EXAMPLES = (
    "Example: ema-cli average ckpts/ --half-life 50ba -o release.safetensors\n\n"
    "Several in one pass: ema-cli average ckpts/ --half-life 20ba --half-life 50ba -o averages"
)


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
        typer.Option("--allow-non-finite", help="Let NaN and infinity pass, with a warning.", rich_help_panel=READ),
    ] = False,
    threads: Threads = None,
    max_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Of the whole process: 200MB, 1GiB. Default: 64 MiB for buffers, and what Python and headers take.",
            rich_help_panel=READ,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="NAME.safetensors for one file, a name without suffix for a folder. Of several half-lives: a new "
            "folder for all, or a pattern as in averages/ema-{half_life}. Default: ema-HALF_LIFE.",
            rich_help_panel=WRITE,
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="float32|bfloat16|float16",
            help="Of floating tensors. Default: as stored.",
            rich_help_panel=WRITE,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Replace an output that is there.", rich_help_panel=WRITE)
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the plan; read no tensor, write nothing.", rich_help_panel=WRITE),
    ] = False,
    as_json: AsJson = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print the output's path only.", rich_help_panel=WRITE)
    ] = False,
    version: Version = False,
) -> None:
    """Write the average of a run's checkpoints, ready to load, and print where; of several half-lives in one pass."""
    recipes = parse_recipes(
        half_life, update_interval, smoothing, start, stop, last, bias_correction, profile, sigma_rel
    )
    reading = {"--key": key, "--weights": weights, "--component": component, "--keep-prefix": keep_prefix}
    from_stored = parse_from(source, {**reading, "--epoch-length": epoch_length, "--spacing": spacing})
    if allow_approximate and not from_stored:
        raise UsageError(
            "--allow-approximate: raw checkpoints have the weights that are asked for", hint="leave it out"
        )
    check_threads(threads)
    target_dtype = parse_dtype(dtype)
    from ema_cli import posthoc
    from ema_cli.memory import parse_size
    from ema_cli.outputs import OutputOptions
    from ema_cli.target import default_target, parse_target

    most_memory = parse_size(max_memory, "--max-memory") if max_memory is not None else None
    target = parse_target(output) if output is not None else None
    options = parse_read_options(key, weights, component, keep_prefix, copy)
    from ema_cli import facts, render, words

    if from_stored:
        plans = stored_plans(paths, recipes, allow_approximate=allow_approximate)
        run = plans[0].run
    else:
        from ema_cli.plan import make_plan

        run = open_raw(paths, options, epoch_length, spacing)
        plans = [make_plan(run, recipe) for recipe in recipes]
    for plan in plans:
        posthoc.refuse_averaged(plan)
    target = target or default_target(plans)
    told = [facts.plan_facts(plan) for plan in plans]
    odd = facts.run_warnings(run, posthoc.checkpoints_read(plans))
    if dry_run:
        work = posthoc.prepare(plans, target, OutputOptions(target_dtype, tuple(copy or ())), force=force)
        would = facts.work_facts(work)
        odd += facts.twin_warnings(plans)
        if as_json:
            return print_json("average", {"plans": told, "would_write": would, "warnings": odd})
        render.plan_report(told, [each.name for each in run.checkpoints])
        render.warnings([] if quiet else odd)
        return typer.echo(words.would_line(would))
    if not (quiet or as_json):
        render.warnings([*odd, *words.plan_warnings(told)])
    with interrupts.unwinding(), render.progress(quiet=quiet or as_json) as report:
        result = posthoc.average(
            plans,
            target,
            dtype=target_dtype,
            copy=copy or (),
            threads=threads,
            max_memory=most_memory,
            force=force,
            allow_non_finite=allow_non_finite,
            report=report,
        )
    done = facts.result_facts(result)
    passed = [f"'{name}' holds NaN or infinity" for name in result.non_finite]
    if as_json:
        return print_json("average", {"plans": told, "written": done, "warnings": [*odd, *passed]})
    if not quiet:
        render.warnings(passed)
        render.lines([*words.plan_lines(told), *(words.advice(told) if len(told) > 1 else []), words.result_line(done)])
    return typer.echo(done["path"])
