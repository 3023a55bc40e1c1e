"""Measure one update of a live model's averages beside other tools, and beside the least that it can take.

Run by `make bench` and, in more rounds, by `make bench-online`; two minutes. All in one process, one after the other in
an order that rotates. Figures are medians of the rounds; ratios are taken within a round.

    python scripts/bench_online.py --rounds 15 --markdown .bench/online.md
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import importlib.util
import platform
import statistics
import sys
import time
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from benchmark.report import as_table
from torch import Tensor, nn

from ema_cli import EMA

Update = Callable[[], object]
KEPT = 0.999
ATTEMPT_SECONDS = 0.15  # how long one contestant is timed in one round, at least once


class Pair(nn.Module):
    """Two parameters of one module, as a layer has a weight and a bias."""

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size).to(dtype))
        self.bias = nn.Parameter(torch.randn(size).to(dtype))


@dataclass(frozen=True)
class Case:
    """A model to average, what to compare with, and the most that this project wants to take of it."""

    name: str
    tensors: int
    size: int
    dtype: torch.dtype
    against: str
    at_most: float

    def model(self) -> nn.Module:
        """Return the model, the same one each time."""
        torch.manual_seed(0)
        return nn.ModuleList(Pair(self.size, self.dtype) for _ in range(self.tensors // 2))


CASES = (
    Case("100M parameters in 200 tensors, float32", 200, 500_000, torch.float32, "flat lerp_", 1.08),
    Case("1,000 tensors of 500, float32", 1000, 500, torch.float32, "AveragedModel, multi", 0.15),
    Case("100M parameters in 200 tensors, bfloat16", 200, 500_000, torch.bfloat16, "_foreach_lerp_, bfloat16", 1.7),
)


def ours(model: nn.Module) -> Update:
    """Return this project's update: averages in float32."""
    ema = EMA(model, smoothing=KEPT)
    return ema.update


def flat_lerp(model: nn.Module) -> Update:
    """Return one lerp_ over as many bytes, in one tensor: the limit."""
    value = torch.cat([parameter.detach() for parameter in model.parameters()])
    average = value.clone()
    return lambda: average.lerp_(value, 1 - KEPT)


def foreach_lerp(model: nn.Module) -> Update:
    """Return _foreach_lerp_ over cached lists, in the model's type: in bfloat16 such averages stand still."""
    values: list[Tensor] = [parameter.detach() for parameter in model.parameters()]
    averages = [value.clone() for value in values]
    return lambda: torch._foreach_lerp_(averages, values, 1 - KEPT)


def averaged_model(model: nn.Module) -> Update:
    """Return torch's AveragedModel with its function for many tensors."""
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(KEPT))
    return lambda: averaged.update_parameters(model)


def let_torchvision_load() -> None:
    """Declare two operators that torchvision's wheel for CUDA misses beside a torch without it; none is run."""
    found = importlib.util.find_spec("torchvision")
    if found is None or not found.submodule_search_locations:
        return
    try:
        torch.ops.load_library(next(Path(found.submodule_search_locations[0]).glob("_C*.so")))
    except OSError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float threshold) -> Tensor")


def timm_v3(model: nn.Module) -> Update:
    """Return timm's ModelEmaV3."""
    from timm.utils import ModelEmaV3

    ema = ModelEmaV3(model, decay=KEPT)
    return lambda: ema.update(model)


def ema_pytorch(model: nn.Module) -> Update:
    """Return ema-pytorch's EMA, at every step and without a warm-up."""
    from ema_pytorch import EMA as Other  # noqa: N811

    ema = Other(model, beta=KEPT, update_every=1, update_after_step=0)
    return ema.update


def diffusers(model: nn.Module) -> Update:
    """Return diffusers' EMAModel, called as its examples do."""
    from diffusers.training_utils import EMAModel

    ema = EMAModel(model.parameters(), decay=KEPT)
    return lambda: ema.step(model.parameters())


def composer(model: nn.Module) -> Update:
    """Return Composer's compute_ema."""
    sys.modules.setdefault("mcli", types.ModuleType("mcli"))  # the client of its makers' platform
    from composer.algorithms.ema import compute_ema

    averaged = copy.deepcopy(model)
    return lambda: compute_ema(model, averaged, smoothing=KEPT)


