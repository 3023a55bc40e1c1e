"""What a user may say about how checkpoints are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Choice = Literal["raw", "ema"] | None


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """`key`: where in a pickled file the weights are. `weights`: which, where a file holds averages, too."""

    key: str | None = None
    weights: Choice = None
