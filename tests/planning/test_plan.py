"""From a run's clocks to weights: events, selection, reasons, warnings. Against Composer: test_composer.py."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from ema_cli.cli.sentences import plan_line
from ema_cli.errors import RunError
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import EVERY, Time, Unit
from ema_cli.planning.plan import Plan, make_plan
from ema_cli.runs.run import Run
from tests.composer_recurrence import Clocks, make_run


def batches(*clocks: float | Fraction) -> Run:
    return make_run(*({"ba": clock} for clock in clocks))


def plan_of(run: Run, half_life: str | None = None, interval: str | None = None, **options: Any) -> Plan:
    for name in ("start", "stop"):
        if name in options:
            options[name] = Time.parse(options[name])
    update_interval = interval if interval in (None, EVERY) else Time.parse(interval)
    parsed = Time.parse(half_life) if half_life else None
    return make_plan(run, Recipe(half_life=parsed, update_interval=update_interval, **options))


def names(plan: Plan) -> list[str]:
    return [entry.checkpoint.name for entry in plan.entries]


def reasons(plan: Plan) -> dict[str, str]:
    return {each.checkpoint.name: each.reason for each in plan.skipped}


def test_the_odd_first_gap_is_composers():
    """20ba/5ba folds ba1, ba5, ba10, ...: one update from ba1 to ba5, as from ba5 to ba10."""
    plan = plan_of(batches(*range(13)), "20ba", "5ba")
    assert names(plan) == ["1ba", "5ba", "10ba"]
    assert [entry.gap for entry in plan.entries] == [0, 5, 5]
    kept = 2**-0.25
    assert plan.weights == pytest.approx([kept * kept, (1 - kept) * kept, 1 - kept])
    assert reasons(plan) == {
        "0ba": "its clock is still 0ba",
        **{f"{n}ba": "no update event since 1ba" for n in (2, 3, 4)},
        **{f"{n}ba": "no update event since 5ba" for n in (6, 7, 8, 9)},
        **{f"{n}ba": "no update event since 10ba" for n in (11, 12)},
    }
    assert [each.checkpoint.name for each in plan.skipped][:4] == ["0ba", "2ba", "3ba", "4ba"]


def test_gaps_coarser_than_the_interval_keep_the_half_life():
    """Files 20, 60 and 10 batches apart fold 20, 60 and 10 updates of 1ba."""
    plan = plan_of(batches(10, 30, 90, 100), "30ba")
    assert [entry.gap for entry in plan.entries] == [0, 20, 60, 10]
    assert plan.weights[0] == pytest.approx(2 ** -(90 / 30))


def test_events_are_counted_exactly():
    """0.3ep has passed three events of 0.1ep: 0.1ep after 0.2ep is one update, not none."""
    run = make_run(*({"ep": Fraction(n, 10)} for n in (1, 2, 3)))
    plan = plan_of(run, "1ep", "0.1ep")
    assert [entry.gap for entry in plan.entries] == [0, Fraction(1, 10), Fraction(1, 10)]


@pytest.mark.parametrize(
    ("half_life", "interval", "folded", "gaps"),
    [
        ("2ep", None, ["1ep", "9/4ep"], [0, 1]),
        ("0.5ep", None, ["1/4ep", "1/2ep", "3/4ep", "1ep", "9/4ep"], [0, 0.25, 0.25, 0.25, 1.25]),
        ("2ep", EVERY, ["1/4ep", "1/2ep", "3/4ep", "1ep", "9/4ep"], [0, 0.25, 0.25, 0.25, 1.25]),
        ("0.5ep", "0.5ep", ["1/2ep", "1ep", "9/4ep"], [0, 0.5, 1]),
        ("infep", "2ep", ["1ep", "9/4ep"], [0, 2]),
        ("0ep", None, ["1/4ep", "1/2ep", "3/4ep", "1ep", "9/4ep"], [0, 0.25, 0.25, 0.25, 1.25]),
    ],
)
def test_the_first_copy_and_the_default_interval(
    half_life: str, interval: str | None, folded: list[str], gaps: list[float]
):
    """Not before min(1 unit, interval); below one unit each checkpoint is an event, as with 'every'."""
    plan = plan_of(make_run(*({"ep": Fraction(n, 4)} for n in (0, 1, 2, 3, 4, 9))), half_life, interval)
    assert names(plan) == folded
    assert [entry.gap for entry in plan.entries] == gaps


def test_before_the_first_update_is_a_reason():
    """What comes before the first possible copy says when that is."""
    run = make_run(*({"ep": Fraction(n, 4)} for n in (0, 1, 4)))
    assert reasons(plan_of(run, "2ep")) == {
        "0ep": "its clock is still 0ep",
        "1/4ep": "before the first update at 1ep",
    }
    assert reasons(plan_of(run, "2ep", "0.5ep"))["1/4ep"] == "before the first update at 0.5ep"


def test_every_skips_what_no_time_has_passed_for():
    """Two checkpoints in one epoch by a clock of whole epochs: the second is no event."""
    run = make_run({"ba": 10, "ep": 1}, {"ba": 15, "ep": 1}, {"ba": 20, "ep": 2})
    plan = plan_of(run, "1ep", EVERY)
    assert names(plan) == ["10ba", "20ba"]
    assert reasons(plan) == {"15ba": "no time passed since 10ba"}
    assert [str(entry.clock) for entry in plan.entries] == ["1ep", "2ep"]


def test_half_life_0_and_infinity():
    """The newest folded checkpoint, and the first; what has no weight is not read."""
    run = batches(0, 10, 20, 30)
    newest, first = plan_of(run, "0ba"), plan_of(run, "infba")
    assert (newest.weights, first.weights) == ([0.0, 0.0, 1.0], [1.0, 0.0, 0.0])
    assert [entry.checkpoint.name for entry in newest.read] == ["30ba"]
    assert [entry.checkpoint.name for entry in first.read] == ["10ba"]
    assert first.newest.name == "10ba"


@pytest.mark.parametrize(
    ("interval", "folded", "updates"),
    [
        (None, ["10ba", "12ba", "50ba", "90ba"], [0, 1, 1, 1]),
        (EVERY, ["10ba", "12ba", "50ba", "90ba"], [0, 1, 1, 1]),
        ("20ba", ["10ba", "50ba", "90ba"], [0, 2, 2]),
    ],
)
def test_smoothing_per_checkpoint_and_per_event(interval: str | None, folded: list[str], updates: list[int]):
    """Without an interval each checkpoint is one update; with one, the events are counted."""
    plan = plan_of(batches(0, 10, 12, 50, 90), smoothing=0.9, interval=interval)
    assert names(plan) == folded
    assert [entry.gap for entry in plan.entries] == updates
    assert plan.weights[0] == pytest.approx(0.9 ** sum(updates))
    assert plan.weights[-1] == pytest.approx(1 - 0.9 ** updates[-1])


def test_start_and_stop_are_inclusive_in_any_unit():
    """Each bound keeps what lies on it, whatever unit it is in; what is outside says why."""
    run = make_run(*({"ba": 10 * n, "ep": Fraction(n, 2), "tok": 1000 * n} for n in range(1, 7)))
    plan = plan_of(run, "30ba", start="1ep", stop="5e3tok")
    assert names(plan) == ["20ba", "30ba", "40ba", "50ba"]
    assert reasons(plan) == {"10ba": "before --start 1ep", "60ba": "after --stop 5000tok"}
    assert plan.entries[0].gap == 0


def test_last_keeps_the_newest_survivors():
    """After start, stop and events: the oldest of those kept becomes the first copy."""
    plan = plan_of(batches(1, 5, 6, 10, 15, 20), "20ba", "5ba", stop="15ba", last=2)
    assert names(plan) == ["10ba", "15ba"]
    assert plan.weights == pytest.approx([2**-0.25, 1 - 2**-0.25])
    assert [entry.gap for entry in plan.entries] == [0, 5]
    assert reasons(plan) == {
        "1ba": "older than the last 2",
        "5ba": "older than the last 2",
        "6ba": "no update event since 5ba",
        "20ba": "after --stop 15ba",
    }
    assert names(plan_of(batches(1, 5), "20ba", last=9)) == ["1ba", "5ba"]


@pytest.mark.parametrize(
    ("clocks", "options", "unit", "needs", "known", "ways"),
    [
        ([{"ba": 1}, {"ba": 2, "ep": 1}], {"half_life": "2ep"}, "epochs", "the half-life", "batches (ba)",
            ["count in batches: half_life='2ba' is twice the usual distance", "epoch_length="]),
        ([{"ep": 1}], {"half_life": "5ba"}, "batches", "the half-life", "epochs (ep)", ["epoch_length="]),
        ([{"ba": 1}], {"half_life": "5ba", "start": "1tok"}, "tokens", "start=", "batches (ba)", ["give start="]),
        ([{"ba": 1}], {"half_life": "5ba", "stop": "1sp"}, "samples", "stop=", "batches (ba)", ["give stop="]),
        ([{"ba": 1}], {"smoothing": 0.9, "interval": "1ep"}, "epochs", "the update interval", "batches (ba)", []),
        ([{}, {}], {"half_life": "5ba"}, "batches", "the half-life", "none",
            ["spacing='3ba'", "profile='uniform'"]),
    ],
)  # fmt: skip
def test_a_missing_clock_is_an_error_with_the_ways_on(
    clocks: list[Clocks], options: dict[str, Any], unit: str, needs: str, known: str, ways: list[str]
):
    """Which checkpoint, which clock, for what, which are known, and what to do."""
    with pytest.raises(RunError) as raised:
        plan_of(make_run(*clocks), **options)
    assert raised.value.exit_code == 4
    assert str(raised.value).startswith(f"run/{make_run(*clocks).checkpoints[0].name}: records no clock in {unit}, ")
    assert str(raised.value).endswith(f", which {needs} needs; known: {known}")
    assert all(way in (raised.value.hint or "") for way in ways)


@pytest.mark.parametrize(
    ("clocks", "options", "message"),
    [
        ([{}, {}], {"smoothing": 0.9}, "the checkpoints record no clock, and names alone give no order that is safe"),
        ([{"ba": 0}], {"half_life": "5ba"}, "no checkpoint is left to average: 0ba: its clock is still 0ba"),
        ([{"ba": 0}], {"smoothing": 0.9}, "no checkpoint is left to average: 0ba: its clock is still 0"),
        (
            [{"ba": 5}],
            {"half_life": "5ba", "start": "6ba"},
            "no checkpoint is left to average: 5ba: before --start 6ba",
        ),
        ([], {"half_life": "5ba"}, "no checkpoint to average"),
    ],
)
def test_a_run_of_which_nothing_is_left(clocks: list[Clocks], options: dict[str, Any], message: str):
    """The error says why the first did not enter."""
    with pytest.raises(RunError) as raised:
        plan_of(make_run(*clocks), **options)
    assert str(raised.value) == f"run: {message}"


def test_a_window_keeps_what_lies_in_it_before_the_newest_that_enters():
    """Its beginning included; `stop` moves it; the profile is laid over what is left."""
    run = batches(100, 200, 300, 400, 500)
    plan = plan_of(run, profile="linear", window="200ba")
    assert [entry.clock.value for entry in plan.entries] == [300, 400, 500]
    assert plan.weights == pytest.approx([0.25, 0.5, 0.25])
    assert [skip.reason for skip in plan.skipped] == ["before the window of 200ba"] * 2
    earlier = plan_of(run, profile="uniform", window="299ba", stop="400ba")
    assert [entry.clock.value for entry in earlier.entries] == [200, 300, 400]
    assert plan.advice.warnings == []


@pytest.mark.parametrize(
    ("window", "warned"),
    [("400ba", None), ("500ba", None), ("501ba", "only 400ba of it are there")],
)
def test_a_window_longer_than_the_run_is_a_warning(window: str, warned: str | None):
    """By more than a distance between two checkpoints: the first stands for what lies between it and the one before."""
    warnings = plan_of(batches(100, 200, 300, 400, 500), profile="uniform", window=window).advice.warnings
    assert [warning for warning in warnings if warned is None or warned not in warning] == []
    assert len(warnings) == (warned is not None)


def test_a_start_after_the_stop_is_told_as_that():
    """Not as a checkpoint that is too early for one of them."""
    with pytest.raises(RunError, match=r"start='300ba' is after stop='100ba'"):
        plan_of(batches(100, 200, 300), "10ba", start="300ba", stop="100ba")


def test_a_window_with_one_checkpoint_is_warned_of_once():
    """It was said to reach beyond the first, though it is shorter than the distance of two checkpoints."""
    (warning,) = plan_of(batches(100, 200, 300), profile="uniform", window="99ba").advice.warnings
    assert "only 1 checkpoint enters" in warning


def test_a_mean_age_that_is_no_time_is_zero():
    """A half-life a two-hundredth of the distance leaves an age of 1e-57 batches, which no time is written as."""
    assert plan_of(batches(10, 2000), "10ba").mean_age.value == 0


def test_effective_number_and_mean_age():
    """1 / sum w^2, and the weighted age before the newest, in the plan's unit."""
    plan = plan_of(batches(10, 20, 40), "10ba")
    assert plan.weights == pytest.approx([1 / 8, 1 / 8, 3 / 4])
    assert plan.effective_count == pytest.approx(1 / (2 / 64 + 9 / 16))
    assert (float(plan.mean_age.value), plan.mean_age.unit) == (pytest.approx((30 + 20) / 8), Unit.BATCH)
    assert plan_of(batches(10, 20), "10ba", bias_correction=True).effective_count == pytest.approx(9 / 5)


