"""A run that stops and goes on, and states that do not fit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ema_cli import EMA, Time
from ema_cli.errors import RunError
from tests.online.models import (
    assert_near,
    assert_same,
    bits,
    held,
    resumed,
    small_model,
    taken,
    walk,
)

RESUMED: list[dict[str, Any]] = [
    {"half_life": "5ba"},
    {"half_life": "5ba", "update_interval": "3ba"},
    {"half_life": "2ep"},
    {"half_life": ("2ba", "9ba"), "offload": "cpu"},
    {"half_life": "5ba", "offload": "cpu"},
    {"sigma_rel": (0.05, 0.2)},
    {"half_life": ("20%ba", "5%ba"), "ema_start": "7ba"},
    {"smoothing": 0.9, "ema_start": "7ba"},
    {"half_life": "4ba", "train_with_ema_weights": True},
]


@pytest.mark.slow
@pytest.mark.parametrize("asked", RESUMED, ids=str)
@pytest.mark.parametrize("stop", [0, 1, 6, 7, 11])
def test_resume_bit_for_bit(tmp_path: Path, asked: dict[str, Any], stop: int):
    """A run that stops and goes on holds the bits of one that does not, wherever it stops: also before the start."""
    model = small_model()
    ema = EMA(model, **asked)
    interrupted = None
    for step in range(1, 21):
        if step == stop + 1:
            interrupted = resumed(ema, model, lambda again: EMA(again, **asked), str(tmp_path / "state.pt"))
        for each in (model, *([interrupted[0]] if interrupted else [])):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(step)
                with torch.no_grad():
                    for tensor in (*each.parameters(), *each.buffers()):
                        tensor += torch.randn(tensor.shape).to(tensor.dtype)
        ema.update(batch=step, epoch=step / 4)
        if interrupted:
            interrupted[1].update(batch=step, epoch=step / 4)
    assert interrupted is not None
    again, other = interrupted
    assert_same(bits(again), bits(model))
    for name in ema.names:
        assert_same(held(other, name), held(ema, name))
    assert (other.clock, other.updates, other.averages.began) == (ema.clock, ema.updates, ema.averages.began)
    if ema.averages.first is None:
        assert other.averages.first is None
    else:
        assert other.averages.first is not None
        assert_same(other.averages.first, ema.averages.first)


def test_the_first_copy_outlives_a_stop(tmp_path: Path):
    """Stopped between the first copy and the first store, a run still stores the copy; after that it has none."""
    model = small_model().to(torch.bfloat16)
    move = walk(model)
    make = lambda again: EMA(again, ("2ba", "5ba"))  # noqa: E731
    ema = make(model)
    move()
    ema.update()
    first = taken(model)
    move()
    ema.update()
    again, other = resumed(ema, model, make, str(tmp_path / "state.pt"))
    other.store(tmp_path / "stored")
    found = load_file(tmp_path / "stored" / "first.safetensors")
    assert_same(found, {name: t.float() if t.is_floating_point() else t for name, t in first.items()})
    assert other.averages.first is None
    assert other.state_dict()["first"] is None
    _, third = resumed(other, again, make, str(tmp_path / "state.pt"))
    assert third.averages.first is None


@pytest.mark.parametrize("offload", [None, "cpu"])
def test_a_state_replaces_an_update_under_way(offload: Any):
    """Loaded in the middle of a training, also with offload, a state brings back all that was: masks in it, too."""
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    ema = EMA(model, "3ba", offload=offload)
    ema.update()
    state, before = copy.deepcopy(ema.state_dict()), taken(model)
    other = EMA(model, "3ba", offload=offload)
    with torch.no_grad():
        model.mask.zero_()
    for step in range(3):
        walk(model, step)()
        other.update()
    other.load_state_dict(state)
    model.load_state_dict(before)
    assert_same(held(other), before)
    for _ in range(2):
        other.update()
        assert_same(held(other), before)
    assert (other.clock, other.updates) == (Time.parse("3ba"), 2)


def test_another_half_life_is_refused():
    """A state of another half-life, interval, start or law does not load, and says of which it is."""
    ema = EMA(nn.Linear(2, 2), "50ba")
    ema.update()
    state = ema.state_dict()
    others: list[dict[str, Any]] = [
        {"half_life": "51ba"},
        {"half_life": "50ba", "update_interval": "2ba"},
        {"half_life": "50ba", "ema_start": "5ba"},
        {"smoothing": 0.9},
        {"sigma_rel": 0.1},
    ]
    for asked in others:
        other = EMA(nn.Linear(2, 2), **asked)
        with pytest.raises(RunError, match="the state is of 50ba every 1ba from 0ba, but this average is of") as raised:
            other.load_state_dict(state)
        assert "change_half_life=True" in (raised.value.hint or "")
        other.load_state_dict(state, change_half_life=True)
        assert_same(held(other), held(ema))
        assert other.update() is ("ema_start" not in asked)
    with pytest.raises(RunError, match="counts in batches, but this average in epochs"):
        EMA(nn.Linear(2, 2), "50ep").load_state_dict(state, change_half_life=True)
    with pytest.raises(RunError, match="holds 1 averages, but 2 are asked for"):
        EMA(nn.Linear(2, 2), ("50ba", "5ba")).load_state_dict(state, change_half_life=True)


def test_a_changed_half_life_goes_on_from_the_average():
    """With change_half_life the average stays, and moves on by the new law."""
    model = nn.Linear(2, 2)
    ema = EMA(model, "50ba")
    ema.update()
    other = EMA(model, "1ba")
    other.load_state_dict(ema.state_dict(), change_half_life=True)
    before = taken(model)
    walk(model)()
    other.update()
    expected = {name: (before[name].double() + tensor.double()) / 2 for name, tensor in taken(model).items()}
    assert_near(held(other), expected)


def test_a_state_that_does_not_fit_changes_nothing():
    """Where one tensor of a state does not fit, it is named, and the averages stay what they were."""
    ema = EMA(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3)))
    ema.update()
    before = {name: tensor.clone() for name, tensor in held(ema).items()}
    other = EMA(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 4)))
    other.update()
    with pytest.raises(RunError, match=r"'1.weight' is \[4, 2\] in the state, but \[3, 2\] in the model"):
        ema.load_state_dict(other.state_dict())
    third = EMA(nn.Linear(2, 2))
    third.update()
    with pytest.raises(RunError, match=r"the state of 1000ba does not fit: '0.bias' is in the model, not in the state"):
        ema.load_state_dict(third.state_dict())
    with pytest.raises(RunError, match="this is no state of an EMA"):
        ema.load_state_dict({"averages": {}})
    assert_same(held(ema), before)


@pytest.mark.parametrize("state", [None, [], 3, "state", {}, {"version": None}, {"version": 10**9}])
def test_what_is_no_state_changes_nothing(state: Any):
    """Whatever a checkpoint holds in its place, the error says so."""
    ema = EMA(torch.nn.Linear(2, 2), half_life="5ba")
    ema.update()
    before = ema.state_dict()
    with pytest.raises(RunError, match="no state of an EMA"):
        ema.load_state_dict(state)
    assert ema.state_dict()["updates"] == before["updates"]
