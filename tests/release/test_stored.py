"""An average of stored averages is as far off as it says, by the headers of what is stored."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from ema_cli import EMA
from tests.conftest import Cli
from tests.inprocess import write_stored_run
from tests.release.verified import against, check, edit_mark, vouch

pytestmark = pytest.mark.slow

STEPS = 100


@pytest.fixture
def out(tmp_path: Path, cli: Cli) -> Path:
    """Return an average of two half-lives that were stored twice."""
    write_stored_run(tmp_path / "run/ema", ("20ba", "60ba"), steps=STEPS)
    done = cli("average", "run", "--from", "stored", "--half-life", "30ba", "-o", "out.safetensors", "-q")
    assert done.code == 0, done
    return tmp_path / "out.safetensors"


def forge(out: Path, weights: Sequence[float], **approximation: float) -> None:
    """Give the stored averages other weights and errors, and let everything fit together."""

    def edit(manifest: dict[str, Any]) -> None:
        for row, weight in zip(manifest["inputs"], weights, strict=False):
            row["weight"] = weight
        for row in manifest["inputs"][len(weights) :]:
            row["weight"] = 0.0
        rows = [[row["name"], row["clock"], row["weight"]] for row in manifest["inputs"] if row["weight"] != 0]
        edit_mark(out, lambda mark: mark.update(checkpoints=rows))
        manifest["approximation"].update(approximation)

    vouch(out, edit)


def profile(half_life: float, first: int, last: int, until: int) -> np.ndarray[Any, Any]:
    """Return the weight of each update in an average, from its first update, by the recurrence itself."""
    weights = np.zeros(until + 1)
    weights[first] = 1.0
    kept = 2 ** (-1 / half_life)
    for update in range(first + 1, last + 1):
        weights *= kept
        weights[update] = 1 - kept
    return weights


def spreads(folder: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the most and the least spread of the model at each update, from the headers of what was stored.

    At each moment it is that of the average that was nearest to the model. Before the first it is that of the first.
    """
    measured = {}
    for moment in (50, 100):
        values = []
        for path in (folder / f"{moment}ba").glob("*.safetensors"):
            with safe_open(path, framework="np") as file:
                values.append(float(json.loads(file.metadata()["ema_cli"])["stored"]["spread"]))
        measured[moment] = min(values)
    begin, end = measured[50], measured[100]
    most, least = np.full(STEPS + 1, begin), np.full(STEPS + 1, begin)
    most[51:] = max(begin, end)
    for update in range(51, 101):
        left = (100 - update) / 50 if begin > end else (update - 50) / 50
        least[update] = min(begin, end) + abs(end - begin) * left**2
    return most, least


def test_an_honest_one_holds(out: Path):
    """The error is that of the profiles and their mean ages, by the recurrence and the spreads that `store` wrote."""
    assert against(out, out.parent / "run").problems == ()
    manifest = check(out).snapshot.manifest
    assert manifest is not None
    assert manifest["approximation"] is not None
    wanted = profile(30, 1, STEPS, STEPS)
    made = np.zeros(STEPS + 1)
    for row in manifest["inputs"]:
        name = Path(row["name"]).stem
        until = int(row["clock"].removesuffix("ba"))
        made += row["weight"] * (profile(float(name.removesuffix("ba")), 1, until, STEPS) if name != "first" else
                                 np.eye(STEPS + 1)[1])  # fmt: skip
    ages = STEPS - np.arange(STEPS + 1)
    most, least = spreads(out.parent / "run/ema")
    error = math.hypot(
        float(np.linalg.norm(most * (made - wanted)) / np.linalg.norm(least * wanted)),
        float((made - wanted) @ ages / (wanted @ ages)),
    )
    # The rounding of this run is less than a millionth.
    assert math.isclose(manifest["approximation"]["relative_error"], error, rel_tol=1e-4, abs_tol=3e-6)


