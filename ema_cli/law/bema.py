"""BEMA: an EMA without its lag (arXiv 2508.00180). No torch, no numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, ClassVar

from ema_cli.dataclass import dataclass
from ema_cli.errors import UsageError
from ema_cli.law import weights
from ema_cli.law.law import EveryCheckpoint, Words
from ema_cli.law.time import Time, Unit
from ema_cli.law.weights import Gaps


@dataclass(frozen=True, slots=True)
class Bema(EveryCheckpoint):
    """The bias-corrected EMA of Block and Zhang 2025, algorithm 1: a share of the way from the base model comes on top.

        alpha_t (model - base) + EMA_t    with  EMA_t = (1 - beta_t) EMA_before + beta_t model, from the base on
        alpha_t = (lag + multiplier t) ** -bias_power    and    beta_t = (lag + multiplier t) ** -ema_power

    t counts batches. The paper's letters are rho, gamma, eta and kappa; names and values are those of TRL's callback.

    Raises:
        UsageError: for a number below 0, or none.
    """

    lag: float = 10.0
    multiplier: float = 1.0
    bias_power: float = 0.2
    ema_power: float = 0.5

    profile: ClassVar[str] = "bema"
    corrects_bias: ClassVar[bool] = False
    over_clocks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, value in self._numbers.items():
            if not 0 <= value < math.inf:
                raise UsageError(f"{value:g} is not at least 0", option=name, hint="by default 10, 1, 0.2 and 0.5")

    @property
    def _numbers(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in BEMA_KEYS}

    @property
    def name(self) -> str:
        """Return `bema`, or `bema-10.0-1.0-0.2-0.5` with the numbers where they are others."""
        return self.profile if self == Bema() else "-".join([self.profile, *map(repr, self._numbers.values())])

    @property
    def unit(self) -> Unit:
        """Return batches: the numbers are chosen for optimizer steps."""
        return Unit.BATCH

    def weights(self, gaps: Gaps, clocks: Sequence[Fraction], *, bias_correction: bool) -> list[float]:
        """Return the weights; the first of the checkpoints is the base."""
        return weights.bema_weights(clocks, **self._numbers)

    def words(self) -> Words:
        """Return the profile and its numbers as people read them."""
        return Words("profile", self.name, ("profile bema", *self._details()))

    def _details(self) -> list[str]:
        return [f"{name.replace('_', ' ')} {value:g}" for name, value in self._numbers.items()]

    def phrase(self, interval: Time | None) -> str:
        """Return the profile for a sentence."""
        return f"the profile bema ({', '.join(self._details())})"

    def to_dict(self) -> dict[str, Any]:
        """Return the profile and its numbers."""
        return {"profile": self.profile, **self._numbers}


BEMA_KEYS = ("lag", "multiplier", "bias_power", "ema_power")
"""The options that are BEMA's own."""
