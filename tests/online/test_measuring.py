"""The sizes that are written beside stored averages: against sums in float64."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from ema_cli import EMA
from tests.online.models import held, small_model, taken, walk


def written(path: Path) -> tuple[float, float]:
    """Return the norm and the spread that a stored average says."""
    with safe_open(path, framework="pt") as file:
        stored = json.loads(file.metadata()["ema_cli"])["stored"]
    return float(stored["norm"]), float(stored["spread"])


@pytest.mark.parametrize("offload", [None, "cpu"])
@pytest.mark.parametrize("inside", [False, True])
def test_norm_and_spread_are_those_of_the_average(offload: str | None, inside: bool, tmp_path: Path):
    """Over all averaged tensors, buffers too; inside `applied` the spread is from the weights that train."""
    model = small_model()
    ema = EMA(model, ("3ba", "9ba"), offload=offload)  # type: ignore[arg-type]
    for step in range(5):
        walk(model, step)()
        ema.update()
    live = {name: tensor.double() for name, tensor in taken(model).items()}
    if inside:
        with ema.applied("3ba"):
            folder = ema.store(tmp_path)
    else:
        folder = ema.store(tmp_path)
    for name in ema.names:
        average = {key: value.double() for key, value in held(ema, name).items() if value.is_floating_point()}
        norm = math.sqrt(sum(float(value.square().sum()) for value in average.values()))
        spread = math.sqrt(sum(float((live[key] - value).square().sum()) for key, value in average.items()))
        assert written(folder / f"{name}.safetensors") == pytest.approx((norm, spread), rel=1e-4)


def test_infinities_of_a_mask_do_not_count(tmp_path: Path):
    """A mask of infinities has no norm; it does not spoil that of the rest."""
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    ema = EMA(model, "3ba")
    ema.update()
    norm, spread = written(ema.store(tmp_path) / "3ba.safetensors")
    expected = math.sqrt(sum(float(each.detach().double().square().sum()) for each in model.parameters()))
    assert norm == pytest.approx(expected, rel=1e-5)
    assert spread == 0
