"""A run that is still training: whatever happens to it while it is used, the average is right or nothing is written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

from ema_cli import averaging
from ema_cli.errors import CheckpointError, UsageError
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time
from ema_cli.planning.plan import Plan, make_plan
from ema_cli.runs import search
from ema_cli.runs.run import open_run
from ema_cli.writing.target import parse_target
from tests.conftest import make_tensors, oracle, write_hf_run, write_torch_run

STEPS = [10, 20, 30]


def planned(run: Path) -> Plan:
    """Return the plan of a run with a half-life of one spacing."""
    return make_plan(open_run([run]), Recipe(half_life=Time.parse("10ba")))


def rewrite(path: Path) -> None:
    """Change a byte in place, as a trainer that saves under the same name again does; size and inode stay."""
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    os.utime(path, ns=(1, 1))


def replace(path: Path) -> None:
    """Put another file in its place by a rename, as careful trainers do."""
    other = path.with_name("other")
    shutil.copy2(path, other)
    other.rename(path)


def truncate(path: Path) -> None:
    """Cut it short, as a save that begins anew does."""
    os.truncate(path, path.stat().st_size // 2)


def remove(path: Path) -> None:
    """Delete it, as a trainer that keeps the last few does."""
    path.unlink()


CHANGES: list[Callable[[Path], None]] = [rewrite, replace, truncate, remove]


def torch_run(run: Path) -> list[Path]:
    """Write a run of torch files; return what may change in it."""
    write_torch_run(run, STEPS)
    return [run / f"step-{step}.pt" for step in STEPS]


def hf_run(run: Path) -> list[Path]:
    """Write a run of the Hugging Face Trainer."""
    write_hf_run(run, STEPS)
    return [run / "checkpoint-20" / name for name in ("model.safetensors", "trainer_state.json")]


def dcp_run(run: Path) -> list[Path]:
    """Write a run of torch.distributed.checkpoint."""
    for step in STEPS:
        dcp.save({"model": make_tensors(step), "step": step}, checkpoint_id=run / f"step-{step}", no_dist=True)
    return [run / "step-20" / name for name in (".metadata", "__0_0.distcp")]


RUNS = [(torch_run, 0), (torch_run, 2), (hf_run, 0), (hf_run, 1), (dcp_run, 0), (dcp_run, 1)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("moment", ["planned", "reading"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("write", "number"), RUNS)
def test_a_change_names_the_file_and_nothing_is_written(
    tmp_path: Path,
    write: Callable[[Path], list[Path]],
    number: int,
    change: Callable[[Path], None],
    moment: str,
):
    """Overwritten, replaced, cut or deleted, once planned or while it is read: an error with the file's name."""
    changed = write(tmp_path / "run")[number]
    plan = planned(tmp_path / "run")
    done = []

    def report(*_: int) -> None:
        if not done:
            done.append(True)
            change(changed)

    if moment == "planned":
        report()
    with pytest.raises(CheckpointError) as raised:
        averaging.average(plan, parse_target(tmp_path / "out.safetensors"), progress=report)
    assert done, "the change was made"
    assert str(changed) in str(raised.value)
    assert raised.value.exit_code == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_folder_that_is_deleted_names_it(tmp_path: Path):
    """A whole checkpoint that the trainer removes after the plan is made is an error with a name in it."""
    write_hf_run(tmp_path / "run", STEPS)
    plan = planned(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-10")
    with pytest.raises(CheckpointError, match="checkpoint-10"):
        averaging.average(plan, parse_target(tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_checkpoint_that_appears_after_planning_changes_nothing(tmp_path: Path):
    """A checkpoint that is saved after the plan was made changes nothing."""
    saved = write_torch_run(tmp_path / "run", STEPS)
    plan = planned(tmp_path / "run")
    write_torch_run(tmp_path / "run", [40])
    averaging.average(plan, parse_target(tmp_path / "out.safetensors"))
    written = load_file(tmp_path / "out.safetensors")
    for name, tensor in oracle(saved, plan.weights).items():
        torch.testing.assert_close(written[name], tensor, rtol=0, atol=2e-7)


def test_a_folder_that_vanishes_during_the_search_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder that is listed and then gone, as a trainer's temporary ones are, does not stop the search."""
    write_torch_run(tmp_path / "run", STEPS)
    for name in ("a", "b"):
        (tmp_path / "run" / name).mkdir()
    real = search.is_checkpoint_folder

    def look(folder: Path) -> bool:
        if folder.name == "a":
            (tmp_path / "run" / "b").rmdir()
        return real(folder)

    monkeypatch.setattr(search, "is_checkpoint_folder", look)
    run = open_run([tmp_path / "run"])
    assert len(run.checkpoints) == 3
    assert [each.reason for each in run.passed_over] == ["disappeared while it was searched"]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda run: (run / "checkpoint-40" / "trainer_state.json").unlink(), "trainer_state.json"),
        (lambda run: truncate(run / "checkpoint-40" / "model.safetensors"), "cut short"),
        (lambda run: truncate(run / "checkpoint-40" / "trainer_state.json"), "not valid JSON"),
    ],
)
def test_a_half_written_checkpoint_is_passed_over_and_said_so(
    tmp_path: Path, make: Callable[[Path], object], reason: str
):
    """The newest checkpoint, not whole yet, does not enter; a search says so, and naming it is an error."""
    write_hf_run(tmp_path / "run", [*STEPS, 40])
    make(tmp_path / "run")
    run = open_run([tmp_path / "run"])
    assert [each.name for each in run.checkpoints] == [f"checkpoint-{step}" for step in STEPS]
    assert [each.name for each in run.passed_over if each.warn and reason in each.reason] == ["checkpoint-40"]
    with pytest.raises(CheckpointError, match=reason):
        open_run([tmp_path / "run" / "checkpoint-30", tmp_path / "run" / "checkpoint-40"])


