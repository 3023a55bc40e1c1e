"""Open files that each rank saved: the tensors are those that torch cut, and what does not fit is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, init_device_mesh
from torch.distributed.tensor.placement_types import _StridedShard

from ema_cli.errors import CheckpointError, IncompleteCheckpoint, NoWeights
from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import ReadOptions
from ema_cli.law.time import Unit
from tests.formats.ranks.saves import VERL, Cut, playing, save_ranks, save_sharded
from tests.formats.reading import read_all, read_range, stored_bytes

GRID = {"dp": 2, "tp": 2}


def matrix(rows: int = 7, columns: int = 5, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return a matrix in which each element is another."""
    return torch.arange(rows * columns).reshape(rows, columns).to(dtype)


CUTS: dict[str, tuple[dict[str, int], torch.Tensor, list[Placement]]] = {
    "rows": ({"fsdp": 2}, matrix(8), [Shard(0)]),
    "uneven rows": ({"fsdp": 3}, matrix(), [Shard(0)]),
    "fewer rows than ranks": ({"fsdp": 4}, matrix(2), [Shard(0)]),
    "columns": ({"fsdp": 2}, matrix(4, 5), [Shard(1)]),
    "the middle": ({"fsdp": 2}, matrix(4, 6).reshape(2, 3, 4), [Shard(1)]),
    "whole at each": ({"fsdp": 2}, matrix(), [Replicate()]),
    "one number": ({"fsdp": 2}, torch.tensor(2.5), [Replicate()]),
    "nothing": ({"fsdp": 2}, torch.zeros(0, 3), [Shard(0)]),
    "half precision": ({"fsdp": 2}, matrix(dtype=torch.bfloat16), [Shard(0)]),
    "replicas of shards": (GRID, matrix(), [Replicate(), Shard(0)]),
    "shards of replicas": (GRID, matrix(), [Shard(0), Replicate()]),
    "rows and columns": (GRID, matrix(), [Shard(0), Shard(1)]),
    "rows twice": (GRID, matrix(), [Shard(0), Shard(0)]),
    "rows of what tensor parallelism cut": (GRID, matrix(), [_StridedShard(0, split_factor=2), Shard(0)]),
    "columns so": (GRID, matrix(4, 9), [_StridedShard(1, split_factor=2), Shard(1)]),
    "three dimensions": (
        {"dp": 2, "fsdp": 2, "tp": 2}, matrix(9), [Replicate(), _StridedShard(0, split_factor=2), Shard(0)]
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CUTS)
def test_a_tensor_is_whole_again(kind: str, tmp_path: Path) -> None:
    """However torch cuts a tensor, it is read whole, and by ranges."""
    mesh, whole, placements = CUTS[kind]
    save_ranks(tmp_path, {"layer.weight": Cut(whole, placements)}, mesh)
    tensors = open_checkpoint(tmp_path).tensors
    stored = stored_bytes(whole)
    assert tensors.specs["layer.weight"].shape == tuple(whole.shape)
    assert read_all(tensors) == {"layer.weight": stored}
    step = 3 * whole.element_size()
    for start in range(0, len(stored), whole.element_size()):
        stop = min(start + step, len(stored))
        assert read_range(tensors, "layer.weight", start, stop) == stored[start:stop]


def test_a_mesh_may_be_a_part_of_all_ranks(tmp_path: Path) -> None:
    """What is shared along one side of the mesh lies at the other ranks once more."""
    state = {"a": Cut(matrix(), [Shard(0)], ("dp",)), "b": Cut(matrix(4), [Shard(1)], ("tp",))}
    save_ranks(tmp_path, state, GRID)
    assert read_all(open_checkpoint(tmp_path).tensors) == {"a": stored_bytes(matrix()), "b": stored_bytes(matrix(4))}


def test_boxes_of_a_sharded_tensor_are_put_together(tmp_path: Path) -> None:
    """Two boxes at each rank, which form no rows."""
    boxes = [[((0, 0), (2, 3)), ((2, 3), (5, 2))], [((0, 3), (2, 2)), ((2, 0), (5, 3))]]
    save_sharded(tmp_path, matrix(), boxes)
    assert read_all(open_checkpoint(tmp_path).tensors) == {"shared": stored_bytes(matrix())}


def test_olmo_s_files_of_ranks_are_put_together(tmp_path: Path) -> None:
    """ai2-olmo's TorchLegacyShardedCheckpointer: FSDP's SHARDED_STATE_DICT under `model`, its optimizer's beside it."""
    halves = [[((0, 0), (4, 5))], [((4, 0), (3, 5))]]
    save_sharded(
        tmp_path / "step7",
        matrix(),
        halves,
        name="rank{rank}.pt",
        state_of=lambda tensor: {
            "model": {"w": tensor}, "optim": {"state": {"w": {"exp_avg": tensor}}, "param_groups": []},
            "epoch": 0, "global_step": 7, "global_train_examples_seen_this_epoch": 56, "cuda_rng_state": None,
        },
    )  # fmt: skip
    checkpoint = open_checkpoint(tmp_path / "step7")
    assert read_all(checkpoint.tensors) == {"w": stored_bytes(matrix())}
    assert checkpoint.clock(Unit.BATCH) == 7


@pytest.mark.parametrize(
    "name", ["model_world_size_{world}_rank_{rank}.pt", "pytorch_model_fsdp_rank{rank}.bin", "model_{rank}.pt"]
)
def test_files_of_ranks_are_known_by_a_number_in_their_names(name: str, tmp_path: Path) -> None:
    """Trainers name them in their own ways."""
    save_ranks(tmp_path, {"a": Cut(matrix(), [Shard(0)])}, {"fsdp": 3}, name=name)
    assert read_all(open_checkpoint(tmp_path).tensors) == {"a": stored_bytes(matrix())}


def test_each_rank_may_have_a_folder(tmp_path: Path) -> None:
    """The number may be in the name of a folder: rank_0/model.pt."""
    for rank in range(2):
        save_ranks(tmp_path / f"rank_{rank}", {"a": Cut(matrix(), [Shard(0)])}, {"x": 2}, name="model.pt", ranks=[rank])
    assert read_all(open_checkpoint(tmp_path / "rank_0" / "model.pt").tensors) == {"a": stored_bytes(matrix())}


def test_one_rank_has_the_whole(tmp_path: Path) -> None:
    """A run on one device, too, saves what is cut, into one part; its file alone is a checkpoint."""
    state = {"model": {"a": Cut(matrix(), [Shard(0)])}, "step": 3}
    save_ranks(tmp_path / "verl", state, {"fsdp": 1})
    save_ranks(tmp_path, state, {"fsdp": 1}, name="ckpt.pt")
    for path in (tmp_path / "verl", tmp_path / "ckpt.pt"):
        checkpoint = open_checkpoint(path)
        assert read_all(checkpoint.tensors) == {"a": stored_bytes(matrix())}
        assert checkpoint.clock(Unit.BATCH) == 3


def test_a_share_alone_is_refused(tmp_path: Path) -> None:
    """A file that may be of any rank is no model, and its error says what to do."""
    save_ranks(tmp_path, {"a": Cut(matrix(), [Shard(0)])}, {"fsdp": 2}, name="ckpt.pt", ranks=[1])
    with pytest.raises(CheckpointError, match="cut between ranks") as caught:
        open_checkpoint(tmp_path / "ckpt.pt")
    assert "model_rank_0.pt" in (caught.value.hint or "")


@pytest.mark.parametrize("name", [VERL, "model_rank_{rank}.pt", "model_{rank}.pt"])
def test_missing_ranks_are_listed(name: str, tmp_path: Path) -> None:
    """By number: as the names say how many there are, or as the mesh does."""
    ranks = [0, 1] if "world" not in name else [0, 3]
    save_ranks(tmp_path, {"a": Cut(matrix(), [Shard(0)])}, {"fsdp": 4}, name=name, ranks=ranks)
    with pytest.raises(IncompleteCheckpoint, match="missing.*: " + ("1, 2" if ranks == [0, 3] else "2, 3")):
        open_checkpoint(tmp_path)


def test_ranks_without_a_share_need_no_file(tmp_path: Path) -> None:
    """Where the names do not say how many ranks there are, copies at further ranks are not needed."""
    save_ranks(tmp_path, {"a": Cut(matrix(), [Replicate(), Shard(0)])}, GRID, name="model_rank_{rank}.pt", ranks=[0, 1])
    assert read_all(open_checkpoint(tmp_path).tensors) == {"a": stored_bytes(matrix())}


def test_the_file_of_one_rank_twice_is_no_model(tmp_path: Path) -> None:
    """A file that was copied to the name of another rank leaves a part of the model out."""
    save_ranks(tmp_path, {"a": Cut(matrix(), [Shard(0)])}, {"fsdp": 2}, ranks=[0])
    (tmp_path / VERL.format(world=2, rank=1)).write_bytes((tmp_path / VERL.format(world=2, rank=0)).read_bytes())
    with pytest.raises(CheckpointError, match="do not cover it"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("rows", [7, 4000])
def test_replicas_of_a_parameter_must_be_equal(rows: int, tmp_path: Path) -> None:
    """One element that differs shows, by the checksums that torch writes."""
    other = matrix(rows)
    other[rows // 3, 1] += 1
    placements = [Replicate(), Shard(0)]
    save_ranks(tmp_path, {"a": Cut(matrix(rows), placements)}, GRID, ranks=[0, 1])
    save_ranks(tmp_path, {"a": Cut(other, placements)}, GRID, ranks=[2, 3])
    with pytest.raises(CheckpointError, match="'a' differs"):
        open_checkpoint(tmp_path)


def test_replicas_without_checksums_are_compared_by_samples(tmp_path: Path) -> None:
    """Files of torch's old format have no checksums: the beginning, the middle and the end are read."""
    for rank, last in ((0, 1.0), (1, 2.0)):
        whole = matrix(4000)
        whole[-1, -1] = last
        state = {"a": Cut(whole, [Replicate()]), "b": Cut(matrix(), [Shard(0)])}
        save_ranks(tmp_path, state, {"fsdp": 2}, ranks=[rank], zipped=False)
    with pytest.raises(CheckpointError, match="'a' differs"):
        open_checkpoint(tmp_path)


def counted(**others: dict[str, Any]) -> dict[str, Any]:
    """Return a state dict with batch statistics, and other things that each rank has whole."""
    cut = Cut(matrix(), [Shard(0)])
    return {"norm.weight": cut, "norm.running_mean": torch.zeros(3), "norm.seen": torch.zeros(2), **others}


def test_buffers_are_those_of_the_first_rank(tmp_path: Path) -> None:
    """Ranks count for themselves: what lies whole beside cut parameters is a buffer. That it differs is said."""
    other = {"norm.running_mean": torch.ones(3), "norm.seen": torch.ones(2), "steps": torch.tensor(4)}
    save_ranks(tmp_path, counted(steps=torch.tensor(3)), {"fsdp": 2}, per_rank={1: other})
    checkpoint = open_checkpoint(tmp_path)
    assert read_all(checkpoint.tensors)["norm.running_mean"] == bytes(12)
    (warning,) = checkpoint.warnings
    assert warning == "buffers that differ between ranks are those of rank 0: norm.running_mean, norm.seen, steps"


def test_what_may_be_a_parameter_must_not_differ(tmp_path: Path) -> None:
    """Each rank's own experts, which nothing calls cut, are not those of the first; the way on works."""
    save_ranks(
        tmp_path, counted(**{"expert.weight": matrix()}), {"fsdp": 2}, per_rank={1: {"expert.weight": -matrix()}}
    )
    with pytest.raises(CheckpointError, match=r"'expert\.weight' differs") as caught:
        open_checkpoint(tmp_path)
    assert (caught.value.hint or "").endswith("copy='expert.weight'")
    checkpoint = open_checkpoint(tmp_path, ReadOptions(copy=("expert.weight",)))
    assert read_all(checkpoint.tensors)["expert.weight"] == stored_bytes(matrix())
    assert not checkpoint.warnings


def test_ranks_of_two_saves_are_refused(tmp_path: Path) -> None:
    """Files with other clocks are not of one moment, and files with other shapes not of one model."""
    for step, rank in ((3, 0), (4, 1)):
        save_ranks(tmp_path / "a", {"model": {"a": Cut(matrix(), [Shard(0)])}, "step": step}, {"x": 2}, ranks=[rank])
        save_ranks(tmp_path / "b", {"a": Cut(matrix(step), [Shard(0)])}, {"x": 2}, ranks=[rank])
    with pytest.raises(CheckpointError, match=r"was saved at 4ba, and model_world_size_2_rank_0\.pt at 3ba"):
        open_checkpoint(tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"'a' is F32 .* at the ranks before"):
        open_checkpoint(tmp_path / "b")


def test_summands_are_refused(tmp_path: Path) -> None:
    """Of a tensor that is the sum of what ranks have, no rank has a part."""
    for rank in range(2):
        with playing(rank, 2):
            share = DTensor.from_local(matrix(), init_device_mesh("cpu", (2,)), [Partial()], run_check=False)
            torch.save({"a": share}, tmp_path / VERL.format(world=2, rank=rank))
    with pytest.raises(CheckpointError, match="summand"):
        open_checkpoint(tmp_path)


def test_a_share_of_another_size_is_refused(tmp_path: Path) -> None:
    """Where the rank has not what its placements say, nobody knows what it has."""
    for rank in range(2):
        with playing(rank, 2):
            mesh = init_device_mesh("cpu", (2,))
            share = DTensor.from_local(matrix(3), mesh, [Shard(0)], shape=torch.Size((7, 5)), stride=(5, 1))
            torch.save({"a": share}, tmp_path / VERL.format(world=2, rank=rank))
    with pytest.raises(CheckpointError, match="by its placements"):
        open_checkpoint(tmp_path)


def test_flattened_parameters_are_refused(tmp_path: Path) -> None:
    """FSDP's LOCAL_STATE_DICT has parameters in a row, and no names of them."""
    state = {"layer._flat_param": Cut(torch.arange(35.0), [Shard(0)])}
    save_ranks(tmp_path, state, {"fsdp": 2}, name="pytorch_model_fsdp_rank{rank}.bin")
    with pytest.raises(CheckpointError, match="several parameters in a row") as caught:
        open_checkpoint(tmp_path)
    assert "SHARDED_STATE_DICT" in (caught.value.hint or "")


def test_files_without_weights_are_none_of_ranks(tmp_path: Path) -> None:
    """What each rank keeps beside the model is no model."""
    save_ranks(tmp_path, {"lr_scheduler": {"last_epoch": 3}}, {"fsdp": 2})
    with pytest.raises(NoWeights):
        open_checkpoint(tmp_path)


def test_tied_tensors_are_one(tmp_path: Path) -> None:
    """Two names of one storage have one place."""
    for rank in range(2):
        with playing(rank, 2):
            mesh = init_device_mesh("cpu", (2,))
            tied, other = (DTensor.from_local(matrix(2), mesh, [Shard(0)], run_check=False) for _ in range(2))
            torch.save({"a": tied, "b": tied, "c": other}, tmp_path / VERL.format(world=2, rank=rank))
    tensors = open_checkpoint(tmp_path).tensors
    assert tensors.place("a") == tensors.place("b") != tensors.place("c")
