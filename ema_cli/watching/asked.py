"""What `watch` is asked for: which averages, of what, and how it waits. Values are checked here; nothing is opened."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from ema_cli.dataclass import dataclass
from ema_cli.errors import UsageError, option
from ema_cli.law.law import LiveLaw
from ema_cli.law.plain_profiles import Uniform
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time
from ema_cli.runs.options import OpenOptions
from ema_cli.storage.names import StorePath
from ema_cli.writing.output_options import OutputOptions
from ema_cli.writing.target import Target

SETTLE, EVERY, PATIENCE = 10.0, 10.0, 600.0
"""Seconds: between two equal looks at a checkpoint, between two looks at the folder, for one that is not complete."""

WHOLE = "whole"
"""In what decides an average: that its newest checkpoint is kept as a whole. A watch without that has not kept it."""

_SUFFIX = ".watch"
_HALF_LIFE = "{half_life}"


@dataclass(frozen=True, slots=True)
class Waiting:
    """How it waits, in seconds, and for what.

    Attributes:
        every: the time between two looks at the folder.
        settle: how long a checkpoint without a mark of completeness must have stayed as it is.
        patience: how long one that is not complete holds back those after it.
        once: end after what is there.
        until: end at this clock.
    """

    every: float = EVERY
    settle: float = SETTLE
    patience: float = PATIENCE
    once: bool = False
    until: Time | None = None

    def __post_init__(self) -> None:
        for name in ("every", "settle", "patience"):
            seconds = getattr(self, name)
            if not 0 <= seconds < math.inf or (name == "every" and not seconds):
                raise UsageError(f"{seconds:g} is no number of seconds", option=name, hint="as 10")


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for.

    Attributes:
        path: the folder of the run, or the one file that a training writes again and again.
        opened: how the run is opened.
        recipes: one for each average; all have one update interval and one start.
        target: where the averages go.
        output: their form.
        publish_every: the training time between two outputs; None for one at each checkpoint.
        store_every: the training time between two moments that are kept; None to keep the newest alone.
        restart_from: the clock of the stored moment to go back to.
        threads, max_memory: how many read and average at once, and the most bytes of memory of the process.
        force: whether an output that was there before may be replaced.

    Raises:
        UsageError: for values that make no sense, and what needs checkpoints that are not there yet, or no more.
    """

    path: Path
    opened: OpenOptions
    recipes: tuple[Recipe, ...]
    target: Target
    output: OutputOptions = field(default_factory=OutputOptions)
    waiting: Waiting = field(default_factory=Waiting)
    publish_every: Time | None = None
    store_every: Time | None = None
    restart_from: Time | None = None
    threads: int | None = None
    max_memory: int | None = None
    force: bool = False

    def __post_init__(self) -> None:
        check_recipes(self.recipes)
        if self.opened.spacing is not None:
            raise UsageError("counts all checkpoints, and some are gone", option="spacing", hint=_NAME_CLOCK)
        for name in ("publish_every", "store_every"):
            time = getattr(self, name)
            if time is not None and not 0 < time.value < math.inf:
                raise UsageError(f"{time} is no training time between two", option=name, hint="as 1000ba")
        _check_pattern(self.target.path)
        for name in ("allow_non_finite", "exact_lora"):
            if getattr(self.output, name):
                raise UsageError("is for one average of all checkpoints, afterwards", option=name, hint="leave it out")

    @property
    def folder(self) -> Path:
        """Return the folder of what is kept to go on, beside the output: its name with `.watch`."""
        path = self.target.path
        base = path.parent if _HALF_LIFE in path.name else path
        return base.with_name(f"{base.name}{_SUFFIX}")

    @property
    def published(self) -> Target:
        """Return what one rename publishes."""
        target = self.target
        if _HALF_LIFE not in target.path.name:
            return target
        if len(self.recipes) > 1:
            return Target(target.path.parent, is_folder=True)
        name = target.path.name.replace(_HALF_LIFE, self.recipes[0].law.name)
        return Target(target.path.with_name(name), target.is_folder)

    @property
    def keeps_whole(self) -> bool:
        """Return whether the newest checkpoint is kept as a whole: the output takes more of it than its weights."""
        return self.output.like_input or self.target.is_lightning

    def what(self) -> dict[str, Any]:
        """Return what decides an average, as JSON has it: a watch goes on with the same only."""
        read = self.opened.read
        return {
            "laws": [{name: value for name, value in recipe.to_dict().items() if value} for recipe in self.recipes],
            "epoch_length": None if self.opened.epoch_length is None else str(self.opened.epoch_length),
            "name_clock": self.opened.name_clock,
            "clock_key": list(read.clock_key),
            "key": read.key,
            "weights": read.weights,
            "component": read.component,
            "keep_prefix": read.keep_prefix,
            "masters": read.masters,
            "copy": list(read.copy),
            **({WHOLE: True} if self.keeps_whole else {}),
        }


_NAME_CLOCK = f"clocks that names have: {option('name_clock', 'ba')}"


def _check_pattern(path: Path) -> None:
    """Check the placeholders in the name of the output: its folder has a name, which that of what is kept is made of.

    Raises:
        UsageError: where it has none, and for a clock, as averages are replaced at each.
    """
    parent = path.parent
    if "{clock}" in path.name:
        raise UsageError(
            f"'{path}': an average stays at its place, and is replaced at each clock",
            option="output",
            hint=f"leave {{clock}} out; {option('store_every')} keeps averages of other clocks, too",
        )
    is_root = parent.name in ("", "..") or (isinstance(parent, StorePath) and not parent.key)
    if _HALF_LIFE in path.name and is_root:
        raise UsageError(
            f"'{path}' names no new folder for the averages",
            option="output",
            hint=f"as {option('o', (parent / 'averages' / path.name).as_posix())}",
        )


def check_recipes(recipes: Sequence[Recipe]) -> None:
    """Check that averages can be brought up to date by one checkpoint after another, and all at the same ones.

    Raises:
        UsageError: for what needs checkpoints that are not there yet, or no more, and for different schedules.
    """
    if not recipes:
        raise UsageError("which average?", hint=f"as {option('half_life', '500ba')}")
    for recipe in recipes:
        law = recipe.law
        if not isinstance(law, LiveLaw | Uniform) or law.window is not None:
            raise UsageError(
                "each new checkpoint changes the shares of all others, and those are gone",
                option="window" if law.window is not None else "profile",
                hint=f"watch half-lives, power or uniform; {law.name} is for {option('from', 'raw')}, afterwards",
            )
        for name in ("last", "bias_correction", "stop"):
            if getattr(recipe, name):
                raise UsageError(
                    "needs checkpoints that are not there yet, or no more",
                    option=name,
                    hint=f"leave it out; {option('until')} says when to end" if name == "stop" else "leave it out",
                )
    if len({(recipe.interval, recipe.start, recipe.unit) for recipe in recipes}) > 1:
        raise UsageError(
            "the averages have different update intervals or units",
            option="half_life",
            hint="say one for all of them: update_interval='1ba', or 'every'; or watch them one by one",
        )