MARKS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no .metadata": ("step-{}", lambda folder: (folder / ".metadata").unlink(), "has no .metadata"),
    "a shard missing": ("step-{}", lambda folder: (folder / "__0_0.distcp").unlink(), "is missing"),
    "a shard cut": ("step-{}", lambda folder: truncate(folder / "__0_0.distcp"), "cut short"),
    "Lightning": ("epoch=0-step={}.ckpt", lambda folder: (folder / "meta.pt").unlink(), "has no meta.pt"),
    "NeMo": ("x-step={}", lambda folder: folder.with_name(f"{folder.name}-unfinished").touch(), "unfinished"),
    "Megatron": ("iter_{:07}", lambda folder: (folder.parent / LATEST).write_text("30"), "is newer than '30'"),
    "Megatron's metadata": ("iter_{:07}", lambda folder: (folder / "common.pt").touch(), "has no metadata.json"),
}
LATEST = "latest_checkpointed_iteration.txt"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("label", MARKS)
def test_the_marks_of_a_whole_checkpoint_are_minded(tmp_path: Path, label: str):
    """What a trainer writes last is missing: that checkpoint alone is passed over."""
    name, unfinish, reason = MARKS[label]
    for step in [*STEPS, 40]:
        folder = tmp_path / "run" / name.format(step)
        dcp.save({"model": make_tensors(step)}, checkpoint_id=folder, no_dist=True)
        torch.save({"epoch": 0, "global_step": step, "pytorch-lightning_version": "2"}, folder / "meta.pt")
    assert len(open_run([tmp_path / "run"]).checkpoints) == 4
    unfinish(tmp_path / "run" / name.format(40))
    run = open_run([tmp_path / "run"])
    assert [each.name for each in run.checkpoints] == [name.format(step) for step in STEPS]
    assert [reason in each.reason and each.warn for each in run.passed_over] == [True]
    with pytest.raises((CheckpointError, UsageError), match=reason):
        open_run([tmp_path / "run" / name.format(30), tmp_path / "run" / name.format(40)])
