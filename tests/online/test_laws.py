"""The averages of a model that trains are those of its checkpoints, and Composer's."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ema_cli import EMA, Recipe, Time, average, make_plan, open_run, parse_target
from tests.composer_recurrence import BatchEnd, composer_ema
from tests.conftest import COMPOSER
from tests.online.models import (
    Tensors,
    assert_near,
    assert_same,
    held,
    power_profile,
    small_model,
    taken,
    train,
    walk,
)

STEPS, EPOCH = 60, 12
COUNTER = "1.num_batches_tracked"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Tensors]]:
    """Train for five epochs, every step saved; return the folder and the models."""
    folder = tmp_path_factory.mktemp("run")
    model, models = small_model(), []
    for step in train(model, STEPS):
        models.append(taken(model))
        checkpoint = folder / f"checkpoint-{step}"
        checkpoint.mkdir()
        save_file(model.state_dict(), checkpoint / "model.safetensors", metadata={"format": "pt"})
        state = {"epoch": step / EPOCH, "global_step": step, "log_history": []}
        (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    return folder, models


def feed(ema: EMA, models: list[Tensors], *, since: int = 0) -> None:
    """Let the model take each of its states, and the average be told of it; `since` counts those before."""
    for step, state in enumerate(models, since + 1):
        ema.model.load_state_dict(state)
        ema.update(batch=step, epoch=step / EPOCH)


@pytest.mark.slow
@pytest.mark.parametrize(
    "asked",
    [
        {"half_life": "50ba"},
        {"half_life": "50ba", "update_interval": "1ba"},
        {"half_life": "20ba", "update_interval": "5ba"},
        {"half_life": "7ba", "update_interval": "13ba"},
        {"half_life": "20ba", "update_interval": "every"},
        {"half_life": "0.5ba"},
        {"half_life": "2ep"},
        {"half_life": "3ep", "update_interval": "2ep"},
        {"half_life": "2ep", "update_interval": "0.25ep"},
        {"half_life": "0.5ep"},
        {"half_life": "20ba", "start": "30ba"},
        {"half_life": "20ba", "update_interval": "5ba", "start": "22ba"},
        {"half_life": "20ba", "start": "2.5ep"},
        {"half_life": "2ep", "start": "2ep"},
        {"half_life": "1ep", "start": "31ba"},
        {"smoothing": 0.9},
        {"smoothing": 0.9, "update_interval": "5ba"},
        {"smoothing": 0.5, "update_interval": "1ep", "start": "2ep"},
        {"smoothing": 0.9, "update_interval": "every"},
    ],
    ids=str,
)
def test_online_is_post_hoc(trained: tuple[Path, list[Tensors]], tmp_path: Path, asked: dict[str, Any]):
    """Fed live or averaged from the files of every step: the same average, to float32 rounding."""
    folder, models = trained
    start = asked.get("start")
    times = {name: asked[name] for name in ("half_life", "update_interval") if name in asked}
    parsed = {name: text if text == "every" else Time.parse(text) for name, text in times.items()}
    if "smoothing" in asked:
        times["smoothing"] = parsed["smoothing"] = asked["smoothing"]
    ema = EMA(small_model(9), **times, ema_start=start or "0ba")
    feed(ema, models)
    ema.save(tmp_path / "online.safetensors")
    recipe = Recipe(**parsed, start=Time.parse(start) if start else None)
    plan = make_plan(open_run([folder]), recipe)
    average(plan, parse_target(tmp_path / "offline.safetensors"))
    assert_near(load_file(tmp_path / "online.safetensors"), load_file(tmp_path / "offline.safetensors"))
    assert ema.updates == len(plan.entries) - 1
    assert ema.clock == plan.entries[-1].clock


def test_the_batches_are_counted(trained: tuple[Path, list[Tensors]]):
    """update() without a word is told nothing that update(batch=...) is not."""
    _, models = trained
    counted, told = (EMA(small_model(9), "20ba", update_interval="5ba") for _ in range(2))
    for step, state in enumerate(models, 1):
        for ema in (counted, told):
            ema.model.load_state_dict(state)
        events = counted.update(), told.update(batch=step)
        assert events[0] == events[1] == (step == 1 or step % 5 == 0)
    assert_same(held(counted), held(told))


def test_half_life_0_is_the_newest(trained: tuple[Path, list[Tensors]]):
    """What Composer documents and divides by zero for: at half-life 0 the average is the model, bit for bit."""
    _, models = trained
    ema = EMA(small_model(9), "0ba")
    for step, state in enumerate(models, 1):
        ema.model.load_state_dict(state)
        ema.update()
        assert_same(held(ema), models[step - 1])


def test_an_infinite_half_life_is_the_first(trained: tuple[Path, list[Tensors]]):
    """What Composer documents and overflows for: with an infinite half-life the average stays the first copy."""
    _, models = trained
    ema = EMA(small_model(9), "infba", ema_start="3ba")
    feed(ema, models)
    assert_same(held(ema), {**models[2], COUNTER: models[-1][COUNTER]})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("half_life", "interval", "unit", "start"),
    [(50, 1, "ba", 0), (20, 5, "ba", 0), (2, 1, "ep", 0), (20, 5, "ba", 22), (50, 1, "ba", 30), (2, 1, "ep", 2)],
)
def test_composers_recurrence(
    trained: tuple[Path, list[Tensors]], half_life: int, interval: int, unit: str, start: int
):
    """Composer's own rules over the same models, in float64, give what the average holds; integers are the newest."""
    _, models = trained
    ema = EMA(small_model(9), f"{half_life}{unit}", None, f"{start}{unit}", f"{interval}{unit}")
    events = []
    for step, state in enumerate(models, 1):
        ema.model.load_state_dict(state)
        ema.update(batch=step, epoch=step // EPOCH)
        wide = {name: tensor.double() for name, tensor in state.items()}
        events.append(BatchEnd(step, wide, step // EPOCH if step % EPOCH == 0 else None))
    expected = composer_ema(events, half_life, interval, unit, start)
    assert_near(held(ema), {**expected, COUNTER: torch.tensor(60)})


class Bare(nn.Module):
    """A model that is made of tensors under their names."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            *path, last = name.split(".")
            module: nn.Module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module._modules[part]
            if "running" in last or not tensor.is_floating_point():
                module.register_buffer(last, tensor.clone())
            else:
                module.register_parameter(last, nn.Parameter(tensor.clone()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("half_life", "interval", "start"),
    [("10ba", "1ba", None), ("10ba", None, None), ("8ba", "4ba", None), ("6ba", "1ba", "12ba"), ("1ep", None, None)],
)
def test_composers_own_results(half_life: str, interval: str | None, start: str | None):
    """Fed with the models that Composer saved, the average is the one that its EMA held in the same run."""
    files = sorted((COMPOSER / "every-batch").glob("ep*.pt"), key=lambda path: int(path.stem.split("-")[1][2:]))
    ema = None
    for batch, file in enumerate(files, 1):
        model = torch.load(file, weights_only=False)["state"]["model"]
        ema = ema or EMA(Bare(model), half_life, None, start or "0ba", interval)
        ema.model.load_state_dict(model)
        ema.update(batch=batch, epoch=batch // 12)
    name = f"{half_life}-{interval or '1' + half_life[-2:]}{'-start' + start if start else ''}.safetensors"
    expected = load_file(COMPOSER / "expected" / name)
    assert ema is not None
    found = held(ema)
    assert set(found) == set(expected)
    for key, tensor in found.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, expected[key].float(), rtol=0, atol=1e-6)
    assert found["norm.num_batches_tracked"].item() == 24


@pytest.mark.slow
def test_bfloat16_moves():
    """5,000 updates at 1e-3 from 1.0 toward 1.05 come to 1.0466; in the model's own type nothing would move."""
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.constant_(model.weight, 1.0)
    ema = EMA(model, smoothing=0.999)
    ema.update()
    nn.init.constant_(model.weight, 1.05)
    target = model.weight.item()
    for _ in range(5000):
        ema.update()
    (weight,) = held(ema).values()
    assert weight.dtype == torch.float32
    assert weight.item() == pytest.approx(target - (target - 1) * 0.999**5000, abs=1e-5)
    assert weight.item() == pytest.approx(1.0466, abs=1e-4)


@pytest.mark.parametrize("widths", [(0.05, 0.10), (0.20, 0.2886)])
def test_power_profiles_are_their_integral(widths: tuple[float, float]):
    """A power profile is (gamma + 1) / T^(gamma + 1) times the integral of t^gamma over what each model stood for."""
    model = nn.Linear(3, 2)
    ema = EMA(model, sigma_rel=widths, update_interval="every")
    clocks = [Fraction(n) for n in (1, 2, 4, 5, 9, 10, 12, 17, 18, 20)]
    move, models = walk(model), []
    for clock in clocks:
        move()
        models.append({name: tensor.double() for name, tensor in taken(model).items()})
        ema.update(batch=clock)
    for law, name in zip(ema.averages.tracks.laws.values(), ema.names, strict=True):
        gamma = law.gamma  # type: ignore[union-attr]
        assert math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) == pytest.approx(float(name[6:]))
        shares = power_profile(clocks, gamma)
        assert math.fsum(shares) == pytest.approx(1, abs=1e-9)
        expected = {
            key: sum(share * each[key] for share, each in zip(shares, models, strict=True)) for key in models[0]
        }
        assert_near(held(ema, name), expected, updates=10)  # type: ignore[arg-type]


def test_a_share_of_the_training_so_far_is_the_weights_of_checkpoints():
    """With ema_start 5ba and half-lives of 10 % and 50 %, the average is the sum that the offline law gives."""
    model = nn.Linear(3, 2)
    ema = EMA(model, ("10%ba", "50%ba"), ema_start="5ba")
    clocks = [Fraction(n) for n in range(1, 41)]
    move, models = walk(model), []
    for clock in clocks:
        move()
        models.append({name: tensor.double() for name, tensor in taken(model).items()})
        ema.update(batch=clock)
    for name in ema.names:
        law = Recipe(half_life=name, start="5ba").law
        weights = law.weights([], clocks[4:], bias_correction=False)
        expected = {
            key: sum(share * each[key] for share, each in zip(weights, models[4:], strict=True)) for key in models[0]
        }
        assert_near(held(ema, name), expected, updates=40)  # type: ignore[arg-type]


@pytest.mark.parametrize("offload", [None, "cpu"])
def test_several_at_once_are_each_alone(offload: Any):
    """Several half-lives in one pass give the bits of each alone."""
    model = small_model()
    several = EMA(model, ("0ba", "3ba", "25ba", "infba"), update_interval="1ba", offload=offload)
    alone = [EMA(model, name, update_interval="1ba", offload=offload) for name in several.names]
    for _ in train(model, 20):
        for ema in (several, *alone):
            ema.update()
    for ema, name in zip(alone, several.names, strict=True):
        assert_same(held(several, name), held(ema))
