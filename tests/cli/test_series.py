"""`--series` on the command line: what is shown before, the names of what is written, and what each is worth."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Cli, write_torch_run
from tests.runs.stored_run import train

HALVES = ("--half-life", "100ba", "--half-life", "200ba")


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["-o", "out"], [f"ema-{half}-at-{clock}.safetensors" for clock in ("100ba", "200ba", "300ba")
                         for half in ("100ba", "200ba")]),
        (["-o", "out/{half_life}+{clock}.pt"], [f"{half}+{clock}.pt" for clock in ("100ba", "200ba", "300ba")
                                                for half in ("100ba", "200ba")]),
        (["-o", "out", "--series-every", "200ba"], [f"ema-{half}-at-{clock}.safetensors"
                                                    for clock in ("200ba", "300ba") for half in ("100ba", "200ba")]),
    ],
)  # fmt: skip
def test_the_averages_are_named_after_half_life_and_clock(options: list[str], names: list[str], cli: Cli, run: Path):
    """In one new folder."""
    done = cli("average", "ckpts", *HALVES, "--series", *options, "--no-manifest")
    assert (done.code, done.out) == (0, "out\n"), done
    assert {path.name for path in (run.parent / "out").iterdir()} == set(names)


def test_each_verifies_and_is_made_again_by_its_manifest(cli: Cli, run: Path):
    """As any average; and it is what `--stop` gives."""
    assert cli("average", "ckpts", *HALVES, "--series").out == "ema-100ba-200ba-series\n"
    done = cli("verify", "ema-100ba-200ba-series", "--against", "ckpts")
    assert (done.code, done.out.count("averaged anew")) == (0, 6), done
    name = "ema-100ba-at-200ba.safetensors"
    one = run.parent / "ema-100ba-200ba-series" / name
    assert cli("average", "ckpts", "--half-life", "100ba", "--stop", "200ba", "-o", name).code == 0
    again = cli("average", "ckpts", "--recipe", f"{one}.manifest.json", "-o", "again.safetensors")
    assert again.code == 0, again
    for suffix in ("", ".manifest.json"):
        assert (run.parent / f"{name}{suffix}").read_bytes() == Path(f"{one}{suffix}").read_bytes()
    assert (run.parent / "again.safetensors").read_bytes() == one.read_bytes()


@pytest.mark.parametrize("command", [["inspect"], ["average", "--dry-run"]])
def test_what_would_be_made_is_a_row_for_each(command: list[str], cli: Cli, run: Path):
    """Its clock, how many enter, how old it is; and of the last, what to know."""
    done = cli(command[0], "ckpts", *command[1:], *HALVES, "--series")
    assert done.code == 0, done
    rows = [line.split()[:5] for line in done.out.splitlines() if line.split()[1:2] in (["100ba"], ["200ba"])]
    assert rows[0] == ["100ba", "100ba", "1", "1.0", "0ba"]
    assert rows[-2] == ["300ba", "100ba", "3", "2.7", "75ba"]
    assert len(rows) == 6
    assert "A series of 6 averages, at 3 clocks from 100ba to 300ba; of the last:" in done.out
    assert not (run.parent / "ema-100ba-200ba-series").exists()


def test_the_table_of_a_long_series_is_bounded(cli: Cli, tmp_path: Path):
    """Both ends, and how many are between."""
    write_torch_run(tmp_path / "ckpts", range(1, 61))
    done = cli("inspect", "ckpts", "--half-life", "5ba", "--series")
    assert done.code == 0, done
    assert "20 more" in done.out
    assert len(done.out.splitlines()) < 60


def test_a_program_learns_clocks_passes_and_sizes(cli: Cli, run: Path):
    """Each plan has its clock; the bytes are those of all averages."""
    facts = cli("average", "ckpts", *HALVES, "--series", "--dry-run", "--json").json
    assert [plan["clock"] for plan in facts["plans"]] == ["100ba", "100ba", "200ba", "200ba", "300ba", "300ba"]
    would = facts["would_write"]
    assert would["passes"] == 1
    assert would["bytes_to_write"] == sum(output["bytes"] for output in would["outputs"])
    assert len(would["outputs"]) == 6


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--half-life", "9ba", "--series-every", "5"], 2, "not a time"),
        (["--half-life", "9ba", "--series-every", "infba"], 2, "no distance"),
        (["--half-life", "9ba", "--series", "-o", "x.safetensors"], 2, "one file, for 3 averages"),
        (["--half-life", "9ba", "--series", "-o", "a/x-{half_life}"], 2, "-o 'a/{clock}'"),
        ([*HALVES, "--series", "-o", "a/x-{clock}.pt"], 2, "-o 'a/{clock}-{half_life}.pt'"),
        (
            ["--half-life", "9ba", "--series-every", "900ba"],
            4,
            "a shorter --series-every than 900ba, or none: --series",
        ),
        (["--half-life", "9ba", "--series-every", "1tok"], 4, "no clock in tokens, which --series-every needs"),
        (["--half-life", "9ba", "--series", "-o", "a/x-{window}"], 2, "no window to fill in"),
        (["--half-life", "9ba", "--series", "--start", "300ba"], 4, "single average"),
        (["--recipe", "x.json", "--series"], 2, "says it"),
    ],
)
def test_what_makes_no_sense_is_refused(options: list[str], code: int, words: str, cli: Cli, run: Path):
    """One error, and nothing written."""
    done = cli("average", "ckpts", *options)
    assert done.code == code, done
    assert words in done.err
    assert [path.name for path in run.parent.iterdir()] == ["ckpts"]


def test_a_series_without_a_law_is_asked_for_one(cli: Cli, run: Path):
    """By inspect, too."""
    assert "which law?" in cli("inspect", "ckpts", "--series").err


def test_windows_have_a_placeholder(cli: Cli, run: Path):
    """Of one average and of several."""
    windows = ("--profile", "uniform", "--window", "100ba", "--window", "200ba")
    assert cli("average", "ckpts", *windows, "-o", "out/{window}.pt", "--no-manifest").code == 0
    assert {path.name for path in (run.parent / "out").iterdir()} == {"100ba.pt", "200ba.pt"}
    assert cli("average", "ckpts", *windows[:4], "-o", "x-{window}-{clock}.pt").out == "x-100ba-300ba.pt\n"


def test_what_cannot_be_read_at_the_end_is_told_as_of_a_single_average(cli: Cli, run: Path):
    """A damaged newest checkpoint is an error, a half-written one a warning, unless --stop leaves them out."""
    newest = max(run.glob("*"), key=lambda path: path.name)
    whole = newest.read_bytes()
    for content, code, words in (
        (b"PK\x05\x06" + bytes(18), 3, "--skip-damaged"),
        (whole[:-9], 0, f"warning: {newest.name} is passed over: half-written"),
    ):
        newest.write_bytes(content)
        for series in ((), ("--series",)):
            done = cli("average", "ckpts", "--half-life", "100ba", *series, "-o", "out", "-f")
            assert (done.code, words in done.err) == (code, True), done
    assert cli("average", "ckpts", "--half-life", "100ba", "--series", "--stop", "200ba", "-o", "out", "-f").code == 0


def test_each_stays_beside_what_its_own_newest_holds(cli: Cli, run: Path):
    """With --like-input the note is of the last, and says so."""
    torch.manual_seed(0)
    for path in run.iterdir():
        path.unlink()
    for step in (100, 200):
        torch.save(
            {"model": {"w": torch.rand(3)}, "optimizer": {"lr": torch.rand(1)}, "step": step}, run / f"s{step}.pt"
        )
    done = cli("average", "ckpts", "--half-life", "100ba", "--series", "--like-input", "-o", "out")
    assert done.code == 0, done
    assert "note: ema-100ba-at-200ba.pt: beside the weights, all stays that of s200.pt: optimizer" in done.err


def test_stored_averages_make_a_series_too(cli: Cli, tmp_path: Path):
    """At each clock that was stored what `--stop` gives there, to the byte; each verifies, and is near the truth."""
    every = np.array(train(tmp_path / "run"))
    options = ("--from", "stored", "--half-life", "40ba", "--half-life", "10%ba")
    done = cli("average", "run", *options, "--series", "-o", "out")
    assert done.code == 0, done
    note = "note: no average of half-life 10%ba at 50ba, 100ba: what is stored is more than 5% off there"
    assert note in done.err
    names = {path.stem for path in (tmp_path / "out").glob("*.safetensors")}
    clocks = range(50, 401, 50)
    assert names == {f"ema-40ba-at-{clock}ba" for clock in clocks} | {f"ema-10%ba-at-{at}ba" for at in clocks[2:]}
    assert cli("verify", "out", "--against", "run").code == 0
    for clock in (50, 250):
        name = f"ema-40ba-at-{clock}ba.safetensors"
        assert cli("average", "run", *options[:4], "--stop", f"{clock}ba", "-o", name).code == 0
        assert (tmp_path / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
        weights = 0.5 ** ((clock - np.arange(1, clock + 1)) / 40)
        weights[1:] *= 1 - 0.5 ** (1 / 40)
        wanted = (weights[:, None, None] * every[:clock].reshape(clock, 8, 8)).sum(0)
        made = load_file(tmp_path / name)["weight"].double().numpy()
        assert np.abs(made - wanted).max() < 0.02 * np.abs(wanted).max()
    sparse = cli("average", "run", *options[:4], "--series-every", "200ba", "-o", "sparse")
    assert sparse.code == 0, sparse
    assert {path.stem for path in (tmp_path / "sparse").glob("*.safetensors")} == {
        "ema-40ba-at-200ba", "ema-40ba-at-400ba",
    }  # fmt: skip


def test_a_series_of_stored_averages_is_tuned(cli: Cli, tmp_path: Path):
    """A range of half-lives, each at each clock that was stored; there is no raw checkpoint to beat."""
    train(tmp_path / "run")
    code = """
import math, os
clock, half_life = (float(os.environ[name][:-2]) for name in ("EMA_CLOCK", "EMA_HALF_LIFE"))
print(abs(clock - 300) + math.log(half_life / 60) ** 2)
"""
    command = (
        "tune",
        "run",
        "--from",
        "stored",
        "--between",
        "20ba",
        "400ba",
        "--tries",
        "7",
        "--series-every",
        "100ba",
    )
    done = cli(*command, "--eval", f"{sys.executable} -ISc {shlex.quote(code)} {{path}}", "-o", "best")
    assert done.code == 0, done
    assert "evaluating at most 7 half-lives from 20ba to 400ba, a series of 28 averages at most: " in done.err
    assert re.search(r"best: (5\d\.\d|60|6\d\.\d)ba-at-300ba", done.err)
    assert cli("verify", "best", "--against", "run").code == 0
