"""compute_ema: one step of the law, on a model that the caller keeps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ema_cli import compute_ema
from ema_cli.errors import RunError, UsageError
from tests.online.models import EveryKind, assert_near, assert_same, small_model, taken, walk


@pytest.mark.parametrize("smoothing", [0.0, 0.5, 0.99, 1.0])
def test_one_update_is_the_recurrence_and_counters_are_the_model_s(smoothing: float):
    """ema = smoothing * ema + (1 - smoothing) * model, for parameters and buffers; counters are the model's."""
    model, average = small_model(1), small_model(2)
    walk(model)()
    before = taken(average)
    compute_ema(model, average, smoothing=smoothing)
    expected = {
        name: smoothing * before[name].double() + (1 - smoothing) * tensor.double()
        if tensor.is_floating_point()
        else tensor
        for name, tensor in taken(model).items()
    }
    assert_near(taken(average), expected, updates=2)


def test_the_default_is_composers():
    """smoothing is 0.99 by default."""
    model, average = nn.Linear(2, 2), nn.Linear(2, 2)
    expected = 0.99 * average.weight.detach().double() + 0.01 * model.weight.detach().double()
    assert compute_ema(model, average) is None
    torch.testing.assert_close(average.weight.detach().double(), expected, rtol=0, atol=1e-7)


@pytest.mark.slow
def test_a_float32_average_of_a_bfloat16_model_moves():
    """5,000 steps of 1e-3 from 1.0 toward bfloat16's 1.05 come to 1.0466, where the average is kept in float32."""
    model = nn.Linear(1, 1, bias=False).bfloat16()
    nn.init.constant_(model.weight, 1.05)
    average = nn.Linear(1, 1, bias=False)
    nn.init.constant_(average.weight, 1.0)
    for _ in range(5000):
        compute_ema(model, average, smoothing=0.999)
    assert average.weight.item() == pytest.approx(1.0466, abs=1e-4)


def test_a_narrow_average_is_rounded_once():
    """An average in bfloat16 is the sum in float32, rounded once: half a last place from the exact one, and a bit."""
    model, average = (nn.Linear(64, 64).bfloat16() for _ in range(2))
    before = taken(average)
    compute_ema(model, average, smoothing=0.7)
    for name, tensor in taken(model).items():
        expected = 0.7 * before[name].double() + 0.3 * tensor.double()
        torch.testing.assert_close(taken(average)[name].double(), expected, rtol=2**-8 + 2**-20, atol=1e-7)


def test_every_kind_of_tensor():
    """Tied, frozen, complex, strided and masked tensors, in a copy whose parameters need no gradient."""
    model = EveryKind()
    average = copy.deepcopy(model).requires_grad_(False)
    before = taken(average)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if not name.startswith("frozen"):
                tensor += 1
    compute_ema(model, average, smoothing=0.5)
    for name, tensor in taken(average).items():
        if name.startswith(("frozen", "mask", "steps", "flags", "shown")):
            assert torch.equal(tensor, before[name]), name
        else:
            torch.testing.assert_close(tensor, before[name] + 0.5, msg=name)


def test_an_untied_average_of_a_tied_model():
    """Where only the model ties two tensors, the average has both of them moved."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    average = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    compute_ema(model, average, smoothing=0.0)
    assert torch.equal(average[1].weight, model[0].weight)


def test_another_shape_and_a_smoothing_outside_0_to_1_are_refused():
    """Another shape, and a smoothing outside of [0, 1], are errors, and nothing has moved."""
    average = small_model(2)
    before = taken(average)
    model = small_model(1)
    model[3] = nn.Linear(16, 5)
    with pytest.raises(RunError, match=r"'3.weight' is \[4, 16\], but \[5, 16\] in the model"):
        compute_ema(model, average)
    for smoothing in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match=r"is not in \[0, 1\]"):
            compute_ema(model, average, smoothing=smoothing)
    assert_same(taken(average), before)
