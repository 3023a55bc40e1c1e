"""The averages of a model that trains: those of its checkpoints, Composer's, and the same after a stop."""

from __future__ import annotations

import copy
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
from ema_cli.errors import RunError, UsageError
from tests.composer_recurrence import BatchEnd, composer_ema
from tests.conftest import COMPOSER
from tests.online.models import (
    Tensors,
    assert_near,
    assert_same,
    bits,
    dense,
    held,
    power_profile,
    resumed,
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
    for law, name in zip(ema.tracks.laws.values(), ema.names, strict=True):
        gamma = law.gamma  # type: ignore[union-attr]
        assert math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) == pytest.approx(float(name[6:]))
        shares = power_profile(clocks, gamma)
        assert math.fsum(shares) == pytest.approx(1, abs=1e-9)
        expected = {
            key: sum(share * each[key] for share, each in zip(shares, models, strict=True)) for key in models[0]
        }
        assert_near(held(ema, name), expected, updates=10)  # type: ignore[arg-type]


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


# ---- resume


RESUMED: list[dict[str, Any]] = [
    {"half_life": "5ba"},
    {"half_life": "5ba", "update_interval": "3ba"},
    {"half_life": "2ep"},
    {"half_life": ("2ba", "9ba"), "offload": "cpu"},
    {"half_life": "5ba", "offload": "cpu"},
    {"sigma_rel": (0.05, 0.2)},
    {"smoothing": 0.9, "ema_start": "7ba"},
    {"half_life": "4ba", "train_with_ema_weights": True},
]


@pytest.mark.parametrize("asked", RESUMED, ids=str)
@pytest.mark.parametrize("stop", [0, 1, 6, 7, 11])
def test_resume_bit_for_bit(tmp_path: Path, asked: dict[str, Any], stop: int):
    """A run that stops and goes on holds the bits of one that does not, wherever it stops: also before the start."""
    model = small_model()
    ema = EMA(model, **asked)
    interrupted = None
    for step in range(1, 21):
        if step == stop + 1:
            interrupted = resumed(ema, model, lambda again: EMA(again, **asked), str(tmp_path / "state.pt"))
        for each in (model, *([interrupted[0]] if interrupted else [])):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(step)
                with torch.no_grad():
                    for tensor in (*each.parameters(), *each.buffers()):
                        tensor += torch.randn(tensor.shape).to(tensor.dtype)
        ema.update(batch=step, epoch=step / 4)
        if interrupted:
            interrupted[1].update(batch=step, epoch=step / 4)
    assert interrupted is not None
    again, other = interrupted
    assert_same(bits(again), bits(model))
    for name in ema.names:
        assert_same(held(other, name), held(ema, name))
    assert (other.clock, other.updates, other.began) == (ema.clock, ema.updates, ema.began)
    if ema.first is None:
        assert other.first is None
    else:
        assert other.first is not None
        assert_same(other.first, ema.first)


def test_the_first_copy_outlives_a_stop(tmp_path: Path):
    """Stopped between the first copy and the first store, a run still stores the copy; after that it has none."""
    model = small_model().to(torch.bfloat16)
    move = walk(model)
    make = lambda again: EMA(again, ("2ba", "5ba"))  # noqa: E731
    ema = make(model)
    move()
    ema.update()
    first = taken(model)
    move()
    ema.update()
    again, other = resumed(ema, model, make, str(tmp_path / "state.pt"))
    other.store(tmp_path / "stored")
    found = load_file(tmp_path / "stored" / "first.safetensors")
    assert_same(found, {name: t.float() if t.is_floating_point() else t for name, t in first.items()})
    assert other.first is None
    assert other.state_dict()["first"] is None
    _, third = resumed(other, again, make, str(tmp_path / "state.pt"))
    assert third.first is None


@pytest.mark.parametrize("offload", [None, "cpu"])
def test_a_state_replaces_an_update_under_way(offload: Any):
    """Loaded in the middle of a training, also with offload, a state brings back all that was: masks in it, too."""
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    ema = EMA(model, "3ba", offload=offload)
    ema.update()
    state, before = copy.deepcopy(ema.state_dict()), taken(model)
    other = EMA(model, "3ba", offload=offload)
    with torch.no_grad():
        model.mask.zero_()
    for step in range(3):
        walk(model, step)()
        other.update()
    other.load_state_dict(state)
    model.load_state_dict(before)
    assert_same(held(other), before)
    for _ in range(2):
        other.update()
        assert_same(held(other), before)
    assert (other.clock, other.updates) == (Time.parse("3ba"), 2)


