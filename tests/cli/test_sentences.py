"""Views in words, piece by piece."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ema_cli.checkpoint import TensorSpec
from ema_cli.cli import sentences
from ema_cli.cli.views import TensorTotals
from ema_cli.dtypes import DTYPES
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time
from ema_cli.planning.plan import Approximation, Plan, make_plan
from ema_cli.text import size
from tests.composer_recurrence import make_run
from tests.conftest import Cli

STEADY = make_run(*({"ba": clock} for clock in (10, 20, 30)))
SPARSE = make_run({"ba": 100}, {"ba": 1100}, {"ba": 2100})


@pytest.mark.parametrize(
    ("nbytes", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_284_000, "1.28 MB"), (999_600_000, "1 GB"), (8.05e12, "8.05 TB")],
)
def test_sizes_are_short(nbytes: float, shown: str):
    """Three digits and a unit, in powers of 1000."""
    assert size(nbytes) == shown


def plan(half_life: str = "20ba", **recipe: Any) -> Plan:
    """Return a plan of three checkpoints, ten batches apart."""
    return make_plan(STEADY, Recipe(half_life=half_life, **recipe))


def sparse(half_life: str = "50ba", **recipe: Any) -> Plan:
    """Return a plan of three checkpoints, a thousand batches apart: the newest holds nearly all."""
    return make_plan(SPARSE, Recipe(half_life=half_life, **recipe))


def near(**changed: Any) -> Plan:
    """Return a plan of stored averages."""
    reach = {0.01: [(time("20ba"), time("90ba")), (time("200ba"), time("200ba"))], 0.05: []}
    approximation = Approximation(0.0123, 0.01, reach, [], [], [], rounding=0.0001)
    return replace(plan(), approximation=replace(approximation, **changed))


def time(text: str) -> Time:
    return Time.parse(text)


def test_a_run_without_a_common_tensor_is_not_said_to_be_empty():
    """Of two models that lie together, no tensor is in all checkpoints; none of them is floating, or of any kind."""
    assert sentences.tensors_line(TensorTotals.of({})) == "no tensor that all checkpoints have"


def test_one_parameter_is_no_parameters():
    """A count has its noun, whatever it counts."""
    told = sentences.tensors_line(TensorTotals.of({"w": TensorSpec(DTYPES["F32"], (1,))}))
    assert told == "1 tensor (all floating), 1 parameter, 4 B"


def test_a_plan_in_one_sentence():
    """Counts, effective number and mean age."""
    line = sentences.plan_line(plan(start="20ba"))
    assert line == "2 checkpoints averaged, 1 skipped: 1.7 effective, mean age 7.071ba"


def test_several_plans_have_a_line_each():
    """Half-lives one below the other, with who holds more than half where that is a warning."""
    plans = [plan(), plan("1e6ba")]
    assert sentences.plan_lines(plans) == [
        " 20ba: 2.6 effective of 3, mean age 12.07ba",
        "1e6ba: 1.0 effective of 3, mean age 20ba; warning: 10ba holds 100.0%",
    ]
    assert sentences.plan_warnings(plans) == []


def test_plans_have_notes_where_no_warning_says_it():
    """A heavy first checkpoint, and the smallest half-life that would do for checkpoints this far apart."""
    (note,) = sentences.plan_notes([plan(), plan("1e6ba")])
    assert note.startswith("The first stands for all the training before it; --bias-correction")
    dense = make_plan(make_run(*({"ba": clock} for clock in range(1, 100))), Recipe(half_life="30ba"))
    *_, note = sentences.plan_notes([dense])
    assert note.startswith("Smallest half-life with three effective checkpoints: ")


def test_one_clock_is_said_once(cli: Cli, tmp_path: Path):
    """With the way on where the numbers in the names differ; without where they do not."""
    for name, step in (("G_0", 1), ("G_10", 1), ("G_20", 2), ("H_20", 2)):
        torch.save({"model": {"w": torch.ones(2)}, "step": step}, tmp_path / f"{name}.pt")
    lines = [line.strip() for line in cli("inspect", ".").out.splitlines() if "same clock" in line]
    assert len(lines) == 2
    assert any(line.startswith("same clock: G_0.pt, G_10.pt; ") and "--name-clock ba" in line for line in lines)
    assert "same clock: G_20.pt, H_20.pt" in lines


def test_a_clock_that_is_the_same_everywhere_is_no_column(cli: Cli, tmp_path: Path):
    """An epoch that lasts as long as the training tells no checkpoint from another; a clock alone stays."""
    for step in (100, 200):
        torch.save({"model": {"w": torch.ones(2)}, "step": step, "epoch": 1}, tmp_path / f"s{step}.pt")
    lines = cli("inspect", ".").out.splitlines()
    assert lines[2].startswith("Every checkpoint: epoch 1, clock from file")
    assert lines[4].split() == ["checkpoint", "batch"]
    assert cli("inspect", ".", "--half-life", "1ep", "--half-life", "2ep").code == 0
    for step in (100, 200):
        torch.save({"model": {"w": torch.ones(2)}, "epoch": 1}, tmp_path / f"s{step}.pt")
    assert "checkpoint  epoch" in cli("inspect", ".").out


def test_checkpoints_that_are_only_counted_have_no_clock_anywhere(cli: Cli, tmp_path: Path):
    """Plan, sentence, summary, card and page: 1ba, 2ba stood there, as if somebody had recorded that."""
    (tmp_path / "run").mkdir()
    for name in ("a", "b"):
        torch.save({"w": torch.ones(2)}, tmp_path / f"run/{name}.pt")
    words = ("average", "run", "--profile", "uniform", "-o", "x")
    dry, done = cli(*words, "--dry-run"), cli(*words, "--summary", "summary.md")
    assert "checkpoint  weight" in dry.out
    assert cli("report", "x", "--against", "run", "-o", "x.html").code == 0
    assert cli("verify", "x", "--against", "run").code == 0
    texts = [(tmp_path / name).read_text() for name in ("summary.md", "x/README.md", "x.html")]
    for text in (dry.out, dry.err, done.err, *texts):
        assert "mean age" not in text
        assert "2ba" not in text
    assert "| checkpoint | weight |" in texts[1]
    assert "checkpoint, by its name" in texts[2]


def test_one_plan_has_its_warnings_in_full():
    """They say which half-life would do: no note says it again."""
    (warning,) = sentences.plan_warnings([sparse()])
    assert warning.startswith("2100ba holds 100.0% of the average: the half-life is short")
    assert sentences.plan_notes([sparse()]) == []


def test_clocks_of_several_units_stand_together():
    """A checkpoint that enters two plans has the clock of each."""
    run = make_run({"ba": 10, "ep": 1}, {"ba": 20, "ep": 2})
    plans = [make_plan(run, Recipe(half_life=half_life, last=last)) for half_life, last in (("9ba", 2), ("1ep", 1))]
    names = [checkpoint.name for checkpoint in run.checkpoints]
    assert sentences.plan_clocks([*plans, plans[0]], [*names, "c"]) == ["10ba", "20ba 2ep", ""]


def test_stored_averages_are_shown_by_how_near_they_come():
    """One plan in a sentence, several on a line each."""
    assert sentences.plan_line(near()) == "3 stored averages combined: 1.23% off from 20ba"
    assert sentences.plan_lines([near(), near()])[1] == "20ba: 1.23% off, from 3 stored averages"
    approximation = near().approximation
    assert approximation is not None
    unknown = replace(near(), approximation=replace(approximation, rounding=None))
    assert sentences.plan_line(unknown).endswith(
        "1.23% off from 20ba and its rounding, which was not written down when the averages were stored"
    )
    rounded = replace(near(), approximation=replace(approximation, rounding=0.01))
    assert sentences.plan_line(rounded).endswith("1.23% off from 20ba, of which 1.00% by rounding")
