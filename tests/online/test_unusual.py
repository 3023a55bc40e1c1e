"""Models that do something unusual while they are averaged: each works, or is one error that changes nothing."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ema_cli import EMA
from ema_cli.errors import RunError
from tests.online.models import assert_near, assert_same, held, small_model, taken, walk


class Rotary(nn.Module):
    """A model with a cache of its own that grows with the longest input, and is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))
        self.longest = 2
        self.register_buffer("cache", torch.arange(2.0), persistent=False)

    def forward(self, length: int) -> Tensor:
        """Use the cache, and make it longer if need be."""
        if length > self.longest:
            self.longest = length
            self.register_buffer("cache", torch.arange(float(length)), persistent=False)
        return self.cache[:length] * self.weight.sum()


def train(model: nn.Module, ema: EMA, steps: int) -> list[Tensor]:
    """Train; return the weights at each step, in float64."""
    seen = []
    for _ in range(steps):
        with torch.no_grad():
            model.weight += torch.randn(4)  # type: ignore[operator]
        ema.update()
        seen.append(model.weight.detach().double().clone())  # type: ignore[operator]
    return seen


def dense(seen: list[Tensor], half_life: float) -> Tensor:
    """Return the average in float64."""
    kept, found = 2 ** (-1 / half_life), seen[0]
    for each in seen[1:]:
        found = kept * found + (1 - kept) * each
    return found


@pytest.mark.parametrize("offload", [None, "cpu"])
@pytest.mark.parametrize("keep_first", [True, False])
def test_a_cache_that_grows_is_left_to_the_model(offload: Any, keep_first: bool) -> None:
    """A buffer that is not saved may become another; the average goes on, and so does its state."""
    model = Rotary()
    ema = EMA(model, "3ba", offload=offload, keep_first=keep_first)
    seen = train(model, ema, 4)
    model(9)
    seen += train(model, ema, 4)
    torch.testing.assert_close(held(ema)["weight"].double(), dense(seen, 3), rtol=1e-5, atol=1e-6)
    with ema.applied():
        assert model(12).shape == (12,)  # it grows inside, too
    assert model(12).shape == (12,)
    seen += train(model, ema, 2)
    expected = dense(seen, 3)
    torch.testing.assert_close(held(ema)["weight"].double(), expected, rtol=1e-5, atol=1e-6)
    for other in (Rotary(), Rotary()):
        again = EMA(other, "3ba", offload=offload, keep_first=keep_first)
        again.load_state_dict(copy.deepcopy(ema.state_dict()))
        other(5)
        again.update()
        assert again.updates == ema.updates + 1


def test_a_state_from_before_a_cache_grew_goes_on() -> None:
    """The cache is in the state, and another in the model: neither counts."""
    model = Rotary()
    ema = EMA(model, "3ba")
    train(model, ema, 3)
    state = copy.deepcopy(ema.state_dict())
    before = held(ema)["weight"].clone()
    model(7)
    train(model, ema, 2)
    ema.load_state_dict(state)
    assert torch.equal(held(ema)["weight"], before)
    other = Rotary()
    other(7)
    again = EMA(other, "3ba")
    again.load_state_dict(state)
    assert torch.equal(held(again)["weight"], before)


def test_a_saved_buffer_that_grows_is_an_error() -> None:
    """What is saved with the model is a part of it."""
    model = small_model()
    model.register_buffer("table", torch.zeros(3))
    ema = EMA(model, "3ba")
    ema.update()
    model.register_buffer("table", torch.zeros(4))
    with pytest.raises(RunError, match=r"'table' is torch\.float32"):
        ema.update()


def test_buffers_made_in_inference_mode() -> None:
    """A cache or a mask that was made while the model was evaluated is averaged, applied and given back."""
    model = small_model()
    with torch.inference_mode():
        model.register_buffer("mask", torch.tensor([0.0, 2.0]))
    ema = EMA(model, "3ba")
    models = []
    for step in range(4):
        walk(nn.ParameterList(model.parameters()), step)()
        with torch.inference_mode():
            model.mask += step
        ema.update()
        models.append(taken(model))
    kept, mask = 2 ** (-1 / 3), models[0]["mask"].double()
    for each in models[1:]:
        mask = kept * mask + (1 - kept) * each["mask"].double()
    with ema.applied():
        torch.testing.assert_close(model.mask.double(), mask, rtol=1e-6, atol=1e-6)
    assert_same({"mask": model.mask}, {"mask": models[-1]["mask"]})
    again = EMA(model, "3ba")
    again.load_state_dict(ema.state_dict())
    assert_same(held(again), held(ema))


