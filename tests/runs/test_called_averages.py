"""Raw or averages, where a name or the user says so: contents first, then the user, names last, and all of it said."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel

from ema_cli import averaging, preparing
from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import NoSuchWeights, RunError
from ema_cli.law.recipe import Recipe
from ema_cli.planning.plan import make_plan
from ema_cli.runs.run import Run, open_run
from ema_cli.runs.warnings import run_notes, run_warnings
from ema_cli.writing.target import parse_target
from tests.conftest import Cli, write_hf_run

State = dict[str, torch.Tensor]
OPTIMIZER = {"state": {}, "param_groups": [{"lr": 0.1}]}


def weights(value: float) -> State:
    """Return the weights of a small model."""
    return {"w": torch.full((3,), float(value))}


def save(path: Path, saved: object) -> None:
    """Save an object with torch; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(saved, path)


def names(run: Run) -> list[str]:
    """Return the names of the checkpoints of a run, oldest first."""
    return [checkpoint.name for checkpoint in run.checkpoints]


def passed_over(run: Run) -> dict[str, str]:
    """Return what is passed over, with the reasons; each is said."""
    return {each.name: each.reason for each in run.passed_over if each.warn or each.note}


def first_value(checkpoint: Checkpoint) -> float:
    """Return the first number of a checkpoint's weights."""
    out = bytearray(12)
    checkpoint.tensors.read_into("w", 0, memoryview(out))
    return float(torch.frombuffer(out, dtype=torch.float32)[0])


def values(run: Run) -> list[float]:
    """Return the first number of the weights of each checkpoint."""
    return [first_value(checkpoint) for checkpoint in run.checkpoints]


def lightning(step: int, value: float) -> dict[str, Any]:
    """Return what Lightning pickles."""
    return {
        "pytorch-lightning_version": "2.6",
        "epoch": 0,
        "global_step": step,
        "state_dict": weights(value),
        "loops": {},
    }


def timm(step: int, value: float) -> dict[str, Any]:
    """Return what timm pickles."""
    return {
        "epoch": step - 1,
        "arch": "a",
        "version": 2,
        "state_dict": weights(value),
        "state_dict_ema": weights(-value),
    }


def loop(step: int, value: float) -> dict[str, Any]:
    """Return what a loop of one's own pickles to go on from."""
    return {"step": step, "model": weights(value), "optimizer": OPTIMIZER}


TRAINERS: dict[str, Callable[[int, float], dict[str, Any]]] = {"Lightning": lightning, "timm": timm, "a loop": loop}


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("given", ["ema", "runs", "runs/exp_ema"])
def test_a_run_in_a_folder_called_ema_is_raw(trainer: str, given: str, tmp_path: Path) -> None:
    """A trainer's own checkpoints are raw weights, whatever the folder of the experiment is called."""
    folder = {"ema": "ema", "runs": "runs/exp_ema", "runs/exp_ema": "runs/exp_ema"}[given]
    for step in (1, 2):
        save(tmp_path / folder / f"step-{step}.ckpt", TRAINERS[trainer](step, float(step)))
    for run in (open_run(tmp_path / given), open_run(tmp_path / given, weights="raw")):
        assert values(run) == [1.0, 2.0]
        assert not any(checkpoint.averaged for checkpoint in run.checkpoints)


def test_hugging_faces_checkpoints_in_a_folder_called_ema_are_raw(tmp_path: Path) -> None:
    """The Trainer's state beside the weights says that training went on from them."""
    write_hf_run(tmp_path / "ema", [300, 400])
    run = open_run(tmp_path / "ema")
    assert names(run) == ["checkpoint-300", "checkpoint-400"]
    assert not any(checkpoint.averaged for checkpoint in run.checkpoints)


