"""Folders of DeepSpeed's universal format: each parameter from the file that it has there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ema_cli.errors import CheckpointError, EmaError, IncompleteCheckpoint
from ema_cli.formats import open_checkpoint
from ema_cli.law.time import Unit
from tests.conftest import Cli
from tests.formats.zero.make import save_in, small
from tests.formats.zero.test_checkpoint import DATA, MASTERS, assert_holds


@pytest.mark.parametrize("step", [2, 4])
@pytest.mark.parametrize("kind", ["zero1-bfloat16-2", "zero3-bfloat16-2"])
def test_what_deepspeed_converted_is_the_save_that_it_converted(kind: str, step: int) -> None:
    """The parameters have the bits that zero_to_fp32.py gives for the save; integer buffers stay integers."""
    folder = DATA / "universal" / kind / f"global_step{step}"
    expected = load_file(DATA / "expected" / f"{kind}-{step}.safetensors")
    if "zero1" in kind:
        module = torch.load(folder / "mp_rank_00_model_states.pt", weights_only=False)["module"]
        expected |= {name: module[name] for name in ("frozen.weight", "frozen.bias")}
    checkpoint = open_checkpoint(folder, MASTERS)
    assert_holds(checkpoint, expected)
    assert checkpoint.clock(Unit.BATCH) == step
    assert {dtype.name for dtype in open_checkpoint(folder).output_dtypes.values()} == {"BF16"}


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("ranks", [1, 3])
def test_each_stage(stage: int, ranks: int, tmp_path: Path) -> None:
    """Stage 3 stores rows of elements, whose shapes the model states have; parts that do not train are there, too."""
    saved = small(stage=stage, ranks=ranks)
    assert_holds(open_checkpoint(saved.write_universal(tmp_path), MASTERS), saved.masters)


@pytest.mark.parametrize("stage", [2, 3])
def test_automatic_experts_are_whole_there(stage: int, tmp_path: Path) -> None:
    """The tables have those of one rank, and the files those of all; what holds no experts must fit its table."""
    saved = small(stage=stage, more={"ds_autoep_layers": [{"num_experts": 9}]})
    folder = saved.write_universal(tmp_path)
    own = saved.masters["c.weight"]
    whole = torch.cat([own, own + 1, own - 1])
    for path in folder.glob("*_model_states.pt"):
        states = torch.load(path)
        del states["module"]["c.weight"]  # as DeepSpeed saves it
        torch.save(states, path)
    path = folder / "zero/c.weight/fp32.pt"
    record = {"param": whole, "cat_dim": 0, "is_expert_param": True, "ep_num_experts": len(whole)}
    torch.save(record, path)
    assert_holds(open_checkpoint(folder, MASTERS), saved.masters | {"c.weight": whole})
    for wrong in ({"is_expert_param": False}, {"ep_num_experts": 5}, {"param": whole[:, :2].clone()}):
        torch.save(record | wrong, path)
        with pytest.raises(CheckpointError, match=r"'c.weight' is .* here, and .* in the model states"):
            open_checkpoint(folder, MASTERS)


@pytest.mark.parametrize("stage", [2, 3])
def test_routers_of_automatic_experts_have_two_names(stage: int, tmp_path: Path) -> None:
    """DeepSpeed says of no file that they are one: of stage 3 the second is empty, and of stage 2 in half precision."""
    router, other = "layer.mlp.router.gate.weight", "layer.mlp.gate.gate.weight"
    weights = {"a.weight": torch.randn(3, 5), router: torch.randn(2, 3), "other.router.gate.weight": torch.ones(2)}
    layers = [{"module_path": "layer.mlp"}, {"module_path": 3}, "nothing"]
    saved = small(stage=stage, groups=[weights], frozen={}, shared={}, buffers={}, more={"ds_autoep_layers": layers})
    folder = saved.write_universal(tmp_path)
    for path in folder.glob("*_model_states.pt"):
        states = torch.load(path)
        states["module"][other] = states["module"][router]
        torch.save(states, path)
    if stage == 2:
        save_in(folder / "zero" / other / "fp32.pt", {"param": weights[router].bfloat16().float()})
    assert_holds(open_checkpoint(folder, MASTERS), weights | {other: weights[router]})


def test_automatic_experts_of_tensors_that_ranks_cut_are_refused(tmp_path: Path) -> None:
    """Of both at once no file says how they lie."""
    for stage in (1, 3):
        saved = small(stage=stage, cuts=CUTS, frozen={}, more={"ds_autoep_layers": [{"num_experts": 9}]})
        with pytest.raises(CheckpointError, match="ranks cut its tensors, and have experts of their own") as caught:
            open_checkpoint(saved.write_universal(tmp_path / str(stage), 2), MASTERS)
        assert "whole in the training" in (caught.value.hint or "")


CUTS = {"a.weight": "rows", "b.weight": "rows", "c.weight": "columns"}


@pytest.mark.parametrize("maps", [False, True])
@pytest.mark.parametrize("ranks", [2, 3])
def test_tensors_that_ranks_cut_are_whole_there(ranks: int, maps: bool, tmp_path: Path) -> None:
    """What trains is in its file; what does not is put together from the ranks, or is the same in all of them."""
    saved = small(stage=1, cuts=CUTS | ({"f.weight": "columns"} if maps else {}))
    assert_holds(open_checkpoint(saved.write_universal(tmp_path, ranks, maps=maps), MASTERS), saved.masters)


@pytest.mark.parametrize("maps", [False, True])
@pytest.mark.parametrize("ranks", [1, 2])
def test_tensors_that_ranks_cut_before_stage_3_are_whole_there(ranks: int, maps: bool, tmp_path: Path) -> None:
    """Of ranks of ZeRO for each rank of tensors: all that trains is in its file, in its shape."""
    saved = small(ranks=ranks, cuts=CUTS, frozen={})
    checkpoint = open_checkpoint(saved.write_universal(tmp_path, 2, maps=maps), MASTERS)
    assert_holds(checkpoint, saved.masters)
    assert [file.path.name for file in checkpoint.files[: 2 * ranks]] == [
        f"zero_pp_rank_{part}_mp_rank_0{rank}_model_states.pt" for rank in (0, 1) for part in range(ranks)
    ]


def test_what_does_not_train_is_in_parts_there(tmp_path: Path) -> None:
    """Of stage 3 and ranks that cut tensors the converter leaves it in parts of parts: refused, with a way on."""
    with pytest.raises(
        CheckpointError, match=r"'f\.weight' does not train, and the converter leaves it in parts"
    ) as caught:
        open_checkpoint(small(cuts=CUTS).write_universal(tmp_path, 2), MASTERS)
    assert "ZeRO stage 1 or 2" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("zero_pp_rank_1_mp_rank_00", "holds no model states with mp_rank_00 of 1 rank of 2: 1"),
        ("zero_pp_rank_1_mp_rank_01", "holds no model states with mp_rank_01 of 1 rank of 2: 1"),
        ("zero_pp_rank_*_mp_rank_01", "holds no model states, by their mp_rank, of 1 rank of 2: 1"),
    ],
)
def test_a_missing_part_of_a_rank_is_named(missing: str, message: str, tmp_path: Path) -> None:
    """Of two ranks of ZeRO for each of two of tensors, it is said which of both is missing: a number may be either."""
    folder = small(cuts=CUTS, frozen={}).write_universal(tmp_path, 2)
    for path in folder.glob(f"{missing}_model_states.pt"):
        path.unlink()
    with pytest.raises(IncompleteCheckpoint, match=message):
        open_checkpoint(folder, MASTERS)


def test_frozen_tensors_of_which_nothing_says_how_they_are_cut_are_refused(tmp_path: Path) -> None:
    """The converter writes the first rank's part, and no dimension: that is not the whole."""
    saved = small(stage=2, cuts={"f.weight": "rows"})
    with pytest.raises(CheckpointError, match=r"'f\.weight' does not train, and how the ranks cut it is not known"):
        open_checkpoint(saved.write_universal(tmp_path, 3), MASTERS)


