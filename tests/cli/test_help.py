"""The help pages: complete at any width, without colour where none is wanted, with examples that run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ema_cli.cli.app import app
from ema_cli.cli.command_line import COMMANDS
from tests.conftest import Outcome, write_hf_run

Cli = Callable[..., Outcome]
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
def test_every_example_runs(page: list[str], tmp_path: Path):
    """What the page shows as a command works as it stands, on a run and an average of the names that it uses."""
    write_hf_run(tmp_path / "ckpts", [1000, 2000, 3000])
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def run(command: str) -> None:
        done = subprocess.run(shlex.split(command), cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stderr}"

    run("ema-cli average ckpts/ --half-life 50ba -o release.safetensors")
    done = subprocess.run(
        [sys.executable, "-m", "ema_cli", *page, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    examples = re.findall(r"^\s*((?:ema-cli|sha256sum) .*?)\s*$", done.stdout, re.MULTILINE)
    assert examples
    assert {example.split()[1] for example in examples} >= set(page)
    for example in examples:
        run(example)


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["-O", "-OO"])
def test_nothing_rests_on_assertions(flag: str, cli: Cli, tmp_path: Path):
    """With -O and -OO, which drop them, inspect, average and verify do the same, to the byte, and refuse the same."""
    write_hf_run(tmp_path / "ckpts", [1000, 2000, 3000])
    plain = [[sys.executable, "-m", "ema_cli"], [sys.executable, flag, "-m", "ema_cli"]]
    told = []
    for number, command in enumerate(plain):
        folder = tmp_path / str(number)
        folder.mkdir()
        steps = [
            ["inspect", "../ckpts", "--half-life", "50ba", "--json"],
            ["average", "../ckpts", "--half-life", "50ba", "-o", "out", "-q"],
            ["verify", "out", "--against", "../ckpts"],
            ["average", "../ckpts", "--half-life", "50ba", "-o", "out"],
            ["average", "../ckpts/checkpoint-1000/optimizer.pt", "--half-life", "50ba"],
            ["average", "../ckpts", "--half-life", "50"],
        ]
        done = [subprocess.run([*command, *step], cwd=folder, capture_output=True, text=True) for step in steps]
        assert [each.returncode for each in done[:4]] == [0, 0, 0, 5], done
        files = {path.name: path.read_bytes() for path in sorted((folder / "out").iterdir())}
        told.append((files, [(each.returncode, each.stdout, each.stderr) for each in done]))
    assert told[0] == told[1]