def test_averages_in_the_folder_of_each_checkpoint(tmp_path: Path, cli: Cli) -> None:
    """`checkpoint-N/ema/`, as a callback leaves it: the raw weights are taken, on request the averages, at N."""
    write_hf_run(tmp_path / "run", [100, 200])
    for step in (100, 200):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        shutil.copytree(folder, folder / "ema")
        (folder / "ema" / "trainer_state.json").unlink()
        averaged = {name: -value for name, value in load_file(folder / "model.safetensors").items()}
        save_file(averaged, folder / "ema" / "model.safetensors")
    law = ("--profile", "uniform")
    for weights in ("raw", "ema"):
        assert cli("average", "run", *law, "--weights", weights, "-o", weights).code == 0
        assert cli("verify", weights, "--against", "run").code == 0
    raw, averages = (load_file(tmp_path / name / "model.safetensors") for name in ("raw", "ema"))
    for name, value in raw.items():
        if value.is_floating_point():
            assert torch.equal(averages[name], -value), name
    assert [checkpoint.name for checkpoint in open_run(tmp_path / "run", weights="ema").checkpoints] == [
        "checkpoint-100",
        "checkpoint-200",
    ]


@pytest.mark.parametrize("saved", [lambda step: {"model": weights(step)}, lambda step: weights(step)])
def test_weights_alone_in_a_folder_called_ema_are_averages_until_the_user_says(
    saved: Callable[[float], object], tmp_path: Path
) -> None:
    """Nothing in the files says what they are: refused, with a hint that works."""
    for step in (1, 2):
        save(tmp_path / "ema" / f"step-{step}.pt", saved(float(step)))
    plan = make_plan(open_run(tmp_path / "ema"), Recipe(half_life="1ba"))
    with pytest.raises(RunError, match="it is in a folder of averages, by its name") as caught:
        preparing.refuse_averaged(plan)
    assert "weights='raw'" in (caught.value.hint or "")
    run = open_run(tmp_path / "ema", weights="raw")
    assert values(run) == [1.0, 2.0]
    assert any(
        "taken for raw weights, as --weights raw says" in warning for warning in run_warnings(run, run.checkpoints)
    )


def mace(folder: Path, **more: object) -> None:
    """Write a run whose second half is called after the stage of training that it is of, as MACE calls it."""
    for epoch in (100, 110, 120, 130):
        name = f"MACE_run-1_epoch-{epoch}{'_swa' if epoch > 110 else ''}.pt"
        save(folder / name, {"model": weights(float(epoch)), **more})


def test_the_newest_half_that_only_names_call_averages_is_said(tmp_path: Path) -> None:
    """Weights alone: the names are believed, what they keep out is said with its clock, and the user settles it."""
    mace(tmp_path)
    run = open_run(tmp_path)
    assert values(run) == [100.0, 110.0]
    reason = "averages, as its name says (up to 130ep, newer than all that enter; raw weights with --weights raw)"
    assert passed_over(run) == {f"MACE_run-1_epoch-{epoch}_swa.pt": reason for epoch in (120, 130)}
    assert values(open_run(tmp_path, weights="raw")) == [100.0, 110.0, 120.0, 130.0]
    only = open_run(tmp_path, exclude="*_swa*")
    assert values(only) == [100.0, 110.0]
    assert not passed_over(only)


def test_files_to_go_on_from_at_clocks_of_their_own_are_raw(tmp_path: Path) -> None:
    """An optimizer's state says that training went on from the file: no name outweighs that; it is a note."""
    mace(tmp_path, optimizer=OPTIMIZER)
    run = open_run(tmp_path)
    assert values(run) == [100.0, 110.0, 120.0, 130.0]
    assert any(
        "taken for raw weights, although its name says averages" in text for text in run_warnings(run, run.checkpoints)
    )


