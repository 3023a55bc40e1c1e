"""The command line: parse, call, render; the one boundary where errors become words and exit codes."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ema_cli import interrupts
from ema_cli.errors import EmaError, UsageError
from ema_cli.options import (
    READ,
    WRITE,
    AsJson,
    BiasCorrection,
    Component,
    Copy,
    EpochLength,
    HalfLife,
    KeepPrefix,
    Key,
    Last,
    Paths,
    Smoothing,
    Spacing,
    Start,
    Stop,
    UpdateInterval,
    Version,
    WeightsChoice,
)
from ema_cli.units import Time

if TYPE_CHECKING:
    from ema_cli.checkpoint import DType
    from ema_cli.formats.options import ReadOptions
    from ema_cli.recipe import Recipe
    from ema_cli.run import Run

app = typer.Typer(
    name="ema-cli",
    help="Average the checkpoints of a training run into release weights, with Composer's half-life law.",
    epilog="Example: ema-cli average ckpts/ --half-life 50ba",
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_SCHEMA_VERSION = 1
_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


@app.callback(invoke_without_command=True)
def ema_cli(context: typer.Context, version: Version = False) -> None:
    """Average the checkpoints of a training run into release weights, with Composer's half-life law."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


@app.command(epilog="Example: ema-cli average ckpts/ --half-life 50ba -o release.safetensors")
def average(
    paths: Paths = None,
    half_life: HalfLife = None,
    update_interval: UpdateInterval = None,
    smoothing: Smoothing = None,
    bias_correction: BiasCorrection = False,
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
    allow_non_finite: Annotated[
        bool,
        typer.Option("--allow-non-finite", help="Let NaN and infinity pass, with a warning.", rich_help_panel=READ),
    ] = False,
    threads: Annotated[
        int | None, typer.Option(help="Default: the processors this process may use, up to 16.", rich_help_panel=READ)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="NAME.safetensors for one file, a name without suffix for a folder. Default: ema-HALF_LIFE.",
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
    """Write the average of a run's checkpoints, ready to load, and print where."""
    recipe = _recipe(half_life, update_interval, smoothing, start, stop, last, bias_correction)
    if threads is not None and threads < 1:
        raise UsageError(f"--threads: {threads} is not a number of threads", hint="at least 1")
    target_dtype = _dtype(dtype)
    from ema_cli import posthoc
    from ema_cli.target import default_target, parse_target

    target = parse_target(output) if output is not None else None
    run = _open(paths, _read_options(key, weights, component, keep_prefix, copy), epoch_length, spacing)
    from ema_cli import facts, render
    from ema_cli.plan import make_plan

    plan = make_plan(run, recipe)
    posthoc.refuse_averaged(plan)
    target = target or default_target(plan)
    told = facts.plan_facts(plan)
    odd = facts.run_warnings(run, [entry.checkpoint for entry in plan.read])
    if dry_run:
        expected = posthoc.prepare(plan, target, dtype=target_dtype, copy=copy or (), force=force)
        would = facts.output_facts(expected, target.path.as_posix(), plan)
        odd += facts.twin_warnings(plan)
        if as_json:
            return _print_json("average", {"plan": told, "would_write": would, "warnings": odd})
        render.plan_report(told, [each.name for each in run.checkpoints])
        render.warnings([] if quiet else odd)
        sizes = f"reading {render.size(would['bytes_to_read'])}, writing {render.size(would['bytes_to_write'])}"
        return typer.echo(f"Would write {would['path']}: {sizes}")
    if not (quiet or as_json):
        render.warnings([*odd, *told["warnings"]])
    with interrupts.unwinding(), render.progress(quiet=quiet or as_json) as report:
        result = posthoc.average(
            plan,
            target,
            dtype=target_dtype,
            copy=copy or (),
            threads=threads,
            force=force,
            allow_non_finite=allow_non_finite,
            report=report,
        )
    done = facts.result_facts(result)
    passed = [f"'{name}' holds NaN or infinity" for name in result.non_finite]
    if as_json:
        return _print_json("average", {"plan": told, "output": done, "warnings": [*odd, *passed]})
    if not quiet:
        render.warnings(passed)
        render.line(render.result_line(told, done))
    return typer.echo(done["path"])


@app.command(epilog="Example: ema-cli inspect ckpts/ --half-life 50ba")
def inspect(
    paths: Paths = None,
    half_life: HalfLife = None,
    update_interval: UpdateInterval = None,
    smoothing: Smoothing = None,
    bias_correction: BiasCorrection = False,
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
    """Show a run, or one file: checkpoints, clocks, tensors, what is odd; with a half-life, every weight."""
    recipe = None
    if half_life is not None or smoothing is not None:
        recipe = _recipe(half_life, update_interval, smoothing, start, stop, last, bias_correction)
    elif any(value is not None for value in (update_interval, start, stop, last)) or bias_correction:
        raise UsageError("which law? --start and the like need one", hint="add --half-life 50ba")
    options = _read_options(key, weights, component, keep_prefix, copy)
    run = _open(paths or [Path()], options, epoch_length, spacing)
    from ema_cli import facts, render
    from ema_cli.plan import make_plan

    plan = make_plan(run, recipe) if recipe else None
    run_told, plan_told = facts.run_facts(run), facts.plan_facts(plan) if plan else None
    odd = [*facts.run_warnings(run, run.checkpoints), *facts.refusal_warnings(run.checkpoints[-1], copy or ())]
    single = run.checkpoints[0] if len(run.checkpoints) == 1 else None
    if as_json:
        extra = {"tensors": facts.tensor_facts(single), "recipe": single.recipe} if single else {}
        return _print_json("inspect", {"run": run_told, "plan": plan_told, **extra, "warnings": odd})
    if single is None:
        return render.run_report(run_told, plan_told, odd)
    render.checkpoint_report(run_told, facts.tensor_facts(single), odd)
    if single.recipe:
        render.recipe_report(single.recipe)
    if plan_told:
        render.plan_report(plan_told, [single.name])
    return None


def _open(
    paths: Sequence[Path] | None,
    options: ReadOptions,
    epoch_length: str | None,
    spacing: str | None,
) -> Run:
    from ema_cli.run import open_run

    if not paths:
        raise UsageError("which checkpoints?", hint="name the folder that holds the run: ema-cli average ckpts/ ...")
    return open_run(
        paths,
        options=options,
        epoch_length=Time.parse(epoch_length, "--epoch-length") if epoch_length is not None else None,
        spacing=Time.parse(spacing, "--spacing") if spacing is not None else None,
    )


def _read_options(
    key: str | None, weights: str | None, component: str | None, keep_prefix: bool, copy: list[str] | None
) -> ReadOptions:
    from ema_cli.formats.options import ReadOptions

    match weights:
        case None | "raw" | "ema":
            return ReadOptions(key, weights, component, keep_prefix, tuple(copy or ()))
    raise UsageError(f"--weights: '{weights}' is neither raw nor ema")


def _recipe(
    half_life: str | None,
    update_interval: str | None,
    smoothing: float | None,
    start: str | None,
    stop: str | None,
    last: int | None,
    bias_correction: bool,
) -> Recipe:
    from ema_cli.recipe import EVERY, Recipe

    def time(text: str | None, option: str) -> Time | None:
        return None if text is None else Time.parse(text, option)

    interval: Any = update_interval if update_interval == EVERY else time(update_interval, "--update-interval")
    return Recipe(
        half_life=time(half_life, "--half-life"),
        update_interval=interval,
        smoothing=smoothing,
        start=time(start, "--start"),
        stop=time(stop, "--stop"),
        last=last,
        bias_correction=bias_correction,
    )


def _dtype(name: str | None) -> DType | None:
    from ema_cli.checkpoint import DTYPES

    if name is None:
        return None
    if name not in _DTYPES:
        raise UsageError(f"--dtype: '{name}' cannot be written", hint=f"one of {', '.join(_DTYPES)}")
    return DTYPES[_DTYPES[name]]


def _print_json(command: str, content: dict[str, Any]) -> None:
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
        typer.echo(json.dumps({"schema_version": _SCHEMA_VERSION, "command": command, "error": content}))
    else:
        from ema_cli import render

        render.error(problem)
    return problem.exit_code
