"""BEMA, against the recurrence of the paper and of TRL's callback, run step by step on symbols."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest

from ema_cli.errors import UsageError
from ema_cli.law.bema import Bema
from ema_cli.law.laws import make_law
from ema_cli.law.time import Unit


def callback(steps: Sequence[int], rho: float, gamma: float, eta: float, kappa: float) -> np.ndarray:
    """Return what the callback holds after the last step, as a vector over the base and the model at each step.

    It keeps the EMA, which begins as the base, and writes EMA + alpha (model - base) at each update.
    """
    symbols = np.eye(1 + len(steps))
    theta_0, ema, running = symbols[0], symbols[0], symbols[0]
    for step, theta in zip(steps, symbols[1:], strict=True):
        beta, alpha = (rho + gamma * step) ** -kappa, (rho + gamma * step) ** -eta
        ema = (1 - beta) * ema + beta * theta
        running = ema + alpha * (theta - theta_0)
    return running


@pytest.mark.parametrize(
    ("steps", "numbers"),
    [
        (range(400, 4001, 400), (10, 1.0, 0.2, 0.5)),
        ((1, 2, 3, 50, 1000), (10, 1.0, 0.2, 0.5)),
        ((7,), (10, 1.0, 0.2, 0.5)),
        ((100, 200, 300), (1, 0.01, 0.0, 0.0)),
        (range(10, 200, 10), (25.5, 2.0, 0.4, 0.75)),
        ((1, 2), (0, 1.0, 0.2, 0.5)),
    ],
)
def test_weights_are_the_recurrence_of_the_paper(steps: Sequence[int], numbers: tuple[float, ...]):
    """Each checkpoint is one update at its clock; the base, at clock 0, is the first entry. All sum to 1."""
    rho, gamma, eta, kappa = numbers
    law = Bema(lag=rho, multiplier=gamma, bias_power=eta, ema_power=kappa)
    clocks = [Fraction(0), *map(Fraction, steps)]
    weights = law.weights([Fraction(0)] * len(clocks), clocks, bias_correction=False)
    assert weights == pytest.approx(callback(steps, rho, gamma, eta, kappa), rel=1e-12, abs=1e-14)
    assert math.fsum(weights) == pytest.approx(1, abs=1e-14)


def test_the_base_has_a_negative_weight_in_a_long_training():
    """What is added for the newest is taken from the base."""
    weights = Bema().weights([], [Fraction(10 * step) for step in range(500)], bias_correction=False)
    assert weights[0] == pytest.approx(-(5000**-0.2), rel=1e-3)
    assert min(weights[1:]) > 0


def test_numbers_are_named_and_written_where_they_are_others():
    """By default the name is short; with other numbers it has them all."""
    assert make_law(profile="bema") == Bema(10.0, 1.0, 0.2, 0.5)
    law = make_law(profile="bema", lag=20, ema_power=0.6)
    assert law.name == "bema-20.0-1.0-0.2-0.6"
    assert make_law(**law.to_dict()) == law
    assert law.unit is Unit.BATCH
    assert make_law(profile="bema").name == "bema"


def test_what_makes_no_sense_is_refused():
    """Numbers below 0, a share above 1, and the options without the profile."""
    for name in ("lag", "multiplier", "bias_power", "ema_power"):
        with pytest.raises(UsageError, match=f"^{name}=: -1 is not at least 0"):
            make_law(profile="bema", **{name: -1.0})  # type: ignore[misc]
        with pytest.raises(UsageError, match=f"^{name}=: goes with profile='bema'"):
            make_law(half_life="50ba", **{name: 1.0})  # type: ignore[misc]
    with pytest.raises(UsageError, match=r"give 0\.5, and a share above 1 of the newest"):
        Bema(lag=0, multiplier=0.5).weights([], [Fraction(0), Fraction(1)], bias_correction=False)
    with pytest.raises(UsageError, match="only one of"):
        make_law(profile="bema", half_life="50ba")