def test_the_same_files_named_one_by_one(tmp_path: Path) -> None:
    """A shell that lists the files gives what the folder gives; those that are so called by themselves are refused."""
    mace(tmp_path, optimizer=OPTIMIZER)
    files = sorted(tmp_path.iterdir())
    assert values(open_run(files)) == [100.0, 110.0, 120.0, 130.0]
    with pytest.raises(RunError, match="its name says averages"):
        preparing.refuse_averaged(make_plan(open_run(files[2:]), Recipe(half_life="10ep")))


@pytest.mark.parametrize("weights", [None, "raw"])
def test_an_average_of_them_is_verified_and_made_again(weights: str | None, tmp_path: Path, cli: Cli) -> None:
    """What was taken for raw weights is taken so again, by the manifest."""
    mace(tmp_path / "run", **({} if weights else {"optimizer": OPTIMIZER}))
    chosen = ["--weights", weights] if weights else []
    assert cli("average", "run", "--half-life", "10ep", *chosen, "-o", "a.safetensors").code == 0
    assert "4 checkpoints" in cli("verify", "a.safetensors", "--against", "run").out
    manifest = "a.safetensors.manifest.json"
    assert cli("average", "run", "--recipe", manifest, "-o", "b.safetensors").code == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_teacher_that_does_not_move_is_no_average(tmp_path: Path, cli: Cli) -> None:
    """Asked for its averages, a run with a frozen teacher is refused; one whose teacher follows is averaged."""
    for step in (1, 2, 3):
        frozen = {"step": step, "student": weights(step), "teacher": weights(9.0)}
        save(tmp_path / "frozen" / f"step-{step}.pt", frozen)
        save(tmp_path / "moving" / f"step-{step}.pt", frozen | {"teacher": weights(-step)})
    done = cli("average", "frozen", "--half-life", "1ba", "--weights", "ema", "-o", "a.safetensors")
    assert done.code == 4
    assert "a model that training leaves as it is, not its average" in " ".join(done.err.split())
    assert cli("average", "frozen", "--half-life", "1ba", "--weights", "raw", "-o", "a.safetensors").code == 0
    assert cli("average", "moving", "--half-life", "1ba", "--weights", "ema", "-o", "b.safetensors").code == 0
    assert torch.equal(load_file(tmp_path / "b.safetensors")["w"], torch.full((3,), -2.25))


@pytest.mark.parametrize("pattern", ["swa_epoch_{}.pth", "model-{}_ema.pt", "epoch_{}-SWA.ckpt"])
def test_a_folder_of_nothing_but_such_names(pattern: str, tmp_path: Path) -> None:
    """It is no empty folder: refused as averages, and believed when the user calls them raw, or averages."""
    for number in (1, 2):
        save(tmp_path / pattern.format(number), {"model": weights(float(number)), "epoch": number})
    plan = make_plan(open_run(tmp_path), Recipe(half_life="1ep"))
    with pytest.raises(RunError, match="is averaged already: its name says averages"):
        preparing.refuse_averaged(plan)
    assert values(open_run(tmp_path, weights="raw")) == [1.0, 2.0]
    assert values(open_run(tmp_path, weights="ema")) == [1.0, 2.0]
    files = sorted(tmp_path.iterdir())
    assert values(open_run(files, weights="raw")) == [1.0, 2.0]


def pairs(folder: Path, **more: object) -> None:
    """Write raw checkpoints and their averages beside them, in files of like names."""
    for step in (1, 2, 3):
        save(folder / f"a-step={step}.ckpt", lightning(step, float(step)) | more)
        save(folder / f"a-step={step}-EMA.ckpt", lightning(step, -float(step)) | more)


def test_files_of_averages_beside_raw_ones(tmp_path: Path) -> None:
    """Of two files of one clock the one that is called so holds the averages, and either set can be taken."""
    pairs(tmp_path)
    assert values(open_run(tmp_path)) == [1.0, 2.0, 3.0]
    assert values(open_run(tmp_path, weights="raw")) == [1.0, 2.0, 3.0]
    assert values(open_run(tmp_path, weights="ema")) == [-1.0, -2.0, -3.0]


