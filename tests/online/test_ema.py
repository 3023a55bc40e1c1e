"""What EMA does in a training loop, and what it refuses."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from ema_cli import EMA
from ema_cli.errors import RunError, UsageError
from tests.online.models import (
    assert_near,
    assert_same,
    averaged_model,
    bits,
    dense,
    held,
    small_model,
    taken,
    train,
    walk,
)

COUNTER = "1.num_batches_tracked"


def test_several_averages_are_told_apart():
    """With several averages, what needs one must be told which; unknown names are refused with those there are."""
    model, ema = averaged_model(half_life=("0ba", "infba"), update_interval="1ba")
    newest = taken(model)
    with ema.applied("0ba"):
        assert_same(taken(model), newest)
    with ema.applied("infba"), pytest.raises(AssertionError):
        assert_same(taken(model), newest)
    for call in (lambda: ema.applied().__enter__(), ema.get_ema_model, lambda: ema.save("x.safetensors")):
        with pytest.raises(UsageError, match="there are several averages") as raised:
            call()
        assert raised.value.hint == "say which: 0ba, infba"
    with pytest.raises(UsageError, match="there is no average '3ba'"):
        ema.get_ema_model(average="3ba")


def test_before_the_first_copy_there_is_no_average(tmp_path: Path):
    """Before ema_start, what needs an average is refused, and says what to do; a start that never came is the same."""
    model = small_model()
    ema = EMA(model, "5ba", ema_start="100ba")
    for _ in train(model, 3):
        assert not ema.update()
    assert not ema.started
    assert ema.clock is None
    for call in (
        lambda: ema.applied().__enter__(),
        ema.get_ema_model,
        lambda: ema.save(tmp_path / "x.safetensors"),
        lambda: ema.store(tmp_path),
    ):
        with pytest.raises(UsageError, match="there is no average yet") as raised:
            call()
        assert "ema_start" in (raised.value.hint or "")
    assert list(tmp_path.iterdir()) == []


def test_train_with_ema_weights():
    """The averages become the training weights at each update: the model goes on from there."""
    model = small_model()
    ema = EMA(model, "3ba", update_interval="2ba", train_with_ema_weights=True)
    kept = math.exp(-math.log(2) * 2 / 3)
    average = None
    for step in range(1, 9):
        walk(model, step)()
        state = {name: tensor.double() for name, tensor in taken(model).items()}
        event = ema.update()
        assert event == (step == 1 or step % 2 == 0)
        if event:
            average = {
                name: tensor if average is None or name == COUNTER else kept * average[name] + (1 - kept) * tensor
                for name, tensor in state.items()
            }
            assert_near({name: t for name, t in taken(model).items() if name != COUNTER},
                        {name: t for name, t in average.items() if name != COUNTER})  # fmt: skip
        else:
            assert_same({name: t.double() for name, t in taken(model).items()}, state)
    with pytest.raises(UsageError, match="there are several averages to train with"):
        EMA(model, ("1ba", "2ba"), train_with_ema_weights=True)


def test_an_error_in_update_leaves_everything_as_it_was():
    """A clock that goes back, a missing one, a changed model: the error leaves clocks and averages alone."""
    model, ema = averaged_model()
    before = {name: tensor.clone() for name, tensor in held(ema).items()}
    clocks, clock, updates = dict(ema.clocks.passed), ema.clock, ema.updates
    with pytest.raises(UsageError, match="the clock goes back"):
        ema.update(batch=4)
    model.add_module("more", nn.Linear(2, 2))
    with pytest.raises(RunError, match=r"'more.weight', 'more.bias' are new, or trained only now"):
        ema.update()
    del model.more
    assert (ema.clocks.passed, ema.clock, ema.updates) == (clocks, clock, updates)
    assert_same(held(ema), before)
    assert ema.update()
    assert ema.clocks.passed != clocks


def test_the_model_is_not_touched_by_an_update():
    """An update reads the model: no tensor of it changes, and none needs a gradient more or less."""
    model, ema = averaged_model()
    before = bits(model)
    flags = [tensor.requires_grad for tensor in model.parameters()]
    ema.update()
    assert_same(bits(model), before)
    assert [tensor.requires_grad for tensor in model.parameters()] == flags
    assert not any(tensor.requires_grad for tensor in held(ema).values())


def test_torch_compile_is_looked_through():
    """A compiled model is averaged under its own names, however much of it is compiled."""
    model = small_model()
    compiled = torch.compile(model, backend="eager")
    ema = EMA(compiled, "3ba")  # type: ignore[arg-type]
    assert ema.model is model
    models = []
    for _ in train(compiled, 4):  # type: ignore[arg-type]
        ema.update()
        models.append(taken(model))
    assert_near(held(ema), dense(models, 3))
    with torch.no_grad(), ema.applied():
        model.eval()
        expected = copy.deepcopy(model)(torch.ones(2, 8))
        assert torch.equal(compiled(torch.ones(2, 8)), expected)
        model.train()
    assert EMA(nn.DataParallel(compiled)).model is model
    part = nn.Sequential(torch.compile(nn.Linear(2, 2), backend="eager"), nn.Linear(2, 2))
    inner = EMA(part)
    inner.update()
    assert list(held(inner)) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    torch.compiler.reset()
