"""ema-cli tune: series, ranges and laws, by evaluations that know the answer; noise, failures and ties."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ema_cli.manifest.manifest import read_manifest
from ema_cli.tuning.search import LEAST_STEP
from tests.conftest import Cli, write_torch_run
from tests.tuning.evaluations import calls, python

STEPS = range(100, 2001, 100)
CLOCK_VALLEY = """
import os
half_life, clock = os.environ["EMA_HALF_LIFE"], os.environ["EMA_CLOCK"]
open("calls", "a").write(f"{half_life}@{clock}\\n")
print(9 if half_life == "last" else abs(int(clock[:-2]) - 1000) + abs(int(half_life[:-2]) - 400))
"""
CLOCK_VALLEY_IN_LOGARITHM = """
import math, os
half_life, clock = os.environ["EMA_HALF_LIFE"], os.environ["EMA_CLOCK"]
open("calls", "a").write(f"{half_life}@{clock}\\n")
print(9e9 if half_life == "last" else abs(int(clock[:-2]) - 1000) + math.log(float(half_life[:-2]) / 400) ** 2)
"""
# The best half-life is 20 %, the best window 500ba, the best factor 0.5.
ANY_VALLEY = """
import math, os, re
for name, best in (("EMA_HALF_LIFE", 20), ("EMA_WINDOW", 500), ("EMA_EXTRAPOLATE", 0.5)):
    text = os.environ.get(name)
    if text:
        number = re.match("[0-9.]+", text)
        print(9e9 if number is None else abs(math.log(max(float(number[0]), 0.01) / best)) ** 2)
"""
HALVES = ("--half-life", "200ba", "--half-life", "400ba")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run of twenty checkpoints."""
    write_torch_run(tmp_path / "ckpts", STEPS)
    return tmp_path


def test_a_series_is_tuned_and_the_best_clock_wins(cli: Cli, run_folder: Path):
    """Each average once; what wins is what `--stop` gives, to the byte, and its manifest and report say the clock."""
    done = cli("tune", "ckpts", *HALVES, "--series-every", "500ba", "--eval", python(CLOCK_VALLEY), "-o", "best")
    assert (done.code, done.out) == (0, "best\n"), done
    assert "evaluating a series of 8 averages and the last checkpoint" in done.err
    assert "best: 400ba-at-1000ba with 0; the last checkpoint has 9" in done.err
    assert len(calls(run_folder)) == len(set(calls(run_folder))) == 9
    assert cli("average", "ckpts", "--half-life", "400ba", "--stop", "1000ba", "-o", "alone").code == 0
    alone, best = (read_manifest(run_folder / name / "ema-manifest.json") for name in ("alone", "best"))
    assert best.pop("tune")["winner"] == "400ba-at-1000ba"
    assert alone == best
    assert cli("verify", "best", "--against", "ckpts").code == 0
    assert cli("report", "best", "--against", "ckpts", "-o", "best.html").code == 0
    page = (run_folder / "best.html").read_text()
    assert "Metric of each candidate against its clock" in page
    assert "400ba-at-1000ba: 0" in page
    again = cli("tune", "ckpts", *HALVES, "--series-every", "500ba", "--eval", python(CLOCK_VALLEY), "-o", "best", "-f")
    assert again.code == 0
    assert len(calls(run_folder)) == 9


@pytest.mark.parametrize(
    ("options", "candidates", "rows"),
    [
        (HALVES, 3, ["200ba", "400ba"]),
        (("--between", "100ba", "900ba", "--tries", "6"), 7, ["100ba", "900ba"]),
        ((*HALVES, "--series-every", "1000ba"), 5, ["1000ba", "2000ba", "400ba"]),
    ],
)
def test_what_would_be_evaluated_is_shown_and_nothing_is_done(
    options: tuple[str, ...], candidates: int, rows: list[str], cli: Cli, run_folder: Path
):
    """The plans, and the disk that the candidates need; no log, no call."""
    command = ["tune", "ckpts", *options, "--eval", python(CLOCK_VALLEY), "--dry-run"]
    done = cli(*command)
    assert done.code == 0, done
    assert "Would evaluate" in done.out
    assert "are free" in done.out
    assert all(row in done.out for row in rows)
    facts = cli(*command, "--json").json
    would = facts["would_evaluate"]
    assert would["candidates"] == candidates
    assert would["bytes_at_once"] == candidates * would["bytes_each"] > 0
    assert [path.name for path in run_folder.iterdir()] == ["ckpts"]


def test_a_series_is_searched_in_a_range(cli: Cli, run_folder: Path):
    """Of each half-life the best clock counts; as many half-lives as said, each at every clock."""
    command = ["tune", "ckpts", "--between", "50ba", "5000ba", "--tries", "6", "--series-every", "500ba"]
    done = cli(*command, "--eval", python(CLOCK_VALLEY_IN_LOGARITHM), "-o", "best", "--json")
    assert done.code == 0, done
    best = done.json["best"].removesuffix("-at-1000ba")
    assert float(best[:-2]) == pytest.approx(400, rel=0.1)
    assert len(calls(run_folder)) == len(set(calls(run_folder))) <= 6 * 4 + 1
    assert cli("average", "ckpts", "--half-life", best, "--stop", "1000ba", "-o", "alone").code == 0
    alone, winner = ((run_folder / name / "model.safetensors").read_bytes() for name in ("alone", "best"))
    assert alone == winner


