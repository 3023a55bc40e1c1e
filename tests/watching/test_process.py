"""The program beside a training in another process: signals, kills, and what it takes while it waits."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ema_cli import Recipe, average, make_plan, open_run
from ema_cli.manifest.manifest import read_manifest
from tests.conftest import write_torch_run
from tests.watching.test_watch import assert_near

pytestmark = pytest.mark.slow

# It keeps the last two of its checkpoints, and a copy of each elsewhere. At times it waits until the watch has it,
# as a machine may be slow; the rest is a race.
TRAINING = """
import sys, time
from pathlib import Path
import torch
run, copies, pause = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
value = torch.randn(50_000)
for step in range(10, 310, 10):
    value = value + 0.1 * torch.randn_like(value)
    state = {"model": {"w": value, "n": torch.tensor(step)}, "step": step}
    torch.save(state, copies / f"step-{step}.pt")
    torch.save(state, run / f"step-{step}.pt")
    (run / f"step-{step - 20}.pt").unlink(missing_ok=True)
    time.sleep(pause)
    tries = 6000 if step % 60 == 0 and step < 300 else 0
    while tries and not Path(f"out.watch/{step}ba").exists():
        tries -= 1
        time.sleep(0.01)
"""
QUICK = ("--every", "0.02s", "--settle", "0.02s", "--threads", "1")


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _ended() -> Iterator[None]:
    """End what a test that fails leaves."""
    yield
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.communicate()


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    """Start a watch of the run in a folder."""
    command = [sys.executable, "-m", "ema_cli", "watch", "run", "--half-life", "50ba", "-o", "out", *QUICK, *options]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    STARTED.append(process)
    return process


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    """Read what a process says to people until it says this."""
    assert process.stderr is not None
    while line := process.stderr.readline():
        if text in line:
            return
    raise AssertionError(f"ended without {text}")


def test_a_training_that_deletes_its_checkpoints(tmp_path: Path):
    """What is folded is what `average` makes of the same files; what was missed is told, and in the manifest."""
    (tmp_path / "run").mkdir()
    (tmp_path / "copies").mkdir()
    watch = start(tmp_path, "--until", "300ba")
    command = [sys.executable, "-c", TRAINING, "run", "copies", "0.1"]
    training = subprocess.Popen(command, cwd=tmp_path)
    out, err = watch.communicate(timeout=120)
    assert training.wait() == 0
    assert watch.returncode == 0, err
    assert out == "out\n"
    assert len(list((tmp_path / "run").iterdir())) == 2
    inputs = read_manifest(tmp_path / "out" / "ema-manifest.json")["inputs"]
    names = [row["name"] for row in inputs]
    assert names[-1] == "step-300.pt"
    assert len(names) >= 5
    average(
        make_plan(open_run([tmp_path / "copies" / name for name in names]), Recipe(half_life="50ba")),
        tmp_path / "alone",
    )
    assert_near(tmp_path / "out", tmp_path / "alone")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_publishes_what_is_folded(number: signal.Signals, tmp_path: Path):
    """And the exit code is that of the signal."""
    write_torch_run(tmp_path / "run", [100, 200, 300])
    watch = start(tmp_path, "--publish-every", "10000ba")
    wait_for(watch, "300ba: step-300.pt entered")
    wait_for(watch, "written")
    write_torch_run(tmp_path / "run", [400])
    wait_for(watch, "400ba: step-400.pt entered")
    watch.send_signal(number)
    out, err = watch.communicate(timeout=30)
    assert watch.returncode == 128 + number
    assert out == ""
    assert err.endswith("interrupted; what was written is whole\n")
    assert read_manifest(tmp_path / "out" / "ema-manifest.json")["inputs"][-1]["clock"] == "400ba"


def test_killed_again_and_again_it_comes_to_the_same_bits(tmp_path: Path, full: bool):
    """Whenever that was; a checkpoint that was folded is deleted at once."""
    write_torch_run(tmp_path / "all", range(100, 1600, 100))
    (tmp_path / "whole").mkdir()
    shutil.copytree(tmp_path / "all", tmp_path / "whole" / "run")
    whole = start(tmp_path / "whole", "--until", "1500ba")
    assert whole.communicate(timeout=60)[0] == "out\n"
    (tmp_path / "run").mkdir()
    killed = 0
    for number, step in enumerate(range(100, 1600, 100)):
        shutil.copy(tmp_path / "all" / f"step-{step}.pt", tmp_path / "run")
        if full or number % 4 == 0:
            watch = start(tmp_path)
            wait_for(watch, f"{step}ba: step-{step}.pt entered")
            time.sleep((number * 7 % 10) / 100)
            watch.kill()
            watch.communicate()
            killed += 1
    last = start(tmp_path, "--until", "1500ba")
    assert last.communicate(timeout=60)[0] == "out\n"
    assert killed >= 4
    for name in ("out/model.safetensors", "out.watch/1500ba/50ba.safetensors", "out.watch/first.safetensors"):
        if name.startswith("out/"):
            assert (tmp_path / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        else:  # but for the identity of the watch
            one, other = ((folder / name).read_bytes() for folder in (tmp_path, tmp_path / "whole"))
            assert one[-100:] == other[-100:]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_it_takes_no_processor_while_it_waits(tmp_path: Path):
    """A look ten times a second takes less than a hundredth of it."""
    write_torch_run(tmp_path / "run", [100])
    watch = start(tmp_path, "--every", "0.1s")
    wait_for(watch, "written")
    time.sleep(0.5)

    def used() -> float:
        fields = Path(f"/proc/{watch.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before = used()
    time.sleep(3)
    after = used()
    watch.terminate()
    watch.communicate()
    assert after - before <= 0.05


def test_deleted_by_the_hundred(tmp_path: Path, full: bool):
    """Files that come and go at any moment: what enters is whole, and nothing stops it but the end."""
    (tmp_path / "run").mkdir()
    (tmp_path / "copies").mkdir()
    code = TRAINING.replace("range(10, 310, 10)", f"range(10, {10_010 if full else 1_010}, 10)").replace(
        "- 20}", "- 10}"
    )
    watch = start(tmp_path, "--until", f"{10_000 if full else 1_000}ba", "--settle", "0s", "--every", "0.001s")
    subprocess.run([sys.executable, "-c", code, "run", "copies", "0.002"], cwd=tmp_path, check=True)
    _, err = watch.communicate(timeout=300)
    assert watch.returncode == 0, err
    assert "was deleted" in err or "missing" in err
    names = [row["name"] for row in read_manifest(tmp_path / "out" / "ema-manifest.json")["inputs"]]
    plan = make_plan(open_run([tmp_path / "copies" / name for name in names]), Recipe(half_life="50ba"))
    average(plan, tmp_path / "alone")
    assert_near(tmp_path / "out", tmp_path / "alone")


def test_a_terminal_shows_that_it_waits(tmp_path: Path):
    """In a line that the next one takes the place of; elsewhere there is none."""
    write_torch_run(tmp_path / "run", [100])
    ours, its = os.openpty()
    command = [sys.executable, "-m", "ema_cli", "watch", "run", "--half-life", "50ba", "-o", "out", *QUICK]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=its, text=True)
    STARTED.append(process)
    os.close(its)
    shown = b""
    while b"at 100ba; waiting for the next checkpoint" not in shown:
        shown += os.read(ours, 4096)
    assert b"\r\x1b[K100ba: step-100.pt entered" in shown
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    os.close(ours)
