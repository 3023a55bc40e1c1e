"""The command line in this process: where a test runs it often, and what it prints is all that counts."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ema_cli import EMA
from ema_cli.cli import app


class InProcess:
    """Run `ema-cli` in a folder."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.capsys = capsys
        self.err = ""

    def __call__(self, *arguments: object) -> tuple[int, str]:
        """Return the exit code and what went to stdout; `err` is what went to stderr."""
        self.capsys.readouterr()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # as main() does
        code = app.run([str(each) for each in arguments])
        told = self.capsys.readouterr()
        self.err = told.err
        return code, told.out

    def json(self, *arguments: object) -> tuple[int, Any]:
        """Return the exit code and the one object that --json prints; no number in it may be none of JSON's."""

        def refuse(name: str) -> None:
            raise AssertionError(f"{name} is no number in JSON")

        code, out = self(*arguments, "--json")
        return code, json.loads(out, parse_constant=refuse)


def write_stored_run(folder: Path, half_lives: Sequence[str] = ("25ba", "100ba"), steps: int = 200) -> None:
    """Have a training store two averages, every 50 batches."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    ema = EMA(model, half_life=tuple(half_lives))
    for step in range(1, steps + 1):
        with torch.no_grad():
            for each in model.parameters():
                each += torch.randn_like(each) / 10
        ema.update()
        if step % 50 == 0:
            ema.store(folder)
