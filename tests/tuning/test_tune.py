"""Tuning from Python: every candidate once, the winner's bytes are those of `average`, and nothing is left behind."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ema_cli import Recipe, Time, average, make_plan, open_run, tune
from ema_cli.errors import GateError, OutputError, UsageError
from ema_cli.manifest.manifest import read_manifest
from ema_cli.storage.staging import local
from ema_cli.storage.staging.folder_locks import is_held_by_another
from ema_cli.tuning.results import LAST
from tests.conftest import write_hf_run, write_torch_run
from tests.tuning.evaluations import asked, contents

STEPS = range(100, 2001, 100)


def recorded(metric: Callable[[float], float], last: float = 1e9) -> tuple[list[str], Callable[[Path], float]]:
    """Return names as they are evaluated, and an evaluation that knows the answer from the mark of a candidate."""
    names: list[str] = []

    def evaluate(path: Path) -> float:
        recipe = asked(path)
        names.append(recipe.get("half_life", LAST))
        return metric(float(Time.parse(recipe["half_life"]).value)) if "half_life" in recipe else last

    return names, evaluate


@pytest.mark.parametrize("half_lives", [["200ba", "400ba"], ["200ba"]])
def test_it_waits_for_no_lock_of_its_own(half_lives: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Candidates are published beside a folder that this process holds, not into it."""
    write_torch_run(tmp_path / "run", STEPS)
    held = []
    monkeypatch.setattr(local, "is_held_by_another", lambda lock: held.append(is_held_by_another(lock)))
    _, evaluate = recorded(lambda time: time)
    tune(open_run([tmp_path / "run"]), tmp_path / "best.safetensors", evaluate=evaluate, half_lives=half_lives)
    assert held
    assert not any(held)


@pytest.mark.parametrize("output", ["best", "best.safetensors", "best.pt"])
def test_the_winner_has_the_bytes_of_average(output: str, tmp_path: Path):
    """Weights and side files; and verify holds. Nothing else is left there."""
    write_hf_run(tmp_path / "run", STEPS)
    run = open_run([tmp_path / "run"])
    names, evaluate = recorded(lambda time: abs(time - 400))
    tuned = tune(run, tmp_path / output, evaluate=evaluate, half_lives=["200ba", "400ba", "800ba"])
    assert tuned.best is not None
    assert tuned.best.name == "400ba"
    assert sorted(names) == ["200ba", "400ba", "800ba", LAST]
    (tmp_path / "alone").mkdir()
    average(make_plan(run, Recipe(half_life="400ba")), tmp_path / "alone" / output)
    if output == "best":
        assert contents(tmp_path / output) == contents(tmp_path / "alone" / output)
    else:
        assert (tmp_path / output).read_bytes() == (tmp_path / "alone" / output).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} - {"run", "alone"} == {
        path.name for path in (tmp_path / "alone").iterdir()
    }


def test_the_manifest_is_that_of_average_and_says_how_it_was_chosen(tmp_path: Path):
    """Its sums are those of what lies there."""
    write_torch_run(tmp_path / "run", STEPS)
    run = open_run([tmp_path / "run"])
    _, evaluate = recorded(lambda time: time / 3, last=0.7)
    tune(run, tmp_path / "best", evaluate=evaluate, half_lives=["400ba", "1ba", "200ba"], allow_last=True)
    average(make_plan(run, Recipe(profile="uniform", last=1)), tmp_path / "alone")
    manifest = read_manifest(tmp_path / "best" / "ema-manifest.json")
    assert manifest.pop("tune") == {
        "command": None,
        "metric": None,
        "maximize": False,
        "winner": LAST,
        "candidates": [
            {"name": LAST, "values": [0.7]},
            {"name": "1ba", "values": [0.7], "same_as": LAST},
            {"name": "200ba", "values": [200 / 3]},
            {"name": "400ba", "values": [400 / 3]},
        ],
    }
    assert manifest == read_manifest(tmp_path / "alone" / "ema-manifest.json")


