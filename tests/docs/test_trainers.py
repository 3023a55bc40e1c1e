"""The examples for trainers run as the pages show them, with the trainers' own libraries."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, blocks

pytestmark = pytest.mark.trainers

BLOCKS = [block.text for page in PAGES for block in blocks(page) if block.language == "py"]
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
