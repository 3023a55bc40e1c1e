"""Folders of DeepSpeed's ZeRO: the model put together from all ranks' files, or one error that says what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import CheckpointError, EmaError, IncompleteCheckpoint, NoSuchWeights
from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.pickles.unpickle import unpickle
from ema_cli.formats.torch_save import zip_container
from ema_cli.law.time import Unit
from tests.formats.reading import read_all, read_range, stored_bytes
from tests.formats.zero.make import Saved, Tensors, small

DATA = Path(__file__).parents[2] / "data" / "deepspeed-0.19.8"
MASTERS = ReadOptions(masters=True)
KINDS = [path.name for path in sorted(DATA.glob("zero*"))]
PART = "zero_pp_rank_{}_mp_rank_00_model_states.pt"
OPTIMIZER = "bf16_zero_pp_rank_{}_mp_rank_00_optim_states.pt"


def assert_holds(checkpoint: Checkpoint, tensors: Tensors) -> None:
    """Check names, types, shapes and all bytes."""
    specs = checkpoint.tensors.specs
    assert {name: spec.shape for name, spec in specs.items()} == {name: t.shape for name, t in tensors.items()}
    assert read_all(checkpoint.tensors) == {name: stored_bytes(tensor) for name, tensor in tensors.items()}


@pytest.mark.parametrize("step", [2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_what_deepspeed_wrote_is_what_its_script_gives(kind: str, step: int) -> None:
    """Every parameter has the bits that zero_to_fp32.py gives; what stage 1 keeps beside comes from the model."""
    folder = DATA / kind / f"global_step{step}"
    expected = load_file(DATA / "expected" / f"{kind}-{step}.safetensors")
    if "zero1" in kind:  # frozen parameters are in the model states alone, and the script leaves them out
        module = torch.load(folder / "mp_rank_00_model_states.pt", weights_only=False)["module"]
        expected |= {name: module[name] for name in ("frozen.weight", "frozen.bias")}
    checkpoint = open_checkpoint(folder, MASTERS)
    assert_holds(checkpoint, expected)
    assert checkpoint.clock(Unit.BATCH) == step
    assert checkpoint.output_dtypes == {}


def test_stage_3_is_written_in_the_type_of_the_model() -> None:
    """Without being asked for float32 weights, they are averaged, and written in the model's type, which is said."""
    checkpoint = open_checkpoint(DATA / "zero3-bfloat16-2" / "global_step4")
    assert {dtype.name for dtype in checkpoint.output_dtypes.values()} == {"BF16"}
    assert "body.0.weight" in checkpoint.output_dtypes
    assert checkpoint.tensors.specs["body.0.weight"].dtype.name == "F32"
    assert any("--masters" in note for note in checkpoint.notes)
    whole = open_checkpoint(DATA / "zero3-float32-3" / "global_step4")
    assert (whole.output_dtypes, whole.notes) == ({}, ())


def test_equal_descriptions_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second save of the run is read by the descriptions of the first, and its weights are its own."""
    programs: list[Any] = []
    monkeypatch.setattr(
        zip_container, "unpickle", lambda *args, **kwargs: programs.append(args) or unpickle(*args, **kwargs)
    )
    first = small()
    second = small(groups=[{name: 2 * tensor for name, tensor in group.items()} for group in first.groups])
    options = ReadOptions(masters=True)
    assert_holds(open_checkpoint(first.write(tmp_path / "a"), options), first.masters)
    count = len(programs)
    assert count
    assert_holds(open_checkpoint(second.write(tmp_path / "b"), options), second.masters)
    assert len(programs) == count


@given(data=st.data())
def test_any_cut_is_put_together(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever the stage, the ranks and the shapes: each range of each tensor is that of the whole."""
    shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
    groups = data.draw(st.lists(st.lists(shapes, min_size=1, max_size=4), min_size=1, max_size=3))
    numbers = iter(range(100))
    saved = Saved(
        stage=data.draw(st.sampled_from([1, 2, 3])),
        ranks=data.draw(st.integers(1, 5)),
        groups=[{f"w{next(numbers)}": torch.randn(shape) for shape in group} for group in groups],
        frozen={
            f"f{number}": torch.randn(shape) for number, shape in enumerate(data.draw(st.lists(shapes, max_size=2)))
        },
        buffers={"n": torch.tensor(3)},
    )
    folder = saved.write(tmp_path_factory.mktemp("cut"))
    checkpoint = open_checkpoint(folder, MASTERS)
    assert_holds(checkpoint, saved.masters)
    name = data.draw(st.sampled_from(sorted(saved.masters)))
    count, size = saved.masters[name].numel(), saved.masters[name].element_size()
    first = data.draw(st.integers(0, count))
    last = data.draw(st.integers(first, count))
    part = saved.masters[name].flatten()[first:last]
    assert read_range(checkpoint.tensors, name, first * size, last * size) == stored_bytes(part)


