"""Averages in DeepSpeed's own form, from which it goes on with all of the optimizer's state: here and now."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import Cli
from tests.trainers.conftest import require
from tests.trainers.deepspeed_engine import STEPS
from tests.trainers.ranks import launch

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("ignore")]

KINDS = [(1, "bfloat16"), (2, "float32"), (3, "bfloat16"), (3, "float32")]
CONVERT = """
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint as whole
import sys, torch
torch.save({name: tensor.clone() for name, tensor in whole(sys.argv[1], sys.argv[2]).items()}, sys.argv[3])
"""
LIKE = ("--half-life", "2ba", "--like-input", "-o", "averaged")


def put_together(out: Path, step: int, path: Path) -> dict[str, torch.Tensor]:
    """Return the float32 weights that DeepSpeed's own script puts together, into a file unless that is there."""
    if not path.exists():
        subprocess.run(
            [sys.executable, "-c", CONVERT, str(out), f"global_step{step}", str(path)], check=True, capture_output=True
        )
    weights: dict[str, torch.Tensor] = torch.load(path)
    return weights


def whole(out: Path, step: int) -> dict[str, torch.Tensor]:
    """Return the same with what does not train, which the script leaves out of stage 1."""
    weights = put_together(out, step, out.parent / f"whole-{step}.pt")
    if "frozen.weight" not in weights:
        module = torch.load(out / f"global_step{step}" / "mp_rank_00_model_states.pt", weights_only=False)["module"]
        weights |= {name: tensor for name, tensor in module.items() if name.startswith("frozen.")}
    return weights


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, str, Path]:
    """A training of two processes, and the exact average of its two checkpoints beside it."""
    require("deepspeed")
    stage, dtype = request.param
    folder = launch("resume_deepspeed", tmp_path_factory.mktemp("trained"), stage, dtype, "train")
    one, other = (whole(folder / "out", step) for step in STEPS)
    exact = {name: ((one[name].double() + other[name].double()) / 2).float() for name in one}
    save_file(exact, folder / "exact.safetensors")
    return stage, dtype, folder


def masters(stage: int) -> tuple[str, ...]:
    """Return what is needed so that the optimizer's float32 weights are averaged."""
    return () if stage == 3 else ("--masters",)


def test_deepspeed_goes_on_with_its_optimizer(cli: Cli, trained: tuple[int, str, Path], tmp_path: Path):
    """Model and float32 copies are both the average, each in its type; nothing is put over it, and training goes on."""
    stage, dtype, folder = trained
    if stage < 3:
        refused = cli("average", folder / "out", *LIKE)
        assert (refused.code, "--masters" in refused.err) == (5, True)
    done = cli("average", folder / "out", *LIKE, *masters(stage))
    assert done.code == 0, done
    (tmp_path / "exact.safetensors").write_bytes((folder / "exact.safetensors").read_bytes())
    launch("resume_deepspeed", tmp_path, stage, dtype, "resume")
    verify = cli("verify", "averaged", "--against", folder / "out", "--like-input")
    assert verify.code == 0, verify


def convert(source: Path, target: Path) -> None:
    """Have DeepSpeed's own script convert a save to the universal format."""
    subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "deepspeed.checkpoint.ds_to_universal", "--num_extract_workers", "1",
         "--num_merge_workers", "1", "--inject_missing_state", "--input_folder", str(source), "--output_folder",
         str(target)], check=True, capture_output=True, env={**os.environ, "DS_ACCELERATOR": "cpu"},
    )  # fmt: skip


def test_universal_goes_on(cli: Cli, trained: tuple[int, str, Path], tmp_path: Path):
    """The same of what ds_to_universal makes of a run: a file for each parameter."""
    stage, dtype, folder = trained
    if stage == 2 or dtype == "float32":
        pytest.skip("as the others")
    for step in STEPS:
        convert(folder / "out" / f"global_step{step}", tmp_path / f"run/global_step{step}")
    done = cli("average", "run", *LIKE)
    assert done.code == 0, done
    (tmp_path / "exact.safetensors").write_bytes((folder / "exact.safetensors").read_bytes())
    launch("resume_deepspeed", tmp_path, stage, dtype, "universal")
    assert cli("verify", "averaged", "--against", "run", "--like-input").code == 0


