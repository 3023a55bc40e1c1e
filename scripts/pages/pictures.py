"""The pictures of the law: each point is a weight that the program itself gives, in plans of real checkpoints."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from ema_cli import Plan, Recipe, Run, make_plan, open_run
from ema_cli.law.laws import PROFILES

from .svg import Chart, Points

_STEPS = range(50, 1001, 50)
_UNEVEN = (100, 200, 300, 400, 800, 900, 1000)


def all_of_them() -> dict[str, str]:
    """Return each picture's text by its name."""
    with TemporaryDirectory() as made:
        even, uneven, stored = (Path(made) / name for name in ("even", "uneven", "stored"))
        _write_run(even, _STEPS)
        _write_run(uneven, _UNEVEN)
        _store_run(stored)
        run = open_run([even])
        charts = {
            "half-lives": _half_lives(run),
            "trap": _trap(run),
            "gaps": _gaps(open_run([uneven])),
            "first": _first(run),
            "profiles": _profiles(run),
            "stored": _stored(stored),
        }
    return {name: chart.svg() for name, chart in charts.items()}


def _write_run(folder: Path, steps: Sequence[int]) -> None:
    """Save a tiny checkpoint at each step."""
    folder.mkdir()
    for step in steps:
        save_file({"weight": np.zeros(1, np.float32)}, folder / f"step-{step}.safetensors")


def _store_run(folder: Path) -> None:
    """Have a training of 400 batches store two averages, every 50 batches."""
    import torch

    from ema_cli import EMA

    ema = EMA(torch.nn.Linear(1, 1), half_life=("25ba", "100ba"))
    for batch in range(1, 401):
        ema.update()
        if batch % 50 == 0:
            ema.store(folder)


def _plan(run: Run, **recipe: Any) -> Plan:
    """Return the plan of a recipe."""
    return make_plan(run, Recipe(**recipe))


def _weights(plan: Plan) -> Points:
    """Return the weights of a plan's checkpoints over their clocks, in per cent."""
    return [(float(entry.clock.value), 100 * entry.weight) for entry in plan.entries]


def _half_lives(run: Run) -> Chart:
    return Chart(
        "Weights of 20 checkpoints, 50 batches apart",
        "training time [batches]",
        "weight [%]",
        {f"half-life {text}": _weights(_plan(run, half_life=text)) for text in ("50ba", "200ba", "1000ba")},
        range(0, 1001, 200),
        range(0, 61, 10),
    )


def _trap(run: Run) -> Chart:
    half_lives = [round(5 * 10 ** (step / 10), 1) for step in range(41)]
    effective = [
        (value, 1 / sum(weight**2 for weight in _plan(run, half_life=f"{value}ba").weights)) for value in half_lives
    ]
    return Chart(
        "The trap: how many of 20 checkpoints count, 50 batches apart",
        "half-life [batches]",
        "effective checkpoints",
        {"too short: the last checkpoint; too long: the first": effective},
        (5, 50, 500, 5000, 50000),
        range(0, 21, 5),
        log=True,
        dots=False,
    )


def _gaps(run: Run) -> Chart:
    return Chart(
        "Three checkpoints are missing between 400 and 800",
        "training time [batches]",
        "weight [%]",
        {
            "half-life 200ba, by clock": _weights(_plan(run, half_life="200ba")),
            "the same decay, by number": _weights(_plan(run, smoothing=2**-0.5)),
        },
        range(0, 1101, 100),
        range(0, 41, 10),
        bars=True,
    )


def _first(run: Run) -> Chart:
    return Chart(
        "The first checkpoint, half-life 500ba",
        "training time [batches]",
        "weight [%]",
        {
            "as in Composer": _weights(_plan(run, half_life="500ba")),
            "--bias-correction": _weights(_plan(run, half_life="500ba", bias_correction=True)),
        },
        range(0, 1051, 150),
        range(0, 31, 10),
        bars=True,
    )


def _profiles(run: Run) -> Chart:
    laws = {f"{name} 0.1" if name == "power" else name: name for name in PROFILES if name != "bema"}
    widths = {"power": 0.1}
    return Chart(
        "Weights by other laws",
        "training time [batches]",
        "weight [%]",
        {label: _weights(_plan(run, profile=name, sigma_rel=widths.get(name))) for label, name in laws.items()},
        range(0, 1001, 200),
        range(0, 41, 10),
    )


def _stored(folder: Path) -> Chart:
    command = ["inspect", str(folder), "--from", "stored", "--half-life", "50ba", "--json"]
    done = subprocess.run([sys.executable, "-m", "ema_cli", *command], capture_output=True, text=True, check=True)
    stretches = json.loads(done.stdout)["plans"][0]["approximation"]["stretches"]
    series = {
        name: [(stretch["to"], 100 * stretch[key]) for stretch in stretches]
        for name, key in (("half-life 50ba", "asked"), ("from stored 25ba and 100ba", "reached"))
    }
    return Chart(
        "Share of each stretch of 20 batches in the average",
        "training time [batches]",
        "share [%]",
        series,
        range(0, 421, 60),
        range(0, 31, 10),
        bars=True,
    )
