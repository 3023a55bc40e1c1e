"""OLMo's local sharded checkpoints: what FSDP flattened is put together as the files say, or one error says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ema_cli.comparing.replicas import check_replicas
from ema_cli.errors import CheckpointError, IncompleteCheckpoint, NoSuchWeights, UsageError
from ema_cli.formats import is_checkpoint_folder, open_checkpoint
from ema_cli.formats.options import ReadOptions
from ema_cli.law.time import Unit
from tests.conftest import Cli
from tests.formats.ranks.flattened import save_flat
from tests.formats.reading import read_all, stored_bytes

BLOCK = "_fsdp_wrapped_module.blocks.0"


def model(step: int = 1) -> dict[str, dict[str, torch.Tensor]]:
    """Return the parameters of two modules that FSDP wraps, by the names that it gives, and of one without any."""
    random = torch.Generator().manual_seed(step)
    shapes = {"": {"wte.weight": (5, 3), "norm": (3,)}, BLOCK: {"att.weight": (3, 7), "att.bias": (7,), "scale": ()}}
    rows = {
        name: {key: torch.randn(shape, generator=random) for key, shape in row.items()} for name, row in shapes.items()
    }
    return {**rows, "_fsdp_wrapped_module.empty": {}}


def named(modules: dict[str, dict[str, torch.Tensor]]) -> dict[str, bytes]:
    """Return the bytes of all parameters by the names that they have in the model."""
    prefixes = {"": "", BLOCK: "blocks.0."}
    return {
        f"{prefixes[module]}{name}": stored_bytes(tensor)
        for module, row in modules.items()
        for name, tensor in row.items()
    }


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 40])
def test_rows_are_cut_into_parameters(ranks: int, old: bool, tmp_path: Path) -> None:
    """Of any number of ranks, also where some have nothing but what fills up; as torch 2.0 and as 2.1 say it."""
    folder = save_flat(tmp_path / "step7", model(), ranks, old=old)
    checkpoint = open_checkpoint(folder)
    assert read_all(checkpoint.tensors) == named(model())
    assert checkpoint.tensors.specs["blocks.0.att.weight"].shape == (3, 7)
    assert (checkpoint.trainer, checkpoint.clock(Unit.BATCH), checkpoint.averaged) == ("OLMo", 7, None)
    assert len(checkpoint.files) == ranks + 1


def test_parameters_may_begin_at_multiples(tmp_path: Path) -> None:
    """With `use_orig_params` FSDP fills up between parameters, too."""
    assert read_all(open_checkpoint(save_flat(tmp_path, model(), 3, align=4)).tensors) == named(model())


def test_half_precision_is_read(tmp_path: Path) -> None:
    """The type is that of the row."""
    rows = {"": {"w": torch.arange(7.0).bfloat16()}}
    checkpoint = open_checkpoint(save_flat(tmp_path, rows, 2))
    assert checkpoint.tensors.specs["w"].dtype.name == "BF16"
    assert read_all(checkpoint.tensors) == {"w": stored_bytes(rows[""]["w"])}


def test_any_part_that_is_named_is_the_whole(tmp_path: Path) -> None:
    """The checkpoint's folder, that with the model, and the file of one rank."""
    folder = save_flat(tmp_path / "step7", model(), 3)
    for path in (folder / "model", folder / "model" / "rank0.pt", folder / "model" / "rank2.pt"):
        checkpoint = open_checkpoint(path)
        assert read_all(checkpoint.tensors) == named(model())
        assert checkpoint.clock(Unit.BATCH) == 7
    assert is_checkpoint_folder(folder)


def test_a_run_is_averaged_and_verified(cli: Cli, tmp_path: Path) -> None:
    """From the folder of the training on, with a copy to say that nothing was written over it."""
    for step in (1, 2, 3):
        save_flat(tmp_path / "run" / f"step{step}", model(step), 2, step=step)
    done = cli("average", "run", "--half-life", "1ba", "--checksum", "-o", "out.pt")
    assert done.code == 0, done
    averaged = torch.load(tmp_path / "out.pt")
    weights = {1: 0.25, 2: 0.25, 3: 0.5}
    expected = sum(weight * model(step)[BLOCK]["att.weight"].double() for step, weight in weights.items())
    assert torch.allclose(averaged["blocks.0.att.weight"].double(), expected, atol=1e-6)
    assert cli("verify", "out.pt", "--against", "run").code == 0
    refused = cli("average", "run", "--half-life", "1ba", "--like-input", "-o", "again")
    assert refused.code != 0
    assert "Traceback" not in refused.err


