"""ema-cli on Composer's files gives what Composer's own EMA would have given."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from ema_cli import averaging
from ema_cli.errors import RunError
from ema_cli.formats.options import ReadOptions
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time, Unit
from ema_cli.planning.plan import make_plan
from ema_cli.runs.options import OpenOptions
from ema_cli.runs.run import read_run
from ema_cli.writing.target import parse_target
from tests.composer_recurrence import BatchEnd, Tensors, composer_ema, event_by_event, make_run
from tests.conftest import COMPOSER

BATCHES, EPOCH, SIZE = 60, 12, 32
COUNTER = "1.num_batches_tracked"


def average(
    folder: Path,
    target: Path,
    half_life: str,
    interval: str | None = None,
    *,
    options: ReadOptions | None = None,
    **times: str,
) -> dict[str, torch.Tensor]:
    """Average the run in `folder` the way the command does; `times`: start, stop."""
    recipe = Recipe(
        half_life=Time.parse(half_life),
        update_interval=Time.parse(interval) if interval else None,
        **{name: Time.parse(text) for name, text in times.items()},  # type: ignore[arg-type]
    )
    plan = make_plan(read_run([folder], OpenOptions(options or ReadOptions())), recipe)
    averaging.average(plan, parse_target(target))
    return load_file(target)


def save(folder: Path, model: Tensors, epoch: int, batch: int, in_epoch: int) -> None:
    """Write a checkpoint as Composer lays it out and names it."""
    counts = {"iteration": 0, "epoch": epoch, "batch": batch, "sample": batch * SIZE, "token": 0}
    inner = {"batch_in_epoch": in_epoch, "sample_in_epoch": in_epoch * SIZE, "token_in_epoch": 0}
    clock = {**counts, **inner, "total_wct": datetime.timedelta(seconds=batch)}
    state = {"model": dict(model), "timestamp": {"Timestamp": clock}, "run_name": "small", "rank_zero_seed": 1}
    torch.save({"state": state, "rng": []}, folder / f"ep{epoch}-ba{batch}-rank0.pt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[BatchEnd]]:
    """Train a small model with BatchNorm for five epochs, every batch saved; return the folder and the models."""
    folder = tmp_path_factory.mktemp("composer")
    random = torch.Generator().manual_seed(7)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    teacher = torch.randn(8, 4, generator=random)
    events = []
    for batch in range(1, BATCHES + 1):
        inputs = torch.randn(SIZE, 8, generator=random)
        loss = (model(inputs) - inputs @ teacher).square().mean()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for param, gradient in zip(model.parameters(), gradients, strict=True):
                param -= 0.1 * gradient
        # A save in the last batch of an epoch still counts the epochs before it.
        save(folder, model.state_dict(), (batch - 1) // EPOCH, batch, (batch - 1) % EPOCH + 1)
        copy = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        events.append(BatchEnd(batch, copy, batch // EPOCH if batch % EPOCH == 0 else None))
    return folder, events


def in_float64(events: Sequence[BatchEnd]) -> list[BatchEnd]:
    return [BatchEnd(e.batch, {name: t.double() for name, t in e.model.items()}, e.epoch) for e in events]


def check_floats(averaged: Tensors, expected: Tensors, atol: float) -> None:
    """Compare the floating tensors; all of them, none more."""
    assert set(averaged) == set(expected)
    for name, tensor in averaged.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), expected[name].double(), rtol=0, atol=atol, msg=name)


@pytest.mark.parametrize(
    ("half_life", "interval", "start", "newest"),
    [
        ("50ba", "1ba", None, 60),
        ("20ba", "5ba", None, 60),
        ("2ep", "1ep", None, 60),
        ("50ba", "1ba", "30ba", 60),
        ("20ba", "5ba", "20ba", 60),
        ("20ba", "5ba", "22ba", 60),
        ("2ep", "1ep", "2ep", 60),
        ("3ep", "2ep", None, 48),
        ("7ba", "13ba", None, 52),
    ],
)
@pytest.mark.slow
def test_files_average_to_what_composers_ema_would_hold(
    trained: tuple[Path, list[BatchEnd]], tmp_path: Path, half_life: str, interval: str, start: str | None, newest: int
):
    """Every batch saved, then averaged: Composer's recurrence on the same models gives the same tensors."""
    folder, events = trained
    starts = {"start": start} if start else {}
    averaged = average(folder, tmp_path / "x.safetensors", half_life, interval, **starts)
    first = int(start[:-2]) if start else 0
    counts = (int(half_life[:-2]), int(interval[:-2]), half_life[-2:], first)
    largest = max(float(t.abs().max()) for e in events for name, t in e.model.items() if name != COUNTER)
    # One rounding of the output in float32, and at most sixty of the running sum.
    check_floats(averaged, composer_ema(in_float64(events), *counts), atol=60 * 2**-24 * largest)
    # Composer rounds three times an update; what an update rounds fades with the smoothing.
    check_floats(averaged, composer_ema(events, *counts), atol=120 * 2**-24 * largest)
    assert averaged[COUNTER].item() == newest
    assert averaged[COUNTER].dtype == torch.int64


