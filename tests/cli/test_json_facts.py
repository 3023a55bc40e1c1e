"""Runs and plans as plain data."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from ema_cli.cli import json_facts
from ema_cli.cli.views import RunView
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time
from ema_cli.planning.plan import make_plan
from ema_cli.runs import warnings
from ema_cli.runs.run import open_run
from tests.conftest import make_tensors, write_torch_run


def spacing_of(folder: Path, steps: list[int]) -> dict[str, object]:
    write_torch_run(folder, steps)
    found: dict[str, object] = json_facts.run_facts(RunView.of(open_run([folder])))["spacing"]
    return found


def test_regular_spacing(tmp_path: Path):
    """Equal steps are regular; so is a run that ends between two saves."""
    assert spacing_of(tmp_path / "a", [10, 20, 30]) == {"usual": "10ba", "regular": True, "gaps": []}
    assert spacing_of(tmp_path / "b", [10, 20, 30, 36]) == {"usual": "10ba", "regular": True, "gaps": []}


def test_gaps_are_listed(tmp_path: Path):
    """A step half as long again as the usual one, or longer, is a gap between two names."""
    gap = {"after": "step-20.pt", "before": "step-50.pt", "length": "30ba"}
    assert spacing_of(tmp_path, [10, 20, 50, 60]) == {"usual": "10ba", "regular": False, "gaps": [gap]}


def test_facts_that_checkpoints_share_are_found_once(tmp_path: Path):
    """A thousand checkpoints of one model cost no more than one: facts on specs are found once for each table."""
    write_torch_run(tmp_path, [1, 2, 3])
    seen: list[object] = []
    found = warnings.by_specs(open_run([tmp_path]).checkpoints, lambda specs: seen.append(specs) or len(specs))
    assert (len(set(found)), len(found), len(seen)) == (1, 3, 1)


def test_totals_are_of_the_tensors_in_common(tmp_path: Path):
    """What only some checkpoints have is a difference, not a total."""
    write_torch_run(tmp_path, [1, 2])
    torch.save({"model": {**make_tensors(3), "more": torch.zeros(5)}, "step": 3}, tmp_path / "step-3.pt")
    told = json_facts.run_facts(RunView.of(open_run([tmp_path])))
    assert told["tensors"] == {"count": 3, "averaged": 2, "packed": 0, "parameters": 17, "bytes": 72}
    assert told["differences"] == ["step-3.pt: 'more' is F32 [5], but step-2.pt does not have it"]


@pytest.mark.parametrize(("value", "shown"), [(Fraction(3), 3), (Fraction(1, 2), 0.5), (2.0, 2)])
def test_numbers_are_those_of_json(value: Fraction | float, shown: float):
    """Whole numbers are integers, all others floats."""
    assert json_facts.number(value) == shown
    assert type(json_facts.number(value)) is type(shown)


def test_everything_is_json(tmp_path: Path):
    """Facts of a run, a plan and a checkpoint survive the way through JSON unchanged."""
    write_torch_run(tmp_path, [1, 2, 4])
    run = open_run([tmp_path])
    plan = make_plan(run, Recipe(half_life=Time.parse("2ba")))
    facts = (
        json_facts.run_facts(RunView.of(run)),
        json_facts.plan_facts(plan),
        json_facts.tensor_facts(run.checkpoints[0]),
    )
    for told in facts:
        assert json.loads(json.dumps(told)) == told


def test_a_note_names_many_at_once(tmp_path: Path):
    """One note about many checkpoints is one line."""
    for step in (1, 2, 3):
        content = {"model": make_tensors(step), "model_ema": make_tensors(step), "step": step}
        torch.save(content, tmp_path / f"step-{step}.pt")
    run = open_run([tmp_path])
    assert warnings.run_warnings(run, run.checkpoints) == []
    assert warnings.run_notes(run, run.checkpoints) == [
        "step-1.pt and 2 more: raw weights taken; averages lie beside them, in 'model_ema' (--weights ema)"
    ]
