"""Ways in which a wrong model could be written without a word: each is right, refused, or said."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file

from ema_cli import averaging
from ema_cli.checkpoint import TensorSpec
from ema_cli.dtypes import DTYPES
from ema_cli.errors import CheckpointError, EmaError, RunError, UsageError
from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import ReadOptions
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time, Unit
from ema_cli.planning.plan import make_plan
from ema_cli.runs.run import open_run
from ema_cli.writing.target import parse_target
from tests.conftest import make_tensors, write_hf_run, write_torch_run

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
W = {"w": torch.ones(2)}


def average(run: Path, output: Path, half_life: str = "10ba", **options: Any) -> None:
    """Average a run."""
    plan = make_plan(open_run([run]), Recipe(half_life=Time.parse(half_life)))
    averaging.average(plan, parse_target(output), **options)


def pieces(folder: Path, **state: Any) -> Path:
    """Save a folder of torch.distributed.checkpoint."""
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "ema_0.9999_010000.pt", "ema_step_15.pt", "ema-step10.pt", "ema_epoch3.pth", "model-ema-step100.pt",
        "ema.step1.pt", "step_100_ema_0.999.pt", "weights_ema_best.pt", "averaged_model.pt",
        "swa_model_10.pt", "average_10.pt",
    ],
)  # fmt: skip
def test_averages_by_their_names_are_no_checkpoints(name: str, tmp_path: Path):
    """However a script calls its averages, they do not enter beside the raw checkpoints; the user reads of them."""
    write_torch_run(tmp_path, [10, 20], name="model_{}.pt")
    torch.save({"model": make_tensors(15), "step": 15}, tmp_path / name)
    run = open_run([tmp_path])
    assert [each.name for each in run.checkpoints] == ["model_10.pt", "model_20.pt"]
    assert [each.name for each in run.passed_over] == [name]


@pytest.mark.parametrize("name", ["epoch=3-val_ema_loss=0.25.ckpt", "step-5-avg_loss=0.1.ckpt", "schema-step-5.pt"])
def test_metrics_in_names_are_no_averages(name: str, tmp_path: Path):
    """A metric that is an average does not make the weights one."""
    torch.save(make_tensors(1), tmp_path / name)
    assert [each.name for each in open_run([tmp_path]).checkpoints] == [name]


def test_a_run_may_be_called_after_its_averages(tmp_path: Path):
    """A run in a folder exp_ema is raw as any other; one in a folder that is just called ema is averages."""
    for name, averaged in (("exp_ema", False), ("ema", True)):
        write_torch_run(tmp_path / name, [10, 20])
        found = open_run([tmp_path / name]).checkpoints
        assert [each.averaged is not None for each in found] == [averaged, averaged]


def test_two_models_of_fsdp_ask_which(tmp_path: Path):
    """Of two models that Accelerate saved in one checkpoint, neither is taken for the whole."""
    for number in (0, 1):
        pieces(tmp_path / "c" / f"pytorch_model_fsdp_{number}", model={"w": torch.full((2,), float(number))})
    with pytest.raises(UsageError, match="pytorch_model_fsdp_0, pytorch_model_fsdp_1"):
        open_checkpoint(tmp_path / "c")
    chosen = open_checkpoint(tmp_path / "c", ReadOptions(component="pytorch_model_fsdp_1"))
    out = bytearray(8)
    chosen.tensors.read_into("w", 0, memoryview(out))
    assert torch.frombuffer(out, dtype=torch.float32).tolist() == [1, 1]


def sentence_run(run: Path, dense: bool) -> None:
    """Write checkpoints of a sentence-transformers model, with a pooling and maybe a trained layer after it."""
    write_hf_run(run, [10, 20])
    for folder in run.iterdir():
        modules = [{"path": ""}, {"path": "1_Pooling"}, *([{"path": "2_Dense"}] if dense else [])]
        (folder / "modules.json").write_text(json.dumps(modules))
        for module in modules[1:]:
            (folder / module["path"]).mkdir()
            (folder / module["path"] / "config.json").write_text("{}")
        if dense:
            save_file(W, folder / "2_Dense" / "model.safetensors")


def test_modules_with_weights_of_their_own_are_of_the_model(tmp_path: Path):
    """A model whose second part has weights, too, is not averaged by its first alone."""
    sentence_run(tmp_path / "run", dense=True)
    names = open_run([tmp_path / "run"]).checkpoints[0].tensors.specs
    assert {f"2_Dense/{name}" for name in W} < set(names)


def test_modules_without_weights_travel(tmp_path: Path):
    """What modules.json names is in the output, so that it loads."""
    sentence_run(tmp_path / "run", dense=False)
    average(tmp_path / "run", tmp_path / "out")
    assert (tmp_path / "out" / "1_Pooling" / "config.json").read_text() == "{}"


@pytest.mark.parametrize("folder", [False, True])
def test_other_dicts_of_tensors_are_mentioned(folder: bool, tmp_path: Path):
    """A head beside the model is not taken, and said not to be."""
    state = {"model": W, "head": {"h": torch.ones(1)}, "optimizer_state_dict": {"m": torch.ones(1)}}
    if folder:
        path = pieces(tmp_path / "step-1", **state)
    else:
        path = tmp_path / "step-1.pt"
        torch.save(state, path)
    (warning,) = open_checkpoint(path).warnings
    assert "head" in warning
    assert "not taken (--key)" in warning
    assert "optimizer" not in warning


def test_a_model_at_the_top_is_not_a_scaler(tmp_path: Path):
    """What stands beside a model at the top does not take its place, nor its name a key."""
    path = pieces(tmp_path / "step-1", **W, grad_scaler={"scale": torch.ones(1)}, critic={"c": torch.ones(1)})
    checkpoint = open_checkpoint(path)
    assert list(checkpoint.tensors.specs) == ["w"]
    assert "critic" in checkpoint.warnings[0]


def test_lightning_with_deepspeed_counts_completed_epochs(tmp_path: Path):
    """The file that DeepSpeed writes for Lightning has Lightning's clocks: epoch 3 is the fourth that was completed."""
    saved = {"module": W, "global_steps": 41, "global_step": 40, "epoch": 3, "pytorch-lightning_version": "2.6"}
    path = tmp_path / "epoch=3-step=40.ckpt" / "checkpoint"
    path.mkdir(parents=True)
    torch.save(saved, path / "mp_rank_00_model_states.pt")
    clocks = open_checkpoint(path.parent).progress.clocks
    assert {unit: clock.value for unit, clock in clocks.items()} == {Unit.BATCH: 40, Unit.EPOCH: 4}