@pytest.mark.parametrize(
    ("weights", "fact"),
    [
        ((21.0, -20.0), "with these weights it is"),
        ((1e5, -1e5, 1.0), "with these weights it is"),
        ((0.5, 0.5), "with these weights it is"),
        ((0.6,), "weights with the sum 0.6, not 1"),
        ((0.0, 0.0), "weights with the sum 0, not 1"),
        ((0.5, 0.5000001), "weights with the sum 1, not 1"),
    ],
)
@pytest.mark.parametrize("recipe", [True, False])
def test_weights_that_are_not_those_of_the_fit(out: Path, cli: Cli, weights: Sequence[float], fact: str, recipe: bool):
    """Their sum is not 1, or the average is further off than it says: for verify, and where it is repeated."""
    forge(out, weights)
    if recipe:
        done = cli("average", "run", "--recipe", f"{out}.manifest.json", "-o", "again.safetensors", "-q")
        assert (done.code, fact in done.err) == (4, True), done
        return
    assert check(out).problems == ()
    (problem,) = against(out, out.parent / "run").problems
    assert fact in problem


@pytest.mark.parametrize(
    ("approximation", "fact"),
    [
        ({"relative_error": 0.0, "least_error": 0.0}, "says that the average is 0.0000% off"),
        ({"relative_error": 0.5}, "says that the average is 50.0000% off"),
        ({"least_error": 0.4}, "says that the least error is 40.0000%"),
    ],
)
def test_errors_that_are_not_those_of_the_weights(out: Path, approximation: dict[str, float], fact: str):
    """A smaller error than the weights have is a problem, and so is a larger."""
    vouch(out, lambda manifest: manifest["approximation"].update(approximation))
    (problem,) = against(out, out.parent / "run").problems
    assert fact in problem


def test_an_error_that_is_left_out(out: Path):
    """An average of stored ones says how far it is off."""
    vouch(out, lambda manifest: manifest.update(approximation=None))
    (problem,) = against(out, out.parent / "run").problems
    assert "not how far they are off" in problem


def test_another_half_life_is_further_off(out: Path):
    """The law that the manifest names is that of the target."""

    def edit(manifest: dict[str, Any]) -> None:
        manifest["recipe"].update(half_life="40ba", law="40ba")

    edit_mark(out, lambda mark: mark.update(half_life="40ba"))
    vouch(out, edit)
    (problem,) = against(out, out.parent / "run").problems
    assert "with these weights it is" in problem


def test_what_was_stored_later_changes_nothing(out: Path, cli: Cli):
    """The error is that at the time of the newest that entered."""
    write_stored_run(out.parent / "longer/ema", ("20ba", "60ba"), steps=STEPS + 50)
    assert against(out, out.parent / "longer").problems == ()
    stopped = ("--from", "stored", "--half-life", "30ba", "--stop", f"{STEPS}ba", "-o", "stopped.safetensors", "-q")
    assert cli("average", "longer", *stopped).code == 0
    assert against(out.parent / "stopped.safetensors", out.parent / "longer").problems == ()


@pytest.mark.parametrize("rest", [range(0), range(1, 61), range(150, 201), range(1, 160), range(1, 201)])
def test_a_model_that_rests_for_a_time(cli: Cli, tmp_path: Path, rest: range):
    """While the rate is 0 no average is off; what is told is a number, holds, and numpy has nothing to say."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    ema = EMA(model, half_life=("20ba", "60ba"))
    for step in range(1, 201):
        with torch.no_grad():
            for parameter in model.parameters() if step not in rest else ():
                parameter += torch.randn_like(parameter) / 10
        ema.update()
        if step % 50 == 0:
            ema.store(tmp_path / "run/ema")
    for half_life in ("5ba", "30ba", "1000ba", "1e5ba", "1e6ba", "1e9ba", "infba"):
        name = f"{half_life}.safetensors"
        law = ("--from", "stored", "--half-life", half_life, "--allow-approximate")
        assert cli("average", "run", *law, "-o", name, "-q").code == 0
        done = cli("verify", name, "--against", "run", "--strict")
        assert done.code == 0, (half_life, done)
