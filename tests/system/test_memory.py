"""Memory stays bounded, whatever the number and size of the checkpoints."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import make_tensors

SCRIPT = """
import re, sys
from pathlib import Path
from ema_cli.cli import app as cli
from ema_cli.folding.pace import Pace
if sys.argv.pop(1) == "steady":
    Pace.wants_more = lambda pace: False
try:
    cli.main()
except SystemExit as done:
    assert not done.code, done.code
# Not getrusage: its peak is inherited from the process that started this one.
print("PEAK", re.search(r"VmHWM:\\s+([0-9]+) kB", Path("/proc/self/status").read_text())[1])
"""


def peak_mib(folder: Path, *options: str, steady: bool = True) -> float:
    """Return the peak resident memory of averaging `folder`, in MiB.

    `steady`: with as many threads from the start to the end. Where reads are slow, a fold starts more of them, each
    with its buffers; on a busy machine reads of the page cache are slow, too.
    """
    asked = options or ("--half-life", "200ba", "-o", "x.safetensors")
    return peak_of(folder.parent, "average", str(folder), *asked, "-q", "-f", steady=steady)


def peak_of(folder: Path, *command: str, steady: bool = True) -> float:
    """Return the peak resident memory of a command in `folder`, in MiB; `steady` as of `peak_mib`."""
    program = [sys.executable, "-c", SCRIPT, "steady" if steady else "any", *command]
    done = subprocess.run(program, cwd=folder, capture_output=True, text=True, check=True)
    return int(done.stdout.rpartition("PEAK ")[2]) / 1024


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_checkpoints_or_size(tmp_path: Path):
    """One large tensor in a few files, or many files of many tensors: under 200 MiB, and near that of a tiny run."""
    runs = {name: tmp_path / name for name in ("tiny", "large", "many")}
    for folder in runs.values():
        folder.mkdir()
    for step in (100, 200, 300):
        save_file(make_tensors(step), runs["tiny"] / f"step-{step}.safetensors")
        save_file(
            {"weight": torch.full((64 << 20,), float(step)).bfloat16()}, runs["large"] / f"step-{step}.safetensors"
        )
    for step in range(200):
        tensors = {f"layers.{number}.weight": torch.full((40, 10), float(step)) for number in range(200)}
        save_file(tensors, runs["many"] / f"step-{step}.safetensors")
    peaks = {name: peak_mib(folder) for name, folder in runs.items()}
    assert max(peaks.values()) < 200, peaks
    assert peaks["large"] < peaks["tiny"] + 40, peaks


def many_tensors(folder: Path, count: int) -> Path:
    """Write a run of four checkpoints with `count` small tensors each; return its folder."""
    names = [f"model.layers.{number:06}.experts.block.weight" for number in range(count)]
    folder.mkdir(parents=True)
    for step in (100, 200, 300, 400):
        save_file({name: torch.full((8,), float(step)) for name in names}, folder / f"step-{step}.safetensors")
    return folder


def peaks_of_every_output(run: Path) -> list[float]:
    """Return the peaks with a new output, over an older one, as a file of torch's, and of a release made again."""
    outputs = ("x.safetensors", "x.safetensors", "x.pt")
    again = ["--recipe", "x.safetensors.manifest.json", "-o", "again.safetensors"]
    return [*(peak_mib(run, "--half-life", "200ba", "-o", output) for output in outputs), peak_mib(run, *again)]


def peaks_of_reading(run: Path) -> dict[str, float]:
    """Return the peaks of the commands that write nothing, on a run and on what `peaks_of_every_output` left."""
    commands = [("inspect", run.name)]
    for output in ("x.safetensors", "x.pt"):
        commands += [("verify", output), ("verify", output, "--against", run.name)]
    return {" ".join(command): peak_of(run.parent, *command) for command in commands}


@pytest.mark.slow
def test_each_tensor_takes_two_kibibytes_at_most(tmp_path: Path):
    """Headers, layout, fold, reading back and manifest together, beside what a run of few tensors takes."""
    few = peak_mib(many_tensors(tmp_path / "few" / "run", 3), "--half-life", "200ba", "-o", "x.safetensors")
    many = peaks_of_every_output(many_tensors(tmp_path / "many" / "run", 20_000))
    assert max(many) - few <= 2 * 20_000 / 1024


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.parametrize("count", [100_000, 300_000])
def test_many_tensors_take_a_kibibyte_each(tmp_path: Path, count: int):
    """120 MiB, and 1 KiB for each tensor name: for what is written, looked at, verified and averaged anew."""
    run, most = many_tensors(tmp_path / "run", count), 120 + count / 1024
    assert max(peaks_of_every_output(run)) <= most
    peaks = peaks_of_reading(run)
    assert max(peaks.values()) <= most, peaks


@pytest.mark.slow
@pytest.mark.parametrize("threads", ["1", "16"])
def test_max_memory_bounds_the_process(tmp_path: Path, threads: str):
    """Also where memory beside the buffers is needed: a mask of infinities, float64 rounded to bfloat16."""
    (tmp_path / "run").mkdir()
    for step in (100, 200, 300):
        mask = torch.full((4 << 20,), -torch.inf, dtype=torch.float64)
        tensors = {"mask": mask, "weight": torch.full((4 << 20,), step / 7, dtype=torch.float64)}
        save_file(tensors, tmp_path / "run" / f"step-{step}.safetensors")
    options = ["--threads", threads, "--dtype", "bfloat16", "--half-life", "200ba", "--half-life", "50ba", "-o", "all"]
    for limit in (100, 180):
        assert peak_mib(tmp_path / "run", *options, "--max-memory", f"{limit}MiB", steady=False) <= limit


def test_what_is_freed_is_kept_where_that_is_asked_for():
    """Memory that comes and goes takes hardly any new pages then."""
    script = """
import resource
from collections import deque
from ema_cli.system.memory import keep_freed
def faults():
    held, begun = deque(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(400):
        held.append(b"x" * 300_000)
        if len(held) > 8:
            held.popleft()
    held.clear()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun
faults()
before = faults()
keep_freed()
faults()
print(before, faults())
"""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("only glibc is asked")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after < 100 < before
