"""Checkpoints of another run are noticed by how far their weights lie from those around them; one run is never."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import Cli

Tensors = dict[str, torch.Tensor]
EVERY, STEPS = 20, 200
NOTE = "the weights move"


def train(seed: int, rate: Callable[[int], float], *, begin: Tensors | None = None, sgd: bool = False) -> list[Tensors]:
    """Train a small classifier; return its weights after every 20th step."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(20, 32), torch.nn.BatchNorm1d(32), torch.nn.ReLU(), torch.nn.Linear(32, 32), torch.nn.ReLU(),
        torch.nn.Linear(32, 5),
    )  # fmt: skip
    if begin is not None:
        model.load_state_dict(begin)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(1000, 20, generator=generator)
    labels = (torch.tanh(inputs) @ torch.randn(20, 5, generator=generator)).argmax(1)
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, momentum=0.9) if sgd else torch.optim.AdamW(parameters, weight_decay=0)
    batches, saved = torch.Generator().manual_seed(seed), []
    for step in range(1, STEPS + 1):
        optimizer.param_groups[0]["lr"] = rate(step) * (20 if sgd else 1)
        chosen = torch.randint(0, 1000, (32,), generator=batches)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs[chosen]), labels[chosen]).backward()
        optimizer.step()
        if step % EVERY == 0:
            saved.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    return saved


def cosine(step: int, period: int) -> float:
    return 0.003 * 0.5 * (1 + math.cos(math.pi * (step % period) / period))


RATES: dict[str, Callable[[int], float]] = {
    "constant": lambda step: 0.003,
    "warm-up": lambda step: min(1, step / 100) * 0.003,
    "warm-up and cosine": lambda step: min(1, step / 40) * cosine(step - 1, STEPS),
    "restarts": lambda step: cosine(step - 1, 40),
    "fall": lambda step: 0.003 if step <= 100 else 0.0003,
    "spike": lambda step: 0.01 if 100 < step <= 110 else 0.001,
}


@pytest.fixture(scope="module")
def runs() -> tuple[list[Tensors], list[Tensors]]:
    """Two runs of different seeds."""
    return train(1, RATES["warm-up and cosine"]), train(2, RATES["warm-up and cosine"])


def average(cli: Cli, folder: Path, checkpoints: list[tuple[int, Tensors]], *options: str) -> str:
    """Average checkpoints, each at its clock; return what is said."""
    folder.mkdir(exist_ok=True)
    for clock, tensors in checkpoints:
        save_file(tensors, folder / f"step-{clock}.safetensors")
    done = cli("average", folder, "--profile", "uniform", "-o", "out.safetensors", "--force", *options)
    assert done.code == 0, done
    return done.err


@pytest.mark.slow
@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("sgd", [False, True])
def test_one_run_is_never_two(cli: Cli, tmp_path: Path, name: str, sgd: bool):
    """Whatever its learning rate does, and whichever part of it is averaged, in order or thinned out."""
    saved = list(enumerate(train(1, RATES[name], sgd=sgd), 1))
    for number, part in enumerate((saved, saved[-4:], saved[:4], saved[::2], saved[::3], saved[4:7])):
        text = average(cli, tmp_path / str(number), [(clock * EVERY, tensors) for clock, tensors in part])
        assert NOTE not in text, (number, text)


MIXED: dict[str, Callable[[int], bool]] = {
    "one in the middle": lambda number: number == 5,
    "the newest": lambda number: number == 10,
    "in turn": lambda number: number % 2 == 0,
    "one after the other": lambda number: number > 5,
    "pairs": lambda number: number % 4 > 1,
}


@pytest.mark.slow
@pytest.mark.parametrize("label", MIXED)
def test_another_run_is_noticed(cli: Cli, tmp_path: Path, runs: tuple[list[Tensors], list[Tensors]], label: str):
    """Two seeds in one folder, with different clocks: a note, which no demand stops at, names a place."""
    mixed = [(number * EVERY, runs[MIXED[label](number)][number - 1]) for number in range(1, 11)]
    text = average(cli, tmp_path / "run", mixed)
    (line,) = [line for line in text.splitlines() if NOTE in line]
    assert line.startswith("note: from step-")
    assert "--exclude" in line
    if label == "one in the middle":
        assert "step-100.safetensors" in line
        assert NOTE not in average(cli, tmp_path / "run", mixed, "--exclude", "step-100.*")


@pytest.mark.slow
def test_two_trainings_from_one_model_are_noticed_where_they_take_turns(cli: Cli, tmp_path: Path):
    """Fine-tuned twice from the same weights: each lies nearer to its own."""
    begin = train(3, RATES["constant"])[-1]
    one, other = (train(seed, lambda step: 0.001, begin=begin) for seed in (4, 5))
    mixed = [(number * EVERY, (one, other)[number % 2][number - 1]) for number in range(1, 11)]
    text = average(cli, tmp_path / "run", mixed)
    assert text.count(NOTE) <= 1  # as far as they are apart at all
    assert NOTE not in average(cli, tmp_path / "one", [(number * EVERY, each) for number, each in enumerate(one, 1)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_samples_of_any_float_are_compared(
    cli: Cli, tmp_path: Path, runs: tuple[list[Tensors], list[Tensors]], dtype: torch.dtype
):
    """Half precision and double, too."""
    chosen = [(number * EVERY, runs[number == 5][number - 1]) for number in range(1, 11)]
    cast = [
        (clock, {name: each.to(dtype) if each.is_floating_point() else each for name, each in tensors.items()})
        for clock, tensors in chosen
    ]
    assert NOTE in average(cli, tmp_path / "run", cast)


def test_frozen_weights_and_few_checkpoints_say_nothing(cli: Cli, tmp_path: Path):
    """What does not move has no neighbours that lie nearer; two checkpoints have no third to compare with."""
    weights = {"frozen": torch.randn(300), "w": torch.ones(3)}
    still = [(step, {**weights, "w": torch.full((3,), 1 + step * 1e-6)}) for step in (1, 2, 3, 4)]
    assert NOTE not in average(cli, tmp_path / "still", still)
    assert NOTE not in average(cli, tmp_path / "same", [(step, weights) for step in (1, 2, 3, 4)])
    two = [(1, {"w": torch.ones(9)}), (2, {"w": -torch.ones(9)})]
    assert NOTE not in average(cli, tmp_path / "two", two)
