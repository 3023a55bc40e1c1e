"""Any half-life from stored averages: near the average over every step, or refused with what is within reach."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from ema_cli import EMA, Recipe, Time, average, parse_target
from ema_cli.errors import UsageError
from ema_cli.law.time import Unit
from ema_cli.planning import stored_plan
from ema_cli.planning.stored_plan import make_stored_plan
from ema_cli.runs.stored import open_stored
from tests.conftest import Cli
from tests.runs.stored_run import STEPS, train

pytestmark = pytest.mark.slow


def dense(seen: Sequence[np.ndarray], half_life: float) -> np.ndarray:
    """Return the average over every step, in float64."""
    kept = 0.5 ** (1 / half_life)
    found = seen[0]
    for each in seen[1:]:
        found = kept * found + (1 - kept) * each
    return found


def rebuild(folder: Path, half_life: str, output: Path, **options: Any) -> np.ndarray:
    """Average what is stored, and return the weights."""
    plan = make_stored_plan(
        open_stored([folder]), Recipe(half_life=Time.parse(half_life), **options), allow_approximate=False
    )
    average(plan, parse_target(output), force=True)
    return load_file(output)["weight"]


@pytest.mark.slow
@pytest.mark.parametrize("half_life", [20, 25, 30, 50, 70, 100, 150, 400, 1000, 100_000])
def test_any_half_life_comes_near_the_dense_average(
    half_life: int, trained: tuple[Path, list[np.ndarray]], tmp_path: Path
) -> None:
    """Between and beyond the stored ones, within 1 % of the dense average's distance from the last weights."""
    folder, seen = trained
    expected = dense(seen, half_life)
    found = rebuild(folder, f"{half_life}ba", tmp_path / "x.safetensors")
    assert np.linalg.norm(found - expected) < 0.01 * np.linalg.norm(seen[-1] - expected)


def test_a_rebuilt_average_ends_at_stop(trained: tuple[Path, list[np.ndarray]], tmp_path: Path) -> None:
    """With --stop the average is that of the training up to there."""
    folder, seen = trained
    expected = dense(seen[:210], 50)
    found = rebuild(folder, "50ba", tmp_path / "x.safetensors", stop=Time.parse("250ba"))
    assert np.linalg.norm(found - expected) < 0.01 * np.linalg.norm(seen[209] - expected)


def test_a_power_profile_from_stored_power_profiles(tmp_path: Path) -> None:
    """From profiles of width 0.05 and 0.10 one of 0.15 is made, as in post-hoc EMA; and a half-life too."""
    seen = train(tmp_path / "ema", half_life=None, sigma_rel=(0.05, 0.10), at=range(25, STEPS + 1, 25))
    gamma = max(np.roots([1, 7, 16 - 0.15**-2, 12 - 0.15**-2]).real)
    found = seen[0]
    for number, each in enumerate(seen[1:], 2):
        kept = ((number - 1) / number) ** (gamma + 1)
        found = kept * found + (1 - kept) * each
    plan = make_stored_plan(open_stored([tmp_path]), Recipe(profile="power", sigma_rel=0.15), allow_approximate=False)
    average(plan, parse_target(tmp_path / "x.safetensors"))
    rebuilt = load_file(tmp_path / "x.safetensors")["weight"]
    assert np.linalg.norm(rebuilt - found) < 0.01 * np.linalg.norm(seen[-1] - found)


def test_the_model_s_own_types_are_written(tmp_path: Path) -> None:
    """A bfloat16 model is averaged and stored in float32; what is made of it is bfloat16 again, rounded once."""
    train(tmp_path / "ema", dtype=torch.bfloat16)
    plan = make_stored_plan(open_stored([tmp_path]), Recipe(half_life=Time.parse("20ba")), allow_approximate=False)
    average(plan, parse_target(tmp_path / "x.safetensors"))
    average(plan, parse_target(tmp_path / "wide.safetensors"), dtype=None)
    from safetensors.torch import load_file as load_torch

    assert load_torch(tmp_path / "x.safetensors")["weight"].dtype == torch.bfloat16
    assert load_file(tmp_path / "ema/first.safetensors")["weight"].dtype == np.float32


