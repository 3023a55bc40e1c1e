"""Models in several files that differ in a number: put together, taken for copies, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ema_cli import averaging
from ema_cli.errors import CheckpointError, IncompleteCheckpoint
from ema_cli.formats import is_checkpoint_folder, open_checkpoint
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.trainers.part_names import parts_of
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time, Unit
from ema_cli.planning.plan import make_plan
from ema_cli.runs.opening import open_by_name
from ema_cli.runs.run import open_run
from tests.conftest import make_tensors

HUNDRED = Recipe(half_life=Time.parse("100ba"))
NAMES = [
    ("consolidated.00.pth", "consolidated.01.pth"),
    ("rank0.pt", "rank1.pt"),
    ("tp_rank_00_pp_rank_000.pt", "tp_rank_00_pp_rank_001.pt"),
    ("reshard-model_part-0.pt", "reshard-model_part-1.pt"),
    ("weights-mp0.safetensors", "weights-mp1.safetensors"),
    ("part-0-of-2.pt", "part-1-of-2.pt"),
    ("model-1-of-2.safetensors", "model-2-of-2.safetensors"),
    ("model.00.pt", "model.01.pt"),
    ("1.safetensors", "2.safetensors"),
]


def write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)


def halves(seed: int) -> list[dict[str, torch.Tensor]]:
    """Return two parts of a model, each tensor whole in one of them."""
    items = sorted(make_tensors(seed).items())
    return [dict(items[::2]), dict(items[1::2])]


@pytest.mark.parametrize("names", NAMES, ids=lambda names: names[0])
def test_parts_with_different_tensors_are_one_model(tmp_path: Path, names: tuple[str, str]):
    """Each tensor is whole in one of the files: the average has all, as float64 computes them."""
    for step in (100, 200):
        for name, tensors in zip(names, halves(step), strict=True):
            write(tmp_path / f"step-{step}" / name, tensors)
    run = open_run(tmp_path)
    assert [len(checkpoint.tensors.specs) for checkpoint in run.checkpoints] == [len(make_tensors(1))] * 2
    averaging.average(make_plan(run, HUNDRED), tmp_path / "out.safetensors")
    averaged, one, other = load_file(tmp_path / "out.safetensors"), make_tensors(100), make_tensors(200)
    for name, tensor in averaged.items():
        if tensor.is_floating_point():
            assert torch.allclose(tensor.double(), (one[name].double() + other[name].double()) / 2, atol=1e-6)
    again = open_by_name({checkpoint.name: checkpoint.path for checkpoint in run.checkpoints}, ReadOptions())
    assert [checkpoint.tensors.specs for checkpoint in again] == [each.tensors.specs for each in run.checkpoints]


def test_one_part_that_is_named_brings_the_others(tmp_path: Path):
    """Half a model is never published: a part that is named is the whole, however many of its parts are named."""
    for step in (100, 200):
        for number, tensors in enumerate(halves(step)):
            write(tmp_path / f"step-{step}" / f"consolidated.{number:02d}.pth", tensors)
    firsts = [tmp_path / f"step-{step}" / "consolidated.00.pth" for step in (100, 200)]
    others = [path.with_name("consolidated.01.pth") for path in firsts]
    for paths in (firsts, others, [*firsts, *others]):
        run = open_run(paths)
        assert [len(each.tensors.specs) for each in run.checkpoints] == [len(make_tensors(1))] * 2


def test_parts_of_many_moments_lie_in_one_folder(tmp_path: Path):
    """The number of the step tells the moments apart, the number of the rank the parts."""
    for step in (100, 200, 300):
        for number, tensors in enumerate(halves(step)):
            write(tmp_path / f"step{step}-rank{number}.pt", tensors)
    run = open_run(tmp_path)
    assert [checkpoint.name for checkpoint in run.checkpoints] == [f"step{step}-rank0.pt" for step in (100, 200, 300)]
    assert {len(checkpoint.tensors.specs) for checkpoint in run.checkpoints} == {len(make_tensors(1))}


@pytest.mark.parametrize("names", NAMES[:7], ids=lambda names: names[0])
@pytest.mark.parametrize("shapes", [((2, 4), (2, 4)), ((2, 4), (3, 4))])
def test_tensors_that_are_cut_are_refused_with_the_converter(
    tmp_path: Path, names: tuple[str, str], shapes: tuple[tuple[int, int], tuple[int, int]]
):
    """Halves of one tensor are never averaged with each other, and no half is published."""
    for number, (name, shape) in enumerate(zip(names, shapes, strict=True)):
        write(tmp_path / "step-100" / name, {"norm": torch.ones(4), "wq.weight": torch.full(shape, float(number))})
    for path in (tmp_path / "step-100", tmp_path, tmp_path / "step-100" / names[0], tmp_path / "step-100" / names[1]):
        with pytest.raises(CheckpointError, match=r"'(wq\.weight|norm)' is in .* and in ") as raised:
            open_run(path)
        assert "put parts together first, with" in (raised.value.hint or "")


def test_copies_by_rank_are_one_model(tmp_path: Path):
    """Data-parallel ranks may each save the whole model: the first is taken, and that is said."""
    for number in (0, 1, 2):
        write(tmp_path / f"rank{number}.pt", make_tensors(1))
    checkpoint = open_checkpoint(tmp_path / "rank1.pt")
    assert set(checkpoint.tensors.specs) == set(make_tensors(1))
    assert checkpoint.notes[-1] == "the first of 3 files by ranks, which hold the same as far as samples show"


def test_a_part_that_is_missing_makes_the_model_incomplete(tmp_path: Path):
    """Where a name says of how many parts it is one, all must be there."""
    write(tmp_path / "part-0-of-2.pt", halves(1)[0])
    with pytest.raises(
        IncompleteCheckpoint, match=r"'part-1-of-2\.pt', another part of the model by its name, is miss"
    ):
        open_checkpoint(tmp_path / "part-0-of-2.pt")


@pytest.mark.parametrize(
    ("names", "tensors"),
    [
        (("model_0.pth", "model_1.pth"), {"w": torch.ones(2)}),  # fastai's, and folds of a cross-validation
        (("lora_rank4.safetensors", "lora_rank8.safetensors"), {"w": torch.ones(2)}),
        (("lora_rank1.safetensors", "lora_rank2.safetensors"), {"w": torch.ones(2)}),
        (("epoch-1-of-2.pt", "epoch-2-of-2.pt"), {"w": torch.ones(2)}),
        (("fold1of2.pt", "fold2of2.pt"), {"w": torch.ones(2)}),
        (("part-1.pt", "part-2.pt"), {"w": torch.ones(2)}),
    ],
)
def test_other_numbers_are_no_parts(tmp_path: Path, names: tuple[str, str], tensors: dict[str, torch.Tensor]):
    """Files with equal tensors under other numbers are checkpoints by themselves."""
    for name in names:
        write(tmp_path / name, tensors)
    assert not is_checkpoint_folder(tmp_path)
    assert [each.name for each in open_run(tmp_path).checkpoints] == list(names)


def test_names_cannot_ask_for_endless_parts():
    """A name that says of how many parts it is one is not believed without a limit."""
    assert parts_of("rank-0-of-9999_part-0-of-9999.pt", lambda name: True) == ()


def test_a_part_that_is_missing_between_whole_models_stops_an_average(tmp_path: Path):
    """A model in the middle of a run that lacks a part is damaged: it is named, and left out only on request."""
    for step in (100, 200, 300):
        for number, tensors in enumerate(halves(step), 1):
            write(tmp_path / f"step-{step}" / f"model-{number}-of-2.safetensors", tensors)
    (tmp_path / "step-200" / "model-2-of-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"step-200: 'model-2-of-2.safetensors', another part"):
        averaging.average(make_plan(open_run(tmp_path), HUNDRED), tmp_path / "out.safetensors")
    plan = make_plan(open_run(tmp_path, skip_damaged=True), HUNDRED)
    averaging.average(plan, tmp_path / "out.safetensors")
    assert [entry.checkpoint.progress.clocks[Unit.BATCH].value for entry in plan.entries] == [100, 300]


def test_folders_of_parts_are_named_like_other_checkpoints(tmp_path: Path):
    """`average step-100 step-200` takes what lies in each, under any of the names."""
    for number, names in enumerate(NAMES):
        folders = [tmp_path / str(number) / f"step-{step}" for step in (100, 200)]
        for folder in folders:
            for name, tensors in zip(names, halves(1), strict=True):
                write(folder / name, tensors)
        run = open_run(folders)
        assert [(each.name, len(each.tensors.specs)) for each in run.checkpoints] == [
            ("step-100", len(make_tensors(1))),
            ("step-200", len(make_tensors(1))),
        ]


def test_the_error_names_the_two_files_that_hold_a_tensor(tmp_path: Path):
    """Of three parts, the first and the last may share one."""
    for number, name in enumerate(("a", "b", "a")):
        write(tmp_path / f"rank{number}.pt", {name: torch.full((2,), float(number))})
    with pytest.raises(CheckpointError, match=r"one of 3 files .*, and 'a' is in rank0\.pt and in rank2\.pt:"):
        open_checkpoint(tmp_path / "rank0.pt")


# Where each rank writes into a folder of its own; the step is of the run, or lies inside.
RANK_FOLDERS = [
    "step-{step}/tp_0{rank}/model.pt",
    "step-{step}/mp_rank_0{rank}/model_states.pt",
    "step-{step}/rank{rank}/model.safetensors",
    "step-{step}/rank_{rank}/pytorch_model.bin",
    "step-{step}/model_part-{rank}/weights.pt",
    "rank{rank}/step-{step}.pt",
    "shard_{rank}/step-{step}/model.safetensors",
]


@pytest.mark.parametrize("pattern", RANK_FOLDERS)
def test_ranks_that_have_folders_of_their_own_are_one_model(pattern: str, tmp_path: Path):
    """The search, and who names what any rank wrote, gets all tensors, with the averages of float64."""
    for step in (100, 200):
        for rank, tensors in enumerate(halves(step)):
            write(tmp_path / pattern.format(step=step, rank=rank), tensors)
    paths = [[tmp_path / pattern.format(step=step, rank=rank) for step in (100, 200)] for rank in (0, 1)]
    for given in (tmp_path, *paths):
        run = open_run(given)
        assert [set(each.tensors.specs) for each in run.checkpoints] == [set(make_tensors(1))] * 2
    averaging.average(make_plan(open_run(tmp_path), HUNDRED), tmp_path / "out.safetensors")
    averaged, one, other = load_file(tmp_path / "out.safetensors"), make_tensors(100), make_tensors(200)
    for name, tensor in averaged.items():
        if tensor.is_floating_point():
            assert torch.allclose(tensor.double(), (one[name].double() + other[name].double()) / 2, atol=1e-6)


@pytest.mark.parametrize("pattern", RANK_FOLDERS)
def test_ranks_whose_tensors_are_cut_are_refused(pattern: str, tmp_path: Path):
    """Two folders with pieces of one tensor are no two models, and no half of it is published."""
    for rank in (0, 1):
        write(tmp_path / pattern.format(step=100, rank=rank), {"w": torch.full((2, 4), float(rank))})
    for path in (tmp_path, tmp_path / pattern.format(step=100, rank=1)):
        with pytest.raises(
            CheckpointError, match=r"'w' is in .*0.* and in .*1.*: tensors are cut into parts"
        ) as raised:
            open_run(path)
        assert "put parts together first, with" in (raised.value.hint or "")


def test_the_error_names_the_ranks_where_all_below_them_has_one_name(tmp_path: Path):
    """Of folders around folders, the part of the paths from the first difference on."""
    for rank in (0, 1):
        write(tmp_path / f"rank{rank}/step-100/model.pt", {"w": torch.full((2, 4), float(rank))})
    with pytest.raises(CheckpointError, match=r"in rank0/step-100/model\.pt and in rank1/step-100/model\.pt"):
        open_checkpoint(tmp_path / "rank0/step-100/model.pt")


def test_a_rank_that_lacks_its_part_makes_the_model_incomplete(tmp_path: Path):
    """Of three ranks one has not written yet."""
    for rank in (0, 1, 2):
        write(tmp_path / f"rank{rank}" / "step-100.pt", {f"layer{rank}": torch.ones(2)})
    (tmp_path / "rank1" / "step-100.pt").unlink()
    with pytest.raises(IncompleteCheckpoint, match=r"'rank1/step-100\.pt', another part .* is missing"):
        open_checkpoint(tmp_path / "rank0" / "step-100.pt")


def test_what_other_ranks_keep_for_themselves_is_no_part(tmp_path: Path):
    """The model is whole where only the first rank has it, and folders with numbers that are no ranks are models."""
    for rank in (0, 1):
        write(tmp_path / f"rank{rank}" / "optimizer.pt", {"state": torch.ones(2)})
    write(tmp_path / "rank0" / "step-100.pt", make_tensors(1))
    assert set(open_checkpoint(tmp_path / "rank0" / "step-100.pt").tensors.specs) == set(make_tensors(1))
    for rank in (8, 16):
        write(tmp_path / f"rank{rank}" / "step-100.pt", {"w": torch.ones(rank)})
    assert open_checkpoint(tmp_path / "rank8" / "step-100.pt").tensors.specs["w"].shape == (8,)


def test_parts_may_have_the_number_of_the_rank_in_folder_and_name(tmp_path: Path):
    """tp_00/model_tp00.pt and tp_01/model_tp01.pt are one model, by whichever name."""
    for number, tensors in enumerate(halves(1)):
        write(tmp_path / "step-1" / f"tp_0{number}" / f"model_tp0{number}.pt", tensors)
    for path in (tmp_path / "step-1" / "tp_00" / "model_tp00.pt", tmp_path / "step-1" / "tp_01" / "model_tp01.pt"):
        assert open_checkpoint(path).tensors.specs.keys() == make_tensors(1).keys()
    assert len(open_run(tmp_path).checkpoints) == 1


@pytest.mark.parametrize("folder", ["tp_0{}", "pp{}", "mp_rank_0{}", "model-part-{}"])
@pytest.mark.parametrize("beside", [None, "log.txt"])
def test_a_rank_that_cuts_tensors_and_saved_nothing_is_missing(folder: str, beside: str | None, tmp_path: Path):
    """Half a model is none, whatever else lies in the folder of the other rank."""
    path = tmp_path / "step-1" / folder.format(0) / "model.pt"
    write(path, halves(1)[0])
    other = tmp_path / "step-1" / folder.format(1)
    other.mkdir()
    if beside is not None:
        (other / beside).write_text("")
    with pytest.raises(CheckpointError, match=r"another part of the model by its name, is missing|one rank's part"):
        open_checkpoint(path)


def test_an_empty_folder_of_a_rank_is_a_question(tmp_path: Path):
    """The hint helps: without it the model is that of the one rank; and so where the other rank has other files."""
    path = tmp_path / "step-1" / "rank0" / "model.pt"
    write(path, make_tensors(1))
    other = tmp_path / "step-1" / "rank1"
    other.mkdir()
    with pytest.raises(IncompleteCheckpoint, match=r"'rank1/model\.pt', another part of the model") as raised:
        open_checkpoint(path)
    assert str(raised.value.hint).endswith(str(other))
    other.rmdir()
    assert open_checkpoint(path).tensors.specs.keys() == make_tensors(1).keys()
    write(other / "rng.pt", {"state": torch.ones(2)})
    assert open_checkpoint(path).tensors.specs.keys() == make_tensors(1).keys()
