"""From paths to the ordered checkpoints of one run: order, aliases, copies, twins, one model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ema_cli.errors import EmaError, IncompleteCheckpoint, RunError, UsageError
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time, Unit
from ema_cli.planning.plan import make_plan
from ema_cli.runs.run import Run, open_run
from ema_cli.runs.same_model import check_same_model, first_differences
from tests.conftest import make_tensors, write_hf_run, write_torch_run

COMPARED = "records no clock; an average compares it with the others"
BEST = "records no clock; a best one may be of any moment"


def save(path: Path, seed: int = 1, **fields: Any) -> Path:
    """Write `{"model": ..., **fields}`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": make_tensors(seed), **fields}, path)
    return path


def names(run: Run) -> list[str]:
    return [each.name for each in run.checkpoints]


def passed_over(run: Run) -> dict[str, str]:
    return {each.name: each.reason for each in run.passed_over}


def test_clocks_order_a_run_not_names_or_times_of_files(tmp_path: Path):
    """The step inside decides, against the name's number and against which file is newer."""
    for age, (name, step) in enumerate({"step-3.pt": 100, "step-1.pt": 300, "a.pt": 200}.items()):
        os.utime(save(tmp_path / name, step=step), (1_000_000 - age, 1_000_000 - age))
    run = open_run([tmp_path])
    assert names(run) == ["step-3.pt", "a.pt", "step-1.pt"]
    assert [each.clock(Unit.BATCH) for each in run.checkpoints] == [100, 200, 300]
    assert {each.progress.clocks[Unit.BATCH].source for each in run.checkpoints} == {"file"}


def test_a_sidecar_comes_before_the_name(tmp_path: Path):
    """trainer_state.json says 300, whatever the folder is called."""
    write_hf_run(tmp_path, [100, 300])
    (tmp_path / "checkpoint-300").rename(tmp_path / "checkpoint-7")
    run = open_run([tmp_path])
    assert names(run) == ["checkpoint-100", "checkpoint-7"]
    clock = run.checkpoints[1].progress.clocks[Unit.BATCH]
    assert (clock.value, clock.source) == (300, "sidecar")


def test_named_checkpoints_in_any_order_are_shown_relative_to_their_common_parent(tmp_path: Path):
    """Files and folders, from several places, by the shortest names that tell them apart."""
    write_hf_run(tmp_path / "a", [100])
    save(tmp_path / "b" / "c" / "step-50.pt", step=50)
    save(tmp_path / "b" / "step-70.pt", step=70)
    paths = [tmp_path / "b" / "step-70.pt", tmp_path / "a" / "checkpoint-100", tmp_path / "b" / "c" / "step-50.pt"]
    run = open_run(paths)
    assert names(run) == ["b/c/step-50.pt", "b/step-70.pt", "a/checkpoint-100"]
    assert run.root == tmp_path
    assert names(open_run(paths[::2])) == ["c/step-50.pt", "step-70.pt"]


def test_paths_that_cannot_be_a_run_are_usage_errors(tmp_path: Path):
    """A path that is not there, and the folder of a run among checkpoints: named, exit 2."""
    write_torch_run(tmp_path / "run", [100, 200])
    with pytest.raises(UsageError, match=r"nowhere: does not exist$"):
        open_run([tmp_path / "nowhere"])
    with pytest.raises(UsageError, match=r"run: is the folder of a run \(2 checkpoints\)$"):
        open_run([tmp_path / "run", save(tmp_path / "step-5.pt", step=5)])


def make_alias(folder: Path, kind: str) -> None:
    """Give step-200.pt the second name latest-rank0.pt."""
    alias = folder / "latest-rank0.pt"
    if kind == "symlink":
        alias.symlink_to("step-200.pt")
    elif kind == "hard link":
        alias.hardlink_to(folder / "step-200.pt")
    else:
        alias.write_text("step-200.pt\n")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("symlink", "the same file as step-200.pt"),
        ("hard link", "the same file as step-200.pt"),
        ("pointer", "points to step-200.pt"),
    ],
)
def test_an_alias_counts_once(tmp_path: Path, kind: str, reason: str):
    """A link, and the text file that Composer writes where there are no links, are listed and not averaged."""
    write_torch_run(tmp_path, [100, 200])
    make_alias(tmp_path, kind)
    run = open_run([tmp_path])
    assert names(run) == ["step-100.pt", "step-200.pt"]
    assert passed_over(run) == {"latest-rank0.pt": reason}
    assert run.twins() == []


@pytest.mark.parametrize("kind", ["symlink", "hard link"])
def test_an_alias_that_is_named_counts_once(tmp_path: Path, kind: str):
    """Naming both, in either order, or one file twice, is naming it once."""
    write_torch_run(tmp_path, [100, 200])
    make_alias(tmp_path, kind)
    paths = [tmp_path / name for name in ("latest-rank0.pt", "step-200.pt", "step-100.pt", "step-100.pt")]
    for order in (paths, paths[::-1]):
        assert names(open_run(order)) == ["step-100.pt", "step-200.pt"]


