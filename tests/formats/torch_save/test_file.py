"""Files of torch.save as checkpoints: what counts as one, clocks beside them, parts that are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import CheckpointError, IncompleteCheckpoint
from ema_cli.formats import open_checkpoint
from ema_cli.formats.torch_save import file as torch_file
from tests.formats.trainers.state import plain_clocks

W = {"w": torch.ones(2)}
YAML = "accum_grad: 4\ncv_loss: 1.25\nepoch: 2\nlr: 0.001\nstep: 3000\nsave_time: 01/01/2025\n"


def save(path: Path, saved: object = W, sidecar: str | None = None) -> Checkpoint:
    """Save a file, and text beside it, and open the file."""
    torch.save(saved, path)
    if sidecar is not None:
        path.with_suffix(".yaml").write_text(sidecar)
    return open_checkpoint(path)


@pytest.mark.parametrize(("name", "epoch"), [("2.pt", 3), ("epoch_2.pt", 3), ("step_3000.pt", 2)])
def test_wenets_clocks_lie_beside(name: str, epoch: int, tmp_path: Path) -> None:
    """wenet writes step and epoch, from 0, into a .yaml; saved by steps, the epoch is in progress."""
    checkpoint = save(tmp_path / name, sidecar=YAML)
    assert plain_clocks(checkpoint.progress) == {"ba": 750, "ep": epoch}
    assert {clock.source for clock in checkpoint.progress.clocks.values()} == {"sidecar"}
    assert [file.path.suffix for file in checkpoint.files] == [".pt", ".yaml"]
    assert not checkpoint.progress.epoch_origin_unknown


@pytest.mark.parametrize(
    "text",
    ["", "epoch: 2\n", "step: 3000\n", "lr: 0.1\nname: x\n", "  epoch: 2\n  step: 3000\n", "epoch: -1\nstep: 3\n",
     "epoch: two\nstep: 3\n", "epoch: 1\nstep: 1e3\n", "\0\xff" * 100, "#" * (1 << 20) + YAML],
)  # fmt: skip
def test_another_yaml_is_no_clock(text: str, tmp_path: Path) -> None:
    """A configuration of somebody else's beside a file, or one without both counters, says nothing."""
    checkpoint = save(tmp_path / "2.pt", sidecar=text)
    assert plain_clocks(checkpoint.progress) == {}
    assert len(checkpoint.files) == 1


def test_a_clock_within_the_file_wins(tmp_path: Path) -> None:
    """A file that counts itself needs no text beside it."""
    checkpoint = save(tmp_path / "2.pt", {"model": W, "step": 7}, sidecar=YAML)
    assert plain_clocks(checkpoint.progress) == {"ba": 7}
    assert len(checkpoint.files) == 1


@pytest.mark.parametrize(
    "name", ["checkpoint3-rank-0.pt", "checkpoint_1_50-shard1.pt", "pytorch_model_fsdp_rank0.bin", "__0_0.distcp"]
)
def test_a_part_of_a_model_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    """What one rank saved of a model is never taken for the model."""
    with pytest.raises(CheckpointError, match="is one rank's part of a model, by its name") as caught:
        save(tmp_path / name, {"model": W})
    assert "put the parts together first" in (caught.value.hint or "")


def test_composers_rank_is_no_part(tmp_path: Path) -> None:
    """Composer's and timm's whole files say a rank or a number, too."""
    for name in ("ep1-ba50-rank0.pt", "checkpoint-3.pth.tar", "rank_0_best.pt"):
        assert list(save(tmp_path / name).tensors.specs) == ["w"]


def test_a_fifo_or_a_folder_is_not_waited_for(tmp_path: Path) -> None:
    """A FIFO has no first bytes for us, and a folder neither; nobody waits for a writer."""
    os.mkfifo(tmp_path / "a.pt")
    assert torch_file.first_bytes(tmp_path / "a.pt", 4) == b""
    assert torch_file.first_bytes(tmp_path, 4) == b""
    assert torch_file.first_bytes(tmp_path / "none", 4) == b""
    assert not torch_file.matches(tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="is not a regular file"):
        open_checkpoint(tmp_path / "a.pt")


def test_errors_keep_their_class_and_name_the_file_once(tmp_path: Path) -> None:
    """What is found wrong within a file is told with its path, as the kind of error that it is."""
    torch.save({"model": {"w": torch.ones(1000)}}, tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(IncompleteCheckpoint) as caught:
        open_checkpoint(tmp_path / "a.pt")
    assert str(caught.value).count(str(tmp_path / "a.pt")) == 1
