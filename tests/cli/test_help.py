"""The help pages: complete at any width, without colour where none is wanted, with examples that run."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ema_cli.cli.app import app
from ema_cli.cli.command_line import COMMANDS
from tests.conftest import Cli, write_hf_run

PAGES = [[], *([command] for command in COMMANDS)]


def options_of(page: str) -> list[str]:
    """Return the long options that a help page lists."""
    return re.findall(r"^│ (--[a-z-]+)", page, re.MULTILINE)


def test_the_main_page_says_what_scripts_need(cli: Cli):
    """Commands, units, the files beside an average, exit codes: each of errors.py, and those of signals."""
    page = " ".join(cli("--help").out.split())
    for said in (*COMMANDS, "50ba", "2ep", "1e6sp", "1e9tok", "ema-manifest.json", "SHA256SUMS", ".sha256"):
        assert said in page
    codes = re.search(r"Exit codes: (.*?)\. ", page)
    assert codes
    assert set(map(int, re.findall(r"\b\d+\b", codes[1]))) == {0, 1, 2, 3, 4, 5, 6, 129, 130, 141, 143}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: " ".join(page) or "main")
def test_every_width_says_the_same(page: list[str], cli: Cli):
    """At 80, 100 and 200 columns no line is longer, nothing is cut off, and no option is missing."""
    at = {width: cli(*page, "--help", env={"COLUMNS": str(width)}).out for width in (80, 100, 200)}
    for width, text in at.items():
        assert max(map(len, text.splitlines())) <= width
        assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert len({tuple(options_of(text)) for text in at.values()}) == 1


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=["pipe", "NO_COLOR", "dumb"])
def test_a_pipe_gets_no_escapes(variables: dict[str, str], cli: Cli):
    """Where no terminal reads, or none that can do more, the page is text."""
    assert "\x1b" not in cli("average", "--help", env=variables).out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained_and_ends_its_sentence(command: str):
    """Each option has a help text that begins in a capital and ends in a full stop."""
    import typer

    parameters = typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]
    for parameter in parameters:
        assert re.fullmatch(r"[A-Z].+\.", parameter.help, re.DOTALL), parameter.name


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: " ".join(page) or "main")
def test_every_example_runs(page: list[str], cli: Cli, tmp_path: Path):
    """What the page shows as a command works as it stands, on a run and an average of the names that it uses."""
    write_hf_run(tmp_path / "ckpts", [1000, 2000, 3000], most_steps=3000)  # where a watch ends
    (tmp_path / "eval").write_text('#!/bin/sh\n[ "$EMA_HALF_LIFE" = last ] && echo 2 || echo 1\n')
    (tmp_path / "eval").chmod(0o755)

    def run(command: str) -> None:
        words = shlex.split(command)
        if words[0] == "ema-cli":
            done = cli(*words[1:])
            assert done.code == 0, done
        else:
            subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)

    run("ema-cli average ckpts/ --half-life 50ba -o release.safetensors")
    examples = re.findall(r"^\s*((?:ema-cli|sha256sum) .*?)\s*$", cli(*page, "--help").out, re.MULTILINE)
    assert examples
    assert {example.split()[1] for example in examples} >= set(page)
    for example in examples:
        run(example)


ALL_IN_ONE = """
import json, sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from ema_cli.cli import app
results = []
for arguments in json.loads(sys.argv[1]):
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = app.run(arguments)
    results.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(results))
"""


@pytest.mark.slow
@pytest.mark.parametrize("flag", [pytest.param("-O", marks=pytest.mark.full), "-OO"])
def test_nothing_rests_on_assertions(flag: str, tmp_path: Path):
    """With -O and -OO, which drop them, inspect, average and verify do the same, to the byte, and refuse the same."""
    write_hf_run(tmp_path / "ckpts", [1000, 2000, 3000])
    steps = [
        ["inspect", "../ckpts", "--half-life", "50ba", "--json"],
        ["average", "../ckpts", "--half-life", "50ba", "-o", "out", "-q"],
        ["verify", "out", "--against", "../ckpts"],
        ["average", "../ckpts", "--half-life", "50ba", "-o", "out"],
        ["average", "../ckpts/checkpoint-1000/optimizer.pt", "--half-life", "50ba"],
        ["average", "../ckpts", "--half-life", "50"],
    ]
    results = []
    for number, flags in enumerate(([], [flag])):
        folder = tmp_path / str(number)
        folder.mkdir()
        command = [sys.executable, *flags, "-c", ALL_IN_ONE, json.dumps(steps)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        ended = json.loads(done.stdout)
        assert [code for code, _, _ in ended[:4]] == [0, 0, 0, 5], ended
        results.append(({path.name: path.read_bytes() for path in sorted((folder / "out").iterdir())}, ended))
    assert results[0] == results[1]