@pytest.mark.parametrize("call", [lambda ema: ema.update(), lambda ema: ema.state_dict()], ids=["update", "state"])
def test_a_model_on_meta_is_an_error_until_it_has_weights(call: Callable[[EMA], object]) -> None:
    """Tensors without data cannot be averaged; once the model has some, they are, from the first update on."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 2))
    ema = EMA(model, "3ba")
    with pytest.raises(RunError, match=r"'0\.weight' has no data yet"):
        call(ema)
    assert not ema.started
    assert ema.clock is None
    model.to_empty(device="cpu")
    model.load_state_dict(nn.Sequential(nn.Linear(2, 2)).state_dict())
    assert ema.update()
    assert str(ema.clock) == "1ba"
    assert_same(held(ema), taken(model))


@pytest.mark.parametrize("half_life", ["0.5ba", "1ba", "20ba"])
@pytest.mark.parametrize("infinity", [float("inf"), float("-inf")])
@pytest.mark.parametrize("offload", [None, "cpu"])
def test_a_buffer_that_turns_to_infinity(half_life: str, infinity: float, offload: Any) -> None:
    """A mask that is filled only after some updates is infinite in the average from then on, and never NaN."""
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.zeros(3))
    model.register_buffer("other", torch.ones(2))
    ema = EMA(model, half_life, offload=offload)
    ema.update()
    for _ in range(5):
        ema.update()
        model.mask[1:] = infinity
    for _ in range(5):
        ema.update()
    with ema.applied():
        assert model.mask.tolist() == [0.0, infinity, infinity]
        assert model.other.tolist() == [1.0, 1.0]
    assert model.mask.tolist() == [0.0, infinity, infinity]


NAMES = ["averages", "copied", "first", "laws", "unit", "clocks", "previous", "began", "updates", "mixed"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", ["missing", "wrong", None, -1, {"x": 1}], ids=str)
def test_a_state_that_is_not_whole_changes_nothing(name: str, value: Any) -> None:
    """Without one of its parts, or with something else there, a state is refused, and nothing is loaded."""
    model = small_model()
    ema = EMA(model, ("2ba", "9ba"))
    for step in range(3):
        walk(model, step)()
        ema.update()
    state = copy.deepcopy(ema.state_dict())
    walk(model, 9)()
    ema.update()
    before = {each: {key: part.clone() for key, part in held(ema, each).items()} for each in ema.names}
    known = (ema.clock, ema.updates, ema.averages.began, ema.averages.lineage)
    if value == "missing":
        del state[name]
    else:
        state[name] = value
    if (name, value) == ("first", None):  # as with keep_first=False
        ema.load_state_dict(state)
        return
    with pytest.raises(RunError, match=r"the state is damaged|is not whole|the state counts in|the state is of"):
        ema.load_state_dict(state)
    for each in ema.names:
        assert_same(held(ema, each), before[each])
    assert (ema.clock, ema.updates, ema.averages.began, ema.averages.lineage) == known
    walk(model, 10)()
    ema.update()


def copied(ema: EMA) -> EMA:
    """Return a deep copy."""
    return copy.deepcopy(ema)


def pickled(ema: EMA) -> EMA:
    """Return a copy through a file, as torch.save makes it."""
    file = io.BytesIO()
    torch.save(ema, file)
    file.seek(0)
    loaded: EMA = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize("copy_of", [copied, pickled])
@pytest.mark.parametrize("offload", [None, "cpu"])
def test_a_copy_made_inside_applied_goes_on(copy_of: Callable[[EMA], EMA], offload: Any) -> None:
    """The copy has the training weights in a model of its own, and goes on as the one that was copied."""
    model = small_model()
    ema = EMA(model, "3ba", offload=offload)
    for step in range(4):
        walk(model, step)()
        ema.update()
    trained = taken(model)
    with ema.applied():
        other = copy_of(ema)
        assert other.model is not model
        assert_same(taken(other.model), trained)
        applied = taken(model)
        other.update()
        assert_same(taken(model), applied)
    assert_same(taken(model), trained)
    ema.update()
    assert_near({name: part.double() for name, part in held(other).items()}, held(ema))
    with other.applied():
        pass
    assert_same(taken(other.model), trained)
