"""What EMA does in a training loop, and what it refuses."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from ema_cli import EMA
from ema_cli.errors import RunError, UsageError
from ema_cli.online import ema as module
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
    clocks, clock, updates = dict(ema.averages.clocks.passed), ema.clock, ema.updates
    with pytest.raises(UsageError, match="the clock goes back"):
        ema.update(batch=4)
    model.add_module("more", nn.Linear(2, 2))
    with pytest.raises(RunError, match=r"'more.weight', 'more.bias' are new, or trained only now"):
        ema.update()
    del model.more
    assert (ema.averages.clocks.passed, ema.clock, ema.updates) == (clocks, clock, updates)
    assert_same(held(ema), before)
    assert ema.update()
    assert ema.averages.clocks.passed != clocks


def test_the_model_is_not_touched_by_an_update():
    """An update reads the model: no tensor of it changes, and none needs a gradient more or less."""
    model, ema = averaged_model()
    before = bits(model)
    flags = [tensor.requires_grad for tensor in model.parameters()]
    ema.update()
    assert_same(bits(model), before)
    assert [tensor.requires_grad for tensor in model.parameters()] == flags
    assert not any(tensor.requires_grad for tensor in held(ema).values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Guards may run slower")  # torch, of Python 3.13.0
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


def test_a_pickled_ema_goes_on():
    """Pickle keeps no views of one memory together: the averages of a copy move all the same."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    ema = EMA(model, half_life="0ba")
    for _ in range(3):
        ema.update()
    again = pickle.loads(pickle.dumps(ema))
    with torch.no_grad():
        for parameter in again.model.parameters():
            parameter.fill_(1.0)
    again.update()
    assert all(bool((average == 1).all()) for average in again.averages.store().averages[0])


def test_a_model_may_change_until_the_average_begins():
    """A state that is taken before holds no model: what is unfrozen later is averaged."""
    model = nn.Linear(3, 3)
    model.bias.requires_grad_(False)
    ema = EMA(model, half_life="5ba", ema_start="3ba")
    ema.update()
    state = ema.state_dict()
    model.bias.requires_grad_(True)
    for _ in range(3):
        ema.update()
    assert set(ema.state_dict()["averages"]["5ba"]) == {"weight", "bias"}
    other = EMA(model, half_life="5ba", ema_start="3ba")
    other.load_state_dict(state)
    assert not other.started


def test_other_models_must_be_the_same_to_be_filled():
    """Tied on one side only, or larger, a model is refused: some of it would keep what it had."""

    class Two(nn.Module):
        def __init__(self, *, tied: bool) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            if tied:
                self.b.weight = self.a.weight

    apart, tied = EMA(Two(tied=False), half_life="5ba"), EMA(Two(tied=True), half_life="5ba")
    for each in (apart, tied):
        each.update()
    with pytest.raises(RunError, match="is tied to"):
        apart.get_ema_model(Two(tied=True))
    filled = tied.get_ema_model(Two(tied=False))
    assert torch.equal(filled.a.weight, filled.b.weight)
    larger = Two(tied=False)
    larger.c = nn.Linear(2, 2)
    with pytest.raises(RunError, match=r"'c\.weight' is in the model that is to hold it"):
        apart.get_ema_model(larger)


def test_an_interrupt_while_weights_are_put_back_does_no_harm(monkeypatch: pytest.MonkeyPatch):
    """They are put back from the beginning, the interrupt goes on, and so does the training."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    ema = EMA(model, half_life="5ba")
    ema.update()
    before = copy.deepcopy(model.state_dict())
    write_back, calls = module.write_back, []

    def interrupted(tensor: torch.Tensor, value: torch.Tensor) -> None:
        calls.append(tensor)
        if len(calls) == 3:
            raise KeyboardInterrupt
        write_back(tensor, value)

    monkeypatch.setattr(module, "write_back", interrupted)
    with pytest.raises(KeyboardInterrupt), ema.applied(), torch.no_grad():
        model[0].weight.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert ema.update()


def test_averages_of_one_name_stay_together_when_half_lives_change():
    """A state of other half-lives is matched by name first, and what is left by order."""
    model = nn.Linear(1, 1, bias=False)
    ema = EMA(model, half_life=("1ba", "100ba"))
    for value in (0.0, 1.0, 1.0):
        with torch.no_grad():
            model.weight.fill_(value)
        ema.update()
    state = ema.state_dict()
    kept = {name: float(each["weight"]) for name, each in state["averages"].items()}
    other = EMA(model, half_life=("100ba", "400ba"))
    other.load_state_dict(state, change_half_life=True)
    found = {name: float(each["weight"]) for name, each in other.state_dict()["averages"].items()}
    assert found == {"100ba": kept["100ba"], "400ba": kept["1ba"]}