def test_a_loop_of_fabric_s_has_its_own_clocks(tmp_path: Path):
    """What Fabric keeps beside the shards is the loop's own: its epochs are not Lightning's."""
    path = pieces(tmp_path / "a", model=W)
    torch.save({"step": 10, "epoch": 1}, path / "meta.pt")
    assert {unit: clock.value for unit, clock in open_checkpoint(path).progress.clocks.items()} == {
        Unit.BATCH: 10,
        Unit.EPOCH: 1,
    }


def test_checkpoints_beside_a_final_model_are_mentioned(tmp_path: Path):
    """Numbered files beside a model, without a clock in their names, do not vanish without a word."""
    write_torch_run(tmp_path, [1, 2], name="{:06}.pt")
    save_file(make_tensors(9), tmp_path / "model.safetensors")
    passed = {each.name: each.reason for each in open_run([tmp_path]).passed_over if each.warn}
    assert passed == dict.fromkeys(("000001.pt", "000002.pt"), "beside a model, and its name has no clock")


def test_a_side_file_that_changes_stops_the_average(tmp_path: Path):
    """The configuration that travels is that of the checkpoint, or nothing is written."""
    write_hf_run(tmp_path / "run", [10, 20])
    config = tmp_path / "run" / "checkpoint-20" / "config.json"
    with pytest.raises(CheckpointError, match=r"config\.json"):
        average(tmp_path / "run", tmp_path / "out", progress=lambda *_: config.write_text('{"another": 1}'))
    assert not (tmp_path / "out").exists()


def test_averages_inside_the_model_are_mentioned(tmp_path: Path):
    """A model that keeps averages of itself among its tensors: the user reads that they are averaged again."""
    from ema_cli.runs.tensor_rules import inner_averages_warnings

    torch.save({"model.w": torch.ones(2), "model_ema.w": torch.ones(2)}, tmp_path / "step-1.pt")
    (note,) = inner_averages_warnings(open_checkpoint(tmp_path / "step-1.pt").tensors.specs)
    assert "'model_ema.w'" in note