def test_a_folder_of_averages_beside_raw_checkpoints(tmp_path: Path) -> None:
    """`ema/` beside `step-*`: passed over and said, with how far it goes; `--weights ema` takes it."""
    for step in (1, 2, 3):
        save(tmp_path / f"step-{step}.pt", weights(float(step)))
        save(tmp_path / "ema" / f"step-{step}.pt", weights(-float(step)))
    run = open_run(tmp_path)
    assert values(run) == [1.0, 2.0, 3.0]
    assert passed_over(run) == {"ema": "averages, as its name says (3 checkpoints, the newest at 3ba)"}
    assert values(open_run(tmp_path, weights="raw")) == [1.0, 2.0, 3.0]
    assert values(open_run(tmp_path, weights="ema")) == [-1.0, -2.0, -3.0]
    for pattern in ("ema", "ema/*"):
        excluding = open_run(tmp_path, exclude=pattern)
        assert values(excluding) == [1.0, 2.0, 3.0]
        assert not passed_over(excluding)
        assert not excluding.notes
        assert not excluding.warnings
    assert values(open_run(tmp_path, weights="ema", exclude="*step-3.pt")) == [-1.0, -2.0]


def test_a_copy_without_averages_does_not_stop_the_run(tmp_path: Path) -> None:
    """A best.pth that would be passed over anyway is passed over, and said."""
    for epoch in (1, 2):
        save(
            tmp_path / f"checkpoint_{epoch}.pth",
            {"epoch": epoch, "model": weights(epoch), "model_ema": weights(-epoch)},
        )
    save(tmp_path / "best.pth", {"model": weights(9.0)})
    run = open_run(tmp_path, weights="ema")
    assert values(run) == [-1.0, -2.0]
    assert passed_over(run) == {"best.pth": "holds no averages"}


def test_checkpoints_before_the_averages_began_are_left_out(tmp_path: Path) -> None:
    """Those that are older than all with averages are left out, and said; one in the middle is an error."""
    save(tmp_path / "step-1.pt", {"step": 1, "model": weights(1.0)})
    begun = {"n_averaged": torch.tensor(0), "module.w": torch.zeros(3)}
    save(tmp_path / "step-2.pt", {"step": 2, "model": weights(2.0), "model_ema": begun})
    for step in (3, 4):
        averaged = {"n_averaged": torch.tensor(step), "module.w": torch.full((3,), -float(step))}
        save(tmp_path / f"step-{step}.pt", {"step": step, "model": weights(step), "model_ema": averaged})
    named = open_run(sorted(tmp_path.iterdir()), weights="ema")
    run = open_run(tmp_path, weights="ema")
    assert values(run) == values(named) == [-3.0, -4.0]
    assert passed_over(run) == passed_over(named)
    assert passed_over(run).keys() == {"step-1.pt", "step-2.pt"}
    assert "have not been updated once" in passed_over(run)["step-2.pt"]
    save(tmp_path / "step-5.pt", {"step": 5, "model": weights(5.0)})
    with pytest.raises(NoSuchWeights, match=r"step-5\.pt: holds no averages"):
        open_run(tmp_path, weights="ema")


def test_no_averages_anywhere(tmp_path: Path) -> None:
    """Where no checkpoint has averages, asking for them is the error that it was."""
    for step in (1, 2):
        save(tmp_path / f"step-{step}.pt", {"step": step, "model": weights(step)})
    with pytest.raises(NoSuchWeights, match="holds no averages"):
        open_run(tmp_path, weights="ema")


