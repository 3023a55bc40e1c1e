"""Averages of every kind, made once, and copies of them to damage."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import write_hf_run, write_torch_run
from tests.release.verified import SINGLE


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with averages of every form, and the runs that they are of."""
    root = tmp_path_factory.mktemp("made")
    write_hf_run(root / "hf", [100, 200, 300])
    write_torch_run(root / "pt", [100, 200, 300])
    for arguments in (
        ["hf", "-o", "folder"],
        ["hf", "-o", "shards", "--max-shard-size", "50B"],
        ["pt", "-o", SINGLE],
        ["pt", "-o", "one.pt", "--dtype", "bfloat16"],
        ["pt", "-o", "several", "--half-life", "20ba", "--copy", "norm*"],
    ):
        command = [sys.executable, "-m", "ema_cli", "average", *arguments, "--half-life", "50ba", "-q"]
        subprocess.run(command, cwd=root, check=True, timeout=120)
    return root


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """The same once more, to be damaged."""
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"
