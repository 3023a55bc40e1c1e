"""Clocks in the header of a safetensors file, as each trainer writes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ema_cli.formats import open_checkpoint
from ema_cli.formats.trainers.headers import HEADERS
from ema_cli.runs.run import open_run
from tests.formats.trainers.state import plain_clocks

ROWS: dict[str, tuple[dict[str, str], dict[str, float]]] = {
    "kohya": (
        {"ss_steps": "1200", "ss_epoch": "3", "ss_num_epochs": "10", "ss_network_module": "networks.lora"},
        {"ba": 1200, "ep": 3},
    ),
    "ai-toolkit": (
        {"training_info": json.dumps({"step": 500, "epoch": 2}), "software": json.dumps({"name": "ai-toolkit"})},
        {"ba": 500, "ep": 2},
    ),
}


def test_every_row_is_tested() -> None:
    """A row without a test would be a guess."""
    assert set(ROWS) == {row.trainer for row in HEADERS}


@pytest.mark.parametrize("trainer", ROWS)
def test_a_header_records_clocks(trainer: str, tmp_path: Path) -> None:
    """The clocks in the header are the file's own, and the trainer is known by them."""
    metadata, clocks = ROWS[trainer]
    save_file({"w": torch.ones(2)}, tmp_path / "style.safetensors", metadata={"format": "pt", **metadata})
    checkpoint = open_checkpoint(tmp_path / "style.safetensors")
    assert checkpoint.trainer == trainer
    assert plain_clocks(checkpoint.progress) == clocks
    assert {clock.source for clock in checkpoint.progress.clocks.values()} == {"file"}
    assert checkpoint.progress.epoch_origin_unknown is False


@pytest.mark.parametrize(
    "metadata",
    [
        {"ss_steps": "many", "ss_epoch": ""},
        {"ss_steps": "-5"},
        {"ss_steps": "9" * 30},
        {"training_info": "{"},
        {"training_info": "[500]"},
        {"training_info": '{"step": "500"}'},
        {"training_info": "{" * 100_000},
    ],
)
def test_what_is_no_count_in_a_header_is_no_clock(metadata: dict[str, str], tmp_path: Path) -> None:
    """A header may hold any text."""
    save_file({"w": torch.ones(2)}, tmp_path / "a.safetensors", metadata=metadata)
    assert open_checkpoint(tmp_path / "a.safetensors").progress.clocks == {}


def test_a_final_model_without_a_number_has_its_clock_in_the_header(tmp_path: Path) -> None:
    """The newest of a LoRA's checkpoints has the plain name; its header says that it is the newest."""
    for name, steps in (("style-000004", 400), ("style-000008", 800), ("style", 1000)):
        metadata = {"ss_steps": f"{steps}", "ss_epoch": f"{steps // 100}"}
        save_file({"w": torch.full((2,), float(steps))}, tmp_path / f"{name}.safetensors", metadata=metadata)
    run = open_run(tmp_path)
    assert [checkpoint.name for checkpoint in run.checkpoints] == [
        "style-000004.safetensors",
        "style-000008.safetensors",
        "style.safetensors",
    ]
