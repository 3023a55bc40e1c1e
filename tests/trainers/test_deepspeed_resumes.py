"""Averages in DeepSpeed's own form, from which it goes on with all of the optimizer's state: here and now."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import Cli
from tests.trainers.conftest import require
from tests.trainers.ranks import launch
from tests.trainers.resume_deepspeed import STEPS

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("ignore")]

KINDS = [(1, "bfloat16"), (2, "float32"), (3, "bfloat16"), (3, "float32")]
CONVERT = """
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint as whole
import sys, torch
torch.save({name: tensor.clone() for name, tensor in whole(sys.argv[1], sys.argv[2]).items()}, sys.argv[3])
"""
LIKE = ("--half-life", "2ba", "--like-input", "-o", "averaged")


def whole(out: Path, step: int) -> dict[str, torch.Tensor]:
    """Return the float32 weights that DeepSpeed's own script puts together."""
    path = out.parent / f"whole-{step}.pt"
    if not path.exists():
        subprocess.run(
            [sys.executable, "-c", CONVERT, str(out), f"global_step{step}", str(path)], check=True, capture_output=True
        )
    weights = torch.load(path)
    if "frozen.weight" not in weights:  # which the script leaves out of stage 1
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


def test_universal_goes_on(cli: Cli, trained: tuple[int, str, Path], tmp_path: Path):
    """The same of what ds_to_universal makes of a run: a file for each parameter."""
    stage, dtype, folder = trained
    if stage == 2 or dtype == "float32":
        pytest.skip("as the others")
    for step in STEPS:
        subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "deepspeed.checkpoint.ds_to_universal", "--num_extract_workers", "1",
             "--num_merge_workers", "1", "--inject_missing_state", "--input_folder",
             str(folder / "out" / f"global_step{step}"), "--output_folder", str(tmp_path / f"run/global_step{step}")],
            check=True, capture_output=True, env={**os.environ, "DS_ACCELERATOR": "cpu"},
        )  # fmt: skip
    done = cli("average", "run", *LIKE)
    assert done.code == 0, done
    (tmp_path / "exact.safetensors").write_bytes((folder / "exact.safetensors").read_bytes())
    launch("resume_deepspeed", tmp_path, stage, dtype, "universal")
    assert cli("verify", "averaged", "--against", "run", "--like-input").code == 0
