"""Runs whose checkpoints are files of ranks: what lies around them, what is missing, and what comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import Shard

from ema_cli.errors import CheckpointError, IncompleteCheckpoint, UsageError
from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import ReadOptions
from ema_cli.law.time import Unit
from tests.conftest import Cli
from tests.formats.ranks.saves import Cut, save_ranks
from tests.formats.reading import read_all, stored_bytes

STEPS = (10, 20, 30)
LAW = ("--half-life", "10ba", "--update-interval", "every")
ITEM = "{item}_{{rank}}.pt"


def weight(step: int) -> torch.Tensor:
    """Return the weights at a step."""
    return torch.arange(35.0).reshape(7, 5) * step


def verl_run(folder: Path, models: tuple[str, ...] = ("actor",)) -> Path:
    """Write a run as verl leaves it: models, optimizers, other states, the data loader's, and the newest step."""
    for step in STEPS:
        for model in models:
            own = save_ranks(folder / f"global_step_{step}" / model, {"w": Cut(weight(step), [Shard(0)])}, {"fsdp": 2})
            for kind, state in (("optim", {"state": {0: {"exp_avg": torch.ones(2)}}}), ("extra_state", {"rng": {}})):
                save_ranks(own, state, {"fsdp": 2}, name=kind + "_world_size_{world}_rank_{rank}.pt")
            (own / "huggingface").mkdir()
            (own / "huggingface" / "config.json").write_text(json.dumps({"model_type": "none", "step": step}))
        torch.save({"_snapshot": {"x": torch.ones(2)}}, folder / f"global_step_{step}" / "data.pt")
    (folder / "latest_checkpointed_iteration.txt").write_text("30")
    return folder


def expected() -> torch.Tensor:
    """Return the average by the law, written step by step."""
    shares = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)
    return torch.einsum("s,sij->ij", shares, torch.stack([weight(step) for step in STEPS]).double()).float()


def test_a_run_of_verl_is_averaged(cli: Cli, tmp_path: Path) -> None:
    """What lies beside the model is left alone; the output has the configuration of the newest."""
    done = cli("average", verl_run(tmp_path / "run"), *LAW, "--strict", "-o", tmp_path / "out")
    assert done.code == 0, done
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["w"], expected())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["step"] == 30


@pytest.mark.parametrize("zipped", [True, False])
def test_clocks_that_are_tensors_are_read_of_each_checkpoint(cli: Cli, tmp_path: Path, zipped: bool) -> None:
    """The descriptions of all ranks' files are equal then, but not the clocks."""
    for step in STEPS:
        state = {"model": {"w": Cut(weight(step), [Shard(0)])}, "global_step": torch.tensor(step)}
        save_ranks(tmp_path / "run" / f"at-{step}", state, {"fsdp": 2}, zipped=zipped)
    done = cli("average", tmp_path / "run", *LAW, "--strict", "-o", tmp_path / "out.safetensors")
    assert done.code == 0, done
    assert torch.equal(load_file(tmp_path / "out.safetensors")["w"], expected())


def test_of_several_models_one_is_chosen(cli: Cli, tmp_path: Path) -> None:
    """Actor and critic of one step are two models."""
    run = verl_run(tmp_path / "run", ("actor", "critic"))
    assert cli("average", run, *LAW, "--component", "critic", "-o", tmp_path / "out").code == 0
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["w"], expected())


def test_the_newest_that_is_not_whole_is_passed_over(cli: Cli, tmp_path: Path) -> None:
    """It is still being written where a rank's file is missing, or where the trainer does not name it yet."""
    run = verl_run(tmp_path / "run")
    newest = run / "global_step_30" / "actor"
    (run / "latest_checkpointed_iteration.txt").write_text("20")
    done = cli("average", run, *LAW, "-o", tmp_path / "one")
    assert (done.code, "2 checkpoints averaged" in done.err, "is newer than '20'" in done.err) == (0, True, True), done
    (run / "latest_checkpointed_iteration.txt").write_text("30")
    (newest / "model_world_size_2_rank_1.pt").unlink()
    done = cli("average", run, *LAW, "-o", tmp_path / "two")
    assert (done.code, "model_world_size_2_rank_1.pt" in done.err) == (0, True), done


def test_files_of_ranks_are_not_written_over_again(cli: Cli, tmp_path: Path) -> None:
    """--like-input is refused, and the way on works."""
    run = verl_run(tmp_path / "run")
    done = cli("average", run, *LAW, "--like-input", "-o", tmp_path / "out")
    assert (done.code != 0, "leave out --like-input" in done.err) == (True, True), done
    assert cli("average", run, *LAW, "-o", tmp_path / "out").code == 0


def save_items(folder: Path, step: int, **more: dict[str, Any]) -> Path:
    """Save a checkpoint as torch_checkpointing does, of two ranks."""
    items: dict[str, dict[str, Any]] = {
        "model": {"w": Cut(weight(step), [Shard(0)])},
        "optimizer": {"state": {}},
        "train_state": {"step": step},
    }
    for item, value in {**items, **more}.items():
        save_ranks(folder, value, {"fsdp": 2}, name=ITEM.format(item=item))
    return folder


