"""Adapters: the settings that give A and B their meaning, and must be equal in all checkpoints of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ema_cli.checkpoint import AdapterSettings, Pretrained
from ema_cli.errors import CheckpointError, EmaError, IncompleteCheckpoint, RunError
from ema_cli.formats import open_checkpoint
from ema_cli.formats.trainers.adapters import adapter_settings
from ema_cli.runs.run import open_run
from ema_cli.runs.same_model import check_same_model
from ema_cli.runs.warnings import run_warnings

# As PEFT 0.18 writes it.
CONFIG = {
    "alpha_pattern": {}, "auto_mapping": None, "base_model_name_or_path": "org/base", "bias": "none",
    "exclude_modules": None, "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True,
    "layer_replication": None, "layers_pattern": None, "layers_to_transform": None, "lora_alpha": 16,
    "lora_bias": False, "lora_dropout": 0.05, "modules_to_save": None, "peft_type": "LORA", "r": 8,
    "rank_pattern": {}, "revision": None, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM",
    "use_dora": False, "use_rslora": False,
}  # fmt: skip


def write(folder: Path, base: str = "adapter_model", *, pickled: bool = False, **changes: Any) -> Path:
    """Write an adapter with its configuration, and changes of that."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"base_model.model.q_proj.lora_A.weight": torch.ones(8, 2)}
    if pickled:
        torch.save(tensors, folder / f"{base}.bin")
    else:
        save_file(tensors, folder / f"{base}.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | changes, indent=2))
    return folder


@pytest.mark.parametrize("pickled", [False, True])
def test_an_adapter_comes_with_its_settings(pickled: bool, tmp_path: Path) -> None:
    """Tensors, safetensors or pickled, and the configuration beside them are one checkpoint."""
    checkpoint = open_checkpoint(write(tmp_path / "checkpoint-5", pickled=pickled))
    assert checkpoint.pretrained == Pretrained("adapter_model", tmp_path / "checkpoint-5")
    assert list(checkpoint.tensors.specs) == ["base_model.model.q_proj.lora_A.weight"]
    assert checkpoint.adapter.values["r"] == "8"
    assert checkpoint.adapter.values["lora_alpha"] == "16"
    assert tmp_path / "checkpoint-5" / "adapter_config.json" in {file.path for file in checkpoint.files}


def test_a_model_has_no_settings(tmp_path: Path) -> None:
    """Beside a whole model, an adapter's configuration is a side file like any other."""
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "adapter_config.json").write_text("not read")
    assert open_checkpoint(tmp_path).adapter == AdapterSettings()


def test_an_adapter_without_a_configuration(tmp_path: Path) -> None:
    """Diffusers writes none beside its LoRA weights."""
    save_file({"unet.q.lora_A.weight": torch.ones(2)}, tmp_path / "pytorch_lora_weights.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.pretrained, checkpoint.adapter) == (
        Pretrained("pytorch_lora_weights", tmp_path),
        AdapterSettings(),
    )


# What changes the meaning of A and B, and a value that differs from CONFIG's.
MEANINGFUL: dict[str, Any] = {
    "r": 4, "lora_alpha": 32, "target_modules": ["q_proj", "k_proj"], "rank_pattern": {"q_proj": 4},
    "alpha_pattern": {"q_proj": 4}, "use_rslora": True, "use_dora": True, "peft_type": "LOHA", "bias": "all",
    "fan_in_fan_out": True, "modules_to_save": ["head"], "layers_to_transform": [1, 2], "lora_bias": True,
    "base_model_name_or_path": "org/other", "init_lora_weights": "pissa",
}  # fmt: skip


@pytest.mark.parametrize("field", MEANINGFUL)
def test_a_setting_that_differs_is_named(field: str, tmp_path: Path) -> None:
    """Checkpoints whose settings differ are not of one adapter: the error names both, the field and the values."""
    write(tmp_path / "run" / "checkpoint-5", **{field: MEANINGFUL[field]})
    write(tmp_path / "run" / "checkpoint-9")
    with pytest.raises(RunError) as caught:
        check_same_model(open_run([tmp_path / "run"]).checkpoints)
    assert f"checkpoint-5: its {field} is " in str(caught.value)
    assert " in checkpoint-9" in str(caught.value)


@pytest.mark.parametrize(
    "base", ["/scratch/base", "/root/.cache/hub/models--org--base/snapshots/0af1", "./base", "mirror/Base", "base"]
)
def test_a_base_model_that_moved_is_asked_about(base: str, tmp_path: Path) -> None:
    """A path does not tell which model is there: it is no reason to refuse a run, and is said."""
    for step, name in ((5, base), (7, base), (9, "org/base")):
        write(tmp_path / "run" / f"checkpoint-{step}", base_model_name_or_path=name)
    run = open_run([tmp_path / "run"])
    check_same_model(run.checkpoints)
    (warning,) = [text for text in run_warnings(run, run.checkpoints) if "base_model" in text]
    assert warning == (
        f'checkpoint-5 and 1 more: its base_model_name_or_path is "{base}", but "org/base" in checkpoint-9; '
        "is it the same model?"
    )


# What does not, or comes in any order.
MEANINGLESS: dict[str, Any] = {
    "target_modules": ["v_proj", "q_proj"], "inference_mode": False, "lora_dropout": 0.1, "task_type": None,
    "auto_mapping": {"a": 1},
}  # fmt: skip


@pytest.mark.parametrize("field", MEANINGLESS)
def test_a_setting_that_means_nothing_may_differ(field: str, tmp_path: Path) -> None:
    """The order of a set, and what matters in training alone, may differ."""
    write(tmp_path / "run" / "checkpoint-5", **{field: MEANINGLESS[field]})
    write(tmp_path / "run" / "checkpoint-9")
    check_same_model(open_run([tmp_path / "run"]).checkpoints)


def test_settings_are_text_in_one_spelling(tmp_path: Path) -> None:
    """Nested settings, decimals and regular expressions come as text that can be compared."""
    changes = {"target_modules": "all-linear", "lora_alpha": 0.5, "rank_pattern": {"b": 1, "a": 2}}
    settings, files = adapter_settings(write(tmp_path, **changes))
    assert settings["target_modules"] == '"all-linear"'
    assert settings["rank_pattern"] == '{"a": 2, "b": 1}'
    assert "1/2" in settings["lora_alpha"]
    assert "revision" not in settings
    assert [file.path.name for file in files] == ["adapter_config.json"]


@pytest.mark.parametrize(
    ("text", "kind"),
    [('{"r": 8', IncompleteCheckpoint), ("", IncompleteCheckpoint), ('{"r": 8, "r": 4}', CheckpointError)],
)
def test_a_damaged_configuration_is_named(text: str, kind: type[EmaError], tmp_path: Path) -> None:
    """A configuration that is cut or no JSON is an error with its path, not an adapter without settings."""
    path = write(tmp_path) / "adapter_config.json"
    path.write_text(text)
    with pytest.raises(EmaError) as caught:
        open_checkpoint(tmp_path)
    assert type(caught.value) is kind
    assert str(caught.value).startswith(f"{path}: not valid JSON")