def test_another_half_life_is_refused():
    """A state of another half-life, interval, start or law does not load, and says of which it is."""
    ema = EMA(nn.Linear(2, 2), "50ba")
    ema.update()
    state = ema.state_dict()
    others: list[dict[str, Any]] = [
        {"half_life": "51ba"},
        {"half_life": "50ba", "update_interval": "2ba"},
        {"half_life": "50ba", "ema_start": "5ba"},
        {"smoothing": 0.9},
        {"sigma_rel": 0.1},
    ]
    for asked in others:
        other = EMA(nn.Linear(2, 2), **asked)
        with pytest.raises(RunError, match="the state is of 50ba every 1ba from 0ba, but this average is of") as raised:
            other.load_state_dict(state)
        assert "change_half_life=True" in (raised.value.hint or "")
        other.load_state_dict(state, change_half_life=True)
        assert_same(held(other), held(ema))
        assert other.update() is ("ema_start" not in asked)
    with pytest.raises(RunError, match="counts in batches, but this average in epochs"):
        EMA(nn.Linear(2, 2), "50ep").load_state_dict(state, change_half_life=True)
    with pytest.raises(RunError, match="holds 1 averages, but 2 are asked for"):
        EMA(nn.Linear(2, 2), ("50ba", "5ba")).load_state_dict(state, change_half_life=True)


def test_a_changed_half_life_goes_on_from_the_average():
    """With change_half_life the average stays, and moves on by the new law."""
    model = nn.Linear(2, 2)
    ema = EMA(model, "50ba")
    ema.update()
    other = EMA(model, "1ba")
    other.load_state_dict(ema.state_dict(), change_half_life=True)
    before = taken(model)
    walk(model)()
    other.update()
    expected = {name: (before[name].double() + tensor.double()) / 2 for name, tensor in taken(model).items()}
    assert_near(held(other), expected)


def test_a_state_that_does_not_fit_changes_nothing():
    """Where one tensor of a state does not fit, it is named, and the averages stay what they were."""
    ema = EMA(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3)))
    ema.update()
    before = {name: tensor.clone() for name, tensor in held(ema).items()}
    other = EMA(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 4)))
    other.update()
    with pytest.raises(RunError, match=r"'1.weight' is \[4, 2\] in the state, but \[3, 2\] in the model"):
        ema.load_state_dict(other.state_dict())
    third = EMA(nn.Linear(2, 2))
    third.update()
    with pytest.raises(RunError, match=r"the state of 1000ba does not fit: '0.bias' is in the model, not in the state"):
        ema.load_state_dict(third.state_dict())
    with pytest.raises(RunError, match="this is no state of an EMA"):
        ema.load_state_dict({"averages": {}})
    assert_same(held(ema), before)


# ---- applied


def averaged_model(steps: int = 5, **asked: Any) -> tuple[nn.Sequential, EMA]:
    model = small_model()
    ema = EMA(model, **(asked or {"half_life": "3ba"}))
    for _ in train(model, steps):
        ema.update()
    return model, ema


@pytest.mark.parametrize("offload", [None, "cpu"])
def test_applied_holds_the_averages_and_gives_the_bits_back(offload: Any):
    """Inside, the model is the average; afterwards it is what it was, bit for bit, in the same tensors."""
    model, ema = averaged_model(half_life="3ba", offload=offload)
    with torch.no_grad():
        model[0].bias[:2] = torch.tensor([float("nan"), -0.0])
    before, tensors = bits(model), list(model.parameters())
    with ema.applied() as inside:
        assert inside is model
        assert_same(taken(model), held(ema))
    assert_same(bits(model), before)
    assert all(now is then for now, then in zip(model.parameters(), tensors, strict=True))


def test_applied_gives_back_after_an_error():
    """Whatever the block raises comes out of it, and the model is what it was."""
    model, ema = averaged_model()
    before = bits(model)
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), ema.applied():
            raise error
        assert_same(bits(model), before)
    assert ema.update()


def spoil(model: nn.Sequential) -> None:
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.fill_(7)


def assign(model: nn.Sequential) -> None:
    model.load_state_dict({name: torch.ones_like(t) for name, t in model.state_dict().items()}, assign=True)


def replace_buffer(model: nn.Sequential) -> None:
    model[1].running_mean = torch.ones(16)


def halve(model: nn.Sequential) -> None:
    model.half()


def forward(model: nn.Sequential) -> None:
    model.train()(torch.ones(4, 8))


