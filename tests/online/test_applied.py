"""The averages in a model: for a while, with all that was there given back, or for good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ema_cli import EMA
from ema_cli.errors import RunError, UsageError
from tests.online.models import (
    assert_same,
    averaged_model,
    bits,
    held,
    small_model,
    taken,
    train,
    walk,
)


@pytest.mark.parametrize("offload", [None, "cpu"])
def test_applied_holds_the_averages_and_gives_the_bits_back(offload: Any):
    """Inside, the model is the average; afterwards it is what it was, bit for bit, in the same tensors."""
    model, ema = averaged_model(half_life="3ba", offload=offload)
    with torch.no_grad():
        model[0].bias[:2] = torch.tensor([float("nan"), -0.0])
    before, tensors = bits(model), list(model.parameters())
    with ema.applied() as inside:
        assert inside is model
        assert_same(taken(model), held(ema))
    assert_same(bits(model), before)
    assert all(now is then for now, then in zip(model.parameters(), tensors, strict=True))


def test_applied_gives_back_after_an_error():
    """Whatever the block raises comes out of it, and the model is what it was."""
    model, ema = averaged_model()
    before = bits(model)
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), ema.applied():
            raise error
        assert_same(bits(model), before)
    assert ema.update()


def spoil(model: nn.Sequential) -> None:
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.fill_(7)


def assign(model: nn.Sequential) -> None:
    model.load_state_dict({name: torch.ones_like(t) for name, t in model.state_dict().items()}, assign=True)


def replace_buffer(model: nn.Sequential) -> None:
    model[1].running_mean = torch.ones(16)


def halve(model: nn.Sequential) -> None:
    model.half()


def forward(model: nn.Sequential) -> None:
    model.train()(torch.ones(4, 8))


@pytest.mark.parametrize("action", [spoil, assign, replace_buffer, halve, forward])
def test_applied_gives_back_what_the_block_changed(action: Any):
    """Values, tensors and types that the block puts in place of the averages are gone after it; averages stay."""
    model, ema = averaged_model()
    before, average, tensors = bits(model), held(ema), list(model.parameters())
    average = {name: tensor.clone() for name, tensor in average.items()}
    with ema.applied():
        action(model)
    assert_same(bits(model), before)
    assert all(now is then for now, then in zip(model.parameters(), tensors, strict=True))
    assert_same(held(ema), average)
    for _ in train(model, 1):
        assert ema.update()


def test_applied_twice_is_refused(tmp_path: Path):
    """Inside `applied`, another one, an update and a load are errors; nothing is changed by them."""
    model, ema = averaged_model()
    before, clock, state = bits(model), ema.clock, ema.state_dict()
    with ema.applied():
        average = bits(model)
        with pytest.raises(UsageError, match="the averages are applied already"), ema.applied():
            pass
        with pytest.raises(UsageError, match="update: the averages are applied"):
            ema.update()
        with pytest.raises(UsageError, match="load_state_dict: the averages are applied"):
            ema.load_state_dict(state)
        with pytest.raises(UsageError, match="get_ema_model: the averages are applied already"):
            ema.get_ema_model()
        assert_same(bits(model), average)
    assert_same(bits(model), before)
    assert ema.clock == clock


def test_saving_inside_applied_gives_the_averages(tmp_path: Path):
    """save, store and state_dict inside `applied` write what they write outside of it, whatever the block does."""
    model, ema = averaged_model(half_life="3ba", keep_first=False)
    ema.save(tmp_path / "outside.safetensors")
    outside = ema.store(tmp_path / "a") / "3ba.safetensors"
    state = {name: tensor.clone() for name, tensor in held(ema).items()}
    with ema.applied():
        spoil(model)
        replace_buffer(model)
        ema.save(tmp_path / "inside.safetensors")
        inside = ema.store(tmp_path / "b") / "3ba.safetensors"
        assert_same(held(ema), state)
    assert (tmp_path / "inside.safetensors").read_bytes() == (tmp_path / "outside.safetensors").read_bytes()
    assert inside.read_bytes() == outside.read_bytes()


@pytest.mark.parametrize("offload", [None, "cpu"])
def test_inference_mode_leaves_no_mark(offload: Any):
    """Whatever is asked under inference_mode, as Lightning validates, the training goes on with the same bits."""
    model = small_model().to(torch.bfloat16)
    ema, other = EMA(model, "3ba", offload=offload), EMA(model, "3ba", offload=offload)
    with torch.inference_mode():
        ema.state_dict()
    for step in range(4):
        walk(model, step)()
        ema.update()
        other.update()
        with torch.inference_mode(), ema.applied():
            model(torch.ones(2, 8, dtype=torch.bfloat16))
        assert not any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers()))
    assert_same(held(ema), held(other))
    model(torch.ones(4, 8, dtype=torch.bfloat16)).sum().backward()


def test_get_ema_model_and_get_training_model():
    """As in Composer: the averages, or inside `applied` the training weights, in a model that is given or in ours."""
    model, ema = averaged_model()
    average, training = held(ema), taken(model)
    other = small_model(8).double()
    assert ema.get_ema_model(other) is other
    assert_same({name: tensor.to(average[name].dtype) for name, tensor in taken(other).items()}, average)
    with pytest.raises(UsageError, match="no averages are applied"):
        ema.get_training_model(other)
    with ema.applied():
        assert ema.get_training_model(other) is other
        assert_same({name: tensor.to(training[name].dtype) for name, tensor in taken(other).items()}, training)
        ema.get_ema_model(other)
        assert_same({name: tensor.to(average[name].dtype) for name, tensor in taken(other).items()}, average)
    assert_same(taken(model), training)
    assert ema.get_ema_model() is model
    assert_same(taken(model), average)
    with pytest.raises(RunError, match=r"'0.weight' is \[16, 8\], but missing in the model that is to hold it"):
        ema.get_ema_model(nn.Linear(2, 2))


def test_get_ema_model_gives_frozen_parameters_too():
    """A model made from nothing becomes the average in every tensor, the frozen ones too."""
    model = small_model()
    model[3].requires_grad_(False)
    ema = EMA(model)
    for _ in train(model, 2):
        ema.update()
    other = ema.get_ema_model(small_model(8))
    assert torch.equal(other[3].weight, model[3].weight)  # type: ignore[index]
