"""ema-cli inspect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ema_cli.cli import json_facts, requests
from ema_cli.cli.command_line import InspectOptions
from ema_cli.cli.commands.shared import error_facts, print_json
from ema_cli.cli.sources import RawSource, StoredSource
from ema_cli.errors import EmaError, UsageError, at_terminal, option
from ema_cli.law.recipe import Recipe
from ema_cli.planning.gates import Gates
from ema_cli.planning.plan import make_plan
from ema_cli.runs import warnings
from ema_cli.runs.stored import find_stored, open_stored
from ema_cli.storage.location import location


@dataclass(frozen=True, slots=True)
class InspectRequest:
    """What `inspect` is to show; `recipes` are empty where no weights are asked for."""

    source: RawSource | StoredSource
    recipes: tuple[Recipe, ...]
    copy: tuple[str, ...]
    gates: Gates

    @classmethod
    def resolve(cls, options: InspectOptions) -> InspectRequest:
        """Read the options, and check what goes together.

        Raises:
            UsageError: for a value that makes no sense, or two options that exclude each other.
        """
        law = options.run.law
        recipes: tuple[Recipe, ...] = ()
        if law.half_life or law.smoothing is not None or law.profile or law.sigma_rel is not None:
            recipes = requests.recipes(law)
        elif any(value is not None for value in (law.update_interval, law.start, law.stop, law.last)) or (
            law.bias_correction
        ):
            raise UsageError(
                f"which law? {option('start')} and the like need one", hint=f"add {option('half_life', '50ba')}"
            )
        gates = requests.gates(options.gates)
        if (gates.min_count, gates.max_share) != (None, None) and not recipes:
            raise UsageError(
                f"{option('min_count')} and {option('max_share')}: of which average?",
                hint=f"add {option('half_life', '50ba')}",
            )
        return cls(requests.source(options.run, allow_approximate=True), recipes, options.run.copy, gates)


def run(options: InspectOptions) -> int:
    """Print a run, or one checkpoint, and the weights of each recipe."""
    request = InspectRequest.resolve(options)
    source = replace(request.source, paths=request.source.paths or (Path(),))
    from ema_cli.cli import terminal

    from_stored = isinstance(source, StoredSource)
    if isinstance(source, StoredSource):
        plans = source.plans(request.recipes) if request.recipes else []
        run = plans[0].run if plans else source.open().run
    else:
        run = source.open()
        plans = [make_plan(run, recipe) for recipe in request.recipes]
    run_told, told = json_facts.run_facts(run, stored=from_stored), [json_facts.plan_facts(plan) for plan in plans]
    stored = None if from_stored else _what_is_stored(source.paths, request.recipes)
    odd = [
        *warnings.run_warnings(run, run.checkpoints),
        *warnings.refusal_warnings(run.checkpoints[-1], request.copy),
    ]
    single = run.checkpoints[0] if len(run.checkpoints) == 1 and not from_stored else None
    failed = request.gates.problem(told, odd, run.checkpoints[-1].tensors.specs)
    if options.as_json:
        extra = {"tensors": json_facts.tensor_facts(single), "recipe": single.mark} if single else {}
        content = {"run": run_told, "plans": told, "stored": stored, **extra, "warnings": odd}
        print_json("inspect", content | ({"error": error_facts(failed)} if failed else {}))
        return failed.exit_code if failed else 0
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
    return 0


def _what_is_stored(paths: Sequence[Path], recipes: Sequence[Recipe]) -> dict[str, Any] | None:
    """Return what else could be averaged there: averages that the training stored, and how near they come."""
    try:
        if not any(location(path).info().is_folder for path in paths) or not find_stored(paths):
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
