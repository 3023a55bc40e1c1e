"""Run command lines of one program: each in a process of its own, or by a server that starts it more quickly."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SECONDS = 300  # for one command
SERVER = Path(__file__).with_name("server.py")


@dataclass(frozen=True)
class Done:
    """What a command gave; `exit` is None where it had no end."""

    exit: int | None
    stdout: bytes
    stderr: bytes


def variables(program: Path, home: Path) -> dict[str, str]:
    """Return the environment of a command: as little as can be."""
    return {
        "PATH": f"{program.parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "TERM": "dumb",
        "COLUMNS": "120",
        "NO_COLOR": "1",
    }


def run_apart(program: Path, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Done:
    """Run one command in a process of its own."""
    try:
        done = subprocess.run(
            [program, *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
            umask=0o022,
        )
    except subprocess.TimeoutExpired:
        return Done(None, b"", b"")
    return Done(done.returncode, done.stdout, done.stderr)


class Runner:
    """Runs command lines one after the other; by a server where the program is a script of Python's."""

    def __init__(self, program: Path, scratch: Path, *, apart: bool) -> None:
        self.program = program
        self.server: subprocess.Popen[str] | None = None
        python = None if apart else _python_of(program)
        if python is not None:
            self.texts = Path(tempfile.mkdtemp(dir=scratch))
            self.server = subprocess.Popen(
                [*python, SERVER, program],
                env=variables(program, self.texts),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )

    def run(self, arguments: Sequence[str], folder: Path, more: Mapping[str, str]) -> Done:
        """Run one command in a folder. With `more` variables it starts anew: what is imported may heed them."""
        environment = variables(self.program, folder) | more
        environment = {name: value for name, value in environment.items() if value}
        if self.server is None or more:
            return run_apart(self.program, arguments, folder, environment)
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        texts = {name: str(self.texts / name) for name in ("stdout", "stderr")}
        request = {"arguments": list(arguments), "folder": str(folder), "variables": environment, "seconds": SECONDS}
        self.server.stdin.write(json.dumps(request | texts) + "\n")
        self.server.stdin.flush()
        line = self.server.stdout.readline()
        if not line:  # it could not be started, or has ended
            self.server = None
            return run_apart(self.program, arguments, folder, environment)
        reply = json.loads(line)
        return Done(reply["exit"], *(Path(path).read_bytes() for path in texts.values()))

    def close(self) -> None:
        """Let the server end."""
        if self.server is not None:
            self.server.communicate()


def _python_of(program: Path) -> list[str] | None:
    """Return the Python that the first line of a program names, if it does."""
    with program.open("rb") as file:
        first = file.readline(1000).decode(errors="replace")
    words = shlex.split(first[2:]) if first.startswith("#!") else []
    is_python = bool(words) and Path(words[0]).name.startswith("python") and hasattr(os, "fork")
    return words if is_python and sys.platform != "darwin" else None