def test_with_mics_the_first_group_of_ranks_saves_the_whole(tmp_path: Path) -> None:
    """Six ranks in groups of two: the files of two ranks are all. They were refused."""
    saved = small(ranks=2, more={"dp_world_size": 6, "ds_config": {"zero_optimization": {"mics_shard_size": 2}}})
    assert_holds(open_checkpoint(saved.write(tmp_path / "global_step5"), MASTERS), saved.masters)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_tied_names_are_one_tensor(stage: int, tmp_path: Path) -> None:
    """A parameter that has two names lies once."""
    saved = small(stage=stage)
    checkpoint = open_checkpoint(saved.write(tmp_path), MASTERS)
    assert_holds(checkpoint, saved.masters)
    assert checkpoint.tensors.place("head.weight") == checkpoint.tensors.place("a.weight")
    assert len({checkpoint.tensors.place(name) for name in saved.masters}) == len(saved.masters) - 1


@pytest.mark.parametrize("universal", [1, 2, 0])
@pytest.mark.parametrize("value", [torch.zeros(0, dtype=torch.uint8), torch.ones(3, dtype=torch.uint8), None])
def test_extra_state_of_modules_is_no_parameter(
    value: torch.Tensor | None, universal: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TransformerEngine's is a tensor of bytes, empty where there is nothing to keep: it lies whole in the file."""
    saved = small(stage=1 if universal == 2 else 3)
    states = Saved.model_states
    monkeypatch.setattr(Saved, "model_states", lambda made, rank: add(states(made, rank), {"a._extra_state": value}))
    folder = tmp_path / "global_step5"
    checkpoint = open_checkpoint(saved.write_universal(folder, universal) if universal else saved.write(folder))
    if value is None:
        assert checkpoint.left_out == ("a._extra_state",)
    else:
        spec = checkpoint.tensors.specs["a._extra_state"]
        assert (spec.dtype.name, spec.shape) == ("U8", tuple(value.shape))
    assert read_all(checkpoint.tensors)["a.weight"] == stored_bytes(saved.masters["a.weight"])


def add(states: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return model states with more in the module."""
    return {**states, "module": {**states["module"], **values}}


@pytest.mark.parametrize("stage", [1, 2])
def test_the_model_itself_lies_whole_in_stages_1_and_2(stage: int, tmp_path: Path) -> None:
    """It is read as it lies; that the optimizer has float32 weights is said."""
    saved = small(stage=stage)
    checkpoint = open_checkpoint(saved.write(tmp_path))
    assert_holds(checkpoint, saved.model)
    assert any("--masters" in note for note in checkpoint.notes)


def test_two_checkpoints_share_their_tables(tmp_path: Path) -> None:
    """A thousand checkpoints of one run have one table of pieces."""
    one, other = (open_checkpoint(small(step).write(tmp_path / str(step))) for step in (5, 6))
    one.tensors.share(other.tensors)
    assert one.tensors.parts[0].table is other.tensors.parts[0].table
    assert_holds(one, small(5).masters)


def test_ranks_may_differ_between_checkpoints(tmp_path: Path) -> None:
    """Each checkpoint is read by its own tables."""
    for ranks in (1, 2, 4):
        saved = small(ranks=ranks)
        assert_holds(open_checkpoint(saved.write(tmp_path / str(ranks))), saved.masters)


def test_no_masters_are_an_error_that_says_so(tmp_path: Path) -> None:
    """Where no optimizer has float32 weights, they cannot be taken."""
    folder = small(stage=1).write(tmp_path)
    for file in folder.glob("*optim_states.pt"):
        file.unlink()
    with pytest.raises(NoSuchWeights, match="holds no float32 weights of an optimizer"):
        open_checkpoint(folder, MASTERS)


def test_steps_of_padding_between_parameters(tmp_path: Path) -> None:
    """Where DeepSpeed aligns each parameter, its table says how many elements lie between."""
    first, second = torch.randn(3), torch.randn(5)
    saved = small(stage=2, ranks=1, groups=[{"a": first, "b": second}], shared={}, frozen={})
    folder = saved.write(tmp_path)
    states = saved.optimizer_states(0)
    states["optimizer_state_dict"]["single_partition_of_fp32_groups"] = [
        torch.cat([first, torch.zeros(2), second, torch.zeros(1)])
    ]
    states["optimizer_state_dict"]["param_alignment_paddings"] = [[2, 1]]
    torch.save(states, folder / OPTIMIZER.format(0))
    assert_holds(open_checkpoint(folder, MASTERS), saved.masters)


# ---- What is wrong ----

Change = Callable[[Path, Saved], object]


def states(file: str, change: Callable[[dict[str, Any]], object]) -> Change:
    """Return a change of what one file holds."""

    def apply(folder: Path, saved: Saved) -> None:
        root = torch.load(folder / file, weights_only=False)
        change(root)
        torch.save(root, folder / file)

    return apply


def optimizer(rank: int, change: Callable[[dict[str, Any]], object]) -> Change:
    """Return a change of one rank's optimizer states."""
    return states(OPTIMIZER.format(rank), lambda root: change(root["optimizer_state_dict"]))


def gone(name: str) -> Change:
    """Return a change after which a file is missing."""
    return lambda folder, saved: (folder / name).unlink()


def of_another_save(*names: str) -> Change:
    """Return a change after which some files are those of another step."""

    def apply(folder: Path, saved: Saved) -> None:
        later = small(saved.step + 1, stage=saved.stage, ranks=saved.ranks).write(folder.parent / "later")
        for name in names:
            (later / name).replace(folder / name)

    return apply


def cut(group: int, count: int) -> Callable[[dict[str, Any]], None]:
    """Return a change after which elements are missing at the end of a group."""

    def change(root: dict[str, Any]) -> None:
        key = next(key for key in root if key in ("fp32_flat_groups", "single_partition_of_fp32_groups"))
        root[key][group] = (
            root[key][group][:-count].clone() if count > 0 else torch.cat([root[key][group], torch.zeros(-count)])
        )

    return change


def every(change: Callable[[int], Change]) -> Change:
    """Return a change of the files of all three ranks."""
    return lambda folder, saved: [change(rank)(folder, saved) for rank in range(3)]


def copied(name: str, to: str) -> Change:
    """Return a change after which a file lies there a second time."""
    return lambda folder, saved: (folder / to).write_bytes((folder / name).read_bytes())


def fragment(tensor: torch.Tensor) -> Callable[[dict[str, Any]], None]:
    """Return a change of the fragment of a parameter that does not train."""
    return lambda root: root["frozen_param_fragments"].update({"f.weight": tensor})


def in_halves(root: dict[str, Any]) -> None:
    """Store the weights in another type."""
    root["fp32_flat_groups"] = [part.half() for part in root["fp32_flat_groups"]]


def of_stage_2(root: dict[str, Any]) -> None:
    """Store the weights under the name that stage 2 has for them."""
    root["single_partition_of_fp32_groups"] = root.pop("fp32_flat_groups")


def shape(name: str, *sizes: int, group: int = 0) -> Callable[[dict[str, Any]], None]:
    """Return a change of a shape in a table."""
    return lambda root: root["param_shapes"][group].update({name: torch.Size(sizes)})


ELSEWHERE = "no table there says where its parts lie"
QUANTIZED = "zero_quantized_nontrainable_weights"
WRONG: dict[str, tuple[int, Change, type[EmaError], str]] = {
    "optimizer states of a rank missing": (
        3, gone(OPTIMIZER.format(1)), IncompleteCheckpoint, r"holds no optimizer states of 1 rank of 3: 1"),
    "all optimizer states missing": (
        3, lambda folder, saved: [file.unlink() for file in folder.glob("*optim_states.pt")], IncompleteCheckpoint,
        r"holds no optimizer states \(\*_optim_states.pt\), in which ZeRO keeps the weights"),
    "model states of a rank missing": (
        3, gone(PART.format(2)), IncompleteCheckpoint, r"holds no model states of 1 rank of 3: 2"),
    "masters of the last rank missing": (
        2, gone(OPTIMIZER.format(2)), IncompleteCheckpoint, r"holds no optimizer states of 1 rank of 3: 2"),
    "ranks of two saves": (
        3, of_another_save(PART.format(1), OPTIMIZER.format(1)), CheckpointError,
        r"rank_1.*its global_steps is 6, and that of .*rank_0.* is 5"),
    "optimizer states of two saves": (
        3, of_another_save(OPTIMIZER.format(2)), CheckpointError, r"rank_2.*its step of the optimizer is 6"),
    "masters of two saves": (
        1, of_another_save(OPTIMIZER.format(1)), CheckpointError, r"rank_1.*its step of the optimizer is 6"),
    "a rank of an older save with more": (
        3, copied(OPTIMIZER.format(2), OPTIMIZER.format(7)), CheckpointError,
        r"rank_7.*is of rank 7, but .*rank_0.* says that there are 3"),
    "two files of a rank": (
        3, copied(OPTIMIZER.format(1), OPTIMIZER.format(1)[5:]), CheckpointError, "are both of rank 1"),
    "a partition too short": (
        3, optimizer(1, cut(1, 1)), CheckpointError, r"rank_1.*its weights end before 'e' does: after \d+ of \d+"),
    "a partition too long": (
        3, optimizer(1, cut(1, -1)), CheckpointError, r"rank_1.*its weights have \d+ elements, and the model states"),
    "masters too short": (
        2, optimizer(2, cut(0, 1)), CheckpointError, r"rank_2.*its weights end before 'b.weight' does"),
    "masters too long": (2, optimizer(2, cut(0, -9)), CheckpointError, r"rank_2.*its weights have \d+ elements"),
    "another number of groups": (
        2, optimizer(1, lambda root: root["single_partition_of_fp32_groups"].pop()), CheckpointError,
        r"rank_1.*holds 1 groups of weights, and the model states list 2"),
    "tables of ranks that differ": (
        3, states(PART.format(1), shape("a.weight", 5, 3)), CheckpointError,
        r"rank_1.*its tables of parameters are not those of .*rank_0"),
    "no table": (
        3, states(PART.format(0), lambda root: root.pop("param_shapes")), CheckpointError, "has no 'param_shapes'"),
    "a parameter in no table": (
        3, every(lambda rank: states(PART.format(rank), lambda root: root["frozen_param_shapes"].pop("f.bias"))),
        CheckpointError, f"'f.bias' is a parameter, but {ELSEWHERE}"),
    "a fragment missing": (
        3, states(PART.format(2), lambda root: root["frozen_param_fragments"].pop("f.bias")), CheckpointError,
        r"rank_2.*has no fragment of 'f.bias'"),
    "a fragment too short": (
        3, states(PART.format(0), fragment(torch.ones(1).bfloat16())), CheckpointError,
        r"the fragments of 'f.weight' have 7 elements for the shape \[3, 3\]"),
    "a fragment of another type": (
        3, states(PART.format(1), fragment(torch.ones(3))), CheckpointError, r"rank_1.*the fragments of 'f.weight'"),
    "quantized": (
        3, every(lambda rank: states(PART.format(rank), fragment(torch.ones(3, dtype=torch.int8)))), CheckpointError,
        r"'f.weight' does not train, and is quantized \(I8\)"),
    "quantized, as the configuration says": (
        3, states(PART.format(0), lambda root: root.update(ds_config={"zero_optimization": {QUANTIZED: True}})),
        CheckpointError, r"'f.weight' does not train, and is quantized \(BF16\)"),
    "experts": (
        3, states(PART.format(0), lambda root: root.update(ds_autoep_layers=[{"a": 1}])), CheckpointError,
        "the model has experts"),
    "a part of the group of ranks that saves with MiCS": (
        3, states(PART.format(0), lambda root: root.update(ds_config={"zero_optimization": {"mics_shard_size": 4}})),
        IncompleteCheckpoint, "holds no model states of 1 rank of 4: 3"),
    "two stages": (3, optimizer(0, of_stage_2), CheckpointError, "its stage of ZeRO is"),
    "no number of ranks": (
        3, optimizer(0, lambda root: root.pop("partition_count")), CheckpointError, "does not say into how many parts"),
    "weights of two types": (
        3, optimizer(2, in_halves), CheckpointError, r"rank_2.*its weights are F16, and those before them F32"),
    "alignment of other parameters": (
        2, optimizer(0, lambda root: root.update(param_alignment_paddings=[[0], [0]])), CheckpointError,
        "'param_alignment_paddings' are not those of the 2 parameters of group 0"),
    "a name twice": (
        3, every(lambda rank: states(PART.format(rank), shape("a.weight", 0, group=1))), CheckpointError,
        "'a.weight' is in two groups"),
}  # fmt: skip


@pytest.mark.parametrize("label", WRONG)
def test_what_is_wrong_is_one_error(label: str, tmp_path: Path) -> None:
    """Missing files, files of several saves and tables that contradict each other: named, with what to do."""
    stage, change, kind, message = WRONG[label]
    saved = small(stage=stage, ranks=3)
    folder = saved.write(tmp_path / "global_step5")
    open_checkpoint(folder, MASTERS)
    change(folder, saved)
    with pytest.raises(EmaError, match=message) as caught:
        open_checkpoint(folder, MASTERS)
    assert type(caught.value) is kind
    assert str(caught.value).startswith(f"{folder}")


def test_the_converter_is_named_for_experts(tmp_path: Path) -> None:
    """Their refusal had no hint. What DeepSpeed's converter makes of them is read."""
    folder = small(more={"autoep_layers": [{"num_experts": 2}]}).write(tmp_path / "global_step5")
    with pytest.raises(CheckpointError, match="the model has experts") as caught:
        open_checkpoint(folder)
    assert f"ds_to_universal --input_folder {folder} --output_folder universal/global_step5" in (
        caught.value.hint or ""
    )
