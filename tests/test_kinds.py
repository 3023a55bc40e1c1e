"""What a caller from Python gives to an option is of its kind, or an EmaError names the option; never another error."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ema_cli import (
    EMA,
    EmaError,
    Recipe,
    Time,
    average,
    compute_ema,
    make_plan,
    make_series,
    open_run,
    parse_target,
    tune,
    watch,
)
from ema_cli.kinds import as_count, as_number
from ema_cli.law.laws import LAW_KEYS
from tests.conftest import write_torch_run

JUNK = ["x", "", 1.5, -1, True, object(), ["a"], {1: 2}, float("nan"), b"x", 10**400, Path("q")]
NEEDED: dict[str, dict[str, Any]] = {
    "sigma_rel": {"profile": "power"},
    "window": {"profile": "linear"},
    **{key: {"profile": "bema"} for key in ("lag", "multiplier", "bias_power", "ema_power")},
    "extrapolate_from": {"half_life": "5ba", "extrapolate": 1},
    "any_sum": {"coefficients": {"a": 1}},
    **{key: {} for key in ("half_life", "smoothing", "profile", "coefficients")},
}
READING = (
    "key weights component keep_prefix copy epoch_length spacing name_clock clock_key masters ignore_clocks exclude "
    "skip_damaged merge_into base anonymous"
)
WRITING = "threads max_memory force manifest checksum dtype max_shard_size allow_non_finite like_input drop exact_lora"
WATCHING = "path recipes options publish_every store_every restart_from threads max_memory force"
TUNING = (
    "half_lives windows profile between tries maximize repeats series series_every extrapolate extrapolate_from "
    "state_dict allow_last update_interval start stop last bias_correction evaluate"
)


def refused(call: Callable[..., object], name: str, **needed: Any) -> None:
    """Call with each value; what is not taken is an EmaError."""
    taken = 0
    for junk in JUNK:
        try:
            call(**{**needed, name: junk})
        except EmaError:
            pass
        else:
            taken += 1
    assert taken < len(JUNK), name


@pytest.mark.parametrize("name", [*LAW_KEYS, "law", "update_interval", "start", "stop", "last", "bias_correction"])
def test_a_recipe_takes_what_makes_sense(name: str):
    """Texts, numbers, flags and times."""
    refused(Recipe, name, **NEEDED.get(name, {"half_life": "5ba"}))


def test_the_error_names_the_option():
    """As from the command line; here as an argument."""
    for name, words in (("extrapolate", "'x' is not a number"), ("last", "'x' is not a number of checkpoints")):
        with pytest.raises(EmaError, match=f"{name}=: {words}"):
            Recipe(half_life="5ba", **{name: "x"})


def test_a_run_its_plans_and_what_is_written_take_what_makes_sense(tmp_path: Path):
    """All options of `open_run`, `make_plan`, `make_series`, `average`, `parse_target` and `Time.parse`."""
    write_torch_run(tmp_path / "run", [10, 20, 30])
    run = open_run(tmp_path / "run")
    recipe = Recipe(half_life="20ba")
    for name in READING.split():
        refused(open_run, name, paths=tmp_path / "run")
    refused(open_run, "paths")
    for name in ("run", "recipe"):
        refused(make_plan, name, run=run, recipe=recipe)
    for name in ("run", "recipes", "every"):
        refused(make_series, name, run=run, recipes=recipe)
    for name in WRITING.split():
        refused(average, name, plans=make_plan(run, recipe), target=tmp_path / f"out-{name}")
    refused(average, "plans", target=tmp_path / "out")
    refused(parse_target, "like_input", path=tmp_path / "out")
    refused(parse_target, "path")
    refused(Time.parse, "text")


def test_a_tuning_takes_what_makes_sense(tmp_path: Path):
    """All options of `tune`; nothing that is refused is evaluated."""
    write_torch_run(tmp_path / "run", [10, 20, 30])
    run = open_run(tmp_path / "run")
    needed: dict[str, dict[str, Any]] = {
        **{key: {} for key in ("half_lives", "between")},
        "windows": {"profile": "linear"},
        "profile": {"windows": ["5ba"]},
        "tries": {"between": ("5ba", "6ba")},
        "extrapolate_from": {"half_lives": ["9ba"], "extrapolate": (0, 1)},
    }
    for name in TUNING.split():
        given = {"evaluate": lambda _: 1.0, **needed.get(name, {"half_lives": ["20ba"]})}
        refused(tune, name, run=run, target=tmp_path / f"out-{name}", **given)


def test_a_watch_takes_what_makes_sense(tmp_path: Path):
    """All options of `watch`."""
    write_torch_run(tmp_path / "run", [10, 20, 30])
    recipe = Recipe(half_life="20ba")
    once = {"once": True, "settle": 0.0}
    for name in WATCHING.split():
        given = {"path": tmp_path / "run", "recipes": recipe, "waiting": once}
        refused(watch, name, target=tmp_path / f"out-{name}", **given)
    for waiting in ({"once": 7}, {"often": 1}, {"every": "x", **once}, {"settle": -1, "once": True}, 7):
        with pytest.raises(EmaError):
            watch(tmp_path / "run", tmp_path / "out", recipe, waiting=waiting)  # type: ignore[arg-type]


def test_a_live_average_takes_what_makes_sense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A text is no flag, as "false" would be true; and no model is told before it is asked for its tensors."""
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Linear(2, 2)
    options = (
        "half_life smoothing ema_start update_interval train_with_ema_weights profile sigma_rel offload keep_first"
    )
    for name in ["model", *options.split()]:
        refused(EMA, name, **{"model": model, **({"sigma_rel": 0.1} if name == "profile" else {})})
    for name in ("model", "ema_model", "smoothing"):
        refused(compute_ema, name, model=model, ema_model=copy.deepcopy(model), smoothing=0.5)
    ema = EMA(model, half_life="5ba")
    ema.update()
    for name in ("batch", "epoch", "sample", "token"):
        refused(EMA(model, half_life="5ba").update, name)
    for name in ("path", "average", "force", "allow_non_finite"):
        refused(ema.save, name, path="average.safetensors", force=name != "path")
    refused(ema.store, "folder")
    refused(ema.load_state_dict, "change_half_life", state=ema.state_dict())
    refused(ema.load_state_dict, "state")
    refused(ema.get_ema_model, "model")


