"""What a law of averaging is: the protocols that `laws` fulfils, and how the weights of live averages run.

No torch, no numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, ClassVar, Protocol, runtime_checkable

from ema_cli.dataclass import dataclass
from ema_cli.law.events import Gap
from ema_cli.law.time import Time, Unit
from ema_cli.law.weights import Gaps


@dataclass(frozen=True, slots=True)
class Words:
    """How a law is written for people.

    `noun` and `value` make its short form ("half-life 50ba"), `details` are facts for a list. A law with a value
    to turn calls it `high` where the first checkpoint holds most of the average, and `low` where the newest does.
    """

    noun: str
    value: str
    details: tuple[str, ...]
    high: str | None = None
    low: str | None = None

    @property
    def short(self) -> str:
        """Return noun and value."""
        return f"{self.noun} {self.value}"


@runtime_checkable
class Law(Protocol):
    """How checkpoints are weighted."""

    corrects_bias: ClassVar[bool]
    """Whether the first checkpoint stands for all the training before it, an excess that can be corrected."""
    over_clocks: ClassVar[bool]
    """Whether the distances between checkpoints matter, in whatever unit they have; else their order is enough."""

    @property
    def name(self) -> str:
        """Return the law as a name for files: `50ba`, `smoothing-0.99`, `power-0.1`, `uniform`."""

    @property
    def unit(self) -> Unit | None:
        """Return the unit of the clocks that the law needs; None where any will do."""

    @property
    def window(self) -> Time | None:
        """Return how far before the newest checkpoint those lie that enter; None where all do."""

    @property
    def default_interval(self) -> Time | None:
        """Return the distance between update events where none is given; None where each checkpoint is one."""

    def measure(self, gap: Gap) -> Fraction:
        """Return the gap as the law counts it: in training time or in updates."""

    def weights(self, gaps: Gaps, clocks: Sequence[Fraction], *, bias_correction: bool) -> list[float]:
        """Return the weights of checkpoints, oldest first, with sum 1.

        Args:
            gaps: the distance of each checkpoint to the one before, by `measure`; the first is not used.
            clocks: where the checkpoints lie in training time.
            bias_correction: begin from zero, as in Adam, instead of with the first checkpoint.
        """

    def words(self) -> Words:
        """Return the law as people read it."""

    def phrase(self, interval: Time | None) -> str:
        """Return the law with its update interval for a sentence, after "with"."""

    def to_dict(self) -> Mapping[str, Any]:
        """Return the law as data under some of `LAW_KEYS`, from which `make_law` makes it again."""


class EveryCheckpoint:
    """What most laws have in common: each checkpoint enters, and is an update event; distances are in training time."""

    __slots__ = ()

    @property
    def window(self) -> Time | None:
        """Return None: all of the training counts."""
        return None

    @property
    def default_interval(self) -> None:
        """Return None: each checkpoint, or each update of a live model, is an event."""

    def measure(self, gap: Gap) -> Fraction:
        """Return the training time from one checkpoint to the next."""
        return gap.elapsed


@dataclass(frozen=True, slots=True)
class Steady:
    """Weights over events that all keep the same share of the average; `log_kept` is its logarithm."""

    log_kept: float


@dataclass(frozen=True, slots=True)
class Growing:
    """Weights whose sum up to a clock grows as (clock - `origin`) ** `exponent`."""

    exponent: float
    origin: float = 0.0


@runtime_checkable
class LiveLaw(Law, Protocol):
    """A law that can be applied update by update, while a model trains."""

    def share(self, gap: Gap, clock: Fraction) -> float:
        """Return the share of the model in the average at an update event at `clock`, `gap` after the one before."""

    def course(self, time: float, updates: float) -> Steady | Growing:
        """Return how weights run over events, of which each comes `time` and `updates` after the one before."""

    def share_until(self, clock: float, updates: float, end: float, end_updates: float) -> float:
        """Return the share of an average at clock `end` that comes from models up to an earlier `clock`.

        `updates` and `end_updates` are the numbers of update events due by the two clocks.
        """
