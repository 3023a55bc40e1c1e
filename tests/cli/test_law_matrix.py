"""Every law in every way that an average is made, written, checked and shown; against recurrences in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import Cli

Weights = dict[int, float]
CLOCKS = range(100, 801, 100)
BASE = 0


def smoothed(shares: Callable[[int], float], clocks: range = CLOCKS) -> Weights:
    """Return weights by the recurrence: at each clock the average takes in so much of the model, from the first on."""
    weights = {clocks[0]: 1.0}
    for clock in clocks[1:]:
        share = shares(clock)
        weights = {each: (1 - share) * weight for each, weight in weights.items()} | {clock: share}
    return weights


def falling(rate: Callable[[float], float], clocks: range) -> Weights:
    """Return the weights that a falling learning rate gives: each step's share of the steps, by a sum over 1 batch.

    WSM, arXiv 2507.17634: what was learnt at a time counts by the learning rate there, from the first checkpoint on.
    Of one that does not fall to 0, what is left at the end is the newest's.
    """
    first, last = clocks[0], clocks[-1]
    places = [(at + 0.5 - first) / (last - first) for at in range(first, last)]
    rates = [rate(place) for place in places]
    per_gap = [sum(rates[at - first : at - first + clocks.step]) / clocks.step for at in clocks[:-1]]
    kept = [1.0, *per_gap, 0.0]  # the first checkpoint is all that was learnt before it
    return {clock: kept[number] - kept[number + 1] for number, clock in enumerate(clocks)}


def bema() -> Weights:
    """Return algorithm 1 of arXiv 2508.00180, with TRL's numbers: the base is a checkpoint at 0."""
    weights: Weights = {BASE: 1.0}
    for clock in CLOCKS:
        beta = (10 + clock) ** -0.5
        weights = {each: (1 - beta) * weight for each, weight in weights.items()} | {clock: beta}
    alpha = (10 + CLOCKS[-1]) ** -0.2
    return weights | {BASE: weights[BASE] - alpha, CLOCKS[-1]: weights[CLOCKS[-1]] + alpha}


def beyond(average: Weights, other: Weights, factor: float) -> Weights:
    """Return (1 + x) A - x B."""
    both = dict.fromkeys([*average, *other], 0.0)
    return {each: (1 + factor) * average.get(each, 0.0) - factor * other.get(each, 0.0) for each in both}


def exponent(width: float) -> float:
    """Return gamma of equation 123 of arXiv 2312.02696, where the width is sigma_rel; by halving."""
    low, high = 0.0, 1000.0
    for _ in range(100):
        middle = (low + high) / 2
        wider = ((middle + 1) / ((middle + 2) ** 2 * (middle + 3))) ** 0.5 > width
        low, high = (middle, high) if wider else (low, middle)
    return low


LATE = range(300, 801, 100)
GAMMA = exponent(0.1)
HALF = smoothed(lambda clock: 1 - 0.5 ** (100 / 200))
# Each law: the options, its weights, and whether they have any sum.
LAWS: dict[str, tuple[tuple[str, ...], Weights]] = {
    "half-life": (("--half-life", "200ba"), HALF),
    "share": (("--half-life", "20%ba"), smoothed(lambda at: 1 - ((at - 100) / at) ** (math.log(2) / 0.2))),
    "smoothing": (("--smoothing", "0.7"), smoothed(lambda clock: 0.3)),
    "power": (("--profile", "power", "--sigma-rel", "0.1"), smoothed(lambda at: 1 - ((at - 100) / at) ** (GAMMA + 1))),
    "uniform": (("--profile", "uniform", "--window", "500ba"), dict.fromkeys(LATE, 1 / 6)),
    "linear": (("--profile", "linear", "--window", "500ba"), falling(lambda x: 1 - x, LATE)),
    "1-sqrt": (("--profile", "1-sqrt", "--window", "500ba"), falling(lambda x: 1 - math.sqrt(x), LATE)),
    "cosine": (("--profile", "cosine"), falling(lambda x: (1 + math.cos(math.pi * x)) / 2, CLOCKS)),
    "inverse-sqrt": (("--profile", "inverse-sqrt"), falling(lambda x: (100 / (100 + 700 * x)) ** 0.5, CLOCKS)),
    "bema": (("--profile", "bema", "--base", "models/base.safetensors"), bema()),
    "extrapolated": (("--half-life", "200ba", "--extrapolate", "0.5"),
                     beyond(HALF, smoothed(lambda clock: 1 - 0.5 ** (100 / 400)), 0.5)),
    "coefficients": (("--coefficients", "weights.csv"), {300: -0.75, 500: 0.5, 800: 1.25}),
    "any sum": (("--coefficients", "tasks.csv", "--any-sum"), {700: -0.25, 800: 1.5}),
}  # fmt: skip