def whole_of_ranks(run: Path, out: Path, step: int) -> dict[str, torch.Tensor]:
    """Return the float32 weights that ds_to_universal puts together, the first rank's buffer, and what is frozen."""
    files = sorted((run / f"global_step{step}" / "zero").glob("*/fp32.pt"))
    weights = {path.parent.name: torch.load(path, weights_only=False)["param"] for path in files}
    states = sorted((out / f"global_step{step}").glob("*mp_rank_*_model_states.pt"))
    modules = [torch.load(path, weights_only=False)["module"] for path in states]
    weights["mean"] = modules[0]["mean"].float()
    if states[0].name.startswith("mp_rank"):  # the converter left it in parts
        weights["frozen.weight"] = torch.cat([module["frozen.weight"] for module in modules]).float()
    return weights


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_tensor_parallel_training_goes_on(cli: Cli, tmp_path: Path, stage: int):
    """Two ranks, each with its part of the average in the model and in the optimizer, whichever way they are cut."""
    require("deepspeed")
    folder = launch("resume_tensor_parallel", tmp_path, stage, "train")
    for step in STEPS:
        convert(folder / f"out/global_step{step}", folder / f"run/global_step{step}")
    one, other = (whole_of_ranks(folder / "run", folder / "out", step) for step in STEPS)
    exact = {name: ((one[name].double() + other[name].double()) / 2).float() for name in one}
    save_file(exact, folder / "exact.safetensors")
    plain = cli("average", "run", "--half-life", "2ba", "--masters", "-o", "plain.safetensors")
    assert plain.code == 0, plain
    for name, tensor in load_file(folder / "plain.safetensors").items():
        torch.testing.assert_close(tensor.float(), exact[name], rtol=2**-8, atol=1e-7, msg=name)
    done = cli("average", "run", *LIKE)
    assert done.code == 0, done
    assert cli("verify", "averaged", "--against", "run", "--like-input").code == 0
    launch("resume_tensor_parallel", folder, stage, "universal")


@pytest.mark.parametrize("stage", [2, 3])
def test_automatic_experts_go_on(cli: Cli, tmp_path: Path, stage: int):
    """Each of two ranks has its own experts of the average, once the converter that the refusal names was there."""
    require("deepspeed")
    folder = launch("resume_experts", tmp_path, stage, "train")
    refused = cli("average", "out", *LIKE)
    assert (refused.code, "deepspeed.checkpoint.ds_to_universal" in refused.err) == (3, True), refused
    saved = []
    for step in STEPS:
        convert(folder / f"out/global_step{step}", folder / f"run/global_step{step}")
        files = (folder / f"run/global_step{step}/zero").glob("*/fp32.pt")
        opened = {path.parent.name: torch.load(path, weights_only=False) for path in files}
        saved.append({name: value["param"] if isinstance(value, dict) else value for name, value in opened.items()})
    exact = {name: ((saved[0][name].double() + saved[1][name].double()) / 2).float().detach() for name in saved[0]}
    save_file(exact, folder / "exact.safetensors")
    done = cli("average", "run", *LIKE)
    assert done.code == 0, done
    assert cli("verify", "averaged", "--against", "run", "--like-input").code == 0
    launch("resume_experts", folder, stage, "universal")


@pytest.mark.parametrize(("stage", "options"), [(2, ("--masters",)), (3, ())])
def test_the_hugging_face_trainer_resumes_under_deepspeed(
    cli: Cli, tmp_path: Path, stage: int, options: tuple[str, ...]
):
    """Its folder with DeepSpeed's in it: model and optimizer begin with the average, and take one more step."""
    require("deepspeed")
    launch("resume_trainer_deepspeed", tmp_path, stage, "train")
    whole_files = [tmp_path / f"whole-{step}.pt" for step in STEPS]
    saved = [
        put_together(tmp_path / f"run/checkpoint-{step}", step, path)
        for step, path in zip(STEPS, whole_files, strict=True)
    ]
    exact = {name: ((saved[0][name].double() + saved[1][name].double()) / 2).float() for name in saved[0]}
    save_file(exact, tmp_path / "exact.safetensors")
    done = cli("average", "run", *LIKE, *options)
    assert done.code == 0, done
    assert cli("verify", "averaged", "--against", "run", "--like-input").code == 0
    (tmp_path / "on").mkdir()
    (tmp_path / "averaged").rename(tmp_path / f"on/checkpoint-{STEPS[-1]}")
    launch("resume_trainer_deepspeed", tmp_path, stage, "resume")
