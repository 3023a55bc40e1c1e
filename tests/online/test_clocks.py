"""Training time as the loop tells it: exact, never back, and known in the unit that counts."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ema_cli import EMA, Time, Unit
from ema_cli.errors import UsageError
from ema_cli.online.clocks import Clocks


def told(clocks: Clocks, **counts: Any) -> Clocks:
    return clocks.advanced({Unit.BATCH: counts.get("batch"), Unit.EPOCH: counts.get("epoch")})


def test_decimals_are_what_they_say():
    """0.3 epochs are three times 0.1, though the nearest binary fractions are not."""
    ema = EMA(nn.Linear(2, 2), "1ep", update_interval="0.1ep")
    events = [ema.update(epoch=tenth / 10) for tenth in range(1, 13)]
    assert events == [True] * 12
    assert ema.averages.clocks.passed == {Unit.EPOCH: Fraction(12, 10)}
    assert 0.1 * 3 > 0.3


@pytest.mark.parametrize(
    "three",
    [3, 3.0, Fraction(3), np.int64(3), np.float32(3), np.float64(3), np.uint8(3), np.array(3), torch.tensor(3)],
    ids=lambda n: type(n),
)
def test_any_number_is_a_count(three: Any):
    """Counts come as integers, floats and fractions, Python's, numpy's or torch's."""
    passed = told(Clocks(), batch=three).passed[Unit.BATCH]
    assert passed == 3
    assert type(passed.numerator) is int


@pytest.mark.parametrize("wrong", [-1, -0.5, float("nan"), float("inf"), "3", Decimal(3), [3], np.float64("nan")])
def test_a_clock_that_is_no_count_is_refused_with_the_argument(wrong: Any):
    """Negative, endless and undefined numbers, and what is no number, are errors that show the argument."""
    with pytest.raises(UsageError, match=r"update\(epoch=.*\): is no count of epochs"):
        told(Clocks(), epoch=wrong)


def test_without_a_word_a_batch_passes():
    """What is told stays until it is told again; where nothing is told, one more batch has passed."""
    clocks = told(told(Clocks()), epoch=0.5)
    assert clocks.passed == {Unit.BATCH: 1, Unit.EPOCH: Fraction(1, 2)}
    assert told(clocks).passed == {Unit.BATCH: 2, Unit.EPOCH: Fraction(1, 2)}


def test_clocks_do_not_go_back():
    """A clock that goes back is refused, one that stands still is not."""
    clocks = told(Clocks(), batch=5, epoch=1.5)
    assert told(clocks, batch=5).passed == clocks.passed
    with pytest.raises(UsageError, match=r"update\(batch=4\): the clock goes back, from 5"):
        told(clocks, batch=4)
    with pytest.raises(UsageError, match=r"update\(epoch=1.25\): the clock goes back, from 1.5"):
        told(clocks, batch=9, epoch=1.25)
    assert clocks.passed[Unit.BATCH] == 5


def test_the_unit_that_counts_must_be_told():
    """An average in epochs that is told batches only, and a start in epochs of one in batches, are errors."""
    with pytest.raises(UsageError, match="counts in epochs, which update\\(\\) was not told") as raised:
        EMA(nn.Linear(2, 2), "2ep").update()
    assert "update(epoch=...)" in (raised.value.hint or "")
    with pytest.raises(UsageError, match="counts in tokens"):
        EMA(nn.Linear(2, 2), "1e9tok").update(batch=1, sample=32)
    with pytest.raises(UsageError, match="counts in epochs"):
        EMA(nn.Linear(2, 2), "50ba", ema_start="1ep").update()


def test_samples_and_tokens_count():
    """A half-life in tokens or samples counts what update() is told of them, by an interval of one by default."""
    for unit, argument in (("sp", "sample"), ("tok", "token")):
        ema = EMA(nn.Linear(2, 2), f"1e6{unit}", update_interval=f"1000{unit}")
        events = [ema.update(**{"batch": step, argument: step * 400}) for step in range(1, 11)]
        assert [step for step, event in enumerate(events, 1) if event] == [1, 3, 5, 8, 10]
        assert str(ema.clock) == f"4000{unit}"


def test_a_start_is_inclusive():
    """The start has come when its clock is reached; at 0 in any unit it has from the beginning."""
    clocks = told(Clocks(), batch=5)
    assert clocks.reached(Time.parse("5ba"))
    assert not clocks.reached(Time.parse("5.01ba"))
    assert clocks.reached(Time.parse("0ep"))