def test_items_are_one_checkpoint(cli: Cli, tmp_path: Path) -> None:
    """The model's files are put together, and clocks come from the item beside them, with metadata or without."""
    for step in STEPS:
        save_items(tmp_path / "run" / f"at-{step}", step)
    done = cli("average", tmp_path / "run", *LAW, "--strict", "-o", tmp_path / "out.safetensors")
    assert done.code == 0, done
    assert torch.equal(load_file(tmp_path / "out.safetensors")["w"], expected())
    checkpoint = open_checkpoint(tmp_path / "run" / "at-20")
    assert (checkpoint.clock(Unit.BATCH), checkpoint.trainer) == (20, "torch_checkpointing")


@pytest.mark.parametrize("size", [0, 5, 700])
def test_a_first_item_that_is_cut_is_no_reason_to_pass_the_checkpoint_over(cli: Cli, tmp_path: Path, size: int) -> None:
    """The others show what it is: damaged in the run, or half-written where it is the newest. It was passed over."""
    for step in STEPS:
        save_items(tmp_path / "run" / f"step-{step}", step)
    first, newest = (tmp_path / f"run/step-{step}/model_0.pt" for step in (STEPS[1], STEPS[-1]))
    whole = first.read_bytes()
    first.write_bytes(whole[:size])
    done = cli("average", "run", *LAW, "-o", "out.safetensors")
    named = f"run/step-{STEPS[1]}/model_0.pt: " in done.err
    assert (done.code, named, "not the newest" in done.err) == (3, True, True), done
    first.write_bytes(whole)
    newest.write_bytes(newest.read_bytes()[:size])
    done = cli("average", "run", *LAW, "-o", "out.safetensors")
    assert (done.code, f"step-{STEPS[-1]} is passed over: half-written" in done.err) == (0, True), done


@pytest.mark.parametrize("state", ["train_state", "step"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_items_need_no_metadata(cli: Cli, tmp_path: Path, state: str, ranks: int) -> None:
    """Not those of one rank, nor where only the first rank saves what all have alike."""
    for step in STEPS:
        folder = tmp_path / "run" / f"at-{step}"
        cut = {"w": Cut(weight(step), [Shard(0)]) if ranks > 1 else weight(step)}
        save_ranks(folder, cut, {"fsdp": ranks}, name=ITEM.format(item="model"))
        save_ranks(folder, {"state": {0: {"exp_avg": torch.ones(3)}}}, {"fsdp": ranks}, name=ITEM.format(item="optim"))
        fields = {"step": step, "rng": torch.ones(4, dtype=torch.uint8)}
        torch.save(step if state == "step" else fields, folder / f"{state}_0.pt")
    done = cli("average", tmp_path / "run", *LAW, "--strict", "-o", tmp_path / "out.safetensors")
    assert (done.code, "1 rank" in done.err) == (0, False), done
    assert torch.equal(load_file(tmp_path / "out.safetensors")["w"], expected())


def test_items_with_padded_numbers_are_checkpoints(cli: Cli, tmp_path: Path) -> None:
    """No rank is written as 000000: this is a step, as nanochat names its files."""
    for step in (0, 10, 20):
        torch.save({"w": weight(step)}, tmp_path / f"model_{step:06}.pt")
        torch.save({"state": {}}, tmp_path / f"optimizer_{step:06}.pt")
    done = cli("inspect", tmp_path, "--name-clock", "ba")
    assert (done.code, "3 checkpoints" in done.out + done.err) == (0, True), done


def test_items_numbered_by_epochs_are_checkpoints(cli: Cli, tmp_path: Path) -> None:
    """Where nothing is cut between ranks, model_0.pt and model_1.pt are two checkpoints."""
    for epoch in range(2):
        torch.save({"w": weight(epoch)}, tmp_path / f"model_{epoch}.pt")
        torch.save({"state": {}}, tmp_path / f"optimizer_{epoch}.pt")
    done = cli("inspect", tmp_path, "--name-clock", "ep")
    assert (done.code, "2 checkpoints" in done.out + done.err) == (0, True), done


def test_a_missing_item_of_a_rank_is_named(tmp_path: Path) -> None:
    """Metadata, or other items, say how many ranks there were."""
    save_items(tmp_path, 10)
    (tmp_path / "model_1.pt").unlink()
    (tmp_path / "metadata.pkl").write_bytes(b"\x80\x04}X\x0a\x00\x00\x00world_sizeK\x02s.")
    with pytest.raises(IncompleteCheckpoint, match="of 1 rank of 2 are missing: 1"):
        open_checkpoint(tmp_path)


def test_items_of_two_moments_are_refused(tmp_path: Path) -> None:
    """A rank's file of another save has another step."""
    save_items(tmp_path, 10)
    torch.save({"step": 20}, tmp_path / "train_state_1.pt")
    with pytest.raises(CheckpointError, match="rank 1 was saved at 20ba, and rank 0 at 10ba"):
        open_checkpoint(tmp_path)


def test_another_item_is_the_model_where_the_user_says_so(tmp_path: Path) -> None:
    """--component names the item."""
    save_items(tmp_path, 10, teacher={"t": Cut(weight(3), [Shard(0)])})
    checkpoint = open_checkpoint(tmp_path, ReadOptions(component="teacher"))
    assert read_all(checkpoint.tensors) == {"t": stored_bytes(weight(3))}
    with pytest.raises(UsageError, match="no component 'student'"):
        open_checkpoint(tmp_path, ReadOptions(component="student"))
