"""DeepSpeed's folders: a model in one file, or cut by ZeRO, is read; one that is cut otherwise is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ema_cli.errors import CheckpointError, EmaError, Unfinished
from ema_cli.formats import is_checkpoint_folder, open_checkpoint
from ema_cli.formats.folders import deepspeed
from ema_cli.formats.options import ReadOptions
from ema_cli.law.time import Unit
from tests.formats.reading import read_all, stored_bytes
from tests.formats.zero.make import small

MODEL = "mp_rank_00_model_states.pt"
W = {"w": torch.randn(2, 3).bfloat16(), "n": torch.tensor(3)}
MASTERS = "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"


def write(folder: Path, *names: str, module: dict[str, Any] = W, ranks: int = 1) -> Path:
    """Write files of DeepSpeed's, each with a module, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        saved = {
            "module": module,
            "global_steps": 5,
            "global_samples": 80,
            "ds_version": "0.19",
            "mp_world_size": ranks,
        }
        torch.save(saved, folder / name)
    return folder


def refusal(path: Path) -> EmaError:
    """Return the error that opening the folder gives, which names it."""
    with pytest.raises(EmaError) as caught:
        open_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")
    return caught.value


def test_the_model_of_one_rank(tmp_path: Path) -> None:
    """The one file of model states is the checkpoint, under the folder's name, with steps and samples."""
    folder = write(tmp_path / "global_step5", MODEL)
    checkpoint = open_checkpoint(folder)
    assert read_all(checkpoint.tensors) == {name: stored_bytes(tensor) for name, tensor in W.items()}
    assert (checkpoint.name, checkpoint.path, checkpoint.trainer) == ("global_step5", folder, "DeepSpeed")
    assert (checkpoint.clock(Unit.BATCH), checkpoint.clock(Unit.SAMPLE)) == (5, 80)
    assert [file.path for file in checkpoint.files] == [folder / MODEL]
    assert checkpoint.notes == ()


def test_masters_that_are_not_taken_are_named(tmp_path: Path) -> None:
    """Where any weights are in half precision and the optimizer has float32 ones, that is said, and how to take them.

    Buffers that stayed in float32 hid it.
    """
    for label, module in (("a", W), ("b", {**W, "mean": torch.ones(2)})):
        low = open_checkpoint(write(tmp_path / label, MODEL, MASTERS, module=module))
        assert any("half precision" in note and "--masters" in note for note in low.notes)
    assert open_checkpoint(write(tmp_path / "c", MODEL, MASTERS, module={"w": torch.ones(2)})).notes == ()
    assert open_checkpoint(write(tmp_path / "d", MODEL)).notes == ()


def test_lightnings_folder_within(tmp_path: Path) -> None:
    """Lightning puts DeepSpeed's files into a folder 'checkpoint' of its own."""
    write(tmp_path / "epoch=0-step=5.ckpt" / "checkpoint", MODEL)
    checkpoint = open_checkpoint(tmp_path / "epoch=0-step=5.ckpt")
    assert (checkpoint.name, checkpoint.clock(Unit.BATCH)) == ("epoch=0-step=5.ckpt", 5)


PARTS = {
    "ZeRO-3 and tensor parallel": (
        ["zero_pp_rank_0_mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_01_model_states.pt"],
        "cut into 2 parts of tensors",
        "ds_to_universal",
    ),
    "tensor parallel": ([MODEL, "mp_rank_01_model_states.pt"], "cut into 2 parts of tensors", "ds_to_universal"),
    "pipeline": ([MODEL, "layer_03-model_00-model_states.pt"], "cut into the stages of a pipeline", "converter"),
    "pipeline alone": (["layer_03-model_states.pt"], "cut into the stages of a pipeline", "converter"),
    "experts": ([MODEL, "layer_0_expert_1_mp_rank_00_model_states.pt"], "cut into experts", "dict 'module'"),
    "experts, older": ([MODEL, "expert_1_mp_rank_00_model_states.pt"], "cut into experts", "dict 'module'"),
}


@pytest.mark.parametrize("label", PARTS)
def test_a_model_in_parts_is_refused(label: str, tmp_path: Path) -> None:
    """No part is taken for the whole: the error says how the model was cut, and who puts it together."""
    names, message, hint = PARTS[label]
    folder = write(tmp_path / "global_step5", *names)
    assert is_checkpoint_folder(folder)
    error = refusal(folder)
    assert type(error) is CheckpointError
    assert message in str(error)
    assert hint in (error.hint or "")


@pytest.mark.parametrize("label", PARTS)
def test_no_part_alone_is_a_model(label: str, tmp_path: Path) -> None:
    """A file that is named by itself is refused where its neighbours show that it is a part.

    One rank's file of ZeRO-3 was averaged: its tensors are empty.
    """
    names, message, _ = PARTS[label]
    folder = write(tmp_path / "global_step5", *names)
    for name in names:
        error = refusal(folder / name)
        assert type(error) is CheckpointError
        assert message in str(error)


