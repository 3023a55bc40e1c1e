"""The law and the update events of a live average, as data in the files that `EMA.store` writes. No torch, no numpy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ema_cli.dataclass import dataclass
from ema_cli.law.law import LiveLaw
from ema_cli.law.laws import make_law
from ema_cli.law.power import Power
from ema_cli.law.relative import RelativeHalfLife
from ema_cli.law.time import EVERY, Time, interval_text, parse_interval

NEAR, NEAR_ENOUGH = 0.01, 0.05
"""Relative errors of a profile that is made of stored averages; one above the second is not taken unasked."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a live average is updated: every `interval`, None for each update, and from `start` on, None from the first.

    The averages of one training have one schedule.
    """

    interval: Time | None
    start: Time | None

    def to_dict(self) -> dict[str, str]:
        """Return the schedule as a file of a stored average has it."""
        data = {"update_interval": interval_text(self.interval)}
        return data if self.start is None else {**data, "start": str(self.start)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Schedule:
        """Read a schedule from such a file.

        Raises:
            LookupError, UsageError: where the data are no schedule.
        """
        interval = parse_interval(str(data["update_interval"]))
        return cls(None if interval is EVERY else interval, Time.parse(str(data["start"])) if "start" in data else None)


def live_law_to_dict(law: LiveLaw) -> dict[str, str]:
    """Return a law as text: numbers with all their digits. The power profile is known by its width."""
    data = law.to_dict()
    return {name: value if isinstance(value, str) else repr(value) for name, value in data.items() if name != "profile"}


def live_law_from_dict(data: Mapping[str, Any]) -> LiveLaw:
    """Read what `live_law_to_dict` returned; where a schedule's `start` is there, the average begins at that.

    Raises:
        UsageError, ValueError: where the data are no such law.
    """
    smoothing, sigma_rel = data.get("smoothing"), data.get("sigma_rel")
    law = make_law(
        half_life=data.get("half_life"),
        smoothing=None if smoothing is None else float(smoothing),
        profile=None if sigma_rel is None else Power.profile,
        sigma_rel=None if sigma_rel is None else float(sigma_rel),
    )
    if isinstance(law, RelativeHalfLife) and "start" in data:
        law = law.begun_at(Time.parse(str(data["start"])))
    if not isinstance(law, LiveLaw):
        raise ValueError(f"{law.name} is no law of a live average")
    return law
