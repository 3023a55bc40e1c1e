"""Facts in words, piece by piece."""

from __future__ import annotations

from typing import Any

import pytest

from ema_cli.cli import sentences
from ema_cli.text import size


@pytest.mark.parametrize(
    ("nbytes", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_284_000, "1.28 MB"), (999_600_000, "1 GB"), (8.05e12, "8.05 TB")],
)
def test_sizes_are_short(nbytes: float, shown: str):
    """Three digits and a unit, in powers of 1000."""
    assert size(nbytes) == shown


def plan(**changed: Any) -> dict[str, Any]:
    """Return facts of a small plan."""
    law = str(changed.get("half_life", "50ba"))
    return {
        "law": law,
        "half_life": law,
        "smoothing": None,
        "profile": None,
        "from": "raw",
        "approximation": None,
        "update_interval": "1ba",
        "bias_correction": False,
        "entries": [{"name": "a", "clock": "10ba", "weight": 0.4}, {"name": "b", "clock": "20ba", "weight": 0.6}],
        "skipped": [{}],
        "effective_checkpoints": 1.96,
        "mean_age": {"value": 12.345678, "unit": "ba"},
        "half_life_for_three": "70ba",
        "warnings": [],
        **changed,
    }


def test_a_plan_in_one_sentence():
    """Counts, effective number and mean age."""
    assert sentences.plan_line(plan()) == "2 checkpoints averaged, 1 skipped: 2.0 effective, mean age 12.35ba"


def test_several_plans_have_a_line_each():
    """Half-lives one below the other, with who holds more than half where that is a warning."""
    plans = [plan(), plan(half_life="1e6ba", warnings=["b holds 60.0% of the average: ..."])]
    assert sentences.plan_lines(plans) == [
        " 50ba: 2.0 effective of 2, mean age 12.35ba",
        "1e6ba: 2.0 effective of 2, mean age 12.35ba; warning: b holds 60.0%",
    ]
    assert sentences.plan_warnings(plans) == []
    assert sentences.plan_notes(plans) == ["Smallest half-life with three effective checkpoints: 70ba"]


def test_one_plan_has_its_warnings_in_full():
    """They say which half-life would do: no note says it again."""
    told = [plan(warnings=["b holds 60.0% of the average: ..."])]
    assert sentences.plan_warnings(told) == ["b holds 60.0% of the average: ..."]
    assert sentences.plan_notes(told) == []


def test_the_law_of_several_plans_is_one_line():
    """What they share is said once."""
    assert sentences.law_line([plan()]) == "With half-life 50ba, update interval 1ba:"
    told = sentences.law_line([plan(), plan(half_life="0.5ba", update_interval="every"), plan(half_life="2ba")])
    assert told == "With half-lives 50ba, 0.5ba, 2ba, update interval 1ba or every:"


def test_clocks_of_several_units_stand_together():
    """A checkpoint that enters two plans has the clock of each."""
    other = plan(entries=[{"name": "b", "clock": "2ep", "weight": 1.0}])
    assert sentences.plan_clocks([plan(), other, plan()], ["a", "b", "c"]) == ["10ba", "20ba 2ep", ""]


def test_stored_averages_are_told_by_how_near_they_come():
    """One plan in a sentence, several on a line each; ranges of half-lives within a share."""
    told = {"relative_error": 0.0123, "reach": [{"within": 0.01, "half_lives": [["20ba", "90ba"], ["200ba", "200ba"]]}]}
    near = plan(**{"from": "stored", "approximation": told})
    assert sentences.plan_line(near) == "2 stored averages combined: 1.23% off from 50ba"
    assert sentences.plan_lines([near, near])[1] == "50ba: 1.23% off, from 2 stored averages"
    assert sentences.reach_lines(told) == ["Within 1%: 20ba to 90ba, 200ba"]
    assert sentences.reach_lines({"reach": [{"within": 0.05, "half_lives": []}]}) == ["Within 5%: no half-life"]


def test_what_is_stored_or_should_be():
    """What the training stored and what it would make, or, where checkpoints are too far apart, what to store."""
    sparse = plan(newest_is_heavy=True, half_lives_to_store=["25ba", "100ba"])
    assert 'half_life=("25ba", "100ba"))' in sentences.stored_lines(None, [sparse])[1]
    often = {**sparse, "update_interval": "every"}
    assert 'half_life=("25ba", "100ba"), update_interval="every")' in sentences.stored_lines(None, [often])[1]
    assert sentences.stored_lines(None, [plan(newest_is_heavy=False, half_lives_to_store=["25ba", "100ba"])]) == []
    stored = {"averages": ["20ba", "80ba"], "clocks": ["100ba"], "first_copy": False}
    far = {"law": "1ba", "approximation": {"relative_error": 0.5}}
    plans = [{"law": "2ep", "problem": "counts in batches"}, far]
    assert sentences.stored_lines({**stored, "plans": plans}, []) == [
        "Stored averages: 20ba, 80ba, at 1 clock up to 100ba, without the first copy (--from stored)",
        "  2ep: counts in batches",
        "  1ba: 50.00% off; to have it, store averages nearer to it, or more often",
    ]
    assert sentences.stored_lines({"problem": "two trainings"}, []) == ["Stored averages: two trainings"]
