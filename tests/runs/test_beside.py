"""What lies beside a folder's own model: side files never displace it, earlier states of it do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ema_cli import averaging
from ema_cli.errors import RunError
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time
from ema_cli.planning.plan import make_plan
from ema_cli.release.published import Published
from ema_cli.release.verify import verify
from ema_cli.runs.run import Run, open_run
from ema_cli.runs.warnings import run_warnings
from tests.conftest import make_tensors, write_hf_run, write_torch_run

HUNDRED = Recipe(half_life=Time.parse("100ba"))


def names(run: Run) -> list[str]:
    return [checkpoint.name for checkpoint in run.checkpoints]


@pytest.mark.parametrize(
    "side_file",
    [
        "codebook_step{step}.safetensors",
        "policy_preprocessor_step_3_normalizer_processor.safetensors",
        "eval-epoch-{step}.pt",
        "model_step{step}_fp16.safetensors",
    ],
)
def test_the_model_of_a_folder_is_its_model_whatever_lies_beside_it(tmp_path: Path, side_file: str):
    """A file with a number in its name never takes the place of the folder's model, and is said, once for its kind."""
    models = write_hf_run(tmp_path / "run", [100, 200, 300])
    for step in (100, 200, 300):
        path = tmp_path / "run" / f"checkpoint-{step}" / side_file.format(step=step)
        tensors = {name: -tensor for name, tensor in make_tensors(step).items()}
        save_file(tensors, path) if path.suffix == ".safetensors" else torch.save({"predictions": torch.ones(3)}, path)
    run = open_run(tmp_path / "run")
    assert names(run) == ["checkpoint-100", "checkpoint-200", "checkpoint-300"]
    (warning,) = [text for text in run_warnings(run, run.checkpoints) if "passed over" in text]
    assert warning.startswith(f"checkpoint-100/{side_file.format(step=100)} and 2 more are passed over")
    averaging.average(make_plan(run, HUNDRED), tmp_path / "average")
    averaged = load_file(tmp_path / "average" / "model.safetensors")
    weights = (0.25, 0.25, 0.5)
    for name, tensor in averaged.items():
        parts = [weight * model[name].double() for weight, model in zip(weights, models, strict=True)]
        if tensor.is_floating_point():
            assert torch.allclose(tensor.double(), sum(parts, torch.zeros_like(parts[0])), atol=1e-6)


def test_one_state_named_by_itself_is_its_own_model(tmp_path: Path):
    """Also where the folder is named as such, not found below a run."""
    write_hf_run(tmp_path, [100])
    folder = tmp_path / "checkpoint-100"
    save_file({"codes": torch.ones(2)}, folder / "codes_step100.safetensors")
    save_file({"codes": torch.ones(2)}, folder / "codes_step200.safetensors")
    assert names(open_run(folder)) == ["checkpoint-100"]


def test_a_folder_without_a_clock_in_its_name_tells_side_files_by_their_tensors(tmp_path: Path):
    """LeRobot's `000010/pretrained_model` has processors with a step in their names beside the model."""
    for number in ("000010", "000020"):
        folder = tmp_path / number / "pretrained_model"
        folder.mkdir(parents=True)
        save_file(make_tensors(int(number)), folder / "model.safetensors")
        save_file({"mean": torch.ones(2)}, folder / "preprocessor_step_3_normalizer.safetensors")
    assert names(open_run(tmp_path)) == ["000010/pretrained_model", "000020/pretrained_model"]


def test_states_of_a_final_model_are_a_run_under_any_prefix(tmp_path: Path):
    """A final model beside its own numbered states does not hide them, though its trainer put a prefix there."""
    save_file(make_tensors(9), tmp_path / "model.safetensors")
    for step in (100, 200):
        state = {f"net.{name}": tensor for name, tensor in make_tensors(step).items()}
        torch.save({"state_dict": state, "global_step": step}, tmp_path / f"step-{step}.ckpt")
    run = open_run(tmp_path)
    assert names(run) == ["step-100.ckpt", "step-200.ckpt"]
    assert [passed.reason for passed in run.passed_over] == ["a model beside its own checkpoints"]