QUICK = ("share", "linear", "bema", "any sum")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A base, and a training from it, in files of torch.save with an optimizer beside the model."""
    random = torch.Generator().manual_seed(5)
    weight = torch.randn(40, 7, generator=random)
    (tmp_path / "ckpts").mkdir()
    (tmp_path / "models").mkdir()
    save_file({"w": weight, "table": weight[:2].clone()}, tmp_path / "models/base.safetensors")
    for clock in CLOCKS:
        weight = weight + 0.1 * torch.randn(40, 7, generator=random)
        model = {"w": weight, "table": weight[:2].clone()}
        torch.save({"model": model, "optimizer": {"lr": torch.tensor(0.1)}, "step": clock}, path_of(tmp_path, clock))
    (tmp_path / "weights.csv").write_text("clock,weight\n300ba,-0.75\n500ba,0.5\n800ba,1.25\n")
    (tmp_path / "tasks.csv").write_text("clock,weight\n800ba,1.5\n700ba,-0.25\n")
    return tmp_path


def name_of(clock: int) -> str:
    return "base.safetensors" if clock == BASE else f"step-{clock}.pt"


def path_of(run: Path, clock: int) -> Path:
    return run / f"ckpts/step-{clock}.pt"


def model_of(run: Path, clock: int) -> dict[str, torch.Tensor]:
    if clock == BASE:
        return load_file(run / "models/base.safetensors")
    model: dict[str, torch.Tensor] = torch.load(path_of(run, clock))["model"]
    return model


@pytest.mark.parametrize(
    "law", [law if law in QUICK else pytest.param(law, marks=[pytest.mark.full, pytest.mark.slow]) for law in LAWS]
)
def test_a_law_holds_in_every_way(law: str, run: Path, cli: Cli, full: bool):
    """One file, .pt, a folder, the form of the input, copied tensors, many workers, parts: the same average.

    Of each: verify --strict, verify and repeat by the recipe; shown as text, JSON and a page. Some in `make test`.
    """
    options, weights = LAWS[law]
    models = {clock: model_of(run, clock) for clock in weights}
    expected = {
        name: sum(weight * models[clock][name].double() for clock, weight in weights.items()) for name in ("w", "table")
    }
    inspected = cli("inspect", "ckpts", *options, "--json").json["plans"][0]
    told = {int(entry["clock"].removesuffix("ba")): entry["weight"] for entry in inspected["entries"]}
    near = 2e-3 if law == "1-sqrt" else 2e-4  # its integral is summed up here in steps of a batch
    assert {clock: told.get(clock, 0.0) for clock in weights} == pytest.approx(weights, abs=near)
    drawn = [line for line in cli("inspect", "ckpts", *options).out.splitlines() if "█" in line and "%" in line]
    assert {line.split()[0] for line in drawn} >= {name_of(clock) for clock, each in weights.items() if each > 0.05}
    dry = cli("average", "ckpts", *options, "--dry-run", "--json")
    assert (dry.code, dry.json["plans"][0]["entries"]) == (0, inspected["entries"])
    against = [word for path in ("ckpts", *(("models",) if law == "bema" else ())) for word in ("--against", path)]
    base = ["models/base.safetensors"] if law == "bema" else []

    def check(tensors: dict[str, torch.Tensor], *copied: str) -> None:
        for name, value in expected.items():
            wanted = models[800][name].double() if name in copied else value
            torch.testing.assert_close(tensors[name].double(), wanted, rtol=0, atol=10 * near)

    first = cli("average", "ckpts", *options, "-o", "one.safetensors")
    assert first.code == 0, first
    one = load_file(run / "one.safetensors")
    check(one)
    ways = {
        "torch.pt": (),
        "folder": (),
        "like.pt": ("--like-input",),
        "copied.safetensors": ("--copy", "table"),
        **({"workers.safetensors": ("--on", "processes=2"), "part.safetensors": ("--part", "0/1")} if full else {}),
    }
    for output, more in ways.items():
        done = cli("average", "ckpts", *options, *more, "-o", output)
        assert done.code == 0, done
        path = run / output
        if output.endswith(".pt"):
            loaded = torch.load(path)
            tensors = loaded["model"] if more else loaded
        else:
            tensors = load_file(path / "model.safetensors" if path.is_dir() else path)
        check(tensors, *(("table",) if "--copy" in more else ()))
        assert torch.equal(tensors["w"], one["w"]), output
    for output in ["one.safetensors", *(ways if full else ["like.pt"])]:
        likeness = ("--like-input",) if output == "like.pt" else ()
        verified = cli("verify", output, *against, "--strict", *likeness)
        assert verified.code == 0, verified
        manifest = f"{output}.manifest.json" if (run / output).is_file() else f"{output}/ema-manifest.json"
        (run / "again").mkdir(exist_ok=True)
        again = cli("average", "ckpts", *base, "--recipe", manifest, "-o", f"again/{output}")
        assert again.code == 0, again
        if (run / output).is_file():
            assert (run / "again" / output).read_bytes() == (run / output).read_bytes()
    if law != "any sum":
        assert cli("report", "one.safetensors", *against, "-o", "page.html").code == 0
    series = cli("average", "ckpts", *options, "--series-every", "400ba", "-o", "series")
    if "coefficients" in options[0]:
        assert (series.code, "leave out --series" in series.err) == (2, True), series
        return
    assert series.code == 0, series
    last = next((run / "series").glob("*-at-800ba.safetensors"))
    assert torch.equal(load_file(last)["w"], one["w"])
    assert cli("verify", "series", *against).code == 0
