"""Folders that DeepSpeed wrote from two processes here and now, at each ZeRO stage."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import OWN_FILES, Cli
from tests.trainers.conftest import Tensors, assert_rounds, names, recurrence, require
from tests.trainers.ranks import launch
from tests.trainers.write_deepspeed import BATCH, KINDS, STEPS

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("ignore")]

RANKS = 2
WHOLE = [f"{stage}-{dtype}" for stage, dtype in KINDS if stage < 3]
MODEL = "mp_rank_00_model_states.pt"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training for each stage and dtype."""
    require("deepspeed")
    return launch("write_deepspeed", tmp_path_factory.mktemp("deepspeed") / "written", ranks=RANKS)


def load_truth(folder: Path) -> list[Tensors]:
    """Return what the model held at each checkpoint, oldest first."""
    return [load_file(folder / f"truth-{step}.safetensors") for step in STEPS]


@pytest.mark.parametrize("kind", WHOLE)
def test_files_are_what_the_training_held(written: Path, kind: str):
    """One file has the whole model, in its dtype; that of stages 1 and 2 lies beside one of each process's masters."""
    for step, tensors in zip(STEPS, load_truth(written / kind), strict=True):
        folder = written / kind / "out" / f"global_step{step}"
        masters = names(folder) - {MODEL}
        assert len(masters) == (0 if kind.startswith("0") else RANKS)
        stored = torch.load(folder / MODEL, weights_only=False)
        assert stored["global_steps"] == step
        assert all(torch.equal(stored["module"][name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("kind", WHOLE)
def test_a_deepspeed_run_averages_to_one_file_without_masters(cli: Cli, written: Path, tmp_path: Path, kind: str):
    """The run averages to one file, in the model's dtype and with its names; masters are not weights.

    That half-precision weights have masters is said, and said of no others.
    """
    done = cli("average", written / kind / "out", "--half-life", "6ba")
    assert (done.code, done.out) == (0, "ema-6ba.safetensors\n"), done
    assert ("--masters" in done.err) == (kind == "1-bfloat16")
    averaged = load_file(tmp_path / "ema-6ba.safetensors")
    assert averaged["body.0.weight"].dtype == getattr(torch, kind[2:])
    assert_rounds(averaged, recurrence(load_truth(written / kind), STEPS, 6))


def test_deepspeed_s_steps_and_samples_are_clocks(cli: Cli, written: Path):
    """Steps and samples come from the file."""
    told = cli("inspect", written / "1-bfloat16" / "out", "--json").json["run"]
    assert [each["name"] for each in told["checkpoints"]] == [f"global_step{step}" for step in STEPS]
    assert {each["trainer"] for each in told["checkpoints"]} == {"DeepSpeed"}
    assert [each["clocks"] for each in told["checkpoints"]] == [
        {
            "ba": {"value": step, "from": "file"},
            "sp": {"value": step * BATCH * RANKS, "from": "file"},
        }
        for step in STEPS
    ]


def test_average_in_samples(cli: Cli, written: Path, tmp_path: Path):
    """A half-life in samples takes the samples that DeepSpeed counted."""
    run = written / "0-float32"
    assert cli("average", run / "out", "--half-life", "40sp", "--update-interval", "20sp").code == 0
    clocks = [step * BATCH * RANKS for step in STEPS]
    assert_rounds(load_file(tmp_path / "ema-40sp.safetensors"), recurrence(load_truth(run), clocks, 40, 20))


def test_stage_3_averages(cli: Cli, written: Path, tmp_path: Path):
    """No file of a ZeRO-3 checkpoint has a whole tensor: all ranks' files together give the model. One is no model."""
    run = written / "3-float32" / "out"
    part = "zero_pp_rank_0_mp_rank_00_model_states.pt"
    stored = torch.load(run / "global_step4" / part, weights_only=False)
    assert {tuple(tensor.shape) for name, tensor in stored["module"].items() if name != "seen"} == {(0,)}
    assert cli("average", run, "--half-life", "6ba", "-o", "out.safetensors").code == 0
    assert_rounds(load_file(tmp_path / "out.safetensors"), recurrence(load_truth(written / "3-float32"), STEPS, 6))
    assert cli("average", run / "global_step4" / part, "--half-life", "6ba").code == 3


def test_masters_are_what_deepspeed_s_script_gives(cli: Cli, written: Path, tmp_path: Path):
    """The float32 weights of a bfloat16 run are those that zero_to_fp32.py puts together."""
    out = written / "1-bfloat16" / "out"
    convert = "from zero_to_fp32 import convert_zero_checkpoint_to_fp32_state_dict as convert\n" + "\n".join(
        f"convert('.', {str(tmp_path / 'run' / f'step-{step}')!r}, tag='global_step{step}')" for step in STEPS
    )
    done = subprocess.run([sys.executable, "-c", convert], cwd=out, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    saved = [torch.load(tmp_path / "run" / f"step-{step}" / "pytorch_model.bin", weights_only=True) for step in STEPS]
    assert cli("average", out, "--half-life", "6ba", "--masters", "-o", "out.safetensors").code == 0
    assert_rounds(load_file(tmp_path / "out.safetensors"), recurrence(saved, STEPS, 6))


@pytest.mark.parametrize("kind", WHOLE)
def test_deepspeed_loads_an_average_and_trains_on_from_it(cli: Cli, written: Path, tmp_path: Path, kind: str):
    """Without the optimizer's state, whose float32 copies it would put over the average; with it, that is refused."""
    run, output = written / kind / "out", tmp_path / "averaged"
    like = ("average", run, "--half-life", "6ba", "-o", output, "--like-input")
    assert (cli(*like).code == 5) == (kind != "0-float32")
    done = cli(*like, "--drop", "optimizer", "--force")
    assert done.code == 0, done
    exact = recurrence(load_truth(written / kind), STEPS, 6)
    save_file({name: torch.as_tensor(tensor) for name, tensor in exact.items()}, tmp_path / "exact.safetensors")
    launch("load_deepspeed", tmp_path, *kind.split("-"), ranks=RANKS)


def test_folder_within_one_of_the_hugging_face_trainer(cli: Cli, written: Path, tmp_path: Path):
    """Where the Hugging Face Trainer keeps DeepSpeed's folder in its own, its model is read, and counts once."""
    saved = load_truth(written / "1-bfloat16")
    for step, tensors in zip(STEPS, saved, strict=True):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        shutil.copytree(written / "1-bfloat16" / "out" / f"global_step{step}", folder / f"global_step{step}")
        for name in ("zero_to_fp32.py", "latest"):
            shutil.copy(written / "1-bfloat16" / "out" / name, folder)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text('{"model_type": "tiny"}')
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "epoch": step / 8}))
    told = cli("inspect", "run", "--json").json["run"]
    assert [each["name"] for each in told["checkpoints"]] == [f"checkpoint-{step}" for step in STEPS]
    assert {each["trainer"] for each in told["checkpoints"]} == {"transformers"}
    assert cli("average", "run", "--half-life", "6ba", "-o", "out").code == 0
    assert names(tmp_path / "out") == {"model.safetensors", "config.json", *OWN_FILES}
    assert_rounds(load_file(tmp_path / "out" / "model.safetensors"), recurrence(saved, STEPS, 6))
