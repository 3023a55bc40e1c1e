"""Who wins: the best, unless a shorter half-life is within the spread; the last checkpoint only where it is better."""

from __future__ import annotations

import pytest

from ema_cli.tuning.results import LAST, Result, choose


def results(**values: float | tuple[float, ...]) -> list[Result]:
    """Return results by name: b50 is 50ba."""
    return [
        Result(LAST if name == LAST else f"{name[1:]}ba", value if isinstance(value, tuple) else (value,))
        for name, value in values.items()
    ]


@pytest.mark.parametrize(("maximize", "winner"), [(False, "100ba"), (True, "10ba")])
def test_the_best_wins(maximize: bool, winner: str):
    """Less is better, or more."""
    best = choose(results(last=0.5, b10=0.9, b100=0.1, b1000=0.4), maximize=maximize)
    assert best is not None
    assert best.name == winner


def test_equal_metrics_are_a_tie_that_the_shorter_half_life_wins():
    """Without repeats only equal metrics tie; the last checkpoint loses ties."""
    best = choose(results(last=0.1, b1000=0.1, b100=0.1, b10=0.2), maximize=False)
    assert best is not None
    assert best.name == "100ba"


def test_what_lies_within_the_spread_is_a_tie():
    """Spread is the sample standard deviation, of either; here 0.1 of 200ba, and 100ba is 0.05 off."""
    ties = results(last=(0.2, 0.2), b200=(0.0, 0.1414), b100=(0.12, 0.12), b50=(0.3, 0.3))
    best = choose(ties, maximize=False)
    assert best is not None
    assert best.name == "100ba"


def test_the_last_checkpoint_wins_where_it_is_better():
    """Also where the candidate with its weights stands for it."""
    best = choose(results(last=0.1, b10=0.2), maximize=False)
    assert best is not None
    assert best.is_last
    twin = [Result("1ba", (0.1,), same_as=LAST), *results(last=0.1, b10=0.2)]
    again = choose(twin, maximize=False)
    assert again is not None
    assert again.name == LAST


def test_failures_win_nothing():
    """And where all failed, nothing wins."""
    failed = Result("5ba", failed="it printed nothing")
    assert choose([failed], maximize=False) is None
    best = choose([failed, *results(b7=3.0)], maximize=False)
    assert best is not None
    assert best.name == "7ba"


@pytest.mark.parametrize(
    "result",
    [Result("5ba", (1.0, 2.0)), Result(LAST, failed="why"), Result("6ba", (0.1,), same_as="5ba")],
)
def test_a_result_reads_back(result: Result):
    """From a line of the journal."""
    assert Result.from_dict(result.to_dict()) == result
