"""Trainings that stored averages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.runs.stored_run import train


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray]]:
    """A training that stored two averages at irregular moments, and its weights at every step."""
    folder = tmp_path_factory.mktemp("run") / "ema"
    return folder, train(folder, at=[30, 50, 90, 140, 150, 210, 280, 330, 345, 400])


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A small stored run that a test may damage."""
    train(tmp_path / "ema", at=[100, 200])
    return tmp_path / "ema"
