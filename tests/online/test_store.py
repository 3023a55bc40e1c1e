"""Where the averages lie: beside the model, or on the host with the update under way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ema_cli import EMA
from ema_cli.online.store import Store
from ema_cli.online.tracked import Tracked
from tests.online.models import assert_same, bits, held, small_model, taken, train, walk


def test_offload_gives_the_same_bits():
    """Averages on the host, moved one update later, are those beside the model, whenever they are looked at."""
    model = small_model()
    near, far = EMA(model, ("3ba", "20ba")), EMA(model, ("3ba", "20ba"), offload="cpu")
    for step in train(model, 12):
        near.update()
        far.update()
        if step % 3 == 0:
            for name in near.names:
                assert_same(held(far, name), held(near, name))
    with near.applied("3ba"):
        average = bits(model)
    with far.applied("3ba"):
        assert_same(bits(model), average)


def test_an_update_is_finished_when_it_is_needed():
    """With offload, an update stages the model; the averages move with the next one, or when they are settled."""
    model = nn.Linear(3, 2)
    store = Store(Tracked(model), 1, "cpu")
    before = [average.clone() for average in store.averages[0]]
    walk(model)()
    store.move([0.5])
    assert all(torch.equal(now, then) for now, then in zip(store.averages[0], before, strict=True))
    values = [tensor.detach().clone() for tensor in model.parameters()]
    walk(model, 9)()  # the model goes on; what was staged does not
    store.settle()
    for now, then, value in zip(store.averages[0], before, values, strict=True):
        torch.testing.assert_close(now, (then + value) / 2)
    after = [average.clone() for average in store.averages[0]]
    store.settle()
    assert all(torch.equal(now, then) for now, then in zip(store.averages[0], after, strict=True))


@pytest.mark.parametrize("offload", [None, "cpu"])
def test_averages_are_in_float32_at_least(offload: Any):
    """Of a model in 16 bits the averages are float32, of one in float64 float64; counters keep their type."""
    for dtype, wide in (
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        ema = EMA(small_model().to(dtype), offload=offload)
        ema.update()
        found = held(ema)
        assert found.pop("1.num_batches_tracked").dtype == torch.int64
        assert {tensor.dtype for tensor in found.values()} == {wide}


def test_a_model_without_tensors():
    """Nothing to average is nothing, not an error."""
    ema = EMA(nn.Sequential(nn.ReLU()))
    assert [ema.update() for _ in range(3)] == [True] * 3
    with ema.applied():
        assert held(ema) == {}


def test_other_models_are_filled_whole():
    """`fill` leaves no tensor of another model as it was."""
    model = small_model()
    model[0].requires_grad_(False)
    store = Store(Tracked(model), 1, None)
    other = small_model(4)
    with torch.no_grad():
        assert store.fill(other, store.live()) is other
    assert_same(taken(other), taken(model))


def test_parameters_whose_memory_is_exchanged_are_averaged_on():
    """Parameters whose memory is exchanged, or laid out otherwise, are averaged as what they are now."""
    model = nn.Conv2d(4, 8, 3, bias=True)
    ema = EMA(model, half_life="1ba")
    expected = {}

    def step(change: Any) -> None:
        with torch.no_grad():
            for number, (name, parameter) in enumerate(model.named_parameters()):
                change(parameter, number)
                value = parameter.detach().double()
                expected[name] = value if name not in expected else (expected[name] + value) / 2
        ema.update()

    def shake(parameter: nn.Parameter, number: int) -> None:
        parameter.add_(number + 1.0)

    def exchange(parameter: nn.Parameter, number: int) -> None:
        parameter.data = torch.randn_like(parameter)

    def transpose(parameter: nn.Parameter, number: int) -> None:
        if parameter.dim() == 4:
            parameter.data = torch.randn_like(parameter).to(memory_format=torch.channels_last)

    for change in (shake, shake, exchange, shake, transpose, shake, exchange, shake):
        step(change)
    with ema.applied():
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.double(), expected[name], rtol=0, atol=1e-5)
