"""What ema-cli itself writes: averages that a training stored, and averages of checkpoints as the program makes them.

They are made once, and by the version at hand: what a later one makes of an older one's files is a result, too.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .tensors import model, save_tensors, save_text


def train(folder: Path, steps: int = 200, every: int = 50, *, dtype: torch.dtype | None = None, **options: Any) -> None:
    """Have a training store its averages now and then."""
    from ema_cli import EMA

    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 2).to(dtype)
    ema = EMA(layer, **options)
    for step in range(1, steps + 1):
        with torch.no_grad():
            for each in layer.parameters():
                each += torch.randn_like(each) / 10
        ema.update()
        if step % every == 0:
            ema.store(folder)


def _in_model(folder: Path) -> None:
    """Write averages beside the checkpoints of a Hugging Face model."""
    train(folder / "ema", half_life=("25ba", "100ba"))
    for step in (100, 200):
        save_text(folder / f"checkpoint-{step}" / "config.json", {"model_type": "tiny", "dtype": "float32"})
        save_tensors(folder / f"checkpoint-{step}" / "model.safetensors", {"weight": torch.ones(2, 4) * step})


def _two(folder: Path) -> None:
    """Write what two trainings stored."""
    train(folder / "a", 100, half_life=("25ba", "100ba"))
    train(folder / "b", 100, half_life=("25ba", "100ba"))


def _unlike(folder: Path) -> None:
    """Write what two trainings stored that began at other times."""
    train(folder / "a", 50, half_life=("25ba", "100ba"))
    train(folder / "b", 100, 20, half_life=("30ba", "90ba"), ema_start="10ba")


def _apart(folder: Path) -> None:
    """Write what two trainings of one kind stored, under other names."""
    train(folder / "a", 50, half_life=("25ba", "100ba"))
    train(folder / "b", 100, 20, half_life=("30ba", "90ba"))
    (folder / "b" / "first.safetensors").unlink()


def _cut(folder: Path) -> None:
    """Write stored averages of which one is cut short, and one does not say what it is."""
    train(folder, half_life=("25ba", "100ba"))
    path = folder / "200ba" / "25ba.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    save_tensors(folder / "150ba" / "25ba.safetensors", model(1))


def _wrong(folder: Path) -> None:
    """Write a stored average whose metadata are no clocks."""
    train(folder, half_life=("25ba", "100ba"))
    path = folder / "200ba" / "25ba.safetensors"
    content = path.read_bytes()
    assert b"200ba" in content
    path.write_bytes(content.replace(b"200ba", b"200bo"))


STORED: dict[str, Callable[[Path], None]] = {
    "half-lives": lambda folder: train(folder, half_life=("25ba", "100ba")),
    "powers": lambda folder: train(folder, sigma_rel=(0.05, 0.2)),
    "smoothings": lambda folder: train(folder, smoothing=(0.9, 0.99), update_interval="every"),
    "intervals": lambda folder: train(folder, half_life=("25ba", "100ba"), update_interval="5ba", ema_start="20ba"),
    "halves": lambda folder: train(folder, half_life=("25ba", "100ba"), dtype=torch.bfloat16),
    "first-alone": lambda folder: train(folder, 1, 1, half_life=("25ba", "100ba")),
    "in-model": _in_model,
    "two": _two,
    "unlike": _unlike,
    "apart": _apart,
    "cut": _cut,
    "wrong": _wrong,
}

# Command lines, run where the inputs lie.
AVERAGES = """
average runs/loop --half-life 30ba -o made/file.safetensors
average runs/loop --half-life 30ba -o made/file.pt
average runs/loop --half-life 30ba -o made/bare.safetensors --no-manifest
average runs/loop --half-life 30ba -o made/summed.safetensors --checksum
average runs/hf --half-life 300ba -o made/folder
average runs/hf --half-life 300ba -o made/sharded --max-shard-size 100B --dtype bfloat16
average runs/hf --half-life 100ba --half-life 300ba -o made/several
average runs/hf --half-life 100ba --half-life 300ba -o made/files/of-{half_life}.safetensors
average runs/not-finite --half-life 2ba --allow-non-finite -o made/not-finite.safetensors
average stored/half-lives --from stored --half-life 50ba -o made/stored.safetensors
"""


def make_averages(inputs: Path, program: Path) -> None:
    """Have the program average some of the inputs."""
    (inputs / "made").mkdir()
    for line in AVERAGES.strip().splitlines():
        environment = {"PATH": os.environ["PATH"], "NO_COLOR": "1", "LC_ALL": "C.UTF-8"}
        subprocess.run([program, *line.split()], cwd=inputs, env=environment, check=True, capture_output=True)