def test_a_model_and_a_series_of_other_tensors_is_a_question(tmp_path: Path):
    """Either may be meant: the error names both, and naming the files of one is the way on."""
    save_file(make_tensors(1), tmp_path / "model.safetensors")
    for step in (100, 200):
        save_file({"other": torch.ones(step)}, tmp_path / f"step-{step}.safetensors")
    with pytest.raises(RunError, match=r"holds a model, and 2 files with clocks .* step-100\.safetensors"):
        open_run(tmp_path)
    assert names(open_run([tmp_path / "step-100.safetensors", tmp_path / "step-200.safetensors"]))
    assert names(open_run(tmp_path / "model.safetensors")) == ["model.safetensors"]


def test_a_run_in_a_folder_with_a_number_in_its_name_is_a_run(tmp_path: Path):
    """`sft-step2/` with its final model is no state of another run: its own states are what is averaged."""
    write_hf_run(tmp_path / "sft-step2", [100, 200])
    shutil.copy(tmp_path / "sft-step2" / "checkpoint-200" / "model.safetensors", tmp_path / "sft-step2")
    assert names(open_run(tmp_path / "sft-step2")) == ["checkpoint-100", "checkpoint-200"]
    write_torch_run(tmp_path / "lora-epoch3", [100, 200])
    save_file(make_tensors(200), tmp_path / "lora-epoch3" / "model.safetensors")
    assert names(open_run(tmp_path / "lora-epoch3")) == ["step-100.pt", "step-200.pt"]


def test_an_evaluation_inside_a_checkpoint_does_not_displace_it(tmp_path: Path):
    """A folder with weights and a step in its name, inside the folder of a checkpoint, is passed over with a word."""
    write_hf_run(tmp_path, [100, 200])
    for step in (100, 200):
        inner = tmp_path / f"checkpoint-{step}" / f"probe_step{step}"
        inner.mkdir()
        save_file({"probe": torch.ones(2)}, inner / "model.safetensors")
    run = open_run(tmp_path)
    assert names(run) == ["checkpoint-100", "checkpoint-200"]
    assert {passed.reason for passed in run.passed_over if passed.warn} == {"inside the folder of a checkpoint"}


def test_a_checkpoint_without_weights_is_said_though_a_final_model_lies_beside_it(tmp_path: Path):
    """The folder above being a model itself hides nothing."""
    write_hf_run(tmp_path, [100, 200, 300])
    shutil.copy(tmp_path / "checkpoint-300" / "model.safetensors", tmp_path / "model.safetensors")
    (tmp_path / "checkpoint-200" / "model.safetensors").unlink()
    run = open_run(tmp_path)
    assert names(run) == ["checkpoint-100", "checkpoint-300"]
    assert [(passed.name, passed.reason) for passed in run.passed_over if passed.warn] == [
        ("checkpoint-200", "damaged (200ba; an average needs --skip-damaged): holds no weights")
    ]


def test_states_in_a_folder_below_the_final_model_are_the_run(tmp_path: Path):
    """`out/model.safetensors` does not hide `out/checkpoints/step-N.pt`; what else lies below it stays unread."""
    write_torch_run(tmp_path / "checkpoints", [100, 200])
    torch.save({"log": torch.ones(3)}, tmp_path / "checkpoints" / "step-200-probe.pt")
    save_file(make_tensors(200), tmp_path / "model.safetensors")
    run = open_run(tmp_path)
    assert names(run) == ["checkpoints/step-100.pt", "checkpoints/step-200.pt"]
    reasons = {passed.name: passed.reason for passed in run.passed_over}
    assert reasons == {
        "(this folder)": "a model beside its own checkpoints",
        "checkpoints/step-200-probe.pt": "beside the folder's own model",
    }