def test_the_way_on_from_experts_works(tmp_path: Path) -> None:
    """Who does what the hint says has a checkpoint with all of them, and the clocks of the save."""
    folder = write(tmp_path / "global_step5", MODEL)
    experts = {f"moe.deepspeed_experts.{number}.weight": torch.full((2,), float(number)) for number in range(3)}
    for number, (name, tensor) in enumerate(experts.items()):
        torch.save({name: tensor}, folder / f"layer_0_expert_{number}_mp_rank_00_model_states.pt")
    assert f"torch.load {MODEL}, add what each expert's file holds to its dict 'module'" in (refusal(folder).hint or "")
    states = torch.load(folder / MODEL)
    for path in folder.glob("*_expert_*"):
        states["module"] |= torch.load(path)
    torch.save(states, tmp_path / "step-5.pt")
    checkpoint = open_checkpoint(tmp_path / "step-5.pt")
    assert read_all(checkpoint.tensors) == {name: stored_bytes(tensor) for name, tensor in (W | experts).items()}
    assert (checkpoint.clock(Unit.BATCH), checkpoint.clock(Unit.SAMPLE)) == (5, 80)


@pytest.mark.parametrize("inner", [".", "checkpoint"])
def test_the_converter_is_named_for_automatic_experts(inner: str, tmp_path: Path) -> None:
    """It gets the folder in which the files lie, also that of Lightning's; the other experts it passes over."""
    path = tmp_path / "epoch=0-step=5.ckpt"
    folder = write(path / inner, MODEL, "layer_0_expert_0_mp_rank_00_model_states.pt")
    torch.save(torch.load(folder / MODEL) | {"ds_autoep_layers": [{"num_experts": 1}]}, folder / MODEL)
    hint = refusal(path).hint or ""
    assert "python -m deepspeed.checkpoint.ds_to_universal" in hint
    assert f"--input_folder '{folder}' --output_folder 'universal/{path.name}'".replace("'", "") in hint.replace(
        "'", ""
    )


def test_a_rank_s_file_of_stage_3_is_no_model(tmp_path: Path) -> None:
    """One rank's file was averaged: its tensors are empty. The error names the folder, which is read."""
    folder = small().write(tmp_path / "global_step5")
    error = refusal(folder / "zero_pp_rank_1_mp_rank_00_model_states.pt")
    assert "one rank's part of a model, cut by ZeRO stage 3" in str(error)
    assert str(folder) in (error.hint or "")
    assert read_all(open_checkpoint(folder).tensors)


def test_stage_3_beside_a_model_is_refused(tmp_path: Path) -> None:
    """Two saves in one folder are not told apart."""
    folder = write(small().write(tmp_path / "global_step5"), MODEL)
    assert "model states of ZeRO stage 3, and of another save" in str(refusal(folder))


def test_a_part_without_the_others_is_refused(tmp_path: Path) -> None:
    """Where the other ranks saved on other machines, the file itself says that it is one of several."""
    folder = write(tmp_path / "global_step5", MODEL, ranks=4)
    for path in (folder, folder / MODEL):
        assert "cut into 4 parts of tensors (tensor parallel)" in str(refusal(path))


def test_the_file_of_the_whole_model_may_be_named(tmp_path: Path) -> None:
    """Where there is one rank of tensors, its file is the model, by its own name."""
    folder = write(tmp_path / "global_step5", MODEL, MASTERS)
    checkpoint = open_checkpoint(folder / MODEL)
    assert (checkpoint.name, checkpoint.trainer, checkpoint.clock(Unit.BATCH)) == (MODEL, "DeepSpeed", 5)
    assert read_all(checkpoint.tensors) == {name: stored_bytes(tensor) for name, tensor in W.items()}


def test_a_newer_folder_than_the_latest_is_incomplete(tmp_path: Path) -> None:
    """DeepSpeed names the newest whole checkpoint in a file beside it; one that is newer is not done."""
    for step in (4, 5):
        write(tmp_path / f"global_step{step}", MODEL)
    (tmp_path / "latest").write_text("global_step4\n")
    assert open_checkpoint(tmp_path / "global_step4").name == "global_step4"
    error = refusal(tmp_path / "global_step5")
    assert type(error) is Unfinished
    assert "is newer than 'global_step4', which 'latest' beside it names as the newest that is whole" in str(error)
    (tmp_path / "latest").write_text("global_step5")
    assert open_checkpoint(tmp_path / "global_step5").name == "global_step5"


@pytest.mark.parametrize("text", ["", "best", "\0" * 5000, "global_step"])
def test_a_latest_that_says_nothing_is_no_mark(text: str, tmp_path: Path) -> None:
    """A file without a number in it marks nothing."""
    write(tmp_path / "global_step5", MODEL)
    (tmp_path / "latest").write_text(text)
    assert open_checkpoint(tmp_path / "global_step5").name == "global_step5"


def test_other_folders_are_none_of_deepspeeds(tmp_path: Path) -> None:
    """Optimizer states alone, and files whose names only look alike, are no checkpoint."""
    for name in (MASTERS, "model_states.pt", "my_mp_rank_00_model_states.pt", "mp_rank_00_model_states.pt.tmp"):
        write(tmp_path / "a", name)
    assert not deepspeed.matches(tmp_path / "a")
    assert not deepspeed.matches(tmp_path / "missing")


def test_extra_state_within(tmp_path: Path) -> None:
    """What only a module's code can read is refused here as elsewhere, and left out on request."""
    folder = write(tmp_path / "global_step5", MODEL, module={**W, "l._extra_state": [1]})
    with pytest.raises(CheckpointError, match=r"'l\._extra_state' is no tensor"):
        open_checkpoint(folder)
    assert list(open_checkpoint(folder, ReadOptions(copy=("*_extra_state",))).tensors.specs) == list(W)