def test_missing_ranks_are_listed(tmp_path: Path) -> None:
    """By number, as the trainer's state says how many there are."""
    folder = save_flat(tmp_path / "step7", model(), 4)
    for rank in (1, 3):
        (folder / "model" / f"rank{rank}.pt").unlink()
    with pytest.raises(IncompleteCheckpoint, match="2 ranks of 4 are missing: 1, 3"):
        open_checkpoint(folder)


def test_ranks_of_two_saves_are_refused(tmp_path: Path) -> None:
    """Where their tables do not fit each other; what a step is called in them, nobody wrote down."""
    save_flat(tmp_path / "a", model(), 2)
    save_flat(tmp_path / "b", {"": {"wte.weight": torch.ones(5, 4), "norm": torch.ones(4)}}, 2)
    (tmp_path / "b" / "model" / "rank1.pt").rename(tmp_path / "a" / "model" / "rank1.pt")
    with pytest.raises(CheckpointError, match=r"'wte\.weight' is F32 \[20\]|'wte.weight'"):
        open_checkpoint(tmp_path / "a")


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_that_saved_at_two_moments_are_refused(tmp_path: Path, ranks: int) -> None:
    """Each has the trainer's state of its own, with the step and the number of ranks."""
    folder = save_flat(tmp_path / "step7", model(), 2)
    other = save_flat(tmp_path / "other", model(8), ranks, step=8 if ranks == 2 else 7)
    for inner in ("model", "train"):
        (other / inner / "rank1.pt").rename(folder / inner / "rank1.pt")
    said = "saved at 8ba, and rank0.pt at 7ba" if ranks == 2 else "saved by 3 ranks, and rank0.pt by 2"
    with pytest.raises(CheckpointError, match=rf"train/rank1\.pt: was {said}"):
        open_checkpoint(folder)


@pytest.mark.parametrize("size", [0, 5])
def test_a_first_file_that_is_cut_is_no_reason_to_pass_the_checkpoint_over(cli: Cli, tmp_path: Path, size: int) -> None:
    """The others show what it is: damaged in the run, or half-written where it is the newest."""
    for step in (1, 2, 3):
        save_flat(tmp_path / "run" / f"step{step}", model(step), 3, step=step)
    first, newest = (tmp_path / f"run/step{step}/model/rank0.pt" for step in (2, 3))
    whole = first.read_bytes()
    first.write_bytes(whole[:size])
    done = cli("average", "run", "--half-life", "1ba", "-o", "out.pt")
    assert (done.code, "run/step2/model/rank0.pt: " in done.err, "not the newest" in done.err) == (3, True, True), done
    first.write_bytes(whole)
    newest.write_bytes(newest.read_bytes()[:size])
    done = cli("average", "run", "--half-life", "1ba", "-o", "out.pt")
    assert (done.code, "step3 is passed over: half-written" in done.err) == (0, True), done


def test_files_of_ranks_beyond_their_number_are_refused(tmp_path: Path) -> None:
    """As where a training with fewer ranks saved over a folder of one with more."""
    folder = save_flat(tmp_path / "step7", model(), 3)
    save_flat(folder, model(), 2)
    with pytest.raises(CheckpointError, match=r"rank2\.pt: is of rank 2, but train/rank0\.pt says that there are 2"):
        open_checkpoint(folder)


def test_a_row_that_each_rank_has_whole_is_compared(tmp_path: Path) -> None:
    """FSDP that shares nothing saves all of it at each rank."""
    folder = save_flat(tmp_path, {"": {"w": torch.arange(9000.0)}}, 1)
    whole = (folder / "model" / "rank0.pt").read_bytes()
    (folder / "model" / "rank1.pt").write_bytes(whole)
    torch.save({"global_step": 7, "world_size": 2}, folder / "train" / "rank0.pt")
    checkpoint = open_checkpoint(folder)
    assert check_replicas([checkpoint], 1) == []
    assert read_all(checkpoint.tensors) == {"w": stored_bytes(torch.arange(9000.0))}


