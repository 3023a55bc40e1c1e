"""A run for tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import write_torch_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three plain checkpoints, 100 batches apart."""
    write_torch_run(tmp_path / "ckpts", [100, 200, 300])
    return tmp_path / "ckpts"