CONTESTANTS: dict[str, Callable[[nn.Module], Update]] = {
    "ema-cli": ours,
    "flat lerp_": flat_lerp,
    "_foreach_lerp_, bfloat16": foreach_lerp,
    "AveragedModel, multi": averaged_model,
    "timm ModelEmaV3": timm_v3,
    "ema-pytorch": ema_pytorch,
    "diffusers EMAModel": diffusers,
    "Composer compute_ema": composer,
}


def seconds_of(update: Update) -> float:
    """Return the time of one update: the median of as many as fit."""
    taken: list[float] = []
    began = time.perf_counter()
    while not taken or time.perf_counter() - began < ATTEMPT_SECONDS:
        start = time.perf_counter()
        update()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def measure(case: Case, rounds: int) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Return the seconds of one update by contestant and round, and why some do not take part."""
    updates: dict[str, Update] = {}
    absent: dict[str, str] = {}
    for name, make in CONTESTANTS.items():
        if name.endswith("bfloat16") and case.dtype != torch.bfloat16:
            continue
        try:
            update = make(case.model())
            for _ in range(3):  # first copies and caches are not what is measured
                update()
        except Exception as error:  # noqa: BLE001 - whatever keeps another tool from running is told
            absent[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
        else:
            updates[name] = update
    found: dict[str, list[float]] = {name: [] for name in updates}
    names = list(updates)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            found[name].append(seconds_of(updates[name]))
    return found, absent


def ratios(found: dict[str, list[float]], name: str, against: str) -> str:
    """Return the median of the ratios within rounds, least and greatest in parentheses."""
    each = [one / other for one, other in zip(found[name], found[against], strict=True)]
    return f"{statistics.median(each):.2f} ({min(each):.2f}-{max(each):.2f})"


def report(case: Case, found: dict[str, list[float]], absent: dict[str, str]) -> list[str]:
    """Return the case as Markdown."""
    table = [["", "one update [ms]", "ema-cli takes"]]
    for name, seconds in found.items():
        spread = f"{statistics.median(seconds) * 1e3:.3g} ({min(seconds) * 1e3:.3g}-{max(seconds) * 1e3:.3g})"
        share = "" if name == "ema-cli" else f"{ratios(found, 'ema-cli', name)} x"
        table.append([name, spread, share])
    lines = [
        f"### {case.name}",
        "",
        as_table(table),
        *(f"- {name} is not there: {why}" for name, why in absent.items()),
    ]
    if case.against in found:
        median = statistics.median(a / b for a, b in zip(found["ema-cli"], found[case.against], strict=True))
        met = "met" if median <= case.at_most else "MISSED"
        lines.append(f"- target: at most {case.at_most} x {case.against}: {median:.2f} x, {met}")
    return [*lines, ""]


def versions() -> str:
    """Return the versions of what is measured."""
    found = []
    for package in ("ema-cli", "torch", "timm", "ema-pytorch", "diffusers", "mosaicml"):
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def main() -> None:
    """Measure every case and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="default: 15")
    parser.add_argument("--cases", default="1,2,3", help="which, by number: 1,3")
    parser.add_argument("--markdown", type=Path, default=Path(".bench/online.md"), help="default: %(default)s")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    let_torchvision_load()
    lines = [
        "## An update of a live model",
        "",
        f"Measured {time.strftime('%Y-%m-%d')} with `python {' '.join(sys.argv)}`.",
        "",
        f"- Python {platform.python_version()}, {torch.get_num_threads()} threads; {versions()}",
        f"- Medians of {options.rounds} rounds, least and greatest in parentheses",
        "",
    ]
    for number in options.cases.split(","):
        case = CASES[int(number) - 1]
        print(f"{case.name} ...", file=sys.stderr, flush=True)
        lines += report(case, *measure(case, options.rounds))
    text = "\n".join(lines)
    options.markdown.parent.mkdir(parents=True, exist_ok=True)
    options.markdown.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
