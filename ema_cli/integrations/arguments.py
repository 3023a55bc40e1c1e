"""The arguments that every adapter takes, checked once and kept until there is a model. Imports no trainer."""

from __future__ import annotations

from dataclasses import field

from torch import nn

from ema_cli.dataclass import dataclass
from ema_cli.law.time import Time, Unit
from ema_cli.online.ema import EMA
from ema_cli.online.store import Offload
from ema_cli.online.tracks import Numbers, Times, Tracks, parse_tracks


@dataclass(frozen=True, slots=True, kw_only=True)
class EMAArguments:
    """The arguments of an `EMA` without its model. `tracks`: the averages that they describe.

    Raises:
        UsageError: for values or combinations that make no sense.
    """

    half_life: Times | None
    smoothing: Numbers | None
    ema_start: str | Time
    update_interval: str | Time | None
    train_with_ema_weights: bool
    offload: Offload
    sigma_rel: Numbers | None = None
    keep_first: bool | None = None
    tracks: Tracks = field(init=False)

    def __post_init__(self) -> None:
        tracks = parse_tracks(self.half_life, self.smoothing, self.ema_start, self.update_interval, self.sigma_rel)
        object.__setattr__(self, "tracks", tracks)

    @property
    def several(self) -> bool:
        """Return whether there are several averages."""
        return len(self.tracks.laws) > 1

    @property
    def units(self) -> set[Unit]:
        """Return the units of the clocks that the averages need."""
        return {self.tracks.unit, self.tracks.start.unit} if self.tracks.start.value else {self.tracks.unit}

    def make(self, model: nn.Module) -> EMA:
        """Return the averages of `model`, which have not begun."""
        return EMA(
            model,
            half_life=self.half_life,
            smoothing=self.smoothing,
            ema_start=self.ema_start,
            update_interval=self.update_interval,
            train_with_ema_weights=self.train_with_ema_weights,
            sigma_rel=self.sigma_rel,
            offload=self.offload,
            keep_first=self.keep_first,
        )
