"""ema-cli inspect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ema_cli.cli import requests
from ema_cli.cli.command_line import InspectOptions
from ema_cli.cli.output import make_printer
from ema_cli.cli.sources import RawSource, StoredSource
from ema_cli.cli.views import Inspection, RunView, StoredView
from ema_cli.dataclass import dataclass
from ema_cli.errors import EmaError, RunError, UsageError, at_terminal, option
from ema_cli.law.laws import LAW_KEYS
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time, Unit
from ema_cli.planning.clock_checks import check_units
from ema_cli.planning.gates import Gates
from ema_cli.planning.plan import Plan
from ema_cli.planning.series import Series
from ema_cli.runs.run import Run
from ema_cli.runs.stored import find_stored, open_stored
from ema_cli.runs.warnings import Remarks, refusal_warnings
from ema_cli.storage.location import location

_ANY_HALF_LIFE = Time(200, Unit.BATCH)


@dataclass(frozen=True, slots=True)
class InspectRequest:
    """What `inspect` is to show; `recipes` are empty where no weights are asked for."""

    source: RawSource | StoredSource
    recipes: tuple[Recipe, ...]
    series: Series | None
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
        given = [name for name in requests.given(law) if name != "from"]
        if not set(LAW_KEYS).isdisjoint(given) or law.last == 1:  # a single one needs no law
            recipes = requests.recipes(law)
        elif given:
            raise UsageError(f"which law? {option(given[0])} needs one", hint=f"add {option('half_life', '50ba')}")
        gates = requests.gates(options.gates)
        if (gates.min_count, gates.max_share) != (None, None) and not recipes:
            raise UsageError(
                f"{option('min_count')} and {option('max_share')}: of which average?",
                hint=f"add {option('half_life', '50ba')}",
            )
        source = requests.source(options.run, allow_approximate=True)
        return cls(source, recipes, requests.series(law), options.run.copy, gates)


def run(options: InspectOptions) -> int:
    """Show a run, or one checkpoint, and the weights of each recipe; return the exit code."""
    request = InspectRequest.resolve(options)
    inspection = inspect(request)
    make_printer("inspect", as_json=options.as_json).inspected(inspection)
    return inspection.failed.exit_code if inspection.failed else 0


def inspect(request: InspectRequest) -> Inspection:
    """Look at what is requested: of tensors the headers only."""
    source = replace(request.source, paths=request.source.paths or (Path(),))
    is_stored = isinstance(source, StoredSource)
    run, plans = source.open_with(request.recipes, request.series)
    newest = run.checkpoints[-1]
    remarks = Remarks.of(run, run.checkpoints)
    remarks = Remarks(
        (*remarks.warnings, *refusal_warnings(newest, request.copy)), (*remarks.notes, *_ways_to_clocks(run))
    )
    return Inspection(
        RunView.of(run, stored=is_stored),
        plans,
        newest if len(run.checkpoints) == 1 and not is_stored else None,
        None if is_stored else _what_is_stored(source.paths, request.recipes),
        remarks,
        request.gates.problem(plans, remarks.warnings, newest.tensors.specs),
    )


def _ways_to_clocks(run: Run) -> list[str]:
    """Return how a run gets clocks that has none in any unit."""
    if run.units or len(run.checkpoints) < 2 or any(checkpoint.averaged for checkpoint in run.checkpoints):
        return []
    try:
        check_units(run, Recipe(half_life=_ANY_HALF_LIFE))
    except RunError as error:
        return [f"an average by half-life needs clocks, and there are none: {error.advice(at_terminal)}"]
    return []


def _what_is_stored(paths: Sequence[Path], recipes: Sequence[Recipe]) -> StoredView | None:
    """Return what else could be averaged there: averages that the training stored, and how near they come."""
    try:
        if not any(location(path).info().is_folder for path in paths) or not find_stored(paths):
            return None
        stored = open_stored(paths)
    except EmaError as problem:
        return StoredView(problem)
    from ema_cli.planning.stored_plan import make_stored_plan  # which loads numpy

    plans: list[tuple[Recipe, Plan | EmaError]] = []
    for recipe in recipes:
        try:
            plans.append((recipe, make_stored_plan(stored, recipe, allow_approximate=True)))
        except EmaError as problem:
            plans.append((recipe, problem))
    return StoredView(stored, tuple(plans))
