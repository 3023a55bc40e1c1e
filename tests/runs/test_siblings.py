"""Named files beside which others of their moment lie: half a model is never published without a word."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ema_cli.errors import CheckpointError, RunError
from ema_cli.runs.run import open_run

HALVES = {0: {"a": torch.ones(2, 4)}, 1: {"b": torch.ones(3)}}
CUT = {0: {"w": torch.ones(2, 4)}, 1: {"w": torch.zeros(2, 4)}}


def write(folder: Path, name: str, models: dict[int, dict[str, torch.Tensor]], **beside: int) -> list[Path]:
    """Write some models at two moments; return the paths of the first ones."""
    firsts = []
    for step in (100, 200):
        for number, tensors in models.items():
            path = folder / f"step-{step}" / name.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"model": tensors, **{key: value + number for key, value in beside.items()}}, path)
        firsts.append(folder / f"step-{step}" / name.format(min(models)))
    return firsts


@pytest.mark.parametrize("name", ["weights_{}.pt", "net.0{}.pth", "{}.bin"])
def test_half_a_model_is_refused_and_its_folders_hold_all_of_it(name: str, tmp_path: Path) -> None:
    """The file beside has the other tensors: the folders are named instead, as the hint says."""
    firsts = write(tmp_path, name, HALVES)
    with pytest.raises(RunError, match=r"is a part of a model: .* beside it has other tensors") as raised:
        open_run(firsts)
    assert f"name the folders in which the parts lie, such as {firsts[0].parent}; " in (raised.value.hint or "")
    run = open_run([path.parent for path in firsts])
    assert [set(each.tensors.specs) for each in run.checkpoints] == [{"a", "b"}] * 2
    assert len(open_run(firsts, component=Path(name.format(0)).stem).checkpoints) == 2


@pytest.mark.parametrize("name", ["weights_{}.pt", "model.0{}.pt"])
def test_what_may_be_half_of_each_tensor_is_asked_about(name: str, tmp_path: Path) -> None:
    """Equal names and shapes may be parts or models: only the user knows, and says that it is a model."""
    firsts = write(tmp_path, name, CUT)
    with pytest.raises(RunError, match=r"may be a part of a model: .* the same tensors and the same clock") as raised:
        open_run(firsts)
    component = firsts[0].stem
    assert f"one of several models: component='{component}'" in (raised.value.hint or "")
    run = open_run(firsts, component=component)
    assert (len(run.checkpoints), run.warnings) == (2, ())


def test_other_files_beside_a_named_one_are_warned_of(tmp_path: Path) -> None:
    """Checkpoints of their own clock, networks with some tensors in common, and what is no checkpoint stop nothing."""
    clocked = write(tmp_path / "a", "model_{}.pt", CUT, epoch=3)
    networks = write(tmp_path / "b", "model_{}.pt", {0: HALVES[0], 1: {**HALVES[0], **HALVES[1]}})
    broken = write(tmp_path / "c", "model_{}.pt", HALVES)
    broken[0].with_name("model_1.pt").write_text("no checkpoint at all")
    for firsts in (clocked, networks, broken):
        (warning,) = open_run(firsts).warnings
        assert warning == "model_0.pt: model_1.pt lies beside it; if they are parts of one model, this is not all of it"


def test_a_file_that_lies_alone_is_no_part(tmp_path: Path) -> None:
    """So does what has two others of its kind beside it that are named, too."""
    assert open_run(write(tmp_path / "a", "model_{}.pt", {0: HALVES[0]})).warnings == ()
    write(tmp_path / "b", "model_{}.pt", CUT, epoch=3)
    assert open_run(sorted((tmp_path / "b" / "step-100").iterdir())).warnings == ()


def write_runs(folder: Path, places: Sequence[str]) -> None:
    """Write a run of three checkpoints into each of some places, all with the same tensors."""
    for number, place in enumerate(places):
        (folder / place).mkdir(parents=True)
        for step in (100, 200, 300):
            save_file({"w": torch.full((4, 4), step + number / 4)}, folder / place / f"step-{step}.safetensors")


@pytest.mark.parametrize("inner", ["", "run"])
def test_a_run_whose_folder_is_called_like_a_shard_is_a_run(tmp_path: Path, inner: str) -> None:
    """Nothing of the folder beside it enters, and that it is there is said; from outside they are two runs."""
    names = ("exp_shard0", "exp_shard1")
    write_runs(tmp_path, [f"{name}/{inner}" for name in names])
    for number, (name, other) in enumerate([names, names[::-1]]):
        run = open_run(tmp_path / name)
        assert len(run.checkpoints) == 3
        assert any(f"{name}: {other} lies beside it; if they are parts" in warning for warning in run.warnings)
        out = bytearray(4)
        run.checkpoints[0].tensors.read_into("w", 0, memoryview(out))
        assert torch.frombuffer(out, dtype=torch.float32).item() == 100 + number / 4
    with pytest.raises(RunError, match=r"holds the checkpoints of 2 runs: exp_shard0.* \(3\), exp_shard1.* \(3\)"):
        open_run(tmp_path)
    run = open_run(tmp_path / "exp_shard0" / inner / "step-100.safetensors")
    assert len(run.checkpoints) == 1


@pytest.mark.parametrize("name", ["rank{}", "shard{}", "model_shard_{}", "tp_rank_{}"])
def test_folders_of_ranks_around_moments_are_parts(tmp_path: Path, name: str) -> None:
    """Whose names say nothing else: tensors with one name are cut, and one folder alone is no model."""
    write_runs(tmp_path, [name.format(number) for number in range(2)])
    with pytest.raises(CheckpointError, match="tensors are cut into parts, or these are several models"):
        open_run(tmp_path / name.format(0))


@pytest.mark.parametrize("given", [["."], ["step-100.safetensors", "step-200.safetensors"], ["../rank0"]])
def test_a_rank_s_folder_is_one_from_within_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str]):
    """The names of the folders around the working directory count, too, though no path that is given has them."""
    write_runs(tmp_path, ["rank0", "rank1"])
    monkeypatch.chdir(tmp_path / "rank0")
    with pytest.raises(CheckpointError, match=r"'w' is in rank0/step-100.* and in rank1/step-100"):
        open_run([Path(path) for path in given])


def test_a_folder_called_like_a_shard_is_told_from_within_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The warning of the other one does not depend on the working directory."""
    write_runs(tmp_path, ["exp_shard0", "exp_shard1"])
    monkeypatch.chdir(tmp_path / "exp_shard0")
    assert any("exp_shard1 lies beside it" in warning for warning in open_run(Path()).warnings)