def test_our_own_averages_under_such_names_are_known(tmp_path: Path) -> None:
    """A mark in a file or a folder called `ema` says who made it: nothing to warn about."""
    for step in (1, 2):
        save(tmp_path / f"step-{step}.pt", {"step": step, "model": weights(step)})
    plan = make_plan(open_run(tmp_path), Recipe(half_life="1ba"))
    averaging.average(plan, parse_target(tmp_path / "model_ema.safetensors"))
    averaging.average(plan, parse_target(tmp_path / "ema"))
    run = open_run(tmp_path)
    assert {each.name: each.reason for each in run.passed_over} == {
        "model_ema.safetensors": "averaged by ema-cli",
        "ema": "averaged by ema-cli",
    }
    assert not passed_over(run)


def test_the_average_of_what_the_user_calls_raw(tmp_path: Path) -> None:
    """The bytes are those of the mean of all, computed in float64."""
    mace(tmp_path / "run")
    run = open_run(tmp_path / "run", weights="raw")
    averaging.average(make_plan(run, Recipe(profile="uniform")), parse_target(tmp_path / "out.safetensors"))
    expected = torch.tensor([100.0, 110.0, 120.0, 130.0], dtype=torch.float64).mean().float()
    assert torch.equal(load_file(tmp_path / "out.safetensors")["w"], expected.expand(3))
    save_file(weights(1.0), tmp_path / "run" / "model_ema.safetensors")
    assert "model_ema.safetensors" in passed_over(open_run(tmp_path / "run", weights="raw"))


def with_callback(step: int, raw: float, average: float) -> dict[str, Any]:
    """Return what Lightning saves of a model and of a callback that keeps an average."""
    callbacks = {"EMA": {"ema_state_dict": weights(average)}}
    return {"state_dict": weights(raw), "pytorch-lightning_version": "2.6.6", "global_step": step,
            "callbacks": callbacks}  # fmt: skip


@pytest.mark.parametrize("taken", [None, "raw"])
@pytest.mark.parametrize("named", [False, True])
def test_an_average_that_has_just_begun_is_no_average_in_the_models_place(
    taken: Any, named: bool, tmp_path: Path
) -> None:
    """It equals the weights, as it would if it had taken their place; later checkpoints show that it does not."""
    for step, raw, average in ((10, 1, 1), (20, 2, 2), (30, 3, 2.5), (40, 4, 3)):
        save(tmp_path / f"step={step}.ckpt", with_callback(step, raw, average))
    run = open_run(sorted(tmp_path.iterdir()) if named else tmp_path, weights=taken)
    assert values(run) == [1, 2, 3, 4]
    assert [checkpoint.averaged for checkpoint in run.checkpoints] == [None] * 4
    note = "raw weights taken; they equal the averages beside them, which had just begun"
    assert [note in checkpoint.notes for checkpoint in run.checkpoints] == [True, True, False, False]
    assert values(open_run(tmp_path, weights="ema")) == [1, 2, 2.5, 3]


def test_weights_that_equal_their_averages_later_are_averages(tmp_path: Path) -> None:
    """The newest, and what a name calls averages, too, are refused as before."""
    for step, raw, average in ((20, 2, 1.5), (30, 3, 3)):
        save(tmp_path / f"step={step}.ckpt", with_callback(step, raw, average))
    assert [bool(each.averaged) for each in open_run(tmp_path).checkpoints] == [False, True]
    with pytest.raises(NoSuchWeights):
        open_run(tmp_path, weights="raw")
    save(tmp_path / "step=30.ckpt", with_callback(30, 3, 2))
    save(tmp_path / "step=10-EMA.ckpt", with_callback(10, 1, 1))
    assert values(open_run(tmp_path)) == [2, 3]
    assert values(open_run(tmp_path, weights="raw")) == [2, 3]


