"""A checkpoint without a clock beside those of a run: a copy only if its tensors say so, or perhaps the newest."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ema_cli import averaging
from ema_cli.errors import RunError
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time
from ema_cli.planning.plan import make_plan
from ema_cli.runs.run import open_run
from tests.conftest import make_tensors, write_hf_run, write_torch_run

HUNDRED = Recipe(half_life=Time.parse("100ba"))
UNNUMBERED = ["last.pt", "model_last.pt", "final.pt", "model.pt", "final/model.pt"]


def save(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(make_tensors(seed), path)
    return path


@pytest.mark.parametrize("name", UNNUMBERED)
def test_a_newer_state_without_a_clock_stops_an_average(tmp_path: Path, name: str):
    """The state after the last numbered one is never left out as a copy that nobody compared."""
    write_torch_run(tmp_path, [100, 200])
    save(tmp_path / name, 300)
    plan = make_plan(open_run(tmp_path), HUNDRED)
    with pytest.raises(RunError, match=r"records no clock, and is equal to none of 2 checkpoints: it may") as raised:
        averaging.average(plan, tmp_path / "out.safetensors")
    assert raised.value.hint == (
        f"leave it out: exclude='{name}'; or let it be the newest: name all the files, "
        "with ignore_clocks=True and spacing='100ba'"
    )
    without = make_plan(open_run(tmp_path, exclude=[name]), HUNDRED)
    averaging.average(without, tmp_path / "out.safetensors")
    assert [entry.checkpoint.name for entry in without.entries] == ["step-100.pt", "step-200.pt"]


def test_where_recorded_clocks_are_ignored_the_hint_ignores_them_too(tmp_path: Path):
    """It does not say that a checkpoint records no clock, and what it says to type works."""
    write_torch_run(tmp_path, [100, 200])
    save(tmp_path / "style.pt", 300)
    plan = make_plan(open_run(tmp_path, spacing="100ba", ignore_clocks=True), HUNDRED)
    fact = r"has no clock, as recorded ones are ignored \(ignore_clocks=True\), and is equal to none of 2"
    with pytest.raises(RunError, match=fact) as raised:
        averaging.average(plan, tmp_path / "out.safetensors")
    assert (raised.value.hint or "").endswith("name all the files, with spacing='100ba' ignore_clocks=True")
    every = open_run(sorted(tmp_path.glob("*.pt")), spacing="100ba", ignore_clocks=True)
    averaging.average(make_plan(every, HUNDRED), tmp_path / "out.safetensors")
    assert every.checkpoints[-1].name == "style.pt"


@pytest.mark.parametrize("name", [*UNNUMBERED, "best.pt", "model_best.pt"])
@pytest.mark.parametrize("copied", [100, 200])
def test_a_copy_that_was_compared_is_left_out(tmp_path: Path, name: str, copied: int):
    """Equal to any checkpoint of the run, it is a copy, and nothing is missing."""
    write_torch_run(tmp_path, [100, 200])
    save(tmp_path / name, copied)
    plan = make_plan(open_run(tmp_path), HUNDRED)
    averaging.average(plan, tmp_path / "out.safetensors")
    assert len(plan.entries) == 2


def test_the_best_state_is_of_any_moment(tmp_path: Path):
    """One called best that is no copy was saved in between: it is said, and stops nothing."""
    write_torch_run(tmp_path, [100, 200])
    save(tmp_path / "best.pt", 150)
    run = open_run(tmp_path)
    averaging.average(make_plan(run, HUNDRED), tmp_path / "out.safetensors")
    assert [(passed.name, passed.warn, passed.note) for passed in run.passed_over] == [("best.pt", False, True)]


@pytest.mark.parametrize("newest", ["model_last.pt", "last.pt", "a-final.pt", "model.pt"])
def test_spacing_leaves_out_no_newer_state(tmp_path: Path, newest: str):
    """Where spacing gives the clocks, the error's way on makes it the newest, whatever its name begins with."""
    for number in (1, 2):
        save(tmp_path / f"model_{number}.pt", number)
    save(tmp_path / newest, 3)
    with pytest.raises(RunError, match=r"is equal to none of 2 checkpoints") as raised:
        averaging.average(make_plan(open_run(tmp_path, spacing="1ba"), HUNDRED), tmp_path / "out.safetensors")
    assert (raised.value.hint or "").endswith("or let it be the newest: name all the files, with spacing='1ba'")
    plan = make_plan(open_run(sorted(tmp_path.glob("*.pt")), spacing="1ba"), Recipe(half_life=Time.parse("1ba")))
    assert [entry.checkpoint.name for entry in plan.entries] == ["model_1.pt", "model_2.pt", newest]
    averaging.average(plan, tmp_path / "out.safetensors")
    averaged = load_file(tmp_path / "out.safetensors")
    models = [make_tensors(number) for number in (1, 2, 3)]
    for name, tensor in averaged.items():
        if tensor.is_floating_point():
            expected = sum(
                (weight * model[name].double() for weight, model in zip((0.25, 0.25, 0.5), models, strict=True)),
                torch.zeros(tensor.shape, dtype=torch.float64),
            )
            assert torch.allclose(tensor.double(), expected, atol=1e-6)