@pytest.mark.slow
def test_the_recurrence_truncates_integers_and_we_do_not(trained: tuple[Path, list[BatchEnd]], tmp_path: Path):
    """BatchNorm's counter stays behind in Composer; here it is the newest checkpoint's."""
    folder, events = trained
    assert composer_ema(events, 50, 1)[COUNTER].item() == 1
    assert average(folder, tmp_path / "x.safetensors", "50ba", stop="33ba")[COUNTER].item() == 33


@pytest.mark.slow
def test_running_statistics_are_averaged(trained: tuple[Path, list[BatchEnd]], tmp_path: Path):
    """Buffers are: the average's running variance is none of the checkpoints'."""
    folder, events = trained
    averaged = average(folder, tmp_path / "x.safetensors", "20ba")
    assert all(not torch.equal(averaged["1.running_var"], event.model["1.running_var"]) for event in events)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "half_life", "interval", "start"),
    [
        ("every-batch", "10ba", "1ba", None),
        ("every-batch", "10ba", None, None),
        ("every-batch", "8ba", "4ba", None),
        ("every-batch", "6ba", "1ba", "12ba"),
        ("every-batch", "1ep", "1ep", None),
        ("every-epoch", "1ep", "1ep", None),
        ("every-epoch", "1ep", None, None),
    ],
)
def test_composers_own_results(tmp_path: Path, folder: str, half_life: str, interval: str | None, start: str | None):
    """On files that Composer wrote, the average is the one that its EMA held at the end of the same run."""
    starts = {"start": start} if start else {}
    averaged = average(COMPOSER / folder, tmp_path / "x.safetensors", half_life, interval, **starts)
    name = f"{half_life}-{interval or '1' + half_life[-2:]}{'-start' + start if start else ''}.safetensors"
    check_floats(averaged, load_file(COMPOSER / "expected" / name), atol=1e-6)
    assert averaged["norm.num_batches_tracked"].item() == 24


FRACTIONS = st.builds(Fraction, st.integers(0, 600), st.sampled_from([1, 1, 1, 2, 3, 10]))


@pytest.mark.slow
@given(
    clocks=st.sets(FRACTIONS, min_size=1),
    half_life=st.builds(Fraction, st.integers(1, 2000), st.sampled_from([1, 10])),
    interval=st.builds(Fraction, st.integers(1, 100), st.sampled_from([1, 1, 2, 3, 10])).filter(lambda i: i > 0.2),
    start=st.just(Fraction(0)) | FRACTIONS,
)
def test_weights_are_the_recurrence_run_event_by_event(
    clocks: set[Fraction], half_life: Fraction, interval: Fraction, start: Fraction
):
    """Whatever the clocks, gaps, interval and start: the plan is the walk through every update event."""
    ordered = sorted(clocks)
    expected = event_by_event(ordered, half_life, interval, start)
    run = make_run(*({"ba": t} for t in ordered))
    recipe = Recipe(
        half_life=Time(half_life, Unit.BATCH), update_interval=Time(interval, Unit.BATCH), start=Time(start, Unit.BATCH)
    )
    if not expected:
        with pytest.raises(RunError, match="no checkpoint is left to average"):
            make_plan(run, recipe)
        return
    plan = make_plan(run, recipe)
    assert [entry.clock.value for entry in plan.entries] == list(expected)
    assert plan.weights == pytest.approx([float(share) for share in expected.values()], rel=1e-9, abs=1e-300)
    assert math.fsum(plan.weights) == pytest.approx(1, abs=1e-13)
    assert len(plan.entries) + len(plan.skipped) == len(ordered)