def test_averages_in_files_of_their_own_whose_numbers_say_no_unit(tmp_path: Path) -> None:
    """The raw file of the same number is their partner; one without averages is not gone without."""
    for step in (10, 20, 30):
        save(tmp_path / f"model{step:06d}.pt", weights(step))
        save(tmp_path / f"ema_0.9999_{step:06d}.pt", weights(step - 5))
        save(tmp_path / f"opt{step:06d}.pt", OPTIMIZER)
    assert values(open_run(tmp_path, name_clock="ba")) == [10, 20, 30]
    run = open_run(tmp_path, weights="ema", name_clock="ba")
    assert values(run) == [5, 15, 25]
    assert [str(checkpoint.clock(run.units[0])) for checkpoint in run.checkpoints] == ["10", "20", "30"]
    save(tmp_path / "model000040.pt", weights(40))
    with pytest.raises(NoSuchWeights, match="holds no averages"):
        open_run(tmp_path, weights="ema", name_clock="ba")


@pytest.mark.parametrize(
    ("raw", "averages", "is_missed"),
    [
        ("step-{}.pt", "ema_step-2.pt", False),
        ("step-{}.pt", "ema_step-4.pt", True),
        ("step-{}.pt", "model_ema.pt", False),
        ("step-{}.pt", "ema_4.pt", False),
        ("model_{}.pt", "ema_0.9_2.pt", False),
        ("model_{}.pt", "ema_0.9_4.pt", True),
        ("step-{}.pt", "exp_ema/step-2.pt", False),
        ("step-{}.pt", "exp_ema/step-4.pt", True),
    ],
)
def test_averages_by_name_are_missed_only_where_they_may_be_a_moment_of_the_run(
    raw: str, averages: str, is_missed: bool, tmp_path: Path
) -> None:
    """What only a name calls averages may be raw: a warning where no other is of its moment, else a note."""
    for step in (1, 2, 3):
        save(tmp_path / raw.format(step), weights(step))
    save(tmp_path / averages, weights(2))
    run = open_run(tmp_path)
    (passed,) = [each for each in run.passed_over if each.name in averages]
    assert (passed.warn, passed.note) == (is_missed, not is_missed)
    assert any("averages, as its name says" in text for text in run_warnings(run, run.checkpoints)) is is_missed
    assert any("averages, as its name says" in text for text in run_notes(run, run.checkpoints)) is not is_missed


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_an_averaged_model_that_never_averaged_is_not_sent_to_its_averages(
    suffix: str, cli: Cli, tmp_path: Path
) -> None:
    """One message, whatever is asked for: the averages have not begun, and it holds the model as it was."""
    for step in (1, 2, 3):
        state = dict(AveragedModel(torch.nn.Linear(2, 2)).state_dict())
        save_file(state, tmp_path / f"step-{step}.{suffix}") if suffix != "pt" else save(
            tmp_path / f"step-{step}.pt", {"model": state, "step": step}
        )
    for choice in ((), ("--weights", "ema"), ("--weights", "raw")):
        done = cli("average", ".", "--half-life", "1ba", *choice)
        assert done.code == 4
        assert "average the model's own checkpoints" in done.err
        assert "--weights ema" not in done.err
        assert choice == ("--weights", "raw") or "holds no averages yet: they have not been updated once" in done.err


def test_averages_that_have_not_begun_are_said_where_raw_weights_are_there(cli: Cli, tmp_path: Path) -> None:
    """Lightning has the initial weights in `state_dict` until then; the hint takes the others, and it works."""
    for step in (1, 2, 3):
        saved = lightning(step, 0) | {"current_model_state": weights(step), "averaging_state": {"n_averaged": 0}}
        save(tmp_path / f"step={step}.ckpt", saved)
    law = ("--half-life", "1ba", "-o", "out.pt")
    done = cli("average", ".", *law)
    assert done.code == 4
    assert "holds no averages yet: they have not been updated once" in done.err
    assert done.err.endswith("hint:  take the raw weights stored beside them: --weights raw\n")
    assert cli("average", ".", *law, "--weights", "raw").code == 0
    assert torch.load(tmp_path / "out.pt")["w"][0].item() == pytest.approx(0.25 * 1 + 0.25 * 2 + 0.5 * 3)
