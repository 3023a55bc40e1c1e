"""What a training stored, in words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ema_cli.cli import stored_sentences
from ema_cli.cli.views import StoredView
from ema_cli.errors import RunError
from ema_cli.law.exponential import HalfLife
from ema_cli.law.live import Schedule
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time
from ema_cli.runs.stored import StoredAverage, StoredRun
from tests.cli.test_sentences import STEADY, near, plan, sparse, time


def test_the_half_lives_within_reach_are_ranges():
    """Those that are off by no more than a share; the last may have no end."""
    approximation = near().approximation
    assert approximation is not None
    assert stored_sentences.reach_lines(approximation) == ["Within 1%: 20ba to 90ba, 200ba", "Within 5%: no half-life"]
    endless = replace(approximation, reach={0.01: [(Time.parse("24ba"), Time.parse("infba"))]})
    assert stored_sentences.reach_lines(endless) == ["Within 1%: 24ba and longer"]


def test_a_sparse_run_is_advised_to_store_averages():
    """Where checkpoints are too far apart: which half-lives to store; nowhere else."""
    assert 'half_life=("25ba", "100ba"))' in stored_sentences.stored_lines(None, [sparse()])[1]
    often = sparse(update_interval="every")
    assert 'half_life=("25ba", "100ba"), update_interval="every")' in stored_sentences.stored_lines(None, [often])[1]
    assert stored_sentences.stored_lines(None, [plan()]) == []


def test_stored_averages_are_listed_with_what_they_would_make():
    """Names and clocks, and for each half-life how near they come, or why they do not."""
    checkpoint = replace(STEADY.checkpoints[-1], path=Path("100ba/20ba.safetensors"))
    average = StoredAverage(checkpoint, HalfLife(time("20ba")), time("100ba"), time("1ba"), 100, Schedule(None, None))
    other = replace(average, checkpoint=replace(checkpoint, path=Path("100ba/80ba.safetensors")))
    stored = StoredRun(STEADY, (average, other))
    plans = (
        (Recipe(half_life="2ep"), RunError("counts in batches")),
        (Recipe(half_life="1ba"), near(error=0.5)),
    )
    assert stored_sentences.stored_lines(StoredView(stored, plans), []) == [
        "Stored averages: 20ba, 80ba, at 1 clock up to 100ba, without the first copy (--from stored)",
        "  2ep: counts in batches",
        "  1ba: 50.00% off; to have it, store averages nearer to it, or more often",
    ]
    assert stored_sentences.stored_lines(StoredView(RunError("two trainings")), []) == [
        "Stored averages: two trainings"
    ]
