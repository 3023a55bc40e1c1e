"""The README, held to its word: every command it shows is run, and prints what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.conftest import write_hf_run

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """Return the fenced blocks in `language`."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run that the README shows, in which its Python examples ran."""
    folder = tmp_path_factory.mktemp("readme")
    write_hf_run(folder / "ckpts", [500, 1000, 1500, 2000, 2500, 3000], epoch_length=1000)
    for block in blocks("python"):
        subprocess.run([sys.executable, "-W", "error", "-c", block], cwd=folder, check=True)
    return folder


def test_console_blocks_print_what_they_say(folder: Path):
    """The commands run in order, and stdout is what the README shows."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    steps = [step for block in blocks("console") for step in re.split(r"^\$ ", block, flags=re.MULTILINE) if step]
    assert len(steps) >= 5
    for step in steps:
        command, _, expected = step.partition("\n")
        environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"} | {"PATH": path}
        done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        printed = "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())
        assert printed == expected.strip(), command


def test_python_blocks_run(folder: Path):
    """The examples work as printed, one after the other, and leave what they say."""
    assert (folder / "python.safetensors").exists()
    assert load_file(folder / "ema.safetensors").keys() == {"weight", "bias"}
    assert {path.name for path in (folder / "run" / "ema").iterdir()} >= {"50ba", "400ba", "first.safetensors"}


def test_the_first_screen_s_targets_exist():
    """`make demo` and `make test` are in the README and in the Makefile."""
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "test"):
        assert f"$ make {target}\n" in README
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_every_module_has_its_phrase():
    """The file tree names every module, and none that is gone."""
    tree = README[README.index("## The code") :]
    named = set(re.findall(r"\b(\w+\.py)\b", tree))
    present = {path.name for path in (ROOT / "ema_cli").rglob("*.py") if not path.name.startswith("_")}
    assert named == present | {path.name for path in (ROOT / "scripts").glob("*.py")}


@pytest.mark.slow
def test_the_demo_runs_end_to_end(tmp_path: Path):
    """A short demo trains, averages, compares and draws its chart; its run is released as the README prints it."""
    command = [sys.executable, ROOT / "scripts" / "demo.py", "--batches", "12", "--dir", tmp_path / "demo"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert re.search(r"last checkpoint \(step 12\) +\d\.\d{4}", done.stdout)
    files, stored, dense = map(float, re.search(r"half-life 10ba" + r" +(\d\.\d{4})" * 3, done.stdout).groups())
    assert abs(stored - dense) < 0.01  # what was stored makes nearly the average of every batch
    assert files == dense  # of which each is in a file here
    assert (tmp_path / "demo" / "curve.png").read_bytes().startswith(b"\x89PNG")

    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    script = "set -e\n" + "".join(blocks("sh"))
    assert "scripts/release.sh" in script
    released = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert released.returncode == 0, released.stderr
    assert "all bytes are those of 12 checkpoints averaged anew" in released.stdout
    assert "<svg" in (tmp_path / "report.html").read_text()
    assert "12 checkpoints averaged" in (tmp_path / "summary.md").read_text()
