"""Folders that Accelerate's save_state filled here and now: weights, no clock, shards where it was told to shard."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.conftest import Cli
from tests.trainers.conftest import Tensors, assert_rounds, load_dcp, names, recurrence, require
from tests.trainers.ranks import launch
from tests.trainers.write_accelerate import SAVES

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("ignore")]

SAVED = 12  # checkpoint_10 comes after checkpoint_9
SPACED = [100 * (number + 1) for number in range(SAVED)]


def train(folder: Path, safe: bool) -> list[Tensors]:
    """Save twelve times in a row of steps; return the state dicts."""
    accelerate = pytest.importorskip("accelerate")
    from accelerate.utils import ProjectConfiguration

    torch.manual_seed(8)
    accelerator = accelerate.Accelerator(
        cpu=True, project_config=ProjectConfiguration(str(folder), automatic_checkpoint_naming=True)
    )
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    model, optimizer = accelerator.prepare(model, optimizer)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer)
    accelerator.register_for_checkpointing(schedule)
    saved = []
    for _ in range(SAVED):
        accelerator.backward(model(torch.randn(4, 5)).pow(2).mean())
        optimizer.step()
        optimizer.zero_grad()
        accelerator.save_state(safe_serialization=safe)
        saved.append({name: tensor.detach().clone() for name, tensor in model.state_dict().items()})
    accelerator.free_memory()
    return saved


@pytest.mark.parametrize(("safe", "weights"), [(True, "model.safetensors"), (False, "pytorch_model.bin")])
def test_spacing_gives_the_clocks(cli: Cli, tmp_path: Path, safe: bool, weights: str):
    """Accelerate writes no clock, and that is an error that says --spacing; with it, checkpoint_K is the K+1st."""
    saved = train(tmp_path / "run", safe)
    assert names(tmp_path / "run" / "checkpoints") == {f"checkpoint_{number}" for number in range(SAVED)}
    one = names(tmp_path / "run" / "checkpoints" / "checkpoint_0")
    assert one == {weights, "optimizer.bin", "random_states_0.pkl", "custom_checkpoint_0.pkl"}
    done = cli("average", "run", "--half-life", "300ba")
    assert done.code == 4, done
    assert "--spacing" in done.err
    done = cli("average", "run", "--half-life", "300ba", "--spacing", "100ba", "-o", "out.safetensors")
    assert done.code == 0, done
    assert_rounds(load_file(tmp_path / "out.safetensors"), recurrence(saved, SPACED, 300))


def test_inspect_knows_accelerate(cli: Cli, tmp_path: Path):
    """The folders are known as Accelerate's, in the order of their numbers, without clocks; optimizer.bin is none."""
    train(tmp_path / "run", safe=True)
    told = cli("inspect", "run", "--json").json["run"]
    assert [each["name"] for each in told["checkpoints"]] == [
        f"checkpoints/checkpoint_{number}" for number in range(SAVED)
    ]
    assert {each["trainer"] for each in told["checkpoints"]} == {"accelerate"}
    assert [each["clocks"] for each in told["checkpoints"]] == [{}] * SAVED
    assert told["passed_over"] == []


def test_smoothing_needs_an_order_too(cli: Cli, tmp_path: Path):
    """Names alone are no order that is safe, with --smoothing neither; --spacing makes them one."""
    saved = train(tmp_path / "run", safe=True)
    refused = cli("average", "run", "--smoothing", "0.5")
    assert refused.code == 4, refused
    assert "--spacing" in refused.err
    assert cli("average", "run", "--smoothing", "0.5", "--spacing", "7ba", "-o", "out.safetensors").code == 0
    # A half-life of one checkpoint.
    assert_rounds(load_file(tmp_path / "out.safetensors"), recurrence(saved, range(1, SAVED + 1), 1))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of two processes, its model and optimizer spread over them."""
    require("accelerate")
    return launch("write_accelerate", tmp_path_factory.mktemp("accelerate") / "written")


def test_shards_average(cli: Cli, sharded: Path, tmp_path: Path):
    """`pytorch_model_fsdp_0/` is the model, `optimizer_0/` beside it is not; --spacing gives the clocks."""
    run = sharded / "dcp"
    saved = [load_file(sharded / "truth" / f"{number}.safetensors") for number in range(SAVES)]
    for number, tensors in enumerate(saved):
        folder = run / "checkpoints" / f"checkpoint_{number}"
        assert names(folder) == {
            "pytorch_model_fsdp_0", "optimizer_0", "random_states_0.pkl", "random_states_1.pkl",
        }  # fmt: skip
        assert names(folder / "pytorch_model_fsdp_0") == {".metadata", "__0_0.distcp", "__1_0.distcp"}
        loaded = load_dcp(folder / "pytorch_model_fsdp_0")["model"]
        assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    refused = cli("average", run, "--half-life", "6ba")
    assert refused.code == 4, refused
    assert "--spacing" in refused.err
    done = cli("average", run, "--half-life", "6ba", "--spacing", "4ba", "-o", "out.safetensors")
    assert done.code == 0, done
    assert_rounds(load_file(tmp_path / "out.safetensors"), recurrence(saved, [4, 8, 12], 6))


def test_a_file_of_each_process_averages(cli: Cli, sharded: Path, tmp_path: Path):
    """Where each process saved its own part (use_dcp=False), the parts are put together, also where one is named."""
    run = sharded / "ranks"
    saved = [load_file(sharded / "truth" / f"{number}.safetensors") for number in range(SAVES)]
    assert names(run / "checkpoint_0") == {f"pytorch_model_fsdp_0_rank{rank}.bin" for rank in range(2)}
    one = cli(
        "average", run / "checkpoint_0" / "pytorch_model_fsdp_0_rank0.bin", "--last", "1", "-o", "one.safetensors"
    )
    assert one.code == 0, one
    whole = load_file(tmp_path / "one.safetensors")
    assert {name: torch.equal(whole[name], tensor) for name, tensor in saved[0].items()} == dict.fromkeys(whole, True)
    done = cli("average", run, "--half-life", "6ba", "--spacing", "4ba", "-o", "out.safetensors")
    assert done.code == 0, done
    assert_rounds(load_file(tmp_path / "out.safetensors"), recurrence(saved, [4, 8, 12], 6))