def test_the_state_of_a_trainer_below_a_checkpoint_is_no_checkpoint(tmp_path: Path):
    """Files with a step in their names, in a folder inside a checkpoint, are never taken for the run."""
    write_hf_run(tmp_path, [100, 200])
    for step in (100, 200):
        (tmp_path / f"checkpoint-{step}" / "state").mkdir()
        torch.save({"momentum": torch.ones(3)}, tmp_path / f"checkpoint-{step}" / "state" / f"step_{step}.pt")
    assert names(open_run(tmp_path)) == ["checkpoint-100", "checkpoint-200"]


@pytest.mark.parametrize("model", ["mp_rank_00_model_states.pt", "consolidated.00.pth"])
def test_a_model_under_a_name_with_a_number_is_no_side_file(tmp_path: Path, model: str):
    """What a folder's model is called may hold a number: nothing is passed over then."""
    for step in (100, 200):
        folder = tmp_path / f"global_step{step}"
        folder.mkdir()
        torch.save({"module": make_tensors(step), "global_steps": step}, folder / model)
    run = open_run(tmp_path)
    assert (len(run.checkpoints), run.passed_over) == (2, ())


def test_what_the_processors_of_a_model_name_is_copied_and_not_passed_over(tmp_path: Path):
    """LeRobot's processors load their statistics from files that their JSON names: the output has both, untouched."""
    for step in (10, 20):
        folder = tmp_path / "run" / f"step-{step}" / "pretrained_model"
        folder.mkdir(parents=True)
        save_file(make_tensors(step), folder / "model.safetensors")
        (folder / "config.json").write_text("{}")
        state = "policy_preprocessor_step_3_normalizer_processor.safetensors"
        steps = [{"registry_name": "to_batch"}, {"registry_name": "normalizer", "state_file": state}]
        (folder / "policy_preprocessor.json").write_text(json.dumps({"name": "policy_preprocessor", "steps": steps}))
        save_file({"mean": torch.full((2,), float(step))}, folder / state)
    run = open_run(tmp_path / "run")
    assert (names(run), run.passed_over) == (["step-10/pretrained_model", "step-20/pretrained_model"], ())
    averaging.average(make_plan(run, HUNDRED), tmp_path / "out")
    newest = tmp_path / "run" / "step-20" / "pretrained_model"
    for name in ("policy_preprocessor.json", state):
        assert (tmp_path / "out" / name).read_bytes() == (newest / name).read_bytes()
    assert verify(Published(tmp_path / "out", is_folder=True)).problems == ()


@pytest.mark.parametrize("text", ["{", "[1]", '{"steps": [{"state_file": "../model.safetensors"}, 3]}'])
def test_a_processor_that_is_damaged_stops_nothing(tmp_path: Path, text: str):
    """The model does not need it: what lies beside the model is said as ever."""
    write_hf_run(tmp_path, [100, 200])
    (tmp_path / "checkpoint-200" / "policy_preprocessor.json").write_text(text)
    save_file({"mean": torch.ones(2)}, tmp_path / "checkpoint-200" / "state_step_3.safetensors")
    run = open_run(tmp_path)
    assert [passed.name for passed in run.passed_over] == ["checkpoint-200/state_step_3.safetensors"]


def test_a_series_of_states_in_one_of_many_checkpoints_is_no_run(tmp_path: Path):
    """Each `epoch_N/` is one checkpoint, whatever number of weights it keeps beside its model."""
    for epoch in (1, 2):
        (tmp_path / f"epoch_{epoch}").mkdir()
        save_file(make_tensors(epoch), tmp_path / f"epoch_{epoch}" / "model.safetensors")
        for step in (1, 2, 3):
            save_file(make_tensors(10 * epoch + step), tmp_path / f"epoch_{epoch}" / f"weights_step{step}.safetensors")
    run = open_run(tmp_path)
    assert names(run) == ["epoch_1", "epoch_2"]
    assert len([passed for passed in run.passed_over if passed.warn]) == 6


def test_a_damaged_final_model_does_not_hide_the_states_beside_it(tmp_path: Path):
    """What cannot be read says nothing of the others: they are the run."""
    write_torch_run(tmp_path, [100, 200])
    (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    assert names(open_run(tmp_path)) == ["step-100.pt", "step-200.pt"]
