"""What a plan is warned of, and what would do better."""

from __future__ import annotations

from fractions import Fraction
from math import fsum
from typing import Any

import pytest

from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time, Unit
from ema_cli.planning import advice
from ema_cli.planning.advice import non_finite_warnings, twin_warnings
from ema_cli.planning.plan import Plan, make_plan
from ema_cli.runs.run import Run
from tests.composer_recurrence import make_run


def batches(*clocks: float | Fraction) -> Run:
    return make_run(*({"ba": clock} for clock in clocks))


def plan_of(run: Run, half_life: str | None = None, **options: Any) -> Plan:
    return make_plan(run, Recipe(half_life=half_life, **options))


def effective(run: Run, half_life: Fraction, **options: Any) -> float:
    recipe = Recipe(half_life=Time(half_life, Unit.BATCH), **options)
    return 1 / fsum(weight**2 for weight in make_plan(run, recipe).weights)


@pytest.mark.parametrize("bias_correction", [False, True])
@pytest.mark.parametrize("spread", [[1000] * 9, [1] * 30, [10, 500, 3, 80, 900, 40, 40, 7], [1, 1, 5000, 1, 1, 1]])
def test_the_half_life_that_is_recommended_is_the_smallest(spread: list[int], bias_correction: bool):
    """It gives three effective checkpoints, and none that is at least a tenth smaller does."""
    run = batches(*(sum(spread[: n + 1]) for n in range(len(spread))))
    found = plan_of(run, "1e9ba", bias_correction=bias_correction).advice.half_life_for_three
    assert found is not None
    value = Fraction(found.value)
    assert effective(run, value, bias_correction=bias_correction) >= 3
    smaller = [value * Fraction(n, 100) for n in range(90, 0, -1) if value * n >= 100]
    assert all(effective(run, each, bias_correction=bias_correction) < 3 for each in smaller)


def test_the_trap_is_shown():
    """50ba over files 1000ba apart is the last file: warned of, with a half-life that is not."""
    run = batches(*range(1000, 9000, 1000))
    plan = plan_of(run, "50ba")
    found = plan.advice.half_life_for_three
    assert found is not None
    assert 1000 <= found.value <= 1100
    (short,) = plan.advice.warnings
    assert short.startswith("8000ba holds 100.0% of the average: the half-life is short")
    assert short.endswith(f"; {found} gives three effective checkpoints")
    assert plan_of(run, str(found)).advice.warnings == []
    (long,) = plan_of(run, "1e6ba").advice.warnings
    assert long.startswith("1000ba holds 99.5% of the average: the half-life is long")
    assert "--bias-correction" in long
    assert plan_of(run, "1e6ba", bias_correction=True).advice.warnings == []
    (smoothed,) = plan_of(run, smoothing=0.1).advice.warnings
    assert smoothed.startswith("8000ba holds 90.0% of the average: the smoothing is low")


@pytest.mark.parametrize(
    ("clocks", "half_life", "warning"),
    [
        ([10, 20], "10ba", []),  # a half each
        ([10, 20], "1ba", ["20ba holds 99.9% of the average: only 2 checkpoints enter"]),
        ([10], "1ba", ["10ba holds 100.0% of the average: only 1 checkpoint enters"]),
    ],
)
def test_few_checkpoints_are_no_matter_of_the_half_life(clocks: list[int], half_life: str, warning: list[str]):
    """Where one or two enter, the warning says so; two halves are not more than half."""
    assert plan_of(batches(*clocks), half_life).advice.warnings == warning


def test_one_checkpoint_that_was_asked_for_is_no_reason_to_warn():
    """`--last 1` writes one checkpoint, whole: that it holds all of the average is what was wanted."""
    assert plan_of(batches(10, 20), profile="uniform", last=1).advice.warnings == []
    assert plan_of(batches(10), profile="uniform").advice.warnings != []


def test_there_may_be_no_half_life_to_recommend():
    """Three checkpoints never weigh the same, and a smoothing has no half-life: no advice, and no crash."""
    run = batches(10, 20, 30)
    assert max(effective(run, Fraction(n)) for n in range(1, 200)) < 3
    assert plan_of(run, "1ba").advice.half_life_for_three is None
    (warning,) = plan_of(run, "1ba").advice.warnings
    assert warning.startswith("30ba holds 99.9% of the average")
    assert "three effective" not in warning
    assert plan_of(run, smoothing=0.01).advice.half_life_for_three is None


@pytest.mark.parametrize("spacing", [Fraction(9, 10), Fraction(13, 10)])
def test_the_recommendation_holds_with_the_default_interval(spacing: Fraction):
    """A half-life below one epoch takes each checkpoint; the one recommended instead is true when it is asked for."""
    run = make_run(*({"ep": spacing * n} for n in range(1, 8)))
    found = plan_of(run, "0.2ep").advice.half_life_for_three
    assert found is not None
    assert plan_of(run, str(found)).effective_count >= 3


def test_a_profile_gives_what_it_gives():
    """There is nothing to turn: the reason is the training that a checkpoint stands for."""
    (warning,) = plan_of(batches(10, 100, 1000), profile="uniform").advice.warnings
    assert (
        warning == "1000ba holds 60.6% of the average: the profile gives it that much, for the training that it "
        "stands for"
    )


def test_advice_is_found_once(monkeypatch: pytest.MonkeyPatch):
    """The search for a half-life is made where it is needed, and once for a plan."""
    searches = []
    search = advice.half_life_for
    monkeypatch.setattr(advice, "half_life_for", lambda *given: searches.append(given) or search(*given))
    balanced = plan_of(batches(10, 20, 30, 40), "20ba")
    assert balanced.advice.warnings == []
    assert searches == []
    plan = plan_of(batches(*range(1000, 9000, 1000)), "50ba")
    assert plan.advice.warnings
    assert plan.advice.newest_is_heavy
    assert plan.advice.half_life_for_three is not None
    assert len(searches) == 1


@pytest.mark.parametrize(
    ("half_life", "stored"),
    [("50ba", ["25ba", "100ba"]), ("1ba", ["1ba", "2ba"]), ("0.5ba", ["0.25ba", "1ba"]), ("0ba", []), ("infba", [])],
)
def test_half_lives_to_store_lie_around_the_one_of_the_recipe(half_life: str, stored: list[str]):
    """Half of it and twice of it; not below one unit, where other updates would count."""
    plan = plan_of(batches(10, 20), half_life)
    assert [str(time) for time in plan.advice.half_lives_to_store] == stored
    assert plan_of(batches(10, 20), smoothing=0.5).advice.half_lives_to_store == []


def test_twins_and_values_are_named():
    """Each twin once, with how many more; each tensor with a value that is no number."""
    run = batches(10, 20, 30, 40)
    pairs = list(zip(run.checkpoints, run.checkpoints[1:], strict=False))
    (warning,) = twin_warnings([*pairs, pairs[0]])
    assert warning == "20ba and 2 more: shares its clock with another checkpoint; averaging compares their tensors"
    assert non_finite_warnings(["w"]) == ["'w' holds NaN or infinity"]