@pytest.mark.slow
@given(
    count=st.integers(1, 60),
    half_life=st.integers(1, 200),
    interval=st.integers(1, 20),
    start=st.integers(0, 60),
    epoch=st.integers(1, 9),
    unit=st.sampled_from(["ba", "ep"]),
)
def test_every_batch_saved_gives_composers_recurrence(
    count: int, half_life: int, interval: int, start: int, epoch: int, unit: str
):
    """Composer's own rules, run on models that are unit vectors, hold the plan's weights at the end."""
    symbols = torch.eye(count + 1, dtype=torch.float64)
    events = [BatchEnd(n, {"w": symbols[n]}, n // epoch if n % epoch == 0 else None) for n in range(1, count + 1)]
    run = make_run(*({"ba": n, "ep": n // epoch} for n in range(count + 1)))
    last = count if unit == "ba" else count // epoch
    recipe = Recipe(half_life=f"{half_life}{unit}", update_interval=f"{interval}{unit}", start=f"{start}{unit}")
    if start > last or last == 0:
        with pytest.raises(RunError, match="no checkpoint is left"):
            make_plan(run, recipe)
        return
    plan = make_plan(run, recipe)
    found = torch.zeros(count + 1, dtype=torch.float64)
    for entry in plan.entries:
        found[run.checkpoints.index(entry.checkpoint)] = entry.weight
    expected = composer_ema(events, half_life, interval, unit, start)["w"]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def raw_model(name: str) -> Tensors:
    return torch.load(COMPOSER / "every-batch" / name, weights_only=False)["state"]["model"]  # type: ignore[no-any-return]


def test_a_run_with_ema_on_is_refused(tmp_path: Path):
    """`state.model` holds averages there: averaging them would smooth twice, and the message says so."""
    with pytest.raises(RunError, match=r"ep0-ba4-rank0\.pt: is averaged already: Composer's EMA was on") as raised:
        average(COMPOSER / "ema-was-on", tmp_path / "x.safetensors", "10ba")
    assert raised.value.exit_code == 4
    assert "weights='raw'" in (raised.value.hint or "")
    assert "weights='ema'" in (raised.value.hint or "")
    assert list(tmp_path.iterdir()) == []


def test_the_raw_weights_of_a_run_with_ema_on(tmp_path: Path):
    """--weights raw: half-life 0 gives the newest raw model, bit for bit that of the run without EMA."""
    averaged = average(COMPOSER / "ema-was-on", tmp_path / "x.safetensors", "0ba", options=ReadOptions(weights="raw"))
    expected = raw_model("ep0-ba12-rank0.pt")
    assert set(averaged) == set(expected)
    assert all(torch.equal(averaged[name], tensor) for name, tensor in expected.items())


def test_raw_weights_average_as_those_of_a_run_without_ema(tmp_path: Path):
    """The three raw models in the EMA's files make the average of the same three batches saved without it."""
    raw = average(COMPOSER / "ema-was-on", tmp_path / "a.safetensors", "8ba", options=ReadOptions(weights="raw"))
    models = [raw_model(f"ep0-ba{batch}-rank0.pt") for batch in (4, 8, 12)]
    kept = 2**-0.5
    for name, tensor in raw.items():
        if tensor.is_floating_point():
            first, second, third = (model[name].double() for model in models)
            expected = kept * (kept * first + (1 - kept) * second) + (1 - kept) * third
            torch.testing.assert_close(tensor.double(), expected, rtol=0, atol=1e-6)


def test_the_averages_of_a_run_with_ema_on(tmp_path: Path):
    """--weights ema: the newest is what the raw weights of every batch up to it average to."""
    theirs = average(COMPOSER / "ema-was-on", tmp_path / "a.safetensors", "0ba", options=ReadOptions(weights="ema"))
    ours = average(COMPOSER / "every-batch", tmp_path / "b.safetensors", "10ba", "1ba", stop="12ba")
    check_floats(ours, theirs, atol=1e-6)