@pytest.mark.parametrize("maps", [False, True])
def test_what_never_got_a_gradient_is_refused(tmp_path: Path, maps: bool) -> None:
    """The converter has only the model's own of it then, and takes that of the first rank for the whole."""
    saved = small(stage=1, groups=[{"w": torch.randn(4, 5)}], cuts={"w": "rows"}, shared={})
    folder = saved.write_universal(tmp_path, 2, maps=maps)
    module = torch.load(folder / "mp_rank_00_model_states.pt", weights_only=False)["module"]
    torch.save({"param": module["w"].float()}, folder / "zero/w/fp32.pt")
    with pytest.raises(CheckpointError, match="'w' is what the first rank has of it, alone"):
        open_checkpoint(folder, MASTERS)


def test_a_missing_rank_is_named(tmp_path: Path) -> None:
    """Of three ranks of tensors two are there."""
    folder = small(stage=1, cuts=CUTS).write_universal(tmp_path, 3)
    (folder / "mp_rank_01_model_states.pt").unlink()
    with pytest.raises(IncompleteCheckpoint, match="no model states of 1 rank of 3: 1"):
        open_checkpoint(folder, MASTERS)


def resaved(name: str, value: Callable[[torch.Tensor], object]) -> Callable[[Path], object]:
    """Return a change of what the file of a parameter holds."""

    def change(folder: Path) -> None:
        path = folder / "zero" / name / "fp32.pt"
        torch.save(value(torch.load(path)["param"]), path)

    return change