def test_numbers_may_be_texts_but_counts_are_whole():
    """As a configuration has them."""
    assert as_number("0.5", "x") == 0.5
    assert as_count(3, "x", "threads") == 3
    for wrong in ("3", 3.0, True, 0, 2**50):
        with pytest.raises(EmaError):
            as_count(wrong, "x", "threads")


def test_an_option_that_there_is_not_is_no_option(tmp_path: Path):
    """As of any function: `lsat=10` and `dtpye="bfloat16"` were taken, and did nothing."""
    write_torch_run(tmp_path / "run", [10, 20])
    run = open_run(tmp_path / "run")
    recipe = Recipe(half_life="10ba")
    unknown: dict[str, Any] = {"dtpye": "bfloat16"}
    calls: dict[str, Callable[[], object]] = {
        "Recipe": lambda: Recipe(half_life="10ba", **unknown),
        "average": lambda: average(make_plan(run, recipe), tmp_path / "x", **unknown),
        "tune": lambda: tune(run, tmp_path / "x", evaluate=lambda path: 1.0, half_lives=["10ba"], **unknown),
        "watch": lambda: watch(tmp_path / "run", tmp_path / "x", recipe, waiting={"once": True}, **unknown),
    }
    for name, call in calls.items():
        with pytest.raises(TypeError, match=rf"{name}\(\) got an unexpected keyword argument 'dtpye'"):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
