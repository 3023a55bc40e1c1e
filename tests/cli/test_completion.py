"""Completion: in a bash that has sourced what `ema-cli --show-completion` prints."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ema_cli.cli.command_line import COMMANDS
from ema_cli.law.laws import PROFILES

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")

# What readline does on a Tab: the words to the function, its COMPREPLY back; where that is empty, files (-o default).
DRIVE = """
source "$SCRIPT"
complete -p ema-cli
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
_ema_cli_completion ema-cli "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""

Complete = Callable[..., list[str]]


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `ema-cli --show-completion` prints in bash."""
    folder = tmp_path_factory.mktemp("completion")
    command = ["bash", "--norc", "-c", "ema-cli --show-completion > script"]
    subprocess.run(command, cwd=folder, env=environment(folder), check=True, timeout=60)
    return folder / "script"


def environment(home: Path) -> dict[str, str]:
    """Return an environment in which ema-cli is on the PATH, and bash's files are in `home`."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(home)}


@pytest.fixture
def complete(script: Path, tmp_path: Path) -> Complete:
    """Return a function that gives the completions of the last of the words of a command line."""

    def run(*words: str) -> list[str]:
        command = ["bash", "--norc", "--noprofile", "-c", DRIVE, "bash", "ema-cli", *words]
        known = environment(tmp_path) | {"SCRIPT": str(script)}
        done = subprocess.run(command, cwd=tmp_path, env=known, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        registered, *offered = done.stdout.splitlines()
        assert registered == "complete -o default -F _ema_cli_completion ema-cli"
        return [word for word in offered if word]

    return run


@pytest.mark.slow
def test_commands_complete(complete: Complete):
    """Every command is offered, and those that begin so."""
    assert complete("") == list(COMMANDS)
    assert complete("av") == ["average"]


@pytest.mark.slow
def test_options_complete(complete: Complete):
    """By their beginning, in each command."""
    assert complete("average", "--half") == ["--half-life"]
    assert complete("average", "ckpts", "--half-life", "50ba", "--dr") == ["--drop", "--dry-run"]
    assert complete("inspect", "--update") == ["--update-interval"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--dtype", ["float32", "bfloat16", "float16"]),
        ("--profile", list(PROFILES)),
        ("--weights", ["raw", "ema"]),
        ("--from", ["raw", "stored"]),
        ("--update-interval", ["every"]),
    ],
)
def test_values_complete(option: str, values: list[str], complete: Complete):
    """An option with few values offers them all."""
    assert complete("average", "ckpts", option, "") == values


@pytest.mark.slow
def test_values_complete_by_their_beginning(complete: Complete):
    """What is typed of a value is taken into account."""
    assert complete("average", "ckpts", "--dtype", "b") == ["bfloat16"]
    assert complete("average", "ckpts", "--dtype", "x") == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("script") is None, reason="no script(1), which makes a terminal")
def test_files_complete_as_bash_completes_files(script: Path, tmp_path: Path):
    """Where a path belongs, our function offers nothing and bash offers files: typed on a terminal, with Tab."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "release.safetensors").write_bytes(b"")
    # Ctrl-A, to the line's beginning, makes a line that prints what was completed out of one that would run it.
    typed = b"ema-cli average che\t\x01echo TOLD \n"
    typed += b"ema-cli average checkpoints -o rele\t--dty\tbf\t\x01echo TOLD \nexit\n"
    command = ["script", "-qec", f"bash --noprofile --rcfile {script} -i", "/dev/null"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(tmp_path), input=typed, capture_output=True, timeout=60
    )
    lines = re.sub(r"\x1b\[[?\d]*[a-zA-Z]|\r", "", done.stdout.decode()).splitlines()
    assert [line.rstrip() for line in lines if line.startswith("TOLD ")] == [
        "TOLD ema-cli average checkpoints/",
        "TOLD ema-cli average checkpoints -o release.safetensors --dtype bfloat16",
    ]


@pytest.mark.slow
def test_completion_loads_what_help_loads(tmp_path: Path):
    """A Tab waits for no arithmetic library, and for no drawing of tables."""
    script = (
        "import sys\nfrom ema_cli.cli import app as cli\n"
        "try:\n    cli.main()\nexcept SystemExit as done:\n    assert not done.code, done.code\n"
        "print('LOADED', *sorted(sys.modules))"
    )
    for line, word in (("ema-cli average --ha", 2), ("ema-cli average --dtype ", 3)):
        words = {"COMP_WORDS": line, "COMP_CWORD": str(word), "_EMA_CLI_COMPLETE": "complete_bash"}
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | words,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        offered, _, loaded = done.stdout.rpartition("LOADED ")
        assert offered.split()[0] in ("--half-life", "float32")
        assert not set(loaded.split()) & {
            "torch",
            "numpy",
            "safetensors",
            "rich",
            "json",
            "ema_cli.runs.run",
            "ema_cli.law.time",
        }


@pytest.mark.slow
def test_install_completion_writes_what_a_new_bash_reads(tmp_path: Path):
    """`--install-completion` leaves a file and one line in .bashrc; a bash that reads it completes."""
    for _ in range(2):  # the second time adds nothing
        command = ["bash", "--norc", "-c", "ema-cli --install-completion; exit $?"]
        subprocess.run(command, env=environment(tmp_path), cwd=tmp_path, capture_output=True, check=True, timeout=60)
    assert (tmp_path / ".bashrc").read_text().count("ema-cli.sh") == 1
    told = subprocess.run(
        ["bash", "-ic", "complete -p ema-cli"],
        env=environment(tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert told.stdout == "complete -o default -F _ema_cli_completion ema-cli\n"
