"""Files of ranks without a clock: those of two saves are told by the schedules beside them, as verl keeps them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from ema_cli.errors import CheckpointError
from ema_cli.formats import open_checkpoint

ACTOR = Path(__file__).parents[2] / "data/torch-fsdp-2.13.0/fsdp2/global_step_20/actor"


def folder(path: Path, *states: object) -> Path:
    """Copy what two ranks saved, with these states of a schedule beside."""
    shutil.copytree(ACTOR, path)
    for rank, state in enumerate(states):
        name = f"extra_state_world_size_2_rank_{rank}.pt"
        torch.save({"lr_scheduler": state, "rng": {"cpu": torch.zeros(3, dtype=torch.uint8)}}, path / name)
    return path


def schedule(steps: int) -> dict[str, object]:
    """Return the state of torch's schedule after so many steps."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    made = torch.optim.lr_scheduler.LambdaLR(torch.optim.SGD([parameter], lr=1.0), lambda step: 1.0)
    made.last_epoch = steps
    return made.state_dict()


def test_ranks_of_two_saves_are_refused(tmp_path: Path) -> None:
    """The file that is further is named, with both numbers."""
    path = folder(tmp_path / "actor", schedule(20), schedule(10))
    with pytest.raises(CheckpointError, match=r"rank_1\.pt: its schedule .* has made 10 steps, and that of .* 20"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    "states",
    [(schedule(20), schedule(20)), (None, None), (schedule(20), None), ({"last_epoch": "x"}, schedule(3)), (3, [4])],
    ids=["alike", "none", "one", "no number", "no schedule"],
)
def test_what_says_nothing_is_passed_over(tmp_path: Path, states: tuple[object, object]) -> None:
    """Ranks alike, and a state that holds no schedule, or none that counts."""
    checkpoint = open_checkpoint(folder(tmp_path / "actor", *states))
    assert len(checkpoint.tensors.specs) > 1


def test_a_damaged_file_beside_is_no_model(tmp_path: Path) -> None:
    """It is not needed to average, so that it does not stop it either."""
    path = folder(tmp_path / "actor", schedule(20), schedule(20))
    for name in ("extra_state_world_size_2_rank_0.pt", "extra_state_world_size_2_rank_1.pt"):
        (path / name).write_bytes((path / name).read_bytes()[:50])
    assert len(open_checkpoint(path).tensors.specs) > 1


def test_a_file_that_was_read_may_not_change(tmp_path: Path) -> None:
    """What told that the ranks are of one save is among the files of the checkpoint."""
    path = folder(tmp_path / "actor", schedule(20), schedule(20))
    names = {file.path.name for file in open_checkpoint(path).files}
    assert {"extra_state_world_size_2_rank_0.pt", "extra_state_world_size_2_rank_1.pt"} <= names
