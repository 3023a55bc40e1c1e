"""`make demo` and the release of its run, as the pages show them; and what the README's first screen promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ema_cli.manifest.manifest import read_manifest
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
    """A short demo trains while `watch` follows, lets `tune` evaluate by its own evaluation, and compares."""
    command = [sys.executable, ROOT / "scripts" / "demo.py", "--batches", "2", "--dir", tmp_path / "a demo"]
    results = tmp_path / "a demo" / "best.safetensors.tune"  # of an earlier demo
    results.mkdir(parents=True)
    (results / "tune.jsonl").write_text('{"tune": 1, "command": "another"}\n')
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    last = float(re.search(r"last checkpoint \(step 2\) +(\d\.\d{4})", done.stdout)[1])
    row = re.search(r"half-life 2ba" + r" +(\d\.\d{4})" * 4, done.stdout)
    files, watched, stored, dense = map(float, row.groups())
    assert abs(stored - dense) < 0.01  # what was stored makes nearly the average of every batch
    assert files == watched == dense  # each batch is in a file here
    tuned = read_manifest(tmp_path / "a demo" / "best.safetensors.manifest.json")["tune"]
    metrics = {row["name"]: round(row["values"][0], 4) for row in tuned["candidates"]}
    assert (metrics["last"], metrics["2ba"]) == (last, files)
    assert "--loss-of {path}" in tuned["command"]
    assert (tmp_path / "a demo" / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_demo_trains_by_batches_and_says_where_it_stops_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """However slow the machine is, unless it is asked to stop; how long it will take is said near the beginning."""
    monkeypatch.setattr(demo, "CHECKPOINTS", 2)
    monkeypatch.setattr(demo, "MEASURED", 2)
    text = demo.load_text()[0]
    for name in ("whole", "early"):
        (tmp_path / name).mkdir()
    demo.train(text, tmp_path / "whole", 4)
    assert [path.name for path in sorted((tmp_path / "whole").glob("*.pt"))] == ["step-00002.pt", "step-00004.pt"]
    said = capsys.readouterr().err
    assert re.search(r"4 batches: about \d+ s on this machine", said)
    assert "stopped" not in said
    demo.train(text, tmp_path / "early", 4, seconds=0)
    assert [path.name for path in (tmp_path / "early").glob("*.pt")] == ["step-00002.pt"]
    assert "stopped early, after 2 of 4 batches" in capsys.readouterr().err


def test_durations_are_in_words():
    """Seconds, or minutes from a minute and a half on."""
    assert [demo.duration(seconds) for seconds in (0.2, 90, 91, 3000)] == [
        "about 1 s", "about 90 s", "about 2 min", "about 50 min"
    ]  # fmt: skip


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
