"""Options of reading that do not fit what is read, and settings that travel in headers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ema_cli import averaging
from ema_cli.errors import RunError, UsageError
from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import ReadOptions
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time
from ema_cli.planning.plan import make_plan
from ema_cli.runs.run import open_run
from ema_cli.runs.same_model import check_same_model
from ema_cli.writing.target import parse_target


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_component_of_what_has_none_is_a_usage_error(suffix: str, tmp_path: Path) -> None:
    """`--component` for a checkpoint that is one model is an error, as `--key` is for safetensors; not ignored."""
    path = tmp_path / f"step-1.{suffix}"
    save_file({"w": torch.ones(2)}, path) if suffix == "safetensors" else torch.save({"w": torch.ones(2)}, path)
    with pytest.raises(UsageError):
        open_checkpoint(path, ReadOptions(component="unet"))


def test_a_pattern_that_copies_nothing_is_told(tmp_path: Path) -> None:
    """A `--copy` pattern that no name matches is a slip: with it, what should be copied is averaged without a word."""
    save_file({"head.weight": torch.ones(2)}, tmp_path / "step-1.safetensors")
    run = open_run(tmp_path / "step-1.safetensors", copy=["haed.*"])
    assert any("haed.*" in note for note in (*run.warnings, *run.checkpoints[0].warnings))


def write_lora(run: Path, *alphas: int) -> Path:
    """Write LoRA weights as Diffusers does: rank and alpha are in the header, and in no other file."""
    for step, alpha in enumerate(alphas, 1):
        folder = run / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        told = json.dumps({"unet.r": 2, "unet.lora_alpha": alpha})
        metadata = {"format": "pt", "lora_adapter_metadata": told}
        save_file({"unet.q.lora_A.weight": torch.ones(2, 2)}, folder / "pytorch_lora_weights.safetensors", metadata)
    return run


def test_settings_of_an_adapter_in_the_header_must_agree(tmp_path: Path) -> None:
    """Another alpha is another adapter, as in adapter_config.json."""
    with pytest.raises(RunError, match="alpha"):
        check_same_model(open_run([write_lora(tmp_path / "run", 4, 8)]).checkpoints)


def test_settings_of_an_adapter_in_the_header_travel(tmp_path: Path) -> None:
    """Without them Diffusers takes alpha for the rank: the average would load with another scale than its inputs."""
    plan = make_plan(open_run([write_lora(tmp_path / "run", 4, 4)]), Recipe(half_life=Time.parse("1ba")))
    averaging.average(plan, parse_target(tmp_path / "out"))
    with safe_open(tmp_path / "out" / "pytorch_lora_weights.safetensors", framework="np") as reader:
        assert json.loads(reader.metadata()["lora_adapter_metadata"]) == {"unet.r": 2, "unet.lora_alpha": 4}


def test_a_copied_tensor_may_be_missing_in_the_newest(tmp_path: Path) -> None:
    """What only older checkpoints have, and the user wants copied, is not in the output, and no difference."""
    for step, more in ((1, {"x._extra_state": torch.zeros(3, dtype=torch.uint8)}), (2, {})):
        save_file({"w": torch.ones(2), **more}, tmp_path / f"step-{step}.safetensors")
    plan = make_plan(open_run([tmp_path], copy=("*_extra_state",)), Recipe(half_life=Time.parse("1ba")))
    output = tmp_path / "out.safetensors"
    averaging.average(plan, parse_target(output))
    with safe_open(output, framework="np") as reader:
        assert list(reader.keys()) == ["w"]