def added(folder: Path) -> None:
    """Add the file of a parameter that the model does not have."""
    shutil.copytree(folder / "zero" / "d", folder / "zero" / "experts.7")


WRONG: dict[str, tuple[Callable[[Path], object], type[EmaError], str]] = {
    "a parameter missing": (
        lambda folder: shutil.rmtree(folder / "zero" / "b.weight"),
        IncompleteCheckpoint,
        "holds no zero/b.weight/fp32.pt",
    ),
    "a parameter too many": (added, CheckpointError, "experts.7: is of no parameter that the model states list"),
    "another shape": (
        resaved("a.weight", lambda tensor: {"param": tensor.t().contiguous()}),
        CheckpointError,
        r"'a.weight' is \[5, 3\] here, and \[3, 5\] in the model states",
    ),
    "no tensor": (resaved("d", lambda tensor: {"param": 3}), CheckpointError, "zero/d/fp32.pt: holds no tensor"),
    "a view": (
        resaved("a.weight", lambda tensor: {"param": tensor.t().contiguous().t()}),
        CheckpointError,
        "'a.weight' does not lie in order",
    ),
}


@pytest.mark.parametrize("label", WRONG)
def test_what_is_wrong_is_one_error(label: str, tmp_path: Path) -> None:
    """Files that are missing, too many, or not of these tables: named."""
    change, kind, message = WRONG[label]
    folder = small(stage=2).write_universal(tmp_path)
    open_checkpoint(folder, MASTERS)
    change(folder)
    with pytest.raises(EmaError, match=message) as caught:
        open_checkpoint(folder, MASTERS)
    assert type(caught.value) is kind


@pytest.mark.parametrize("stage", [1, 3])
def test_a_conversion_that_did_not_end_is_half_written(stage: int, cli: Cli, tmp_path: Path) -> None:
    """Each file of a parameter was taken for a checkpoint: the converter writes the model states last."""
    for step in (5, 6, 7):
        folder = small(step, stage=stage).write_universal(tmp_path / f"run/global_step{step}")
    for path in folder.glob("*_model_states.pt"):
        path.unlink()
    with pytest.raises(IncompleteCheckpoint, match="holds no model states") as caught:
        open_checkpoint(folder)
    assert "ds_to_universal" in (caught.value.hint or "")
    done = cli("average", "run", "--half-life", "1ba", "-o", "out.safetensors")
    assert (done.code, "global_step7 is passed over: half-written" in done.err) == (0, True), done
    (folder / "zero/optimizer_state.pt").unlink()
    with pytest.raises(IncompleteCheckpoint, match="holds no model states"):
        open_checkpoint(folder)
