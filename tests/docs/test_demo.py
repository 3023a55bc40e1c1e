"""`make demo` and the release of its run, as the pages show them; and what the README's first screen promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import demo
from tests.conftest import write_torch_run
from tests.docs.pages import PAGES, README, ROOT, blocks


def test_the_readme_is_short():
    """At most 9 KiB: the rest is in docs/."""
    assert README.stat().st_size <= 9216


def test_the_first_commands_exist():
    """`make demo` and `make test` are in the README and in the Makefile."""
    makefile = (ROOT / "Makefile").read_text()
    shown = "".join(block.text for block in blocks(README))
    for target in ("demo", "test"):
        assert f"$ make {target}\n" in shown
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


@pytest.mark.slow
def test_the_demo_runs_end_to_end(tmp_path: Path):
    """A short demo trains, averages, compares and draws its chart."""
    command = [sys.executable, ROOT / "scripts" / "demo.py", "--batches", "2", "--dir", tmp_path / "demo"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert re.search(r"last checkpoint \(step 2\) +\d\.\d{4}", done.stdout)
    files, stored, dense = map(float, re.search(r"half-life 2ba" + r" +(\d\.\d{4})" * 3, done.stdout).groups())
    assert abs(stored - dense) < 0.01  # what was stored makes nearly the average of every batch
    assert files == dense  # of which each is in a file here
    assert (tmp_path / "demo" / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_timed_demo_trains_its_fewest_batches_however_slow_the_machine_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """When the time is over, training goes on to the batch from which on the averages are better."""
    monkeypatch.setattr(demo, "FEWEST", 4)
    monkeypatch.setattr(demo, "TIMED_INTERVAL", 2)
    monkeypatch.setattr(demo, "STORED_EVERY", 1)
    demo.train(demo.load_text()[0], tmp_path, None, seconds=0)
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["step-00002.pt", "step-00004.pt"]


@pytest.mark.slow
def test_a_release_runs_as_the_page_shows_it(tmp_path: Path):
    """Demands, checksums, the report, the recipe and the job that does all of it, on twelve small checkpoints."""
    write_torch_run(tmp_path / "demo" / "ckpts", range(1, 13))
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    script = "set -e\n" + "".join(block.text for page in PAGES for block in blocks(page) if block.language == "sh")
    assert "scripts/release.sh" in script
    released = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert released.returncode == 0, released.stderr
    assert "all bytes are those of 12 checkpoints averaged anew" in released.stdout
    assert "<svg" in (tmp_path / "report.html").read_text()
    assert "12 checkpoints averaged" in (tmp_path / "summary.md").read_text()