@pytest.mark.parametrize("action", [spoil, assign, replace_buffer, halve, forward])
def test_applied_gives_back_what_the_block_changed(action: Any):
    """Values, tensors and types that the block puts in place of the averages are gone after it; averages stay."""
    model, ema = averaged_model()
    before, average, tensors = bits(model), held(ema), list(model.parameters())
    average = {name: tensor.clone() for name, tensor in average.items()}
    with ema.applied():
        action(model)
    assert_same(bits(model), before)
    assert all(now is then for now, then in zip(model.parameters(), tensors, strict=True))
    assert_same(held(ema), average)
    for _ in train(model, 1):
        assert ema.update()


def test_applied_twice_is_refused(tmp_path: Path):
    """Inside `applied`, another one, an update and a load are errors; nothing is changed by them."""
    model, ema = averaged_model()
    before, clock, state = bits(model), ema.clock, ema.state_dict()
    with ema.applied():
        average = bits(model)
        with pytest.raises(UsageError, match="the averages are applied already"), ema.applied():
            pass
        with pytest.raises(UsageError, match="update: the averages are applied"):
            ema.update()
        with pytest.raises(UsageError, match="load_state_dict: the averages are applied"):
            ema.load_state_dict(state)
        with pytest.raises(UsageError, match="get_ema_model: the averages are applied already"):
            ema.get_ema_model()
        assert_same(bits(model), average)
    assert_same(bits(model), before)
    assert ema.clock == clock


def test_saving_inside_applied_gives_the_averages(tmp_path: Path):
    """save, store and state_dict inside `applied` write what they write outside of it, whatever the block does."""
    model, ema = averaged_model(half_life="3ba", keep_first=False)
    ema.save(tmp_path / "outside.safetensors")
    outside = ema.store(tmp_path / "a") / "3ba.safetensors"
    state = {name: tensor.clone() for name, tensor in held(ema).items()}
    with ema.applied():
        spoil(model)
        replace_buffer(model)
        ema.save(tmp_path / "inside.safetensors")
        inside = ema.store(tmp_path / "b") / "3ba.safetensors"
        assert_same(held(ema), state)
    assert (tmp_path / "inside.safetensors").read_bytes() == (tmp_path / "outside.safetensors").read_bytes()
    assert inside.read_bytes() == outside.read_bytes()


@pytest.mark.parametrize("offload", [None, "cpu"])
def test_inference_mode_leaves_no_mark(offload: Any):
    """Whatever is asked under inference_mode, as Lightning validates, the training goes on with the same bits."""
    model = small_model().to(torch.bfloat16)
    ema, other = EMA(model, "3ba", offload=offload), EMA(model, "3ba", offload=offload)
    with torch.inference_mode():
        ema.state_dict()
    for step in range(4):
        walk(model, step)()
        ema.update()
        other.update()
        with torch.inference_mode(), ema.applied():
            model(torch.ones(2, 8, dtype=torch.bfloat16))
        assert not any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers()))
    assert_same(held(ema), held(other))
    model(torch.ones(4, 8, dtype=torch.bfloat16)).sum().backward()


def test_get_ema_model_and_get_training_model():
    """As in Composer: the averages, or inside `applied` the training weights, in a model that is given or in ours."""
    model, ema = averaged_model()
    average, training = held(ema), taken(model)
    other = small_model(8).double()
    assert ema.get_ema_model(other) is other
    assert_same({name: tensor.to(average[name].dtype) for name, tensor in taken(other).items()}, average)
    with pytest.raises(UsageError, match="no averages are applied"):
        ema.get_training_model(other)
    with ema.applied():
        assert ema.get_training_model(other) is other
        assert_same({name: tensor.to(training[name].dtype) for name, tensor in taken(other).items()}, training)
        ema.get_ema_model(other)
        assert_same({name: tensor.to(average[name].dtype) for name, tensor in taken(other).items()}, average)
    assert_same(taken(model), training)
    assert ema.get_ema_model() is model
    assert_same(taken(model), average)
    with pytest.raises(RunError, match=r"'0.weight' is \[16, 8\], but missing in the model that is to hold it"):
        ema.get_ema_model(nn.Linear(2, 2))


def test_get_ema_model_gives_frozen_parameters_too():
    """A model made from nothing becomes the average in every tensor, the frozen ones too."""
    model = small_model()
    model[3].requires_grad_(False)
    ema = EMA(model)
    for _ in train(model, 2):
        ema.update()
    other = ema.get_ema_model(small_model(8))
    assert torch.equal(other[3].weight, model[3].weight)  # type: ignore[index]


