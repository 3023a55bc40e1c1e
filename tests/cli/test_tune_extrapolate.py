"""ema-cli tune --extrapolate: how far to go along a line, by an evaluation that knows the answer."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from ema_cli import Recipe, average, make_plan, open_run
from ema_cli.tuning.tune import tune
from tests.conftest import Cli, write_torch_run

# A valley along the line, and the last checkpoint far above it. It counts its calls.
VALLEY = """
import os
name = os.environ['EMA_EXTRAPOLATE']
open('calls', 'a').write(name + chr(10))
print(9.0 if name == 'last' else (float(name) - 0.37) ** 2)
"""
COMMAND = f"{sys.executable} -ISc {shlex.quote(VALLEY)} {{path}}"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of ten checkpoints."""
    write_torch_run(tmp_path / "ckpts", range(100, 1001, 100))
    return tmp_path


def test_the_best_factor_is_found_and_its_average_published(run: Path, cli: Cli):
    """In as many evaluations as said; the winner is to the byte what `average` writes, and is verified and repeated."""
    law = ("--half-life", "200ba", "--extrapolate-from", "500ba")
    done = cli("tune", "ckpts", *law, "--extrapolate", 0, 1, "--tries", 8, "--eval", COMMAND, "-o", "best.pt", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["best"] == "x0.37"
    names = [row["name"] for row in told["candidates"]]
    assert names == ["last", "x0", "x0.2", "x0.37", "x0.4", "x0.6", "x0.8", "x1"]
    assert len((run / "calls").read_text().split()) == len(names)
    cli("average", "ckpts", *law, "--extrapolate", 0.37, "-o", "same.pt", "-q")
    assert (run / "best.pt").read_bytes() == (run / "same.pt").read_bytes()
    assert cli("verify", "best.pt", "--against", "ckpts").code == 0
    assert cli("average", "ckpts", "--recipe", "best.pt.manifest.json", "-o", "again.pt", "-q").code == 0
    assert (run / "again.pt").read_bytes() == (run / "best.pt").read_bytes()
    assert cli("report", "best.pt", "-o", "page.html").code == 0
    assert "Metric of each candidate against its factor" in (run / "page.html").read_text()
    again = cli("tune", "ckpts", *law, "--extrapolate", 0, 1, "--tries", 8, "--eval", COMMAND, "-o", "best.pt", "-f")
    assert again.code == 0, again.err
    assert len((run / "calls").read_text().split()) == len(names)  # all is known


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--half-life", "5ba", "--half-life", "6ba", "--extrapolate", 0, 1),
            "--extrapolate: goes on from the average",
        ),
        (("--between", "5ba", "9ba", "--extrapolate", 0, 1), "--extrapolate: goes on from the average of one"),
        (("--half-life", "5ba", "--extrapolate", 1, 0), "--extrapolate: 1 to 0 is no range of factors"),
        (("--half-life", "5ba", "--extrapolate", "a", 0), "--extrapolate: 'a' is not a number"),
        (("--half-life", "5ba", "--extrapolate-from", "9ba"), "--extrapolate-from: goes with --extrapolate"),
        (("--half-life", "5ba", "--extrapolate-from", "5ba", "--extrapolate", 0, 1), "5ba is the average itself"),
        (("--half-life", "5ba", "--extrapolate", 0, 1, "--bias-correction"), "not for half-life 5ba extrapolated by 0"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(run: Path, cli: Cli, arguments: tuple[object, ...], message: str):
    """Nothing is evaluated."""
    done = cli("tune", "ckpts", *arguments, "--eval", COMMAND)
    assert (done.code, message in done.err) == (2, True), done.err
    assert not (run / "calls").exists()


def test_from_python_the_line_is_searched_too(run: Path):
    """`tune(..., extrapolate=(0, 1))` by a function."""
    opened = open_run(run / "ckpts")
    scores = iter([9.0, *((x - 0.37) ** 2 for x in (0.0, 0.5, 1.0))])
    tuned = tune(
        opened,
        run / "best.safetensors",
        evaluate=lambda path: next(scores),
        half_lives=["200ba"],
        extrapolate=(0, 1),
        tries=3,
    )
    assert tuned.best is not None
    assert tuned.best.name == "x0.5"
    average(make_plan(opened, Recipe(half_life="200ba", extrapolate=0.5)), run / "same.safetensors")
    assert (run / "same.safetensors").read_bytes() == (run / "best.safetensors").read_bytes()