def test_a_half_life_with_the_weights_of_another_is_not_evaluated(tmp_path: Path):
    """Every half-life far below the spacing is the last checkpoint: it is the bar, and no average."""
    write_torch_run(tmp_path / "run", STEPS)
    names, evaluate = recorded(lambda time: time, last=0.0)
    with pytest.raises(GateError, match=r"the last checkpoint is the best: .* the best average, 500ba, has 500"):
        tune(
            open_run([tmp_path / "run"]),
            tmp_path / "best",
            evaluate=evaluate,
            half_lives=["1ba", "2ba", "3ba", "500ba"],
        )
    assert sorted(names) == ["500ba", LAST]
    assert not (tmp_path / "best").exists()


def test_a_range_is_searched_in_as_many_evaluations_as_said(tmp_path: Path):
    """A valley in the logarithm is found within one step of the refinement."""
    write_torch_run(tmp_path / "run", STEPS)
    names, evaluate = recorded(lambda time: math.log(time / 310) ** 2)
    tuned = tune(
        open_run([tmp_path / "run"]), tmp_path / "best", evaluate=evaluate, between=("50ba", "5000ba"), tries=7
    )
    assert len(names) <= 8
    assert tuned.best is not None
    assert tuned.best.setting is not None
    assert float(tuned.best.setting.number) == pytest.approx(310, rel=0.05)


def test_several_runs_of_one_candidate_give_mean_and_spread(tmp_path: Path):
    """What lies within the spread is a tie, which the shorter half-life wins."""
    write_torch_run(tmp_path / "run", STEPS)
    noise = iter([0.0, 0.2] * 10)
    _, evaluate = recorded(lambda time: next(noise) - (0.01 if time == 800 else 0.0))
    tuned = tune(
        open_run([tmp_path / "run"]), tmp_path / "best", evaluate=evaluate, half_lives=["800ba", "300ba"], repeats=2
    )
    assert tuned.best is not None
    assert tuned.best.name == "300ba"
    assert tuned.best.values == (0.0, 0.2)


def test_more_is_better_where_it_is_said(tmp_path: Path):
    """`maximize` turns all of it round."""
    write_torch_run(tmp_path / "run", STEPS)
    _, evaluate = recorded(lambda time: time, last=0.0)
    tuned = tune(
        open_run([tmp_path / "run"]), tmp_path / "best", evaluate=evaluate, half_lives=["300ba", "800ba"], maximize=True
    )
    assert tuned.best is not None
    assert tuned.best.name == "800ba"


@pytest.mark.parametrize("output", ["best", "best.safetensors", "best.pt"])
def test_the_evaluation_may_get_a_state_dict(output: str, tmp_path: Path):
    """The tensors of the candidate by name; here the distance from an average made apart."""
    write_torch_run(tmp_path / "run", STEPS)
    run = open_run([tmp_path / "run"])
    average(make_plan(run, Recipe(half_life="300ba")), tmp_path / "wanted.safetensors")
    wanted = load_file(tmp_path / "wanted.safetensors")

    def distance(tensors: dict[str, torch.Tensor]) -> float:
        assert tensors.keys() == wanted.keys()
        return max(float((tensors[name] - wanted[name]).abs().max()) for name in wanted)

    tuned = tune(run, tmp_path / output, evaluate=distance, half_lives=["200ba", "300ba"], state_dict=True)
    assert tuned.best is not None
    assert (tuned.best.name, tuned.best.values) == ("300ba", (0.0,))


def test_a_metric_that_is_no_number_fails_its_candidate_alone(tmp_path: Path):
    """The others go on; where all fail, it is an error, and nothing is written."""
    write_torch_run(tmp_path / "run", STEPS)
    run = open_run([tmp_path / "run"])
    _, evaluate = recorded(lambda time: math.nan if time == 200 else time)
    tuned = tune(run, tmp_path / "best", evaluate=evaluate, half_lives=["200ba", "300ba"])
    assert [result.failed for result in tuned.results] == [None, "its metric is nan", None]
    with pytest.raises(GateError, match="no candidate has a metric: its metric is nan"):
        tune(run, tmp_path / "none", evaluate=lambda path: math.nan, half_lives=["200ba"])
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "its metric is None, which is not a number"),
        ("low", "its metric is 'low', which is not a number"),
        (torch.ones(2), r"its metric is tensor\(\[1., 1.\]\), which is not a number"),
        (10**400, "its metric is inf"),
        (1.7e308, r"its metric is 1\.7e\+308"),
    ],
)
def test_what_is_no_number_is_told(value: Any, words: str, tmp_path: Path):
    """As where a function forgets to return its metric, or a training diverged."""
    write_torch_run(tmp_path / "run", STEPS)
    with pytest.raises(GateError, match=f"no candidate has a metric: {words}"):
        tune(open_run([tmp_path / "run"]), tmp_path / "b", evaluate=lambda path: value, half_lives=["200ba"], repeats=3)