def test_a_final_folder_that_is_newer_is_not_lost(tmp_path: Path):
    """The same for folders: `final/` after the last `checkpoint-N`."""
    write_hf_run(tmp_path, [100, 200])
    shutil.copytree(tmp_path / "checkpoint-200", tmp_path / "final")
    (tmp_path / "final" / "trainer_state.json").unlink()
    averaging.average(make_plan(open_run(tmp_path), HUNDRED), tmp_path / "a.safetensors")
    save_file(make_tensors(250), tmp_path / "final" / "model.safetensors")
    with pytest.raises(RunError, match=r"final: records no clock, and is equal to none of 2 checkpoints"):
        averaging.average(make_plan(open_run(tmp_path), HUNDRED), tmp_path / "b.safetensors")


def test_who_stops_earlier_does_not_miss_the_newest(tmp_path: Path):
    """`--stop` leaves out what came later anyway."""
    write_torch_run(tmp_path, [100, 200])
    save(tmp_path / "final.pt", 300)
    recipe = Recipe(half_life=Time.parse("100ba"), stop=Time.parse("200ba"))
    averaging.average(make_plan(open_run(tmp_path), recipe), tmp_path / "out.safetensors")


def test_a_model_with_other_tensors_is_no_newer_state(tmp_path: Path):
    """A judge, a tokenizer or another network beside a run is passed over, and why is said."""
    write_torch_run(tmp_path, [100, 200])
    for name in ("vgg16.pt", "lpips_v0.1.pt", "critic.pt"):
        torch.save({"features.weight": torch.ones(7)}, tmp_path / name)
    run = open_run(tmp_path)
    assert {passed.name for passed in run.passed_over if passed.warn} == {"vgg16.pt", "lpips_v0.1.pt", "critic.pt"}
    assert {passed.reason for passed in run.passed_over} == {"records no clock, and has other tensors than step-200.pt"}
    averaging.average(make_plan(run, HUNDRED), tmp_path / "out.safetensors")


def test_a_final_model_above_its_checkpoints_that_is_newer_is_said(tmp_path: Path):
    """What save_model() leaves above checkpoint-N does not enter; where it is none of them, a note says so."""
    write_hf_run(tmp_path, [100, 200])
    recipe = Recipe(half_life=Time.parse("100ba"))
    for seed, notes in ((200, 0), (100, 0), (300, 1)):
        save_file(make_tensors(seed), tmp_path / "model.safetensors")
        result = averaging.average(make_plan(open_run(tmp_path), recipe), tmp_path.parent / f"out{seed}.safetensors")
        said = [note for note in result.notes if "it may be newer, and is not in the average" in note]
        assert len(said) == notes
    earlier = Recipe(half_life=Time.parse("100ba"), stop=Time.parse("200ba"))
    result = averaging.average(make_plan(open_run(tmp_path), earlier), tmp_path.parent / "stopped.safetensors")
    assert not any("it may be newer" in note for note in result.notes)


def test_a_final_model_of_another_float_type_cannot_be_compared_and_is_said(tmp_path: Path):
    """An export in half precision may be a copy or newer: that is said, and stops nothing."""
    write_torch_run(tmp_path, [100, 200])
    torch.save({name: tensor.half() for name, tensor in make_tensors(200).items()}, tmp_path / "final.pt")
    run = open_run(tmp_path)
    assert [(passed.reason, passed.warn) for passed in run.passed_over] == [
        ("records no clock, and other names or types than step-200.pt: a copy, or a newer state", True)
    ]
    averaging.average(make_plan(run, HUNDRED), tmp_path / "out.safetensors")
