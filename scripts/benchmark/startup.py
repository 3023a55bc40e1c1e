"""How long ema-cli takes before it does anything: against the imports that any such command line has."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from . import datasets
from .commands import ema_cli
from .datasets import Data
from .measure import Command, RunError, timed
from .rounds import attempts, discard, measure
from .rows import START_UP, Target
from .values import llama, many_tensors

ROUNDS = 11
IMPORTS = "import typer, rich.console, rich.table"
LABELS = {
    "imports": "python, importing typer and rich",
    "help": "ema-cli --help",
    "average help": "ema-cli average --help",
    "inspect 16": "ema-cli inspect, 16 checkpoints",
    "inspect many": "ema-cli inspect, {:,} checkpoints of {} tensors",
    "inspect torch": "ema-cli inspect, {:,} .pt of {} tensors",
}


def measure_startup(work: Path, scale: str) -> dict[str, Any]:
    """Measure help and inspect in paired runs."""
    many, tensors, rounds = {"full": (1000, 300, ROUNDS), "small": (100, 300, 5), "micro": (5, 10, 1)}[scale]
    few = Data("inspect-16", llama("F32", 64, 64, 1, 16), 16)
    large = Data("inspect-many", many_tensors(tensors, 4), many)
    torch_files = Data("inspect-torch", large.model, many, "pt")
    runs = {data.name: datasets.make(data, work) for data in (few, large, torch_files)}
    arguments = {
        "imports": (sys.executable, "-c", IMPORTS),
        "help": (*ema_cli(), "--help"),
        "average help": (*ema_cli(), "average", "--help"),
        "inspect 16": (*ema_cli(), "inspect", str(runs[few.name])),
        "inspect many": (*ema_cli(), "inspect", str(runs[large.name])),
        "inspect torch": (*ema_cli(), "inspect", str(runs[torch_files.name])),
    }
    nothing = work / "nothing"
    commands = {name: Command(words, {}, nothing, work / f"{name}.log") for name, words in arguments.items()}
    for command in commands.values():  # their code, and the headers, into the page cache
        _run_quietly(command)
    targets = [
        Target("help", ("imports",), 1.5),
        Target("average help", ("imports",), 3),
        Target("inspect 16", ("imports",), 3),
        Target("inspect many", (), 2),
        Target("inspect torch", (), 2),
    ]
    failed: dict[str, str] = {}
    found = measure(commands, rounds, lambda: None, failed, attempts(rounds, scale))
    for name in runs:
        discard(work / name)
    labels = {name: label.format(many, tensors) for name, label in LABELS.items()}
    return {
        "key": START_UP,
        "title": "before anything is averaged",
        "names": 0,
        "targets": [
            {"of": each.of, "against": list(each.against), "at_most": each.at_most, "words": each.words}
            for each in targets
        ],
        "memory_limit": None,
        "rounds": found,
        "memory": {},
        "failed": failed,
        "same": {},
        "skipped": {},
        "notes": [],
        "labels": labels,
    }


def _run_quietly(command: Command) -> None:
    try:
        timed(command)
    except RunError:
        return  # the measured runs say it
