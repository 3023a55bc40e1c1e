"""In which order the checkpoints of a run come, and what is said where its clocks contradict each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ema_cli.errors import RunError, at_terminal
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Unit
from ema_cli.planning.plan import Plan, make_plan
from ema_cli.runs.run import Run, open_run
from tests.conftest import Cli

BATCH, EPOCH, TOKEN = Unit.BATCH, Unit.EPOCH, Unit.TOKEN


def resumed(folder: Path, clocks: list[tuple[int, float]]) -> Path:
    """Write what the Trainer leaves where a run was resumed with other data: steps go on, epochs do not."""
    for step, epoch in clocks:
        checkpoint = folder / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        save_file({"w": torch.full((2,), float(step))}, checkpoint / "model.safetensors", metadata={"format": "pt"})
        (checkpoint / "config.json").write_text("{}")
        (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step, "epoch": epoch}))
    return folder


def counted(folder: Path, *clocks: dict[str, float]) -> Path:
    """Write one file for each state, whose names say nothing."""
    folder.mkdir(exist_ok=True)
    for number, values in enumerate(clocks):
        name = "abcdefghij"[number]
        torch.save({"model": {"w": torch.full((2,), float(number))}, **values}, folder / f"{name}.pt")
    return folder


def names(run: Run | Plan) -> list[str]:
    if isinstance(run, Plan):
        return [entry.checkpoint.name for entry in run.entries]
    return [checkpoint.name for checkpoint in run.checkpoints]


RESUMED = [(100, 1.0), (200, 2.0), (300, 0.75), (400, 1.5), (500, 2.25)]


def test_epochs_that_go_back_are_a_warning_where_batches_are_asked_for(tmp_path: Path) -> None:
    """Steps go on and epochs fall: the run is in the order of its steps, and the contradiction is said once."""
    run = open_run(resumed(tmp_path, RESUMED))
    assert names(run) == [f"checkpoint-{step}" for step, _ in RESUMED]
    assert run.units == (BATCH, EPOCH)
    assert run.warnings == (
        "checkpoint-300 is later than checkpoint-200 in batches, but earlier in epochs (0.75ep after 2ep): "
        "the run is ordered by batches",
    )
    plan = make_plan(run, Recipe(half_life="100ba"))
    assert plan.weights == [1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2]


def test_where_epochs_are_asked_for_the_last_part_is_offered_and_can_be_averaged(cli: Cli, tmp_path: Path) -> None:
    """The error names both parts of the run; with the --start that it gives, the second is averaged by its epochs."""
    resumed(tmp_path / "run", RESUMED)
    with pytest.raises(RunError) as raised:
        make_plan(open_run(tmp_path / "run"), Recipe(half_life="1ep"))
    assert raised.value.message(at_terminal).endswith(
        "checkpoint-300: is later than checkpoint-200 in batches, but earlier in epochs (0.75ep after 2ep), "
        "and the half-life counts epochs"
    )
    assert raised.value.advice(at_terminal) == (
        "the parts of this run are checkpoint-100 to checkpoint-200; checkpoint-300 to checkpoint-500; "
        "average the last part, of 3 checkpoints: --start 300ba, "
        "or count in batches: --half-life 200ba is twice the usual distance of checkpoints"
    )
    done = cli("average", "run", "--half-life", "1ep", "--start", "300ba", "-o", "out")
    assert done.code == 0, done
    # Copied at 1.5ep, the first at or after one epoch; one event, at 2ep, before 2.25ep.
    expected = (400.0 + 500.0) / 2
    assert load_file(tmp_path / "out" / "model.safetensors")["w"].tolist() == [expected] * 2
    assert cli("average", "run", "--half-life", "200ba", "-o", "batches").code == 0


def test_batches_that_go_back_leave_the_order_to_epochs(cli: Cli, tmp_path: Path) -> None:
    """A run begun again from its weights: steps from 0, epochs go on. Two states have step 100, and are no twins."""
    clocks = [(100, 1), (200, 2), (300, 3), (100, 4), (200, 5)]
    counted(tmp_path / "run", *({"step": step, "epoch": epoch} for step, epoch in clocks))
    run = open_run(tmp_path / "run")
    assert (names(run), run.units, run.twins()) == (["a.pt", "b.pt", "c.pt", "d.pt", "e.pt"], (EPOCH, BATCH), [])
    assert names(make_plan(run, Recipe(half_life="1ep"))) == names(run)
    with pytest.raises(RunError) as raised:
        make_plan(run, Recipe(half_life="100ba"))
    assert "the last part, of 2 checkpoints: start='4ep'" in (raised.value.hint or "")
    assert names(make_plan(run, Recipe(half_life="100ba", start="4ep"))) == ["d.pt", "e.pt"]
    done = cli("average", "run", "--half-life", "1ep", "--stop", "3ep", "-o", "out.pt")
    assert done.code == 0, done
    assert cli("verify", "out.pt", "--against", "run").code == 0


def test_the_unit_that_contradicts_the_others_least_orders(tmp_path: Path) -> None:
    """Steps that begin anew at another number than before: no step stands twice, and epochs order all the same."""
    clocks = [(100, 1), (200, 2), (300, 3), (150, 4), (250, 5), (350, 6)]
    run = open_run(counted(tmp_path, *({"step": step, "epoch": epoch} for step, epoch in clocks)))
    assert names(run) == [f"{name}.pt" for name in "abcdef"]


def test_a_copy_does_not_keep_batches_from_ordering(tmp_path: Path) -> None:
    """A last.pt with the clocks of the newest is one state with it, however epochs go."""
    clocks = [(100, 1), (200, 2), (300, 1), (300, 1)]
    run = open_run(counted(tmp_path, *({"step": step, "epoch": epoch} for step, epoch in clocks)))
    assert run.units == (BATCH, EPOCH)
    assert [[twin.name for twin in group] for group in run.twins()] == [["c.pt", "d.pt"]]


def test_steps_that_begin_again_in_each_epoch_are_counted_anew_by_the_hint(cli: Cli, tmp_path: Path) -> None:
    """Names as epoch_1_step_100: the hint's --spacing and --ignore-clocks give the average over all steps."""
    folder = tmp_path / "run"
    folder.mkdir()
    for number, (epoch, step) in enumerate([(0, 100), (0, 200), (1, 100), (1, 200)]):
        save_file({"w": torch.full((2,), float(number))}, folder / f"epoch_{epoch}_step_{step}.safetensors")
    assert names(open_run(folder)) == [path.name for path in sorted(folder.iterdir())]
    refused = cli("average", "run", "--half-life", "100ba", "-o", "out.safetensors")
    assert refused.code == 4
    assert "--spacing 100ba --ignore-clocks" in refused.err


