"""What can be averaged, as a command line names it: raw checkpoints, averages that a training stored, a manifest's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ema_cli.dataclass import dataclass
from ema_cli.errors import NoSuchWeights, NoWeights, UsageError, option
from ema_cli.law.recipe import Recipe
from ema_cli.planning.bounds import drop_outside
from ema_cli.planning.plan import Plan, make_plan
from ema_cli.planning.series import Series, plan_series
from ema_cli.runs.options import OpenOptions
from ema_cli.runs.run import Run, read_run

if TYPE_CHECKING:  # what reads stored averages, or manifests, is loaded where they are asked for
    from ema_cli.release.replay import Replay
    from ema_cli.runs.stored import StoredRun


@dataclass(frozen=True, slots=True)
class Planner:
    """A run, and what makes a plan of it for a recipe."""

    run: Run
    plan: Callable[[Recipe], Plan]

    def plans(self, recipes: Sequence[Recipe], series: Series | None) -> tuple[Plan, ...]:
        """Return a plan for each recipe, or for each recipe at each clock of a series."""
        if series is None:
            return tuple(map(self.plan, recipes))
        return tuple(plan_series(self.run, recipes, series, self.plan))


@dataclass(frozen=True, slots=True)
class RawSource:
    """The raw checkpoints at or below some paths, and how their run is opened."""

    paths: tuple[Path, ...]
    options: OpenOptions

    def open(self) -> Run:
        """Return the run.

        Raises:
            UsageError: without a path.
            NoWeights: where there is none; the hint says so where averages are stored there instead.
            EmaError: as `read_run`.
        """
        if not self.paths:
            raise UsageError(
                "which checkpoints?", hint="name the folder that holds the run: ema-cli average ckpts/ ..."
            )
        try:
            return read_run(self.paths, self.options)
        except (NoSuchWeights, NoWeights) as problem:
            from ema_cli.runs.stored import find_stored

            wants_averages = not isinstance(problem, NoSuchWeights) or self.options.read.weights == "ema"
            if not (wants_averages and find_stored(self.paths)):
                raise
            raise type(problem)(
                problem.fact,
                subject=problem.subject,
                hint=f"averages that the training stored are there: {option('from', 'stored')}",
            ) from problem

    def planner(self) -> Planner:
        """Return the run, and what makes a plan of it for a recipe."""
        run = self.open()
        return Planner(run, partial(make_plan, run))

    def open_with(self, recipes: Sequence[Recipe], series: Series | None = None) -> tuple[Run, tuple[Plan, ...]]:
        """Return the run, and a plan of it for each recipe, or for each recipe at each clock of a series."""
        run = self.open()
        for recipe in recipes[:1]:  # all have one start and one stop
            run = drop_outside(run, recipe)
        return run, Planner(run, partial(make_plan, run)).plans(recipes, series)


@dataclass(frozen=True, slots=True)
class StoredSource:
    """The averages that a training stored at or below some paths."""

    paths: tuple[Path, ...]
    copy: tuple[str, ...]
    component: str | None
    allow_approximate: bool

    def open(self) -> StoredRun:
        """Return the averages.

        Raises:
            UsageError: without a path.
            EmaError: as `open_stored`.
        """
        if not self.paths:
            raise UsageError(
                "which averages?",
                hint=f"name the folder that holds them: ema-cli average run/ {option('from', 'stored')}",
            )
        from ema_cli.runs.stored import open_stored

        return open_stored(self.paths, copy=self.copy, component=self.component)

    def planner(self) -> Planner:
        """Return the averages as a run, and what finds for a recipe the combination that comes nearest to it."""
        return self._planner(self.open())

    def _planner(self, stored: StoredRun) -> Planner:
        from ema_cli.planning.stored_plan import make_stored_plan  # which loads numpy

        return Planner(stored.run, partial(make_stored_plan, stored, allow_approximate=self.allow_approximate))

    def open_with(self, recipes: Sequence[Recipe], series: Series | None = None) -> tuple[Run, tuple[Plan, ...]]:
        """Return the averages as a run, and for each recipe, at each clock, the combination that is nearest to it."""
        stored = self.open()
        if not recipes and series is None:
            return stored.run, ()
        plans = self._planner(stored).plans(recipes, series)
        if series is None:
            return stored.run, plans
        from ema_cli.planning.stored_series import out_of_reach_notes

        notes = out_of_reach_notes(stored, recipes, series, plans)
        return replace(stored.run, notes=(*stored.run.notes, *notes)), plans


@dataclass(frozen=True, slots=True)
class ManifestSource:
    """The average that a manifest tells of, whose inputs lie at or below some paths."""

    manifest: Path
    paths: tuple[Path, ...]
    merge_into: Path | None
    threads: int

    def open(self) -> Replay:
        """Return the average to be repeated.

        Raises:
            UsageError: without a path.
            EmaError: as `read_named_manifest` and `open_replay`.
        """
        if not self.paths:
            raise UsageError(
                "which checkpoints?",
                hint=f"name the folder that holds them: ema-cli average ckpts/ {option('recipe')} ...",
            )
        from ema_cli.release.published import read_named_manifest  # which few averages need
        from ema_cli.release.replay import open_replay

        manifest = read_named_manifest(self.manifest)
        manifest["tensors"] = []  # they are not needed here, and may be many
        return open_replay(manifest, self.paths, merge_into=self.merge_into, threads=self.threads)
