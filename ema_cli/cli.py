"""The command line: parse, call, render; the one boundary where errors become words and exit codes."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ema_cli import interrupts
from ema_cli.errors import EmaError, NoWeights, UsageError
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
    UpdateInterval,
    Version,
    WeightsChoice,
    parse_dtype,
    parse_from,
    parse_read_options,
    parse_recipes,
)

if TYPE_CHECKING:
    from ema_cli.formats.options import ReadOptions
    from ema_cli.plan import Plan
    from ema_cli.recipe import Recipe
    from ema_cli.run import Run
    from ema_cli.stored import StoredRun

app = typer.Typer(
    name="ema-cli",
    help="Average the checkpoints of a training run into release weights, with Composer's half-life law.",
    epilog="Example: ema-cli average ckpts/ --half-life 50ba",
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_SCHEMA_VERSION = 1


@app.callback(invoke_without_command=True)
def ema_cli(context: typer.Context, version: Version = False) -> None:
    """Average the checkpoints of a training run into release weights, with Composer's half-life law."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


@app.command(
    epilog="Example: ema-cli average ckpts/ --half-life 50ba -o release.safetensors\n\n"
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
    threads: Annotated[
        int | None,
        typer.Option(metavar="N", help="Default: the processors this process may use, up to 16.", rich_help_panel=READ),
    ] = None,
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
    if threads is not None and threads < 1:
        raise UsageError(f"--threads: {threads} is not a number of threads", hint="at least 1")
    target_dtype = parse_dtype(dtype)
    from ema_cli import posthoc
    from ema_cli.memory import parse_size
    from ema_cli.target import default_target, parse_target

    most_memory = parse_size(max_memory, "--max-memory") if max_memory is not None else None
    target = parse_target(output) if output is not None else None
    options = parse_read_options(key, weights, component, keep_prefix, copy)
    from ema_cli import facts, render, words

    if from_stored:
        plans = _stored_plans(paths, recipes, allow_approximate=allow_approximate)
        run = plans[0].run
    else:
        from ema_cli.plan import make_plan

        run = _open(paths, options, epoch_length, spacing)
        plans = [make_plan(run, recipe) for recipe in recipes]
    for plan in plans:
        posthoc.refuse_averaged(plan)
    target = target or default_target(plans)
    told = [facts.plan_facts(plan) for plan in plans]
    odd = facts.run_warnings(run, posthoc.checkpoints_read(plans))
    if dry_run:
        work = posthoc.prepare(plans, target, dtype=target_dtype, copy=copy or (), force=force)
        would = facts.work_facts(work)
        odd += facts.twin_warnings(plans)
        if as_json:
            return _print_json("average", {"plans": told, "would_write": would, "warnings": odd})
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
        return _print_json("average", {"plans": told, "written": done, "warnings": [*odd, *passed]})
    if not quiet:
        render.warnings(passed)
        render.lines([*words.plan_lines(told), *(words.advice(told) if len(told) > 1 else []), words.result_line(done)])
    return typer.echo(done["path"])


@app.command(epilog="Example: ema-cli inspect ckpts/ --half-life 50ba")
def inspect(
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
    as_json: AsJson = False,
    version: Version = False,
) -> None:
    """Show a run, or one file: checkpoints, clocks, tensors, what is odd; with half-lives, every weight."""
    recipes = []
    if half_life or smoothing is not None or profile or sigma_rel is not None:
        recipes = parse_recipes(
            half_life, update_interval, smoothing, start, stop, last, bias_correction, profile, sigma_rel
        )
    elif any(value is not None for value in (update_interval, start, stop, last)) or bias_correction:
        raise UsageError("which law? --start and the like need one", hint="add --half-life 50ba")
    options = parse_read_options(key, weights, component, keep_prefix, copy)
    reading = {"--key": key, "--weights": weights, "--component": component, "--keep-prefix": keep_prefix}
    from_stored = parse_from(source, {**reading, "--epoch-length": epoch_length, "--spacing": spacing})
    from ema_cli import facts, render

    paths = paths or [Path()]
    if from_stored:
        plans = _stored_plans(paths, recipes, allow_approximate=True)
        run = plans[0].run if plans else _open_stored(paths).run
    else:
        from ema_cli.plan import make_plan

        run = _open(paths, options, epoch_length, spacing)
        plans = [make_plan(run, recipe) for recipe in recipes]
    run_told, told = facts.run_facts(run, stored=from_stored), [facts.plan_facts(plan) for plan in plans]
    stored = None if from_stored else _what_is_stored(paths, recipes)
    odd = [*facts.run_warnings(run, run.checkpoints), *facts.refusal_warnings(run.checkpoints[-1], copy or ())]
    single = run.checkpoints[0] if len(run.checkpoints) == 1 and not from_stored else None
    if as_json:
        extra = {"tensors": facts.tensor_facts(single), "recipe": single.recipe} if single else {}
        return _print_json("inspect", {"run": run_told, "plans": told, "stored": stored, **extra, "warnings": odd})
    if single is None:
        render.run_report(run_told, told, odd)
    else:
        render.checkpoint_report(run_told, facts.tensor_facts(single), odd)
        if single.recipe:
            render.recipe_report(single.recipe)
        if told:
            render.plan_report(told, [single.name])
    render.approximations(told)
    if stored or told:
        render.stored_report(stored, told)
    return None


def _open_stored(paths: Sequence[Path] | None) -> StoredRun:
    from ema_cli.stored import open_stored

    if not paths:
        raise UsageError("which averages?", hint="name the folder that holds them: ema-cli average run/ --from stored")
    return open_stored(paths)


def _stored_plans(paths: Sequence[Path] | None, recipes: Sequence[Recipe], *, allow_approximate: bool) -> list[Plan]:
    from ema_cli.stored import make_stored_plan

    stored = _open_stored(paths)
    return [make_stored_plan(stored, recipe, allow_approximate=allow_approximate) for recipe in recipes]


def _what_is_stored(paths: Sequence[Path], recipes: Sequence[Recipe]) -> dict[str, Any] | None:
    """Return what else could be averaged there: averages that the training stored, and how near they come."""
    from ema_cli import facts
    from ema_cli.stored import find_stored, make_stored_plan, open_stored

    try:
        if not any(path.is_dir() for path in paths) or not find_stored(paths):
            return None
        stored = open_stored(paths)
    except EmaError as problem:
        return {"problem": str(problem)}
    plans: list[dict[str, Any]] = []
    for recipe in recipes:
        try:
            plans.append(facts.plan_facts(make_stored_plan(stored, recipe, allow_approximate=True)))
        except EmaError as problem:
            plans.append({"law": recipe.law, "problem": str(problem)})
    return {**facts.stored_facts(stored), "plans": plans}


def _open(
    paths: Sequence[Path] | None,
    options: ReadOptions,
    epoch_length: str | None,
    spacing: str | None,
) -> Run:
    from ema_cli.run import open_run
    from ema_cli.units import Time

    if not paths:
        raise UsageError("which checkpoints?", hint="name the folder that holds the run: ema-cli average ckpts/ ...")
    try:
        return open_run(
            paths,
            options=options,
            epoch_length=Time.parse(epoch_length, "--epoch-length") if epoch_length is not None else None,
            spacing=Time.parse(spacing, "--spacing") if spacing is not None else None,
        )
    except NoWeights as problem:
        from ema_cli.stored import find_stored

        if not find_stored(paths):
            raise
        raise NoWeights(str(problem), hint="averages that the training stored are there: --from stored") from problem


def _print_json(command: str | None, content: dict[str, Any]) -> None:
    import json

    typer.echo(json.dumps({"schema_version": _SCHEMA_VERSION, "command": command, **content}))


def main() -> None:
    """Run the program and exit with its code."""
    interrupts.install()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name the terminal cannot show is no reason to fail
    if sys.stdout is None:  # closed by the caller
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - open until the end
    sys.exit(_run(sys.argv[1:]))


# The base class of typer's usage errors has no public name; its subclass BadParameter does.
_TyperError: type[Exception] = typer.BadParameter.__mro__[2]


def _run(arguments: list[str]) -> int:
    """Return the exit code of the command line, errors told."""
    try:
        code = app(arguments, prog_name="ema-cli", standalone_mode=False)
        sys.stdout.flush()
    except EmaError as problem:
        return _fail(problem, arguments)
    except _TyperError as problem:
        return _fail(UsageError(problem.format_message(), hint="see ema-cli --help"), arguments)  # type: ignore[attr-defined]
    except BrokenPipeError:
        # The reader has seen enough (| head). Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except MemoryError:
        return _fail(EmaError("out of memory", hint="use fewer --threads"), arguments)
    except OSError as problem:
        subject = f"{problem.filename}: " if problem.filename else ""
        return _fail(EmaError(f"{subject}{problem.strerror or problem}"), arguments)
    except interrupts.Interrupted as problem:
        return 128 + problem.number
    return code if isinstance(code, int) else 0


def _fail(problem: EmaError, arguments: list[str]) -> int:
    """Tell an error: as JSON on stdout where JSON was asked for, else in words on stderr."""
    if "--json" in arguments:
        content = {"code": problem.exit_code, "message": str(problem), "hint": problem.hint}
        command = next((each for each in arguments if each in ("average", "inspect")), None)
        _print_json(command, {"error": content})
    else:
        from ema_cli import render

        render.error(problem)
    return problem.exit_code
