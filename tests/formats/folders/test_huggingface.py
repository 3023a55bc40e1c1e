"""Hugging Face folders: which model in them is read, and the clock beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ema_cli.checkpoint import Pretrained
from ema_cli.errors import CheckpointError, EmaError, IncompleteCheckpoint, NoSuchWeights, UsageError
from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.trainers.choice import AVERAGED_AGAIN
from ema_cli.law.time import Unit
from tests.formats.reading import read_all, stored_bytes


def write_model(folder: Path, state: object = None) -> Path:
    """Write a model of one tensor, and `trainer_state.json` where there is one (text as it is)."""
    folder.mkdir(exist_ok=True)
    save_file({"w": torch.ones(2)}, folder / "model.safetensors")
    if state is not None:
        text = state if isinstance(state, str) else json.dumps(state, indent=2)
        (folder / "trainer_state.json").write_text(text)
    return folder


def refusal(path: Path, **options: Any) -> EmaError:
    """Return the error that opening the folder gives."""
    with pytest.raises(EmaError) as caught:
        open_checkpoint(path, ReadOptions(**options))
    return caught.value


def clocks(path: Path) -> dict[Unit, Fraction]:
    """Return the folder's clocks, each of which must come from the sidecar."""
    found = open_checkpoint(path).progress.clocks
    assert {clock.source for clock in found.values()} <= {"sidecar"}
    return {unit: clock.value for unit, clock in found.items()}


def test_the_clock_comes_from_the_trainers_state(tmp_path: Path) -> None:
    """Step, epoch and tokens are read exactly: 0.3 is three tenths."""
    state = {"epoch": 0.3, "global_step": 30, "num_input_tokens_seen": 4096, "log_history": [{"loss": 1e-5}]}
    assert clocks(write_model(tmp_path / "m", state)) == {
        Unit.EPOCH: Fraction(3, 10),
        Unit.BATCH: Fraction(30),
        Unit.TOKEN: Fraction(4096),
    }


def test_tokens_that_were_not_counted_are_no_clock(tmp_path: Path) -> None:
    """The Trainer leaves its token counter at 0 unless asked to count."""
    state = {"epoch": 1.0, "global_step": 0, "num_input_tokens_seen": 0}
    assert clocks(write_model(tmp_path / "m", state)) == {Unit.EPOCH: 1, Unit.BATCH: 0}


@pytest.mark.parametrize("value", [-1, True, "3", None, [3]])
def test_a_negative_step_a_boolean_or_text_is_no_clock(value: Any, tmp_path: Path) -> None:
    """A step that is negative, a boolean or text is not taken for one."""
    assert clocks(write_model(tmp_path / "m", {"global_step": value, "epoch": 2})) == {Unit.EPOCH: 2}


def test_a_diverged_loss_does_not_hide_the_clock(tmp_path: Path) -> None:
    """NaN and Infinity in the log, which Python writes and JSON does not know, are passed over."""
    log = [{"loss": float("nan")}, {"loss": float("inf"), "grad_norm": float("-inf")}]
    assert clocks(write_model(tmp_path / "m", {"global_step": 7, "log_history": log})) == {Unit.BATCH: 7}


def test_a_model_without_a_state_has_no_clock(tmp_path: Path) -> None:
    """The folder's name is another module's business."""
    assert clocks(write_model(tmp_path / "checkpoint-5")) == {}


@pytest.mark.slow
def test_a_state_that_is_cut_anywhere_is_incomplete(tmp_path: Path) -> None:
    """Whatever the length it was cut to, the state is said to be incomplete, and named."""
    whole = json.dumps({"global_step": 7, "log_history": [{"loss": 1.5}, {"loss": 0.5}], "x": {}}, indent=2)
    for length in range(len(whole)):
        error = refusal(write_model(tmp_path / "m", whole[:length]))
        assert type(error) is IncompleteCheckpoint, whole[:length]
        assert str(tmp_path / "m" / "trainer_state.json") in str(error)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"a": 1e999999999}', "{'a': 1}"])
def test_a_state_that_is_no_json_is_refused(text: str, tmp_path: Path) -> None:
    """A whole file that is not strict JSON is damaged."""
    error = refusal(write_model(tmp_path / "m", text))
    assert type(error) is CheckpointError
    assert "trainer_state.json: not valid JSON: " in str(error)


