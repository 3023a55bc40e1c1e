"""What several commands do: open what is averaged, print the envelope of --json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ema_cli.cli.github import annotate_all
from ema_cli.errors import EmaError, NoWeights, UsageError, at_terminal, option

if TYPE_CHECKING:
    from ema_cli.formats.options import ReadOptions
    from ema_cli.law.recipe import Recipe
    from ema_cli.planning.plan import Plan
    from ema_cli.runs.run import Run
    from ema_cli.runs.stored import StoredRun

SCHEMA_VERSION = 1


def open_stored_averages(paths: Sequence[Path] | None) -> StoredRun:
    from ema_cli.runs.stored import open_stored

    if not paths:
        raise UsageError(
            "which averages?", hint=f"name the folder that holds them: ema-cli average run/ {option('from', 'stored')}"
        )
    return open_stored(paths)


def stored_plans(paths: Sequence[Path] | None, recipes: Sequence[Recipe], *, allow_approximate: bool) -> list[Plan]:
    from ema_cli.planning.stored_plan import make_stored_plan

    stored = open_stored_averages(paths)
    return [make_stored_plan(stored, recipe, allow_approximate=allow_approximate) for recipe in recipes]


def raw_plans(
    paths: Sequence[Path] | None,
    recipes: Sequence[Recipe],
    options: ReadOptions,
    epoch_length: str | None,
    spacing: str | None,
) -> list[Plan]:
    """Return a plan for each recipe, over the raw checkpoints at or below `paths`."""
    from ema_cli.planning.plan import make_plan

    run = open_raw(paths, options, epoch_length, spacing)
    return [make_plan(run, recipe) for recipe in recipes]


def open_raw(
    paths: Sequence[Path] | None,
    options: ReadOptions,
    epoch_length: str | None,
    spacing: str | None,
) -> Run:
    from ema_cli.law.time import Time
    from ema_cli.runs.run import open_run

    if not paths:
        raise UsageError("which checkpoints?", hint="name the folder that holds the run: ema-cli average ckpts/ ...")
    try:
        return open_run(
            paths,
            options=options,
            epoch_length=Time.parse(epoch_length, "epoch_length") if epoch_length is not None else None,
            spacing=Time.parse(spacing, "spacing") if spacing is not None else None,
        )
    except NoWeights as problem:
        from ema_cli.runs.stored import find_stored

        if not find_stored(paths):
            raise
        raise NoWeights(
            problem.fact,
            subject=problem.subject,
            hint=f"averages that the training stored are there: {option('from', 'stored')}",
        ) from problem


def print_json(command: str | None, content: dict[str, Any]) -> None:
    """Print what --json gives; a job of GitHub Actions is told the errors and warnings in it, too."""
    import json

    annotate_all(content)
    typer.echo(json.dumps({"schema_version": SCHEMA_VERSION, "command": command, **content}))


def error_facts(problem: EmaError) -> dict[str, Any]:
    """Return an error as --json tells it."""
    return {"code": problem.exit_code, "message": problem.message(at_terminal), "hint": problem.advice(at_terminal)}
