"""The recipe of a manifest: everything that decides the checkpoints and weights of an average, as data and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ema_cli.dataclass import dataclass
from ema_cli.errors import RunError, UsageError, option
from ema_cli.formats.mark import MERGED
from ema_cli.formats.options import ReadOptions
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time
from ema_cli.planning.plan import Plan
from ema_cli.runs.options import OpenOptions


@dataclass(frozen=True, slots=True)
class RecipeRecord:
    """A recipe, and the checkpoints that it was applied to.

    Attributes:
        recipe: the law, and the selection of checkpoints.
        is_stored: whether the inputs are averages that the training stored, instead of raw checkpoints.
        opened: how the run was opened.
        base: the name of the input that is the model from which the training began; None where none enters.
    """

    recipe: Recipe
    is_stored: bool
    opened: OpenOptions
    base: str | None = None

    @classmethod
    def of(cls, plan: Plan) -> RecipeRecord:
        """Return the record of a plan."""
        run = plan.run
        return cls(plan.recipe, plan.approximation is not None, run.options, run.base.name if run.base else None)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as in a manifest. The patterns of copied tensors are with the options of the output."""
        opened, read = self.opened, self.opened.read
        return {
            **self.recipe.to_dict(),
            "from": "stored" if self.is_stored else "raw",
            "exclude": list(opened.exclude),
            "skip_damaged": opened.skip_damaged,
            "epoch_length": None if opened.epoch_length is None else str(opened.epoch_length),
            "spacing": None if opened.spacing is None else str(opened.spacing),
            "name_clock": opened.name_clock,
            "clock_key": list(read.clock_key),
            "ignore_clocks": opened.ignore_clocks,
            "key": read.key,
            "weights": read.weights,
            "component": read.component,
            "keep_prefix": read.keep_prefix,
            "masters": read.masters,
            **({MERGED: True} if opened.merge_into is not None else {}),
            **({} if self.base is None else {"base": self.base}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], merge_into: Path | None = None) -> RecipeRecord:
        """Read the recipe of a manifest.

        Args:
            merge_into: the base model of the adapters that were merged into it: a manifest names no paths.

        Raises:
            UsageError: if the data are no recipe, or need a base model that is not given, or none.
            RunError: if the recorded name of the law does not belong to the law.
        """
        recipe = Recipe.from_dict(data)
        if recipe.law.name != data["law"]:
            raise RunError(
                f"the manifest's law is {data['law'][:60]!r}, but what it says of it is {recipe.law.name}",
                hint="it was changed by hand, or by another program",
            )
        check_base(data, merge_into)
        opened = OpenOptions(
            read_options(data),
            _time(data["epoch_length"]),
            _time(data["spacing"]),
            # Manifests of older versions do not have these.
            data.get("name_clock"),
            data.get("ignore_clocks", False),
            tuple(data.get("exclude", ())),
            data.get("skip_damaged", False),
            merge_into,
        )
        return cls(recipe, data["from"] == "stored", opened, data.get("base"))


def check_base(recipe: Mapping[str, Any], merge_into: Path | None) -> None:
    """Raise a UsageError for a base model that is given and not needed by a recipe, or needed and not given."""
    is_needed = bool(recipe.get(MERGED))
    if is_needed and merge_into is None:
        raise UsageError(
            "the adapters of this average were merged into their base model",
            hint=f"say where that is: {option(MERGED, 'BASE')}",
        )
    if merge_into is not None and not is_needed:
        raise UsageError("is for averages of adapters that were merged into it", option=MERGED, hint="leave it out")


def read_options(data: Mapping[str, Any]) -> ReadOptions:
    """Return the options that the checkpoints were read with, from the recipe of their manifest."""
    return ReadOptions(
        data["key"],
        data["weights"],
        data["component"],
        data["keep_prefix"],
        copy=tuple(data["copy"]),
        clock_key=tuple(data.get("clock_key", ())),
        masters=data.get("masters", False),
    )


def _time(text: str | None) -> Time | None:
    return None if text is None else Time.parse(text, subject="the manifest")
