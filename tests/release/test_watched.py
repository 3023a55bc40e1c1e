"""Verifying what `watch` wrote: what is there must be what it was, and what is gone is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ema_cli import Recipe, watch
from tests.conftest import make_tensors, write_torch_run
from tests.inprocess import InProcess as Cli
from tests.release.verified import vouch

ONCE = {"once": True, "settle": 0}


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    """The average of four checkpoints, of which two are gone."""
    write_torch_run(tmp_path / "run", [100, 200, 300, 400])
    watch(tmp_path / "run", tmp_path / "out.safetensors", Recipe(half_life="200ba"), waiting=ONCE)
    for step in (100, 200):
        (tmp_path / "run" / f"step-{step}.pt").unlink()
    return tmp_path


def watch_noise(folder: Path, dtype: str) -> None:
    """Watch fifty checkpoints of values around 0."""
    (folder / "run").mkdir()
    torch.manual_seed(0)
    for step in range(1, 51):
        values = torch.randn(300, dtype=torch.float64).to(getattr(torch, dtype))
        torch.save({"model": {"w": values}, "step": step}, folder / f"run/step-{step}.pt")
    watch(folder / "run", folder / "out.safetensors", Recipe(half_life="10ba"), waiting=ONCE)


def change_values(path: Path, change: Callable[[torch.Tensor], object]) -> None:
    """Change the first tensor of floats in a file, with all sums made to fit."""
    data = bytearray(path.read_bytes())
    begin = 8 + int.from_bytes(data[:8], "little")
    (first, *_) = (each for each in json.loads(data[8:begin]).values() if "F" in each.get("dtype", ""))
    kind = {"F32": torch.float32, "F64": torch.float64, "F16": torch.float16, "BF16": torch.bfloat16}[first["dtype"]]
    start, end = first["data_offsets"]
    change(torch.frombuffer(data, dtype=kind, offset=begin + start, count=(end - start) // kind.itemsize))
    path.write_bytes(data)
    vouch(path)


def test_what_is_gone_is_said_and_not_compared(watched: Path, cli: Cli):
    """It holds, but not all of it could be compared, which `--strict` refuses."""
    done = cli("verify", "out.safetensors", "--against", "run", "--json")
    facts = json.loads(done.out)["outputs"][0]
    assert facts["ok"]
    assert facts["against"]["checkpoints"] == 2
    assert facts["not_compared"] == [
        "2 inputs that are gone (step-100.pt, step-200.pt)",
        "tensors and files, which follow from all inputs",
    ]
    assert cli("verify", "out.safetensors", "--against", "run", "--strict").code == 6


def test_versions_of_one_file_are_inputs_each(tmp_path: Path, cli: Cli):
    """The last of them is compared, those before it are gone; so is the last where it was written over since.

    One that is listed twice with the same clock is a problem, and there is nothing to average anew by that recipe.
    """
    for step in (100, 200, 300, 400):
        torch.save({"model": make_tensors(step), "step": step}, tmp_path / "ckpt.pt")
        if step < 400:
            watch(tmp_path / "ckpt.pt", tmp_path / "out.safetensors", Recipe(half_life="200ba"), waiting=ONCE)
        done = cli("verify", "out.safetensors", "--against", "ckpt.pt", "--json")
        facts = json.loads(done.out)["outputs"][0]
        assert (done.code, facts["ok"], facts["against"]["checkpoints"]) == (0, True, int(step < 400)), done
        gone = ["ckpt.pt at 100ba", "ckpt.pt at 200ba", "ckpt.pt at 300ba"][: (step - 1) // 100]
        assert not gone or facts["not_compared"][0].endswith(f"gone ({', '.join(gone)})")
    done = cli("average", "ckpt.pt", "--recipe", "out.safetensors.manifest.json", "-o", "again.safetensors")
    assert (done.code, "watch folded several versions of one file" in done.err) == (4, True), done
    vouch(tmp_path / "out.safetensors", lambda manifest: manifest["inputs"].insert(0, manifest["inputs"][0]))
    done = cli("verify", "out.safetensors")
    assert (done.code, "lists one of its inputs twice" in done.err) == (6, True), done


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_what_is_all_there_is_averaged_anew(dtype: str, tmp_path: Path, cli: Cli):
    """Rounding at each of fifty checkpoints is no difference, in any type, also where values change their sign."""
    watch_noise(tmp_path, dtype)
    done = cli("verify", "out.safetensors", "--against", "run")
    assert done.code == 0, done.err
    assert "those of 50 checkpoints averaged anew; not compared: how watch rounded the values" in done.out


@pytest.mark.parametrize(
    ("dtype", "factor"), [("float32", 1.001), ("float32", -1.0), ("bfloat16", 1.02), ("float64", 1 + 1e-8)]
)
def test_what_is_more_than_rounding_is_a_problem(dtype: str, factor: float, tmp_path: Path, cli: Cli):
    """One value that is a little off, or has the other sign: watched or not, values are compared."""
    watch_noise(tmp_path, dtype)
    change_values(tmp_path / "out.safetensors", lambda values: values[values.abs().argmax()].mul_(factor))
    done = cli("verify", "out.safetensors", "--against", "run")
    assert done.code == 6
    assert "'w' is not what the checkpoints give" in done.err


def test_an_average_that_calls_itself_watched_is_compared(tmp_path: Path, cli: Cli):
    """What `watch` did not write is no less checked where its manifest says so; nor are files and numbers."""
    write_torch_run(tmp_path / "run", [100, 200, 300])
    assert cli("average", "run", "--half-life", "200ba", "-o", "out.safetensors").code == 0
    vouch(tmp_path / "out.safetensors", lambda manifest: manifest.update(watch={"gaps": []}))
    assert cli("verify", "out.safetensors", "--against", "run").code == 0
    change_values(tmp_path / "out.safetensors", lambda values: values[0].add_(0.5))
    assert cli("verify", "out.safetensors", "--against", "run").code == 6


def test_an_input_that_has_changed_is_a_problem(watched: Path, cli: Cli):
    """By its fingerprint."""
    torch.save({"model": make_tensors(5), "step": 300}, watched / "run" / "step-300.pt")
    done = cli("verify", "out.safetensors", "--against", "run")
    assert done.code == 6
    assert "step-300.pt: has changed since it was folded" in done.err


def test_weights_that_are_not_those_of_the_law_are_a_problem(watched: Path, cli: Cli):
    """They follow from the clocks alone, whatever is gone."""
    path = watched / "out.safetensors.manifest.json"
    manifest = json.loads(path.read_text())
    manifest["inputs"][1]["weight"] += 0.01
    path.write_text(json.dumps(manifest))
    done = cli("verify", "out.safetensors", "--against", "run")
    assert done.code == 6
    assert "weights are not those that 200ba gives" in done.err


@pytest.mark.parametrize("name", ["effective_checkpoints", "mean_age"])
def test_numbers_that_do_not_follow_from_the_weights_are_a_problem(name: str, watched: Path, cli: Cli):
    """They need no checkpoint."""
    vouch(watched / "out.safetensors", lambda manifest: manifest.update({name: {"mean_age": "7ba"}.get(name, 1.5)}))
    done = cli("verify", "out.safetensors", "--against", "run")
    assert done.code == 6
    assert f"says {name}" in done.err


def test_a_clock_that_is_not_that_of_what_is_left_is_a_problem(watched: Path, cli: Cli):
    """With the weights that the law gives at that clock: a clock is settled anew where the checkpoint is there."""
    write_torch_run(watched / "later", [100, 200, 300, 500])
    watch(watched / "later", watched / "later.safetensors", Recipe(half_life="200ba"), waiting=ONCE)
    later = json.loads((watched / "later.safetensors.manifest.json").read_text())

    def forge(manifest: Any) -> None:
        manifest.update({name: later[name] for name in ("effective_checkpoints", "mean_age")})
        for row, other in zip(manifest["inputs"], later["inputs"], strict=True):
            row.update({key: other[key] for key in ("clock", "clocks", "weight")})

    vouch(watched / "out.safetensors", forge)
    done = cli("verify", "out.safetensors", "--against", "run")
    assert done.code == 6
    assert "its clock is 400ba, but was 500ba" in done.err


def test_epochs_from_0_of_which_the_first_is_gone(tmp_path: Path, cli: Cli):
    """That they were counted from 0 nobody can see any more: both readings are true ones."""
    (tmp_path / "run").mkdir()
    for epoch in range(4):
        torch.save({"model": make_tensors(epoch)}, tmp_path / f"run/epoch={epoch}.pt")
    watch(tmp_path / "run", tmp_path / "out.safetensors", Recipe(half_life="2ep"), waiting=ONCE)
    (tmp_path / "run/epoch=0.pt").unlink()
    done = cli("verify", "out.safetensors", "--against", "run")
    assert done.code == 0, done.err
    assert "3 inputs of it are there unchanged, and the weights are those of the law; not compared: 1 input" in done.out


def test_a_recipe_averages_what_is_all_there_and_compares_no_bytes(tmp_path: Path, cli: Cli):
    """As a fold of all at once rounds otherwise."""
    write_torch_run(tmp_path / "run", range(100, 1100, 100))
    watch(tmp_path / "run", tmp_path / "out.safetensors", Recipe(half_life="200ba"), waiting=ONCE)
    shutil.rmtree(tmp_path / "out.safetensors.watch")
    done = cli("average", "run", "--recipe", "out.safetensors.manifest.json", "-o", "again.safetensors")
    assert done.code == 0, done.err