def test_a_pickled_model_has_the_folders_name_and_clock(tmp_path: Path) -> None:
    """`pytorch_model.bin` in a folder reads as its safetensors would."""
    folder = tmp_path / "checkpoint-9"
    folder.mkdir()
    torch.save({"w": torch.ones(2)}, folder / "pytorch_model.bin")
    (folder / "trainer_state.json").write_text('{"global_step": 9}')
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.name, checkpoint.format) == ("checkpoint-9", "torch zip")
    assert clocks(folder) == {Unit.BATCH: 9}


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    """Configuration alone is no checkpoint."""
    (tmp_path / "config.json").write_text("{}")
    error = refusal(tmp_path)
    assert (type(error), str(error)) == (CheckpointError, f"{tmp_path}: a folder without a checkpoint")


def test_safetensors_come_before_a_pickle_of_the_same_model(tmp_path: Path) -> None:
    """Safetensors come before a pickle of the same model; optimizers and arguments are never weights."""
    write_model(tmp_path)
    torch.save({"w": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    for name in ("optimizer.bin", "optimizer.pt", "training_args.bin", "scheduler.pt"):
        torch.save({"w": torch.zeros(2)}, tmp_path / name)
    assert read_all(open_checkpoint(tmp_path).tensors) == {"w": stored_bytes(torch.ones(2))}


def test_accelerates_folder_says_so(tmp_path: Path) -> None:
    """Random states beside a model, and no Trainer's state, are Accelerate's, which records no clock."""
    folder = write_model(tmp_path / "checkpoint_3")
    (folder / "random_states_0.pkl").touch()
    assert (open_checkpoint(folder).trainer, clocks(folder)) == ("accelerate", {})
    write_model(folder, {"global_step": 3})
    assert open_checkpoint(folder).trainer == "transformers"


def test_a_component_names_one_of_several_models(tmp_path: Path) -> None:
    """Accelerate numbers the models that it prepared: the user says which; the error lists them."""
    folder = write_model(tmp_path / "checkpoint_3")
    save_file({"v": torch.zeros(3)}, folder / "model_1.safetensors")
    torch.save({"u": torch.zeros(1)}, folder / "pytorch_model_2.bin")
    error = refusal(folder)
    assert type(error) is UsageError
    assert "holds several models: model, model_1, pytorch_model_2" in str(error)
    for component, name in (("model", "w"), ("model_1", "v"), ("pytorch_model_2", "u")):
        checkpoint = open_checkpoint(folder, ReadOptions(component=component))
        assert (list(checkpoint.tensors.specs), checkpoint.pretrained) == ([name], Pretrained("model", folder))
    assert type(refusal(folder, component="model_9")) is UsageError


def test_averages_of_diffusers_are_recognised_by_their_configuration(tmp_path: Path) -> None:
    """EMAModel writes its counter into the model's configuration: averages, refused unless asked for."""
    save_file({"w": torch.ones(2)}, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text('{"_class_name": "UNet", "optimization_step": 5, "decay": 0.999}')
    assert "EMAModel" in (open_checkpoint(tmp_path).averaged or "")
    asked = open_checkpoint(tmp_path, ReadOptions(weights="ema"))
    assert (asked.averaged, asked.warnings) == (None, (AVERAGED_AGAIN,))
    assert type(refusal(tmp_path, weights="raw")) is NoSuchWeights
    (tmp_path / "config.json").write_text('{"_class_name": "UNet"}')
    assert open_checkpoint(tmp_path).averaged is None


MODEL = {"a.w": torch.ones(4, 3), "a.b": torch.ones(4), "n": torch.tensor(3)}
AVERAGES = {"a.w": torch.full((4, 3), 2.0), "a.b": torch.full((4,), 3.0), "n": torch.tensor(3)}
PARAMETERS = {name: AVERAGES[name] for name in ("a.w", "a.b")}


def write_index(folder: Path) -> None:
    """Write averages as two shards with their index."""
    shards = {name: f"ema-{number:05}-of-00003.safetensors" for number, name in enumerate(AVERAGES, 1)}
    for name, shard in shards.items():
        save_file({name: AVERAGES[name]}, folder / shard)
    (folder / "ema.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


# Averages in a file of the model's folder: its name, and what writes it.
AVERAGES_FILES: dict[str, Callable[[Path], object]] = {
    "ema.safetensors": lambda folder: save_file(AVERAGES, folder / "ema.safetensors"),
    "model_ema.safetensors": lambda folder: save_file(PARAMETERS, folder / "model_ema.safetensors"),
    "ema_model.pt": lambda folder: torch.save(
        {f"module.{name}": tensor for name, tensor in AVERAGES.items()}, folder / "ema_model.pt"
    ),
    "pytorch_model_ema.bin": lambda folder: torch.save({"ema": AVERAGES, "step": 3}, folder / "pytorch_model_ema.bin"),
    "ema.safetensors.index.json": write_index,
}


@pytest.mark.parametrize(("base", "taken"), [("model", "one file"), ("diffusion_pytorch_model", "shards")])
def test_a_model_in_one_file_and_in_shards(base: str, taken: str, tmp_path: Path) -> None:
    """save_pretrained leaves the older of both: what its library loads is taken, and it is said, from either side."""
    saved = {"one file": torch.zeros(2), "shards": torch.ones(2)}
    shards = {
        f"{base}-0000{number}-of-00002.safetensors": {name: saved["shards"]} for number, name in enumerate("vw", 1)
    }
    for file, tensors in shards.items():
        save_file(tensors, tmp_path / file)
    names = {name: file for file, tensors in shards.items() for name in tensors}
    (tmp_path / f"{base}.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert open_checkpoint(tmp_path).warnings == ()
    save_file({name: saved["one file"].clone() for name in "vw"}, tmp_path / f"{base}.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert read_all(checkpoint.tensors) == dict.fromkeys("vw", stored_bytes(saved[taken]))
    assert [base in warning and "which may be newer" in warning for warning in checkpoint.warnings] == [True]
    for file in shards:
        (tmp_path / file).unlink()
    checkpoint = open_checkpoint(tmp_path)  # of what diffusers leaves the one file alone is whole
    assert read_all(checkpoint.tensors) == dict.fromkeys("vw", stored_bytes(saved["one file"]))
    assert checkpoint.warnings == ()


@pytest.mark.parametrize("name", AVERAGES_FILES)
def test_averages_in_a_file_beside_the_model(name: str, tmp_path: Path) -> None:
    """The model is raw, which is said; `--weights ema` takes the averages under its names, with its clocks and form."""
    folder = write_model(tmp_path / "checkpoint-30", {"global_step": 30})
    save_file(MODEL, folder / "model.safetensors")
    AVERAGES_FILES[name](folder)
    raw, chosen = open_checkpoint(folder), open_checkpoint(folder, ReadOptions(weights="ema"))
    assert read_all(raw.tensors) == {key: stored_bytes(tensor) for key, tensor in MODEL.items()}
    assert raw.notes == (f"raw weights taken; by its name, '{name}' beside them holds averages (--weights ema)",)
    assert open_checkpoint(folder, ReadOptions(weights="raw")).notes == ()
    assert read_all(chosen.tensors) == {key: stored_bytes(tensor) for key, tensor in AVERAGES.items()}
    assert (chosen.name, chosen.progress, chosen.pretrained) == (raw.name, raw.progress, raw.pretrained)
    assert {chosen.tensors.shard(key) for key in MODEL} == {"model.safetensors"}
    assert (chosen.averages, AVERAGED_AGAIN in chosen.warnings) == (None, True)


@pytest.mark.parametrize("saved", [{"x": torch.ones(2)}, {"a.w": torch.ones(2, 2)}])
def test_a_file_that_only_its_name_calls_averages(saved: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """With other names or shapes it is none of the model's."""
    folder = write_model(tmp_path / "checkpoint-30")
    save_file(MODEL, folder / "model.safetensors")
    save_file(saved, folder / "ema.safetensors")
    error = refusal(folder, weights="ema")
    assert isinstance(error, NoSuchWeights)
    assert (
        error.fact == f"holds no averages of the model: '{next(iter(saved))}' in 'ema.safetensors' is no tensor of it"
    )


def test_averages_that_cannot_be_read_are_said(tmp_path: Path) -> None:
    """A list of tensors without names is no state dict, and safetensors keep no order."""
    folder = write_model(tmp_path / "checkpoint-30")
    torch.save({"shadow_params": [torch.ones(2)], "decay": 0.9}, folder / "ema.bin")
    error = refusal(folder, weights="ema")
    assert isinstance(error, NoSuchWeights)
    assert error.fact == (
        "holds no averages that are read: its tensors are in a list, at 'shadow_params', and so have no names"
    )
    assert error.hint == "leave out weights='ema'"
