"""ema-cli inspect."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ema_cli.cli.commands.shared import error_facts, open_raw, open_stored_averages, print_json, stored_plans
from ema_cli.cli.options import (
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
    UpdateInterval,
    Version,
    WeightsChoice,
    parse_from,
    parse_gates,
    parse_read_options,
    parse_recipes,
)
from ema_cli.errors import EmaError, UsageError, at_terminal, option

if TYPE_CHECKING:
    from ema_cli.law.recipe import Recipe

EXAMPLES = """\
Examples: a run, and what would enter its average; several half-lives side by side; one file

  ema-cli inspect ckpts/ --half-life 50ba
  ema-cli inspect ckpts/ --half-life 20ba --half-life 50ba
  ema-cli inspect release.safetensors

Only headers are read, and nothing is written."""


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
    min_count: MinCount = None,
    max_share: MaxShare = None,
    strict: Strict = False,
    expect_keys: ExpectKeys = None,
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
        raise UsageError(
            f"which law? {option('start')} and the like need one", hint=f"add {option('half_life', '50ba')}"
        )
    gates = parse_gates(min_count, max_share, strict, expect_keys)
    if (min_count, max_share) != (None, None) and not recipes:
        raise UsageError(
            f"{option('min_count')} and {option('max_share')}: of which average?",
            hint=f"add {option('half_life', '50ba')}",
        )
    options = parse_read_options(key, weights, component, keep_prefix, copy)
    reading = {"key": key, "weights": weights, "component": component, "keep_prefix": keep_prefix}
    from_stored = parse_from(source, {**reading, "epoch_length": epoch_length, "spacing": spacing})
    from ema_cli.cli import json_facts, terminal
    from ema_cli.runs import warnings

    paths = paths or [Path()]
    if from_stored:
        plans = stored_plans(paths, recipes, allow_approximate=True)
        run = plans[0].run if plans else open_stored_averages(paths).run
    else:
        from ema_cli.planning.plan import make_plan

        run = open_raw(paths, options, epoch_length, spacing)
        plans = [make_plan(run, recipe) for recipe in recipes]
    run_told, told = json_facts.run_facts(run, stored=from_stored), [json_facts.plan_facts(plan) for plan in plans]
    stored = None if from_stored else _what_is_stored(paths, recipes)
    odd = [
        *warnings.run_warnings(run, run.checkpoints),
        *warnings.refusal_warnings(run.checkpoints[-1], copy or ()),
    ]
    single = run.checkpoints[0] if len(run.checkpoints) == 1 and not from_stored else None
    failed = gates.problem(told, odd, run.checkpoints[-1].tensors.specs)
    if as_json:
        extra = {"tensors": json_facts.tensor_facts(single), "recipe": single.mark} if single else {}
        content = {"run": run_told, "plans": told, "stored": stored, **extra, "warnings": odd}
        print_json("inspect", content | ({"error": error_facts(failed)} if failed else {}))
        raise typer.Exit(failed.exit_code if failed else 0)
    if single is None:
        terminal.run_report(run_told, told, odd)
    else:
        terminal.checkpoint_report(run_told, json_facts.tensor_facts(single), odd)
        if single.mark:
            terminal.recipe_report(single.mark)
        if told:
            terminal.plan_report(told, [single.name])
    terminal.approximations(told)
    if stored or told:
        terminal.stored_report(stored, told)
    if failed:
        raise failed


def _what_is_stored(paths: Sequence[Path], recipes: Sequence[Recipe]) -> dict[str, Any] | None:
    """Return what else could be averaged there: averages that the training stored, and how near they come."""
    from ema_cli.cli import json_facts
    from ema_cli.runs.stored import find_stored, open_stored

    try:
        if not any(path.is_dir() for path in paths) or not find_stored(paths):
            return None
        from ema_cli.planning.stored_plan import make_stored_plan

        stored = open_stored(paths)
    except EmaError as problem:
        return {"problem": problem.message(at_terminal)}
    plans: list[dict[str, Any]] = []
    for recipe in recipes:
        try:
            plans.append(json_facts.plan_facts(make_stored_plan(stored, recipe, allow_approximate=True)))
        except EmaError as problem:
            plans.append({"law": recipe.law.name, "problem": problem.message(at_terminal)})
    return {**json_facts.stored_facts(stored), "plans": plans}
