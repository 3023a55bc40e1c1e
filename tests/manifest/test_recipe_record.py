"""The recipe of a manifest, written and read."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ema_cli.errors import RunError, UsageError
from ema_cli.formats.options import ReadOptions
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time
from ema_cli.manifest.recipe_record import RecipeRecord
from ema_cli.planning.plan import make_plan
from ema_cli.runs.options import OpenOptions
from tests.composer_recurrence import make_run


def record(**recipe: Any) -> RecipeRecord:
    """Return the record of a plan over three checkpoints, read in a way of its own."""
    run = replace(
        make_run({"ba": 10}, {"ba": 20}, {"ba": 30}),
        options=OpenOptions(
            ReadOptions("state.model", "raw", "unet", keep_prefix=True, clock_key=("trainer.step=ba",)),
            epoch_length=Time.parse("1000ba"),
            spacing=Time.parse("10ba"),
            name_clock="step-{ba}",
            ignore_clocks=True,
            exclude=("*-best",),
            skip_damaged=True,
        ),
    )
    return RecipeRecord.of(make_plan(run, Recipe(**recipe)))


def data_of(made: RecipeRecord, **changes: Any) -> dict[str, Any]:
    """Return the record as JSON gives it back, with what the options of the output add."""
    data: dict[str, Any] = json.loads(json.dumps({**made.to_dict(), "copy": []}))
    return {**data, **changes}


@pytest.mark.parametrize(
    "recipe",
    [
        {"half_life": "50ba", "start": "10ba", "stop": "30ba", "last": 2, "bias_correction": True},
        {"half_life": "50ba", "update_interval": "5ba"},
        {"smoothing": 0.9},
        {"profile": "power", "sigma_rel": 0.1},
        {"profile": "linear"},
    ],
)
def test_a_record_is_read_as_it_was_written(recipe: dict[str, Any]):
    """All that decides which checkpoints enter, with which weight."""
    assert RecipeRecord.from_dict(data_of(record(**recipe))) == record(**recipe)


def test_a_name_of_another_law_is_refused():
    """Somebody changed one of them by hand."""
    data = data_of(record(half_life="50ba"), half_life="60ba")
    with pytest.raises(RunError, match="the manifest's law is '50ba', but what it says of it is 60ba"):
        RecipeRecord.from_dict(data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spacing": "soon"}, "the manifest: 'soon' is not a time"),
        ({"smoothing": 0.9}, "only one of"),
        ({"half_life": None}, "is needed"),
        ({"update_interval": "1ep"}, "have different units"),
    ],
)
def test_data_that_are_no_recipe_are_refused(changes: dict[str, Any], message: str):
    """By the rules that hold for a recipe from anywhere."""
    with pytest.raises(UsageError, match=message):
        RecipeRecord.from_dict(data_of(record(half_life="50ba"), **changes))


def test_a_manifest_of_an_older_version_has_no_word_of_newer_options():
    """What was not there to be asked for was not asked for."""
    newer = ("exclude", "skip_damaged", "name_clock", "clock_key", "ignore_clocks")
    data = {name: value for name, value in data_of(record(smoothing=0.9)).items() if name not in newer}
    opened = RecipeRecord.from_dict(data).opened
    assert (opened.exclude, opened.skip_damaged, opened.name_clock, opened.ignore_clocks) == ((), False, None, False)
    assert opened.read.clock_key == ()