def test_checkpoints_between_two_updates_are_counted_and_the_way_to_fold_them_is_said():
    """30 checkpoints of 0.1ep: 1ep updates once per epoch and folds 3; 0.99ep, or 'every', folds each."""
    run = make_run(*({"ep": Fraction(n, 10)} for n in range(1, 31)))
    plan = plan_of(run, "1ep")
    assert (len(plan.entries), plan.between_updates) == (3, 27)
    assert plan_line(plan).startswith(
        "3 checkpoints averaged, 27 skipped (one update per epoch: 27 checkpoints lie between; "
        "--update-interval every folds each): "
    )
    for other in (plan_of(run, "0.99ep"), plan_of(run, "1ep", EVERY)):
        assert (len(other.entries), other.between_updates) == (30, 0)
        assert plan_line(other).startswith("30 checkpoints averaged: ")
    assert "per epoch" not in plan_line(plan_of(run, "1ep", "0.5ep"))  # as the user asked


def test_a_run_that_ends_before_the_first_update_says_so():
    """0.8 epochs, and an update once per epoch: where the run is, and the way on, which works."""
    run = make_run(*({"ep": Fraction(n, 10)} for n in (4, 8)))
    with pytest.raises(RunError) as raised:
        plan_of(run, "1ep")
    assert str(raised.value) == (
        "run: no checkpoint is left to average: 4/5ep: before the first update at 1ep, and it is at 0.8ep"
    )
    assert raised.value.hint == "fold each checkpoint, whatever time passed: update_interval='every'"
    assert len(plan_of(run, "1ep", EVERY).entries) == 2


@pytest.mark.parametrize(("half_life", "converts"), [("1e6sp", False), ("1e9tok", False), ("2ep", True)])
def test_only_epochs_and_batches_are_converted_into_each_other(half_life: str, converts: bool):
    """An --epoch-length that would not help is not offered."""
    units = ("ba",) if converts else ("ba", "ep")
    run = make_run(*(dict.fromkeys(units, clock) for clock in (1, 2, 3)))
    with pytest.raises(RunError, match="records no clock in") as raised:
        plan_of(run, half_life)
    assert ("epoch_length=" in str(raised.value.hint)) == converts