def test_several_averages_are_told_apart():
    """With several averages, what needs one must be told which; unknown names are refused with those there are."""
    model, ema = averaged_model(half_life=("0ba", "infba"), update_interval="1ba")
    newest = taken(model)
    with ema.applied("0ba"):
        assert_same(taken(model), newest)
    with ema.applied("infba"), pytest.raises(AssertionError):
        assert_same(taken(model), newest)
    for call in (lambda: ema.applied().__enter__(), ema.get_ema_model, lambda: ema.save("x.safetensors")):
        with pytest.raises(UsageError, match="there are several averages") as raised:
            call()
        assert raised.value.hint == "say which: 0ba, infba"
    with pytest.raises(UsageError, match="there is no average '3ba'"):
        ema.get_ema_model(average="3ba")


def test_before_the_first_copy_there_is_no_average(tmp_path: Path):
    """Before ema_start, what needs an average is refused, and says what to do; a start that never came is the same."""
    model = small_model()
    ema = EMA(model, "5ba", ema_start="100ba")
    for _ in train(model, 3):
        assert not ema.update()
    assert not ema.started
    assert ema.clock is None
    for call in (
        lambda: ema.applied().__enter__(),
        ema.get_ema_model,
        lambda: ema.save(tmp_path / "x.safetensors"),
        lambda: ema.store(tmp_path),
    ):
        with pytest.raises(UsageError, match="there is no average yet") as raised:
            call()
        assert "ema_start" in (raised.value.hint or "")
    assert list(tmp_path.iterdir()) == []


def test_train_with_ema_weights():
    """The averages become the training weights at each update: the model goes on from there."""
    model = small_model()
    ema = EMA(model, "3ba", update_interval="2ba", train_with_ema_weights=True)
    kept = math.exp(-math.log(2) * 2 / 3)
    average = None
    for step in range(1, 9):
        walk(model, step)()
        state = {name: tensor.double() for name, tensor in taken(model).items()}
        event = ema.update()
        assert event == (step == 1 or step % 2 == 0)
        if event:
            average = {
                name: tensor if average is None or name == COUNTER else kept * average[name] + (1 - kept) * tensor
                for name, tensor in state.items()
            }
            assert_near({name: t for name, t in taken(model).items() if name != COUNTER},
                        {name: t for name, t in average.items() if name != COUNTER})  # fmt: skip
        else:
            assert_same({name: t.double() for name, t in taken(model).items()}, state)
    with pytest.raises(UsageError, match="there are several averages to train with"):
        EMA(model, ("1ba", "2ba"), train_with_ema_weights=True)


def test_an_error_in_update_leaves_everything_as_it_was():
    """A clock that goes back, a missing one, a changed model: the error leaves clocks and averages alone."""
    model, ema = averaged_model()
    before = {name: tensor.clone() for name, tensor in held(ema).items()}
    clocks, clock, updates = dict(ema.clocks.passed), ema.clock, ema.updates
    with pytest.raises(UsageError, match="the clock goes back"):
        ema.update(batch=4)
    model.add_module("more", nn.Linear(2, 2))
    with pytest.raises(RunError, match=r"'more.weight', 'more.bias' are new, or trained only now"):
        ema.update()
    del model.more
    assert (ema.clocks.passed, ema.clock, ema.updates) == (clocks, clock, updates)
    assert_same(held(ema), before)
    assert ema.update()
    assert ema.clocks.passed != clocks


def test_the_model_is_not_touched_by_an_update():
    """An update reads the model: no tensor of it changes, and none needs a gradient more or less."""
    model, ema = averaged_model()
    before = bits(model)
    flags = [tensor.requires_grad for tensor in model.parameters()]
    ema.update()
    assert_same(bits(model), before)
    assert [tensor.requires_grad for tensor in model.parameters()] == flags
    assert not any(tensor.requires_grad for tensor in held(ema).values())


def test_torch_compile_is_looked_through():
    """A compiled model is averaged under its own names, however much of it is compiled."""
    model = small_model()
    compiled = torch.compile(model, backend="eager")
    ema = EMA(compiled, "3ba")  # type: ignore[arg-type]
    assert ema.model is model
    models = []
    for _ in train(compiled, 4):  # type: ignore[arg-type]
        ema.update()
        models.append(taken(model))
    assert_near(held(ema), dense(models, 3))
    with torch.no_grad(), ema.applied():
        model.eval()
        expected = copy.deepcopy(model)(torch.ones(2, 8))
        assert torch.equal(compiled(torch.ones(2, 8)), expected)
        model.train()
    assert EMA(nn.DataParallel(compiled)).model is model
    part = nn.Sequential(torch.compile(nn.Linear(2, 2), backend="eager"), nn.Linear(2, 2))
    inner = EMA(part)
    inner.update()
    assert list(held(inner)) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    torch.compiler.reset()
