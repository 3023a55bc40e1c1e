"""A training that stores averages, and the average over all of its steps in float64."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ema_cli import EMA

STEPS = 400


class Wanderer:
    """A model whose weights drift and shake, as those of a training do; the same ones each time."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(1)
        self.drift = torch.randn(64, generator=generator)
        self.shaking = torch.zeros(64)
        self.generator = generator
        self.model = torch.nn.Linear(8, 8, bias=False, dtype=dtype)
        self.step = 0

    def __call__(self) -> None:
        """Take one step."""
        self.step += 1
        self.shaking = self.shaking * 0.95 + torch.randn(64, generator=self.generator) * 0.3
        with torch.no_grad():
            self.model.weight.copy_((self.drift * (self.step / STEPS) ** 0.5 * 3 + self.shaking).reshape(8, 8))


def train(
    folder: Path,
    half_life: Any = ("25ba", "100ba"),
    at: Sequence[int] = range(50, STEPS + 1, 50),
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> list[np.ndarray]:
    """Train for `STEPS` batches, storing averages at some of them; return the weights at each step, in float64."""
    wanderer = Wanderer(dtype)
    ema = EMA(wanderer.model, half_life=half_life, **options)
    seen = []
    for step in range(1, STEPS + 1):
        wanderer()
        ema.update()
        seen.append(wanderer.model.weight.detach().double().numpy().copy())
        if step in at:
            ema.store(folder)
    return seen


POWER = {"profile": "power", "sigma_rel": 0.2}
