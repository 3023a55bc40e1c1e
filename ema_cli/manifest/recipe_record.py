"""The recipe of a manifest: everything that decides the checkpoints and weights of an average, as data and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ema_cli.errors import RunError
from ema_cli.formats.options import ReadOptions
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time
from ema_cli.planning.plan import Plan


@dataclass(frozen=True, slots=True)
class RecipeRecord:
    """A recipe, and the checkpoints that it was applied to.

    Attributes:
        recipe: the law, and the selection of checkpoints.
        is_stored: whether the inputs are averages that the training stored, instead of raw checkpoints.
        epoch_length, spacing: the clocks that the user gave for checkpoints that do not record them.
        read: the options that the checkpoints were read with.
    """

    recipe: Recipe
    is_stored: bool
    epoch_length: Time | None
    spacing: Time | None
    read: ReadOptions

    @classmethod
    def of(cls, plan: Plan) -> RecipeRecord:
        """Return the record of a plan."""
        run = plan.run
        return cls(plan.recipe, plan.approximation is not None, run.epoch_length, run.spacing, run.options)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as in a manifest. The patterns of copied tensors are with the options of the output."""
        return {
            **self.recipe.to_dict(),
            "from": "stored" if self.is_stored else "raw",
            "epoch_length": None if self.epoch_length is None else str(self.epoch_length),
            "spacing": None if self.spacing is None else str(self.spacing),
            "key": self.read.key,
            "weights": self.read.weights,
            "component": self.read.component,
            "keep_prefix": self.read.keep_prefix,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RecipeRecord:
        """Read the recipe of a manifest.

        Raises:
            UsageError: if the data are no recipe.
            RunError: if the recorded name of the law does not belong to the law.
        """
        recipe = Recipe.from_dict(data)
        if recipe.law.name != data["law"]:
            raise RunError(
                f"the manifest's law is {data['law'][:60]!r}, but what it says of it is {recipe.law.name}",
                hint="it was changed by hand, or by another program",
            )
        return cls(
            recipe, data["from"] == "stored", _time(data["epoch_length"]), _time(data["spacing"]), read_options(data)
        )


def read_options(data: Mapping[str, Any]) -> ReadOptions:
    """Return the options that the checkpoints were read with, from the recipe of their manifest."""
    return ReadOptions(data["key"], data["weights"], data["component"], data["keep_prefix"], copy=tuple(data["copy"]))


def _time(text: str | None) -> Time | None:
    return None if text is None else Time.parse(text, subject="the manifest")
