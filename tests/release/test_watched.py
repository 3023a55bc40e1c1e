"""Verifying what `watch` wrote: what is there must be what it was, and what is gone is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ema_cli import Recipe, watch
from tests.conftest import make_tensors, write_torch_run
from tests.inprocess import InProcess as Cli


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    """The average of four checkpoints, of which two are gone."""
    write_torch_run(tmp_path / "run", [100, 200, 300, 400])
    watch(
        tmp_path / "run", tmp_path / "out.safetensors", Recipe(half_life="200ba"), waiting={"once": True, "settle": 0}
    )
    for step in (100, 200):
        (tmp_path / "run" / f"step-{step}.pt").unlink()
    return tmp_path


def test_what_is_gone_is_said_and_not_compared(watched: Path, cli: Cli):
    """It holds, but not all of it could be compared, which `--strict` refuses."""
    done = cli("verify", "out.safetensors", "--against", "run", "--json")
    facts = json.loads(done.out)["outputs"][0]
    assert facts["ok"]
    assert facts["against"]["checkpoints"] == 2
    assert facts["not_compared"] == [
        "2 inputs that are gone (step-100.pt, step-200.pt)",
        "the values, which watch rounded at each checkpoint",
    ]
    assert cli("verify", "out.safetensors", "--against", "run", "--strict").code == 6


def test_an_input_that_has_changed_is_a_problem(watched: Path, cli: Cli):
    """By its fingerprint."""
    import torch

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


def test_a_recipe_averages_what_is_all_there_and_compares_no_bytes(tmp_path: Path, cli: Cli):
    """As a fold of all at once rounds otherwise."""
    write_torch_run(tmp_path / "run", range(100, 1100, 100))
    watch(
        tmp_path / "run", tmp_path / "out.safetensors", Recipe(half_life="200ba"), waiting={"once": True, "settle": 0}
    )
    shutil.rmtree(tmp_path / "out.safetensors.watch")
    done = cli("average", "run", "--recipe", "out.safetensors.manifest.json", "-o", "again.safetensors")
    assert done.code == 0, done.err