def test_a_link_to_a_folder_is_the_same_checkpoint(tmp_path: Path):
    """`latest -> checkpoint-200` is not a third checkpoint."""
    write_hf_run(tmp_path, [100, 200])
    (tmp_path / "latest").symlink_to("checkpoint-200")
    run = open_run([tmp_path])
    assert names(run) == ["checkpoint-100", "checkpoint-200"]
    assert list(passed_over(run)) == ["latest"]


@pytest.mark.parametrize("copy", ["last.pt", "best.pt", "latest-rank0.pt", "model_best.pth.tar", "copy.pt"])
def test_two_checkpoints_with_one_clock_are_twins(tmp_path: Path, copy: str):
    """The numbered name is kept, the copy is skipped and left for `average` to compare."""
    write_torch_run(tmp_path, [100, 200])
    save(tmp_path / copy, 200, step=200)
    run = open_run([tmp_path])
    assert [[each.name for each in group] for group in run.twins()] == [["step-200.pt", copy]]
    plan = make_plan(run, Recipe(half_life=Time.parse("50ba")))
    assert [entry.checkpoint.name for entry in plan.entries] == ["step-100.pt", "step-200.pt"]
    assert [(each.checkpoint.name, each.reason) for each in plan.skipped] == [(copy, "same clock as step-200.pt")]
    assert [(kept.name, other.name) for kept, other in plan.twins] == [("step-200.pt", copy)]
    assert run.notes == ()


def test_twins_outside_the_plan_need_no_comparison(tmp_path: Path):
    """What --start leaves out may differ as it likes."""
    write_torch_run(tmp_path, [100, 200])
    save(tmp_path / "best.pt", 1, step=100)
    plan = make_plan(open_run([tmp_path]), Recipe(half_life=Time.parse("50ba"), start=Time.parse("150ba")))
    assert plan.twins == ()


@pytest.mark.parametrize("name", ["last.pt", "best.pt", "final.pt", "model_final.pt", "weights.pt"])
def test_a_copy_without_a_clock_is_passed_over(tmp_path: Path, name: str):
    """A last, best or final model that records no clock does not stop a run that does; of a best one a note says it.

    An average compares the others, and stops at one that is no copy.
    """
    write_torch_run(tmp_path, [100, 200])
    save(tmp_path / name)
    run = open_run([tmp_path])
    assert names(run) == ["step-100.pt", "step-200.pt"]
    is_best = name == "best.pt"
    said = (name, BEST if is_best else COMPARED, is_best)
    assert [(each.name, each.reason, each.note) for each in run.passed_over] == [said]
    assert not any(each.warn for each in run.passed_over)


def test_a_final_folder_beside_checkpoints_is_passed_over(tmp_path: Path):
    """save_pretrained("final") next to checkpoint-N is no checkpoint of the run."""
    write_hf_run(tmp_path, [100, 200])
    shutil.copytree(tmp_path / "checkpoint-200", tmp_path / "final")
    (tmp_path / "final" / "trainer_state.json").unlink()
    run = open_run([tmp_path])
    assert names(run) == ["checkpoint-100", "checkpoint-200"]
    assert passed_over(run) == {"final": COMPARED}


def test_some_with_and_some_without_a_clock_is_an_error(tmp_path: Path):
    """A numbered file without a clock may be anything: both are named, with the ways on."""
    write_torch_run(tmp_path, [100, 200])
    save(tmp_path / "shape-3.pt")
    with pytest.raises(RunError, match=r"shape-3\.pt: records no clock, but step-100\.pt does$") as raised:
        open_run([tmp_path])
    assert raised.value.exit_code == 4
    assert raised.value.hint == "leave it out: exclude='shape-3.pt'; or name the checkpoints to average"


def test_a_file_that_is_named_enters_or_is_an_error(tmp_path: Path):
    """A file that is named enters or is an error, though its name has no number: only a search passes things over."""
    alpha, beta = save(tmp_path / "alpha.pt"), save(tmp_path / "beta-2.pt")
    run = open_run([alpha, beta], spacing=Time.parse("100ba"))
    assert [(each.name, each.clock(Unit.BATCH)) for each in run.checkpoints] == [("beta-2.pt", 100), ("alpha.pt", 200)]
    with pytest.raises(RunError, match=r"alpha\.pt: records no clock, but step-5\.pt does$"):
        open_run([alpha, save(tmp_path / "step-5.pt", step=5)])


def test_a_hugging_face_checkpoint_without_its_state_is_half_written(tmp_path: Path):
    """trainer_state.json is written last: without it, beside others that have it, the folder is not there yet."""
    write_hf_run(tmp_path, [100, 200, 300])
    (tmp_path / "checkpoint-300" / "trainer_state.json").unlink()
    run = open_run([tmp_path])
    assert names(run) == ["checkpoint-100", "checkpoint-200"]
    ((name, reason, warn),) = [(each.name, each.reason, each.warn) for each in run.passed_over]
    assert (name, warn) == ("checkpoint-300", True)
    assert reason == "half-written: its trainer_state.json, which is written last, is missing"
    with pytest.raises(IncompleteCheckpoint, match=r"checkpoint-300: its trainer_state\.json"):
        open_run([tmp_path / "checkpoint-100", tmp_path / "checkpoint-300"])


