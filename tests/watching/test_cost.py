"""What a watch takes: each file is read once, in the memory that `average` takes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ema_cli import Recipe, watch
from scripts.benchmark.measure import Command
from scripts.benchmark.memory import peak_memory
from tests.watching.test_watch import ONCE

COUNT = 12_000_000
MIB = 1 << 20


def bytes_read() -> int:
    """Return how many bytes this process has asked the system for."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def save(folder: Path, step: int) -> Path:
    """Save a checkpoint of 24 MB, in tensors of a quarter of that."""
    folder.mkdir(exist_ok=True)
    tensors = {f"w{number}": torch.full((COUNT // 4,), step + number).bfloat16() for number in range(4)}
    save_file(tensors, folder / f"step-{step}.safetensors")
    return folder / f"step-{step}.safetensors"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="this system does not tell what a process has read")
def test_each_file_is_read_once(tmp_path: Path):
    """The checkpoint, the average with what was rounded off it, and the new average to publish it; samples aside."""
    recipe = Recipe(half_life="20ba")
    for step in (10, 20):
        save(tmp_path / "run", step)
        watch(tmp_path / "run", tmp_path / "out", recipe, waiting=ONCE, threads=1)
    save(tmp_path / "run", 30)
    before = bytes_read()
    watch(tmp_path / "run", tmp_path / "out", recipe, waiting=ONCE, threads=1)
    read = bytes_read() - before
    expected = COUNT * (2 + (4 + 2) + 4)
    assert expected <= read <= expected + 4 * MIB  # a second reading of the checkpoint alone were 24 MB


@pytest.mark.slow
@pytest.mark.full
def test_memory_does_not_grow_with_the_model(tmp_path: Path):
    """Two averages of a checkpoint of 24 MB, and of one of 240 MB: the program takes less than 120 MiB."""
    save(tmp_path / "run", 10)
    tensors = {f"w{number}": torch.zeros(COUNT).bfloat16() for number in range(10)}
    for step in (20, 30):
        (tmp_path / "large").mkdir(exist_ok=True)
        save_file(tensors, tmp_path / "large" / f"step-{step}.safetensors")
    peaks = []
    for run in ("run", "large"):
        words = ["watch", tmp_path / run, "--half-life", "20ba", "--half-life", "50ba", "-o", tmp_path / f"{run}-out"]
        command = (sys.executable, "-m", "ema_cli", *map(str, words), "--once", "--settle", "0s", "-q")
        peaks.append(peak_memory(Command(command, {}, tmp_path / f"{run}-out", tmp_path / "log")).together)
    assert peaks[1] <= 120 * MIB
    assert peaks[1] <= peaks[0] + 40 * MIB