def test_the_evaluation_is_called_in_the_thread_of_its_caller(tmp_path: Path):
    """What torch.no_grad sets holds for a thread."""
    write_torch_run(tmp_path / "run", STEPS)
    seen = set()

    def evaluate(path: Path) -> float:
        seen.add((threading.current_thread(), torch.is_grad_enabled()))
        return 1

    with torch.no_grad():
        tune(open_run([tmp_path / "run"]), tmp_path / "b", evaluate=evaluate, half_lives=["200ba"])
    assert seen == {(threading.current_thread(), False)}


def test_what_the_evaluation_raises_ends_the_tuning_and_leaves_nothing(tmp_path: Path):
    """It is the caller's own error."""
    write_torch_run(tmp_path / "run", STEPS)

    def evaluate(path: Any) -> float:
        raise ZeroDivisionError(path.name)

    with pytest.raises(ZeroDivisionError, match="best"):
        tune(open_run([tmp_path / "run"]), tmp_path / "best", evaluate=evaluate, half_lives=["200ba"])
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_output_that_is_there_is_an_error_before_anything_is_evaluated(tmp_path: Path):
    """Unless it may be replaced."""
    write_torch_run(tmp_path / "run", STEPS)
    run = open_run([tmp_path / "run"])
    names, evaluate = recorded(lambda time: time)
    tune(run, tmp_path / "best", evaluate=evaluate, half_lives=["200ba"])
    names.clear()
    with pytest.raises(OutputError, match="exists already"):
        tune(run, tmp_path / "best", evaluate=evaluate, half_lives=["300ba"])
    assert not names
    tuned = tune(run, tmp_path / "best", evaluate=evaluate, half_lives=["300ba"], force=True)
    assert tuned.best is not None
    assert tuned.best.name == "300ba"


def test_half_lives_or_a_range_must_be_said(tmp_path: Path):
    """There is no default that fits all runs."""
    write_torch_run(tmp_path / "run", STEPS)
    with pytest.raises(UsageError, match="which half-lives"):
        tune(open_run([tmp_path / "run"]), tmp_path / "best", evaluate=lambda path: 0.0)


def test_a_series_from_python(tmp_path: Path):
    """The best clock of the best half-life, evaluated by a function."""
    write_torch_run(tmp_path / "run", STEPS)
    run = open_run([tmp_path / "run"])

    def evaluate(path: Path) -> float:
        recipe = asked(path)
        return 9.0 if "stop" not in recipe else abs(float(Time.parse(recipe["stop"]).value) - 600) / 1000

    tuned = tune(run, tmp_path / "best", evaluate=evaluate, half_lives=["200ba", "400ba"], series_every="300ba")
    assert tuned.best is not None
    assert tuned.best.name == "200ba-at-600ba"  # a tie: the shorter half-life
    assert [result.name for result in tuned.results][:3] == [LAST, "200ba-at-300ba", "200ba-at-600ba"]
    searched = tune(
        run, tmp_path / "other", evaluate=evaluate, between=("200ba", "400ba"), tries=3, series_every="300ba"
    )
    assert searched.best is not None
    assert searched.best.name == "200ba-at-600ba"
    assert len(searched.results) == 3 * 7 + 1


def test_windows_from_python(tmp_path: Path):
    """Named, of one profile; the winner is what `average` makes of it."""
    write_torch_run(tmp_path / "run", STEPS)
    run = open_run([tmp_path / "run"])

    def evaluate(path: Path) -> float:
        recipe = asked(path)
        return {None: 9.0, "500ba": 1.0, "900ba": 2.0}[recipe.get("window")]

    windows = {"profile": "cosine", "windows": ["900ba", "500ba"]}
    tuned = tune(run, tmp_path / "best", evaluate=evaluate, **windows)  # type: ignore[arg-type]
    assert tuned.best is not None
    assert tuned.best.name == "cosine-500ba"
    average(make_plan(run, Recipe(profile="cosine", window="500ba")), tmp_path / "alone")
    assert contents(tmp_path / "best") == contents(tmp_path / "alone")