@pytest.mark.parametrize(
    ("follower", "followed"),
    [
        ("module.encoder_k.w", "module.encoder_q.w"),
        ("target_network.w", "online_network.w"),
        ("model.target_encoder.w", "model.context_encoder.w"),
        ("critic_target.w", "critic.w"),
    ],
)
def test_a_part_that_follows_another_is_mentioned(follower: str, followed: str):
    """Momentum encoders and target networks are averages mostly, wherever in the model they are."""
    from ema_cli.runs.tensor_rules import inner_averages_warnings

    spec = TensorSpec(DTYPES["F32"], (2,))
    (note,) = inner_averages_warnings({followed: spec, follower: spec})
    assert note.startswith(f"'{follower}' may be an average of '{followed}'")
    assert inner_averages_warnings({follower: spec}) == []


def test_a_teacher_in_the_model_is_mentioned(tmp_path: Path):
    """Whether it is an average of the student or frozen, nothing tells: the user reads what happens."""
    from ema_cli.runs.tensor_rules import inner_averages_warnings

    both = {"student.w": torch.ones(2), "teacher.w": torch.ones(2)}
    save_file(both, tmp_path / "step-1.safetensors")
    (note,) = inner_averages_warnings(open_checkpoint(tmp_path / "step-1.safetensors").tensors.specs)
    assert note == "'teacher.w' may be an average of 'student.w', and so others; then they are averaged again"
    save_file({"teacher.w": torch.ones(2)}, tmp_path / "step-2.safetensors")
    assert inner_averages_warnings(open_checkpoint(tmp_path / "step-2.safetensors").tensors.specs) == []


@pytest.mark.parametrize("by", ["neighbour", "arguments"])
def test_a_part_of_megatron_s_is_refused(by: str, tmp_path: Path):
    """One tensor-parallel rank's file is no model: its neighbours say so, or the arguments in it."""
    folder = tmp_path / "iter_0000010" / "mp_rank_00"
    folder.mkdir(parents=True)
    size = 2 if by == "arguments" else 1
    torch.save({"model": W, "args": argparse.Namespace(tensor_model_parallel_size=size)}, folder / "model_optim_rng.pt")
    if by == "neighbour":
        (tmp_path / "iter_0000010" / "mp_rank_01").mkdir()
    says = {"neighbour": "another part of the model by its name, is missing", "arguments": "one rank's part of a model"}
    with pytest.raises(CheckpointError, match=says[by]):
        open_checkpoint(folder / "model_optim_rng.pt")


@pytest.mark.parametrize(("alphas", "good"), [((4.0, 4.0), True), ((4.0, 8.0), False)])
def test_scales_of_an_adapter_must_agree(alphas: tuple[float, float], good: bool, tmp_path: Path):
    """kohya's scripts store alpha as a tensor: adapters of two scales are not averaged."""
    for step, alpha in zip((10, 20), alphas, strict=True):
        tensors = {"u.lora_down.weight": torch.ones(2, 2), "u.lora_up.weight": torch.ones(2, 2)}
        save_file({**tensors, "u.alpha": torch.tensor(alpha)}, tmp_path / f"a-step{step:08}.safetensors")
    output = tmp_path / "out.safetensors"
    if good:
        average(tmp_path, output)
        assert load_file(output)["u.alpha"].item() == 4
    else:
        with pytest.raises(RunError, match=r"'u\.alpha' is not the same"):
            average(tmp_path, output)


