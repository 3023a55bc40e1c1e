"""The README's examples for trainers run as they are printed, with the trainers' own libraries."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.trainers

ROOT = Path(__file__).parent.parent.parent
BLOCKS = re.findall(r"^```py\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
# What the libraries miss on a machine without a GPU, and Composer without the client of its makers' platform.
_PRELUDE = """
import sys, types
from tests.trainers.ranks import let_torchvision_load
sys.modules["mcli"] = types.ModuleType("mcli")
let_torchvision_load()
"""


@pytest.mark.parametrize("library", ["transformers", "lightning", "composer", "accelerate"])
def test_the_example_of_each_trainer_runs(library: str, tmp_path: Path) -> None:
    """There is one for each, and it ends well."""
    (block,) = [block for block in BLOCKS if f"from {library}" in block]
    command = [sys.executable, "-c", _PRELUDE + block]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
