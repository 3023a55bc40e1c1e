"""Options of reading that do not fit what is read, and settings that travel in headers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

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
from tests.conftest import Cli


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


def write_lora(run: Path, *alphas: int, place: str = "", model: str = "unet") -> Path:
    """Write LoRA weights as Diffusers does: rank and alpha are in the header, and in no other file."""
    for step, alpha in enumerate(alphas, 1):
        folder = run / f"checkpoint-{step}" / place
        folder.mkdir(parents=True)
        told = json.dumps({f"{model}.r": 2, f"{model}.lora_alpha": alpha})
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


def test_settings_in_the_headers_of_several_adapters_travel_each_with_its_own(tmp_path: Path, cli: Cli) -> None:
    """A LoRA for each part of a pipeline: the file of each says what the newest one said, and one without says none."""
    run = tmp_path / "run"
    write_lora(run, 4, 4, place="unet")
    write_lora(run, 8, 8, place="text_encoder", model="text_encoder")
    for step in (1, 2):
        (run / f"checkpoint-{step}" / "vae").mkdir()
        save_file({"w": torch.full((2,), float(step))}, run / f"checkpoint-{step}" / "vae" / "model.safetensors")
    assert cli("average", "run", "--half-life", "1ba", "-o", "out").code == 0
    for place, alpha in (("unet", 4), ("text_encoder", 8), ("vae", None)):
        (file,) = (tmp_path / "out" / place).glob("*.safetensors")
        with safe_open(file, framework="np") as reader:
            told = reader.metadata().get("lora_adapter_metadata")
        assert (told and json.loads(told)) == (alpha and {f"{place}.r": 2, f"{place}.lora_alpha": alpha})
    assert load_file(tmp_path / "out" / "vae" / "model.safetensors")["w"].tolist() == [1.5, 1.5]
    assert cli("verify", "out", "--against", "run").code == 0
    (run / "checkpoint-2" / "unet" / "pytorch_lora_weights.safetensors").unlink()
    write_lora(tmp_path / "other", 4, 6, place="unet")
    shutil.copytree(tmp_path / "other" / "checkpoint-2", run / "checkpoint-2", dirs_exist_ok=True)
    done = cli("average", "run", "--half-life", "1ba", "-o", "out", "--force")
    assert (done.code, "alpha" in done.err) == (4, True), done


def test_a_copied_tensor_may_be_missing_in_the_newest(tmp_path: Path) -> None:
    """What only older checkpoints have, and the user wants copied, is not in the output, and no difference."""
    for step, more in ((1, {"x._extra_state": torch.zeros(3, dtype=torch.uint8)}), (2, {})):
        save_file({"w": torch.ones(2), **more}, tmp_path / f"step-{step}.safetensors")
    plan = make_plan(open_run([tmp_path], copy=("*_extra_state",)), Recipe(half_life=Time.parse("1ba")))
    output = tmp_path / "out.safetensors"
    averaging.average(plan, parse_target(output))
    with safe_open(output, framework="np") as reader:
        assert list(reader.keys()) == ["w"]