def test_a_shard_without_a_number_keeps_its_name(tmp_path: Path):
    """Some models come with one more file beside the numbered shards."""
    for step in (10, 20):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        shards = {"a": "model-00001-of-00002", "b": "model-00002-of-00002", "c": "mtp"}
        for name, shard in shards.items():
            save_file({name: torch.full((2,), float(step))}, folder / f"{shard}.safetensors")
        index = {"weight_map": {name: f"{shard}.safetensors" for name, shard in shards.items()}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    average(tmp_path / "run", tmp_path / "out")
    written = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    assert written == {name: f"{shard}.safetensors" for name, shard in shards.items()}
    assert load_file(tmp_path / "out" / "mtp.safetensors")["c"].tolist() == [15, 15]


LINKS: dict[str, Callable[[Path], object]] = {
    "another run": lambda outside: write_torch_run(outside, [5]),
    "a folder of folders": lambda outside: (outside / "a" / "b").mkdir(parents=True),
}


@pytest.mark.parametrize("label", LINKS)
def test_a_link_out_of_the_folder_is_not_followed(label: str, tmp_path: Path):
    """A link to a folder elsewhere does not bring other checkpoints in; one to a checkpoint does."""
    write_torch_run(tmp_path / "run", [10])
    LINKS[label](tmp_path / "outside")
    (tmp_path / "run" / "step-9").symlink_to(tmp_path / "outside")
    write_hf_run(tmp_path / "stored", [20])
    (tmp_path / "run" / "checkpoint-20").symlink_to(tmp_path / "stored" / "checkpoint-20")
    run = open_run([tmp_path / "run"])
    assert [each.name for each in run.checkpoints] == ["step-10.pt", "checkpoint-20"]
    assert [each.reason for each in run.passed_over if each.warn] == ["a link that leads out of the folder"]


STRANGE: dict[str, Callable[[Path], Path]] = {
    "a long name": lambda folder: folder / f"{'a' * 240}-step-10.pt",
    "a longer name": lambda folder: folder / f"{'a' * 252}.pt",
}


@pytest.mark.parametrize("label", STRANGE)
def test_names_as_long_as_they_may_be(label: str, tmp_path: Path):
    """A name to which no suffix can be added is a name like any other."""
    path = STRANGE[label](tmp_path)
    torch.save({"model": W, "step": 1}, path)
    assert list(open_checkpoint(path).tensors.specs) == ["w"]
    folder = pieces(tmp_path / f"{'s' * 240}-step-10", model=W)
    assert list(open_checkpoint(folder).tensors.specs) == ["w"]


def test_clocks_too_small_to_count_are_none(tmp_path: Path):
    """An epoch of 1e-400 is no clock, and no crash."""
    write_hf_run(tmp_path / "run", [10, 20])
    for number, folder in enumerate(sorted((tmp_path / "run").iterdir()), 1):
        (folder / "trainer_state.json").write_text(f'{{"global_step": {number}, "epoch": {number}e-400}}')
    run = open_run([tmp_path / "run"])
    assert run.units == (Unit.BATCH,)
    with pytest.raises(RunError, match="records no clock in epochs"):
        make_plan(run, Recipe(half_life=Time.parse("0.1ep")))


def test_a_log_of_lists_with_nan_is_read(tmp_path: Path):
    """The Trainer's log may hold NaN anywhere; the clocks beside it are good."""
    write_hf_run(tmp_path / "run", [10, 20])
    state = '{"global_step": 10, "log_history": [{"curve": [NaN, -Infinity, 0.5], "text": "x: NaN"}]}'
    (tmp_path / "run" / "checkpoint-10" / "trainer_state.json").write_text(state)
    assert [each.clock(Unit.BATCH) for each in open_run([tmp_path / "run"]).checkpoints] == [10, 20]


def test_lora_settings_in_any_order_agree(tmp_path: Path):
    """Which modules Diffusers adapted is a set: another order is no other adapter."""
    for step, targets in ((10, ["a", "b"]), (20, ["b", "a"])):
        metadata = {"lora_adapter_metadata": json.dumps({"unet.target_modules": targets, "unet.r": 2})}
        folder = tmp_path / "run" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        save_file({"unet.q.lora_A.weight": torch.ones(2, 2)}, folder / "pytorch_lora_weights.safetensors", metadata)
    average(tmp_path / "run", tmp_path / "out")


@pytest.mark.slow
def test_endless_keys_and_counts_in_files_are_errors(tmp_path: Path):
    """A key that is nested without end, and a number of ranks of thousands of digits, are errors of ours."""
    key: Any = ("k",)
    for _ in range(26):
        key = (key, key)
    ema = {"ema_weights_active": True, "ema_model": {"named_parameters_dict": {key: torch.ones(2)}}}
    torch.save({"state": {"model": W, "algorithms": [("EMA", ema)]}}, tmp_path / "ep0-ba1-rank0.pt")
    with pytest.raises(EmaError, match="which is not a name"):
        open_checkpoint(tmp_path / "ep0-ba1-rank0.pt")
    (tmp_path / "global_step1").mkdir()
    saved = {"module": W, "global_steps": 1, "mp_world_size": 10**5000}
    torch.save(saved, tmp_path / "global_step1" / "mp_rank_00_model_states.pt")
    assert list(open_checkpoint(tmp_path / "global_step1").tensors.specs) == ["w"]