def test_a_run_without_any_trainer_state_takes_its_clocks_from_the_names(tmp_path: Path):
    """Somebody who removed them all meant to; checkpoint-N is N batches."""
    write_hf_run(tmp_path, [100, 200])
    for state in tmp_path.glob("*/trainer_state.json"):
        state.unlink()
    run = open_run([tmp_path])
    assert [each.clock(Unit.BATCH) for each in run.checkpoints] == [100, 200]
    assert {each.progress.clocks[Unit.BATCH].source for each in run.checkpoints} == {"name"}


@pytest.mark.parametrize("text", ["", '{"epoch": 1.0, "global_step": 3'])
def test_a_state_that_is_cut_off_is_half_written(tmp_path: Path, text: str):
    """A search passes it over; named, it is an error with exit 3."""
    write_hf_run(tmp_path, [100, 200])
    (tmp_path / "checkpoint-200" / "trainer_state.json").write_text(text)
    run = open_run([tmp_path])
    assert names(run) == ["checkpoint-100"]
    assert passed_over(run)["checkpoint-200"].startswith("half-written: ")
    with pytest.raises(IncompleteCheckpoint, match=r"trainer_state\.json"):
        open_run([tmp_path / "checkpoint-200"])


def test_an_absurd_counter_is_no_clock(tmp_path: Path):
    """A number of 400 digits in trainer_state.json does not overflow later: the name's is taken."""
    write_hf_run(tmp_path, [100, 200])
    state = tmp_path / "checkpoint-200" / "trainer_state.json"
    state.write_text(state.read_text().replace('"global_step": 200', f'"global_step": {"9" * 400}'))
    run = open_run([tmp_path])
    assert [each.clock(Unit.BATCH) for each in run.checkpoints] == [100, 200]
    assert [each.progress.clocks[Unit.BATCH].source for each in run.checkpoints] == ["sidecar", "name"]


def test_names_alone_order_a_run_naturally(tmp_path: Path):
    """Without a clock anywhere the run is shown in natural order, and has no unit."""
    for number in (10, 9, 100):
        save(tmp_path / f"part-{number}.pt")
    run = open_run([tmp_path])
    assert names(run) == ["part-9.pt", "part-10.pt", "part-100.pt"]
    assert run.units == ()
    assert run.twins() == []


def test_units_are_those_that_every_checkpoint_has(tmp_path: Path):
    """A token count in one file alone is no unit of the run."""
    write_hf_run(tmp_path, [100, 200])
    assert open_run([tmp_path]).units == (Unit.BATCH, Unit.EPOCH)
    state = tmp_path / "checkpoint-200" / "trainer_state.json"
    state.write_text(state.read_text().replace('"num_input_tokens_seen": 0', '"num_input_tokens_seen": 7'))
    run = open_run([tmp_path])
    assert run.units == (Unit.BATCH, Unit.EPOCH)
    assert run.checkpoints[1].clock(Unit.TOKEN) == 7


BIAS = {"layer.bias": torch.zeros(5)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (BIAS, "step-100.safetensors: 'layer.bias' is F32 [5], but F32 [4] in step-200.safetensors"),
        ({"more": torch.ones(1)}, "step-100.safetensors: 'more' is F32 [1], but step-200.safetensors does not have it"),
        ({"layer.bias": None}, "step-100.safetensors: 'layer.bias' is missing, but F32 [4] in step-200.safetensors"),
        ({"layer.bias": torch.zeros(4).double()}, "step-100.safetensors: 'layer.bias' is F64 [4], but F32 [4] in"),
    ],
)
def test_a_difference_names_both_checkpoints(tmp_path: Path, change: Mapping[str, torch.Tensor | None], message: str):
    """Which tensor, how it is in the one, and how in the newest."""
    tensors = {name: tensor for name, tensor in {**make_tensors(1), **change}.items() if tensor is not None}
    save_file(tensors, tmp_path / "step-100.safetensors")
    save_file(make_tensors(2), tmp_path / "step-200.safetensors")
    run = open_run([tmp_path])
    assert first_differences(run.checkpoints)[0].startswith(message)
    with pytest.raises(RunError) as raised:
        check_same_model(run.checkpoints)
    assert message in str(raised.value)
    hint = "dtype='float32'" if "F64" in message else "exclude='step-100.safetensors'"
    assert hint in (raised.value.hint or "")


def test_only_the_first_differences_are_listed(tmp_path: Path):
    """Two models that have nothing in common do not fill the screen; equal ones have no difference."""
    for step in (1, 2):
        save_file({f"{step}-{n}": torch.ones(1) for n in range(50)}, tmp_path / f"step-{step}.safetensors")
    run = open_run([tmp_path])
    (line,) = first_differences(run.checkpoints)
    assert line.endswith("(and 99 more differences)")
    assert first_differences(run.checkpoints[:1]) == []
    with pytest.raises(EmaError) as raised:
        check_same_model(run.checkpoints)
    assert raised.value.exit_code == 4