@pytest.mark.parametrize(
    ("options", "name", "law"),
    [
        (("--half-life", "20%ba", "--half-life", "30%ba"), "20%ba", ("--half-life", "20%ba")),
        (("--between", "5%ba", "80%ba", "--tries", "7"), "20%ba", ("--half-life", "20%ba")),
        (("--profile", "linear", "--window", "900ba", "--window", "500ba"), "linear-500ba",
         ("--profile", "linear", "--window", "500ba")),
        (("--profile", "1-sqrt", "--between", "200ba", "2000ba", "--tries", "7", "--start", "200ba"), "1-sqrt-500ba",
         ("--profile", "1-sqrt", "--window", "500ba", "--start", "200ba")),
        (("--profile", "uniform", "--window", "500ba", "--extrapolate", "0", "1", "--tries", "3"), "x0.5",
         ("--profile", "uniform", "--window", "500ba", "--extrapolate", "0.5")),
        (("--half-life", "20%ba", "--extrapolate", "0", "1", "--tries", "3"), "x0.5",
         ("--half-life", "20%ba", "--extrapolate", "0.5")),
    ],
)  # fmt: skip
def test_any_law_with_a_number_is_tuned(
    options: tuple[str, ...], name: str, law: tuple[str, ...], cli: Cli, run_folder: Path
):
    """Shares of the training so far, windows, and lines from both; the winner is what `average` makes, and verifies."""
    done = cli("tune", "ckpts", *options, "--eval", python(ANY_VALLEY), "-o", "best", "--json")
    assert (done.code, done.json["best"]) == (0, name), done
    assert cli("average", "ckpts", *law, "-o", "alone").code == 0
    alone, best = (read_manifest(run_folder / folder / "ema-manifest.json") for folder in ("alone", "best"))
    assert best.pop("tune")["winner"] == name
    assert alone == best
    assert cli("verify", "best", "--against", "ckpts").code == 0
    assert cli("report", "best", "-o", "best.html").code == 0
    words = {"x": "factor", "l": "window", "1": "window", "2": "half-life"}[name[0]]
    assert f"Metric of each candidate against its {words}" in (run_folder / "best.html").read_text()


MISBEHAVING = """
import math, os, sys, time
calls = open("calls", "a+")
calls.seek(0)
noise = 0.0005 * (-1) ** len(calls.readlines())
print(os.environ["EMA_HALF_LIFE"], file=calls, flush=True)
half_life = 9e9 if os.environ["EMA_HALF_LIFE"] == "last" else float(os.environ["EMA_HALF_LIFE"][:-2])
if half_life < 60:
    sys.exit("no such layer")
elif half_life < 100:
    sys.exit(print("loss nan"))
elif half_life > 4000 and half_life < 9e9:
    time.sleep(60)
elif half_life > 2000 and half_life < 9e9:
    sys.exit(0)
elif half_life > 1000 and half_life < 9e9:
    os.kill(os.getpid(), 9)
print("loss", math.log(half_life / 333) ** 2 + noise)
"""


@pytest.mark.slow
def test_among_noise_and_failures_of_every_kind_the_valley_is_found(cli: Cli, run_folder: Path):
    """Within one step of the refinement, in as many evaluations as said; the winner's bytes are those of `average`."""
    options = ["--between", "50ba", "5000ba", "--tries", "12", "--timeout", "5", "--jobs", "2"]
    done = cli("tune", "ckpts", *options, "--eval", python(MISBEHAVING), "-o", "best", "--json")
    assert done.code == 0, done
    best = done.json["best"]
    assert float(best[:-2]) == pytest.approx(333, rel=LEAST_STEP)
    assert len(calls(run_folder)) == len(set(calls(run_folder))) <= 13
    failed = {row["name"]: row["failed"] for row in done.json["candidates"] if row["failed"]}
    reasons = {
        "50ba": "it ended with exit code 1: no such layer",
        "96.5ba": "its metric is nan",
        "1340ba": "it was ended by SIGKILL",
        "2590ba": "it printed nothing",
        "5000ba": "it took longer than 5 s",
    }
    assert failed == reasons
    cli("average", "ckpts", "--half-life", best, "-o", "alone")
    alone, winner = ((run_folder / name / "model.safetensors").read_bytes() for name in ("alone", "best"))
    assert alone == winner


def test_a_tie_within_the_spread_goes_to_the_shorter_half_life(cli: Cli, run_folder: Path):
    """With --repeats; each is evaluated as many times, and mean and spread are shown."""
    code = """
import os
calls = open("calls", "a+")
calls.seek(0)
number = sum(line.strip() == os.environ["EMA_HALF_LIFE"] for line in calls.readlines())
print(os.environ["EMA_HALF_LIFE"], file=calls)
print({"last": 9, "200ba": 1.02, "400ba": 1.0, "800ba": 5}[os.environ["EMA_HALF_LIFE"]] + 0.05 * number)
"""
    halves = [word for number in (800, 400, 200) for word in ("--half-life", f"{number}ba")]
    done = cli("tune", "ckpts", *halves, "--repeats", "3", "--eval", python(code), "-o", "best")
    assert done.code == 0, done
    assert "best: 200ba with 1.07" in done.err
    assert re.search(r"400ba +1\.05 +0\.05", done.err)
    assert sorted(calls(run_folder)) == sorted(["last", "200ba", "400ba", "800ba"] * 3)