def test_a_half_life_out_of_reach_is_refused_with_those_within(
    cli: Cli, trained: tuple[Path, list[np.ndarray]], tmp_path: Path
) -> None:
    """A half-life far below those that were stored is exit 4, says what is within reach, and can be insisted on."""
    folder, _ = trained
    arguments = [
        "average",
        str(folder),
        "--from",
        "stored",
        "--half-life",
        "1ba",
        "-o",
        str(tmp_path / "x.safetensors"),
    ]
    refused = cli(*arguments)
    assert refused.code == 4
    assert "1ba is out of reach" in refused.err
    assert "within 5% are" in refused.err
    assert not (tmp_path / "x.safetensors").exists()
    assert cli(*arguments, "--allow-approximate").code == 0


def test_weights_sum_to_one_and_the_profile_is_told(
    cli: Cli, trained: tuple[Path, list[np.ndarray]], tmp_path: Path
) -> None:
    """`--json` tells weights, the error, what is within reach, and the shares of training time, which sum to 1."""
    folder, _ = trained
    done = cli(
        "average",
        str(folder),
        "--from",
        "stored",
        "--half-life",
        "25ba",
        "-o",
        str(tmp_path / "x.safetensors"),
        "--json",
    )
    (plan,) = done.json["plans"]
    assert plan["from"] == "stored"
    assert sum(each["weight"] for each in plan["entries"]) == pytest.approx(1)
    told = plan["approximation"]
    assert told["relative_error"] < 0.02
    for kind in ("asked", "reached"):
        assert sum(each[kind] for each in told["stretches"]) == pytest.approx(1, abs=1e-6)


def test_several_half_lives_from_what_is_stored(
    cli: Cli, trained: tuple[Path, list[np.ndarray]], tmp_path: Path
) -> None:
    """One pass makes several, into one folder."""
    folder, seen = trained
    half_lives = ["--half-life", "40ba", "--half-life", "200ba"]
    done = cli("average", str(folder), "--from", "stored", *half_lives, "-o", str(tmp_path / "out"))
    assert done.code == 0, done.err
    for half_life in (40, 200):
        found = load_file(tmp_path / f"out/ema-{half_life}ba.safetensors")["weight"]
        expected = dense(seen, half_life)
        assert np.linalg.norm(found - expected) < 0.01 * np.linalg.norm(seen[-1] - expected)


