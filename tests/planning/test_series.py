"""A series is a plan for each clock, each what `stop` at that clock gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from ema_cli.errors import RunError, UsageError
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time
from ema_cli.planning.plan import Plan, make_plan
from ema_cli.planning.series import at_the_end, is_series, make_series
from ema_cli.runs.run import open_run
from tests.conftest import write_hf_run, write_torch_run


def ends(plans: list[Plan]) -> list[str]:
    return [str(plan.entries[-1].clock) for plan in plans]


def test_there_is_an_average_at_each_checkpoint_for_each_recipe(tmp_path: Path):
    """The earliest clock first; weights and reasons are those of a plan with `stop` there."""
    write_torch_run(tmp_path, [10, 20, 30])
    run = open_run(tmp_path)
    plans = make_series(run, [Recipe(half_life="15ba"), Recipe(half_life="40ba")])
    assert ends(plans) == ["10ba", "10ba", "20ba", "20ba", "30ba", "30ba"]
    assert [plan.recipe.law.name for plan in plans] == ["15ba", "40ba"] * 3
    for plan in plans:
        alone = make_plan(run, Recipe(half_life=plan.recipe.law.name, stop=plan.entries[-1].clock))
        assert (plan.recipe, plan.entries, plan.skipped) == (alone.recipe, alone.entries, alone.skipped)
    assert is_series(plans)
    assert at_the_end(plans) == plans[4:]


def test_equal_numbers_of_the_plans_are_kept_once(tmp_path: Path):
    """A series of a thousand clocks has half a million entries."""
    write_torch_run(tmp_path, [10, 20, 30])
    first, second, third = make_series(open_run(tmp_path), Recipe(half_life="15ba"))
    assert first.entries[0].clock is second.entries[0].clock is third.entries[0].clock
    assert second.entries[1].gap is third.entries[1].gap


@pytest.mark.parametrize(
    ("every", "clocks"),
    [
        ("25ba", ["30ba", "50ba", "80ba", "100ba"]),  # 25, 50, 75 and 100 are passed there
        ("30ba", ["30ba", "60ba", "90ba", "100ba"]),  # the newest is no multiple, and there all the same
        ("1000ba", ["100ba"]),
        ("5ba", [f"{step}ba" for step in range(10, 101, 10)]),
        ("0.3ep", ["30ba", "60ba", "90ba", "100ba"]),  # 100 batches each
    ],
)
def test_every_so_much_is_the_first_checkpoint_at_or_after_and_the_newest(
    every: str, clocks: list[str], tmp_path: Path
):
    """In any unit that is recorded; never two at one checkpoint."""
    write_hf_run(tmp_path, range(10, 101, 10))
    recipes = [Recipe(half_life="15ba"), Recipe(half_life="40ba")]
    plans = make_series(open_run(tmp_path), recipes, every=every)
    assert ends(plans)[::2] == clocks


def test_where_nothing_entered_since_there_is_no_average(tmp_path: Path):
    """Between two update events, before `start`, after `stop`, and at the untrained step 0."""
    write_torch_run(tmp_path, [0, 10, 20, 30, 40, 50, 60])
    run = open_run(tmp_path)
    assert ends(make_series(run, Recipe(half_life="40ba", update_interval="20ba"))) == ["10ba", "20ba", "40ba", "60ba"]
    assert ends(make_series(run, Recipe(half_life="40ba", start="30ba", stop="50ba"))) == ["30ba", "40ba", "50ba"]
    assert ends(make_series(run, Recipe(half_life="40ba")))[0] == "10ba"


def test_windows_and_last_hold_at_each_clock(tmp_path: Path):
    """Each average has its own window."""
    write_torch_run(tmp_path, [10, 20, 30, 40])
    plans = make_series(open_run(tmp_path), Recipe(profile="uniform", window="10ba"))
    assert [[entry.checkpoint.name for entry in plan.entries] for plan in plans] == [
        ["step-10.pt"], ["step-10.pt", "step-20.pt"], ["step-20.pt", "step-30.pt"], ["step-30.pt", "step-40.pt"]
    ]  # fmt: skip
    plans = make_series(open_run(tmp_path), Recipe(half_life="10ba", last=1))
    assert [len(plan.entries) for plan in plans] == [1, 1, 1, 1]


def test_a_clock_that_never_ends_in_decimals_is_stopped_at_all_the_same(tmp_path: Path):
    """A third of an epoch: the manifest's text, read again, still lets the checkpoint enter."""
    write_hf_run(tmp_path, [10, 20, 30], epoch_length=30)
    run = open_run(tmp_path, epoch_length="30ba")
    plans = make_series(run, Recipe(half_life="1ep", update_interval="every"))
    assert len(plans) == 3
    for plan in plans:
        again = make_plan(run, Recipe.from_dict(plan.recipe.to_dict()))
        assert again.entries == plan.entries


def test_what_is_no_series_is_refused(tmp_path: Path):
    """No clock to end at, no distance, no recipe, or a single average."""
    write_torch_run(tmp_path / "run", [10, 20])
    run = open_run(tmp_path / "run")
    with pytest.raises(UsageError, match="no distance between averages"):
        make_series(run, Recipe(half_life="5ba"), every="0ba")
    with pytest.raises(RunError, match="tok"):
        make_series(run, Recipe(half_life="5ba"), every="5tok")
    with pytest.raises(UsageError, match="needs one"):
        make_series(run, [])
    with pytest.raises(RunError, match="a series of it is a single average") as raised:
        make_series(run, Recipe(half_life="5ba", start=Time.parse("20ba")))
    assert "series=True" in (raised.value.hint or "")
    halves = [make_plan(run, Recipe(half_life=half_life)) for half_life in ("5ba", "50ba")]
    assert not is_series(halves)
    assert at_the_end(halves) == halves