def changed(handle: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return a handle with other fields."""
    return {**handle, **{f"flat_param.{key}": value for key, value in fields.items()}}


def infos(**fields: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what changes the first parameter's place in a handle."""

    def change(handle: dict[str, Any]) -> dict[str, Any]:
        first, *others = handle["flat_param._shard_param_infos"]
        return changed(handle, _shard_param_infos=(first._replace(**fields), *others))

    return change


DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no names": lambda handle: changed(handle, _fqns=None),
    "fewer names": lambda handle: changed(handle, _fqns=("wte.weight",)),
    "names that are none": lambda handle: changed(handle, _fqns=(3, 4)),
    "one name twice": lambda handle: changed(handle, _fqns=("norm", "norm")),
    "no shapes": lambda handle: changed(handle, _shapes=3),
    "a shape that is none": lambda handle: changed(handle, _shapes=("ab", torch.Size((3,)))),
    "a shape without an end": lambda handle: changed(handle, _shapes=((1 << 40, 1 << 40), (3,))),
    "a shape below nothing": lambda handle: changed(handle, _shapes=((-5, -3), (3,))),
    "no places": lambda handle: changed(handle, _shard_param_infos=None),
    "fewer places": lambda handle: changed(handle, _shard_param_infos=handle["flat_param._shard_param_infos"][:1]),
    "places that are none": lambda handle: changed(handle, _shard_param_infos=(1, 2)),
    "no data": lambda handle: changed(handle, data=None),
    "data of another shape": lambda handle: changed(handle, data=torch.ones(2, 9)[:, ::2]),
    "behind the row": infos(offset_in_shard=1 << 30),
    "below the row": infos(offset_in_shard=-1),
    "behind the tensor": infos(intra_param_start_idx=14, intra_param_end_idx=22),
    "another number": infos(numel_in_shard=3),
    "a place that is no number": infos(offset_in_shard=1.0),
    "a place that is true": infos(offset_in_shard=True),
    "old places without an end": lambda handle: changed(
        handle, _shard_param_infos=None, _shard_indices=(0, 1), _shard_param_offsets=((0, 1 << 70),)
    ),
    "old places of nothing": lambda handle: changed(
        handle, _shard_param_infos=None, _shard_indices=(5, 9), _shard_param_offsets=((0, 8),)
    ),
    "no handle": lambda handle: [handle],
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_does_not_say_where_its_parameters_lie_is_refused(kind: str, tmp_path: Path) -> None:
    """Every table is checked before it is used: one error, which names the file."""
    folder = save_flat(tmp_path / "step7", {"": model()[""]}, 2)
    path = folder / "model" / "rank0.pt"
    state = torch.load(path, weights_only=False)
    (handle,) = state["modules"][0]["handles"]
    state["modules"][0]["handles"] = [DAMAGE[kind](handle)]
    torch.save(state, path)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert str(folder) in str(caught.value.subject)


@pytest.mark.parametrize("modules", [None, {}, [3], [{"name": "a"}], [{"name": 3, "handles": []}], []])
def test_modules_that_are_none_are_refused(modules: Any, tmp_path: Path) -> None:
    """What is not FSDP's list is no model."""
    folder = save_flat(tmp_path, model(), 2)
    torch.save({"modules": modules, "is": "flat_param.data"}, folder / "model" / "rank0.pt")
    with pytest.raises(CheckpointError):
        open_checkpoint(folder)


def test_options_without_a_meaning_are_refused(tmp_path: Path) -> None:
    """The files say where the weights are, and hold no averages."""
    folder = save_flat(tmp_path, model(), 2)
    with pytest.raises(UsageError, match="say it themselves"):
        open_checkpoint(folder, ReadOptions(key="modules"))
    with pytest.raises(NoSuchWeights):
        open_checkpoint(folder, ReadOptions(weights="ema"))