@pytest.mark.slow
def test_more_than_can_be_solved_for_is_thinned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of very many stored averages the newest are all kept, and of the older ones fewer the older they are."""
    seen = train(tmp_path / "ema", at=range(10, STEPS + 1, 10))
    monkeypatch.setattr(stored_plan, "_MAX_STORED", 30)
    plan = make_stored_plan(open_stored([tmp_path]), Recipe(half_life=Time.parse("50ba")), allow_approximate=False)
    assert len(plan.entries) <= 30
    average(plan, parse_target(tmp_path / "x.safetensors"))
    expected = dense(seen, 50)
    found = load_file(tmp_path / "x.safetensors")["weight"]
    assert np.linalg.norm(found - expected) < 0.01 * np.linalg.norm(seen[-1] - expected)


def profile_model() -> torch.nn.Module:
    """A model of one number for each step, of which an average is its own profile."""
    return torch.nn.Linear(STEPS, 1, bias=False, dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kept", "asked"),
    [
        ({"smoothing": (0.997, 0.999)}, {"smoothing": 0.998}),
        ({"half_life": ("250ba", "1000ba")}, {"smoothing": 0.998}),
        ({"smoothing": (0.997, 0.999)}, {"half_life": Time.parse("400ba")}),
        ({"half_life": ("250ba", "1000ba"), "update_interval": "7ba"}, {"half_life": Time.parse("500ba")}),
        (
            {"sigma_rel": (0.05, 0.1), "update_interval": "500ba", "ema_start": "999ba"},
            {"profile": "power", "sigma_rel": 0.2},
        ),
        ({"half_life": ("250ba", "1000ba"), "ema_start": "999ba"}, {"profile": "power", "sigma_rel": 0.2}),
    ],
    ids=str,
)
def test_the_error_that_is_told_is_the_true_one(kept: dict[str, Any], asked: dict[str, Any], tmp_path: Path) -> None:
    """Where ten batches pass from one update to the next, told and true profile agree: each tensor is its profile."""
    model, true = profile_model(), profile_model()
    interval = {"update_interval": kept.get("update_interval", "1ba"), "ema_start": kept.get("ema_start", "0ba")}
    law = {name: str(value) if isinstance(value, Time) else value for name, value in asked.items() if name != "profile"}
    ema, dense_average = EMA(model, **kept), EMA(true, **law, **interval)
    for step in range(STEPS):
        for each in (model, true):
            with torch.no_grad():
                each.weight.zero_()
                each.weight[0, step] = 1
        ema.update(batch=10 * (step + 1))
        dense_average.update(batch=10 * (step + 1))
        if (step + 1) % 50 == 0 and ema.started:
            ema.store(tmp_path / "ema")
    plan = make_stored_plan(open_stored([tmp_path]), Recipe(**asked), allow_approximate=True)
    average(plan, parse_target(tmp_path / "x.safetensors"))
    found = load_file(tmp_path / "x.safetensors")["weight"]
    with dense_average.applied():
        wanted = true.weight.detach().numpy().copy()
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    assert plan.approximation is not None
    assert plan.approximation.error == pytest.approx(error, rel=0.03, abs=1e-4)
    assert plan.recipe.update_interval == Time.parse(interval["update_interval"])


@pytest.mark.slow
def test_leaving_out_small_weights_refuses_no_half_life_within_reach(tmp_path: Path) -> None:
    """Leaving out small weights never lifts the error over what is refused, nor over what is called near."""
    train(tmp_path / "ema", at=[53, 107, 264, 361])
    stored = open_stored([tmp_path])
    for half_life in np.geomspace(15, 400, 40):
        recipe = Recipe(half_life=Time(float(f"{half_life:.3g}"), Unit.BATCH))
        plan = make_stored_plan(stored, recipe, allow_approximate=True)
        assert plan.approximation is not None
        profiles_error = plan.approximation.least_error
        for within in (0.01, 0.05):
            assert (plan.approximation.error <= within) == (profiles_error <= within)


def test_a_power_profile_may_be_named(tmp_path: Path) -> None:
    """profile="power" goes with a width, and nothing else is kept as a model trains."""
    model = torch.nn.Linear(2, 2)
    assert EMA(model, profile="power", sigma_rel=(0.05, 0.1)).names == ["power-0.05", "power-0.1"]
    for wrong in ({"profile": "power"}, {"profile": "uniform", "sigma_rel": 0.1}):
        with pytest.raises(UsageError):
            EMA(model, **wrong)


@pytest.mark.slow
def test_a_real_training_gives_any_half_life(tmp_path: Path) -> None:
    """A small network, trained by Adam on noisy data, stored at irregular moments: within 1 % of the dense average."""
    random = torch.Generator().manual_seed(4)
    torch.manual_seed(4)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.BatchNorm1d(16), torch.nn.Linear(16, 1)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    ema = EMA(model, half_life=("25ba", "100ba"))
    half_lives = [20, 30, 50, 100, 150, 400, 2000]
    wide: dict[int, dict[str, np.ndarray]] = {half_life: {} for half_life in half_lives}
    for step in range(1, STEPS + 1):
        inputs = torch.randn(16, 4, generator=random)
        target = inputs.sum(1, keepdim=True).sin() + torch.randn(16, 1, generator=random)
        loss = (model(inputs) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update()
        for half_life, averages in wide.items():
            kept = 0.5 ** (1 / half_life)
            for name, value in model.state_dict().items():
                new = value.double().numpy()
                averages[name] = new if step == 1 else kept * averages[name] + (1 - kept) * new
        if step in (17, 60, 95, 150, 155, 230, 290, 340, 385, 400):
            ema.store(tmp_path / "ema")
    last = {name: value.double().numpy() for name, value in model.state_dict().items()}
    for half_life, expected in wide.items():
        plan = make_stored_plan(
            open_stored([tmp_path]), Recipe(half_life=Time.parse(f"{half_life}ba")), allow_approximate=False
        )
        average(plan, parse_target(tmp_path / "x.safetensors"), force=True)
        found = load_file(tmp_path / "x.safetensors")
        names = [name for name in expected if "num_batches" not in name]
        off = sum(np.square(found[name] - expected[name]).sum() for name in names)
        distance = sum(np.square(last[name] - expected[name]).sum() for name in names)
        assert off < 0.01**2 * distance, half_life
        assert found["2.num_batches_tracked"] == STEPS