def test_a_start_in_a_unit_that_goes_back_is_refused(tmp_path: Path) -> None:
    """What is at or after 1ep would come from both parts of the run."""
    run = open_run(resumed(tmp_path, RESUMED))
    with pytest.raises(RunError, match=r"and start= counts epochs$") as raised:
        make_plan(run, Recipe(half_life="100ba", start="1ep"))
    assert "or give start= in batches" in (raised.value.hint or "")
    assert names(make_plan(run, Recipe(half_life="100ba", start="300ba", stop="1.5ep"))) == [
        "checkpoint-300",
        "checkpoint-400",
    ]


def test_numbers_in_the_names_that_do_not_go_back_are_offered_first(cli: Cli, tmp_path: Path) -> None:
    """The files record steps within the epoch, the names the steps of the whole run."""
    (tmp_path / "run").mkdir()
    for name, epoch, step in ((100, 0, 100), (200, 0, 200), (300, 1, 100), (400, 1, 200)):
        content = {"model": {"w": torch.full((2,), float(name))}, "epoch": epoch, "step": step}
        torch.save(content, tmp_path / "run" / f"ckpt_{name:06}.pt")
    command = ("average", "run", "--half-life", "100ba", "-o", "out.safetensors")
    refused = cli(*command)
    assert refused.code == 4
    assert "count batches, say so: --name-clock ba; or they seem to begin again in each epoch" in refused.err
    assert cli(*command, "--name-clock", "ba").code == 0
    expected = 100 / 8 + 200 / 8 + 300 / 4 + 400 / 2
    assert load_file(tmp_path / "out.safetensors")["w"].tolist() == [expected] * 2
