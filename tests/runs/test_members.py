"""Several files of one moment: networks, forms or parts of one state; and folders that are runs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ema_cli import averaging
from ema_cli.comparing.twins import check_twins
from ema_cli.errors import RunError, UsageError
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time, Unit
from ema_cli.planning.plan import make_plan
from ema_cli.release.inputs import find_inputs, open_inputs
from ema_cli.runs.run import Run, open_run
from tests.conftest import Cli, make_tensors, write_hf_run, write_torch_run

HUNDRED = Recipe(half_life=Time.parse("100ba"))


def names(run: Run) -> list[str]:
    return [checkpoint.name for checkpoint in run.checkpoints]


def save(path: Path, tensors: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, path)


@pytest.mark.parametrize("folder", ["CKPT+2026-01-0{}+10-00-00+00", "step-{}", "checkpoints/{}00"])
@pytest.mark.parametrize("others", [("normalizer",), ("wav2vec2", "ctc_lin"), ("discriminator",)])
def test_several_models_of_each_moment_are_one_run_and_a_choice(tmp_path: Path, folder: str, others: tuple[str, ...]):
    """A folder for each moment with several files is no run for each folder: the component is chosen."""
    for number in (1, 2, 3):
        save(tmp_path / folder.format(number) / "model.ckpt", make_tensors(number))
        for other in others:
            save(tmp_path / folder.format(number) / f"{other}.ckpt", {other: torch.ones(3)})
    with pytest.raises(UsageError, match=r"holds several models: ") as raised:
        open_run(tmp_path)
    assert set(re.findall(r"\w+", str(raised.value).rpartition("models: ")[2])) == {"model", *others}
    ways = [f"component={name!r}" for name in ("model", *sorted(others))]
    assert raised.value.hint == f"say which: {', or '.join(ways)}"
    with pytest.raises(UsageError, match=r"has no component 'modle'$"):
        open_run(tmp_path, component="modle")
    spacing = None if folder.startswith("step") else Time.parse("1ba")
    for component in ("model", *others):
        run = open_run(tmp_path, component=component, spacing=spacing)
        assert names(run) == [f"{folder.format(number)}/{component}.ckpt" for number in (1, 2, 3)]
        assert {each.reason for each in run.passed_over} == {f"not '{component}'"}


@pytest.mark.parametrize("name", ["{}_{}.pth", "{}_step{}.pt", "step={}-{}.ckpt", "epoch_{}_{}.safetensors"])
def test_networks_beside_each_other_are_components_by_their_names(tmp_path: Path, cli: Cli, name: str):
    """The number of the moment is no part of a network's name; what is not there is an error that names what is."""
    saved = {}
    for step in (1, 2, 3):
        for network, value in (("G", 1.0), ("wav2vec", -1.0)):
            file = name.format(*((step, network) if name.startswith(("step", "epoch")) else (network, step)))
            saved[network, step] = file
            tensors = {network: torch.full((2,), value * step)}
            (tmp_path / "run").mkdir(exist_ok=True)
            path = tmp_path / "run" / file
            save_file(tensors, path) if file.endswith("safetensors") else save(path, {"model": tensors, "epoch": step})
    for network, value in (("G", 1.0), ("wav2vec", -1.0)):
        run = open_run(tmp_path / "run", component=network)
        assert sorted(names(run)) == sorted(saved[network, step] for step in (1, 2, 3))
        law = ("--profile", "uniform", "--component", network, "-o", f"{network}.safetensors")
        assert cli("average", "run", *law).code == 0
        written = load_file(tmp_path / f"{network}.safetensors")
        assert written[network].tolist() == [2.0 * value] * 2
        assert cli("verify", f"{network}.safetensors", "--against", "run").code == 0
    with pytest.raises(UsageError, match=r"has no component 'D'$") as raised:
        open_run(tmp_path / "run", component="D")
    assert raised.value.hint == "say which: component='G', or component='wav2vec'"


def test_a_chosen_component_is_averaged_and_opened_again(tmp_path: Path):
    """The average is that of the one network, and its inputs are found by the manifest with the same choice."""
    for step in (100, 200):
        save(tmp_path / "run" / f"step-{step}" / "generator.pt", {"w": torch.full((2,), float(step))})
        save(tmp_path / "run" / f"step-{step}" / "discriminator.pt", {"v": torch.full((2,), -float(step))})
    run = open_run(tmp_path / "run", component="generator")
    result = averaging.average(make_plan(run, HUNDRED), tmp_path / "out.safetensors")
    assert load_file(tmp_path / "out.safetensors")["w"].tolist() == [150.0, 150.0]
    found = find_inputs(result.manifests[0], [tmp_path / "run"])
    assert [set(each.tensors.specs) for each in open_inputs(result.manifests[0], found.paths)] == [{"w"}, {"w"}]


def test_files_without_weights_are_no_choice(tmp_path: Path):
    """Where one file of each moment holds weights, that is the model, and nothing is asked."""
    for day in (1, 2):
        folder = tmp_path / f"CKPT+2026-01-0{day}+10-00-00+00"
        save(folder / "model.ckpt", make_tensors(day))
        save(folder / "optimizer.ckpt", {"state": {0: {"exp_avg": torch.ones(2)}}})
        save(folder / "lr_scheduler.ckpt", {"last_epoch": 3})
    assert [name.rpartition("/")[2] for name in names(open_run(tmp_path))] == ["model.ckpt"] * 2


def test_seeds_with_several_files_are_runs(tmp_path: Path):
    """A folder for each seed, with checkpoints of different moments in it, is a run for each."""
    for seed in (1, 2):
        for epoch, name in ((5, "best.pt"), (9, "end.pt")):
            save(tmp_path / f"seed{seed}" / name, {"model": make_tensors(epoch), "epoch": epoch})
    with pytest.raises(RunError, match=r"holds the checkpoints of 2 runs: seed1 \(2\), seed2 \(2\)"):
        open_run(tmp_path)


@pytest.mark.parametrize(
    ("kinds", "patterns"),
    [
        (("step_{}.pth", "step_{}_D.pth"), ["step_*_D.pth"]),
        (("D_{:06}_step{}.pth", "G_{:06}_step{}.pth"), ["G_*_step*.pth", "D_*_step*.pth"]),
        (("net-G-step{}.pth", "net-D-step{}.pth"), ["net-G-step*.pth", "net-D-step*.pth"]),
    ],
)
def test_two_networks_of_one_step_are_told_by_their_tensors(
    tmp_path: Path, kinds: tuple[str, str], patterns: list[str]
):
    """The error says which tensor only one has, and its pattern leaves out one kind and nothing of the other."""
    for step in (100, 200):
        for number, kind in enumerate(kinds):
            save(tmp_path / kind.format(step, step), {f"w{number}": torch.full((2,), float(step))})
    run = open_run(tmp_path)
    with pytest.raises(RunError, match=r"has the same clock as .*, but other tensors: only .* has 'w[01]'$") as raised:
        check_twins([make_plan(run, HUNDRED)])
    hint = ", or ".join(f"exclude='{pattern}'" for pattern in patterns)
    assert raised.value.hint == f"average one of the two kinds, with {hint}"
    for number, pattern in enumerate(patterns):
        one = open_run(tmp_path, exclude=[pattern])
        averaging.average(make_plan(one, HUNDRED), tmp_path / f"out{number}.safetensors")
        assert len(load_file(tmp_path / f"out{number}.safetensors")) == 1


def test_two_forms_of_one_state_are_a_choice_of_components(tmp_path: Path):
    """`policy/` and `reference/` have equal tensors with other values: which is meant is asked."""
    for step in (100, 200):
        for name in ("policy", "reference"):
            folder = tmp_path / f"step-{step}" / name
            folder.mkdir(parents=True)
            save_file({"w": torch.full((2,), float(step + len(name)))}, folder / "adapter_model.safetensors")
    with pytest.raises(RunError, match=r"reference: has the same clock as step-100/policy, but 'w' differs$") as raised:
        check_twins([make_plan(open_run(tmp_path), HUNDRED)])
    assert raised.value.hint == "average one of the two kinds, with component='policy', or component='reference'"
    run = open_run(tmp_path, component="policy")
    check_twins([make_plan(run, HUNDRED)])
    assert names(run) == ["step-100/policy", "step-200/policy"]


def test_files_of_one_moment_that_differ_in_a_number_may_be_parts(tmp_path: Path):
    """Equal names and shapes at one clock: parts that are cut, or models; both are said, and both ways on."""
    for step in (100, 200):
        for number in (0, 1):
            save(tmp_path / f"step-{step}" / f"model.0{number}.pt", {"w": torch.full((2, 4), float(step + number))})
    with pytest.raises(RunError, match=r"model\.01\.pt: has the same clock as .*, but 'w' differs$") as raised:
        check_twins([make_plan(open_run(tmp_path), HUNDRED)])
    hint = raised.value.hint or ""
    assert hint.startswith("parts of one model: put them together first, with the trainer's own converter; ")
    assert open_run(tmp_path, component="model.00").checkpoints[0].name == "step-100/model.00.pt"


def test_folders_of_runs_that_are_named_together_are_told_as_such(tmp_path: Path):
    """Each has a final model: never are the two final models averaged with each other."""
    for run in ("a", "b"):
        write_hf_run(tmp_path / run, [100, 200])
        shutil.copy(tmp_path / run / "checkpoint-200" / "model.safetensors", tmp_path / run)
    both = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(UsageError, match=r"are folders of runs: .*/a \(2 checkpoints\), .*/b \(2 checkpoints\)$"):
        open_run(both, spacing="100ba")
    with pytest.raises(UsageError, match=r"/a: is the folder of a run \(2 checkpoints\)$"):
        open_run([tmp_path / "a", tmp_path / "b" / "checkpoint-100"])
    assert len(open_run(tmp_path / "a").checkpoints) == 2
    assert len(open_run([path / "model.safetensors" for path in both]).checkpoints) == 2


def test_folders_of_runs_of_files_are_told_as_such(tmp_path: Path):
    """The same where a run's checkpoints are files, with and without a model of its own."""
    for run in ("a", "b"):
        write_torch_run(tmp_path / run, [100, 200])
    save_file(make_tensors(200), tmp_path / "a" / "model.safetensors")
    with pytest.raises(UsageError, match=r"are folders of runs: "):
        open_run([tmp_path / "a", tmp_path / "b"])


@pytest.mark.parametrize("inside", ["model.pt", "rank0/model.pt", "tp_00/model.safetensors", "weights/net.pth"])
@pytest.mark.parametrize("beside", [None, "rng.pt"])
def test_a_folder_that_is_named_with_one_checkpoint_in_it_is_that_checkpoint(
    inside: str, beside: str | None, tmp_path: Path
):
    """Files without weights beside it do not count."""
    paths = [tmp_path / f"step-{step}" / inside for step in (100, 200)]
    for path in paths:
        path.parent.mkdir(parents=True)
        values = make_tensors(1)
        save_file(values, path) if path.suffix == ".safetensors" else torch.save(values, path)
        if beside is not None:
            torch.save({"seed": 1}, path.with_name(beside))
    for named in (paths, [path.parent for path in paths], [tmp_path / "step-100", tmp_path / "step-200"]):
        run = open_run(named)
        assert [checkpoint.clock(Unit.BATCH) for checkpoint in run.checkpoints] == [100, 200]


def test_folders_of_ranks_that_are_named_are_their_models(tmp_path: Path):
    """Of parts the folder of any rank names the whole."""
    for step in (100, 200):
        for rank, name in enumerate(("a", "b")):
            save(tmp_path / f"step-{step}" / f"tp_0{rank}" / "model.pt", {name: torch.full((2,), float(step))})
    for rank in ("", "tp_00", "tp_01"):
        run = open_run([tmp_path / f"step-{step}" / rank for step in (100, 200)])
        assert [sorted(checkpoint.tensors.specs) for checkpoint in run.checkpoints] == [["a", "b"]] * 2


def test_files_in_the_folder_of_one_moment_are_a_question(tmp_path: Path):
    """`step-100/` with model.00 and model.01 may hold halves of one model: never are they spaced and averaged."""
    for number in (0, 1):
        save(tmp_path / "step-100" / f"model.0{number}.pt", {"w": torch.full((2, 4), float(number))})
    with pytest.raises(
        RunError, match=r"step-100: is one moment by its name, and its 2 files differ in a number"
    ) as one:
        open_run(tmp_path / "step-100", spacing="1ba")
    assert "put them together first, with the trainer's own converter; checkpoints: name them" in str(one.value.hint)
    paths = sorted((tmp_path / "step-100").iterdir())
    run = open_run(paths, spacing="1ba")
    assert (len(run.checkpoints), run.warnings) == (2, ())


@pytest.mark.parametrize("name", ["model_{}.pth", "fold{}.pt", "seed{}/model.pt"])
def test_numbered_files_without_a_moment_are_checkpoints(tmp_path: Path, name: str):
    """fastai's model_0.pth and the folds of a cross-validation have equal tensors and no clock: they are no parts."""
    for number in (0, 1, 2):
        save(tmp_path / name.format(number), make_tensors(number))
    assert len(open_run(tmp_path, spacing="1ep").checkpoints) == 3


def test_parts_beside_each_other_under_unknown_names_are_put_together_as_the_error_says(tmp_path: Path):
    """In a folder for each moment, as the hint says, files with different tensors are one model."""
    for step in (100, 200):
        for number, name in enumerate(("a", "b")):
            save(tmp_path / f"step{step}_{number}.pt", {name: torch.full((2,), float(step))})
    with pytest.raises(RunError, match=r"but other tensors: only step100_0\.pt has 'a'$") as raised:
        check_twins([make_plan(open_run(tmp_path), HUNDRED)])
    hint = raised.value.hint or ""
    assert hint.startswith(
        "parts of one model: give the files of each moment a folder of their own, where they are put"
    )
    for path in list(tmp_path.glob("*.pt")):
        step, number = path.stem.split("_")
        path.parent.joinpath(step).mkdir(exist_ok=True)
        path.rename(tmp_path / step / f"{number}.pt")
    averaging.average(make_plan(open_run(tmp_path), HUNDRED), tmp_path / "out.safetensors")
    averaged = load_file(tmp_path / "out.safetensors")
    assert {name: tensor.tolist() for name, tensor in averaged.items()} == {"a": [150.0, 150.0], "b": [150.0, 150.0]}


@pytest.mark.parametrize("name", ["step-{}/probe.pt", "probe_step-{}.pt", "step-{}/model_2.pt"])
def test_another_model_of_one_moment_alone_stops_nothing(tmp_path: Path, name: str):
    """What most moments lack, and holds other tensors, is no checkpoint of the run: passed over, and said."""
    for step in (100, 200, 300):
        own = tmp_path / ("step-{}/model.pt" if "/" in name else "step-{}.pt").format(step)
        save(own, make_tensors(step))
    save(tmp_path / name.format(300), {"probe": torch.ones(3)})
    run = open_run(tmp_path)
    assert len(run.checkpoints) == 3
    ((passed),) = run.passed_over
    assert (passed.name, passed.warn) == (name.format(300), True)
    assert passed.reason.startswith("of one moment with step-300")


@pytest.mark.parametrize(
    ("written", "runs"),
    [
        ({"fold0_best.pt": 7, "fold1_best.pt": 8, "fold2_best.pt": 9}, r"fold0 \(1\), fold1 \(1\), fold2 \(1\)"),
        ({"cv1/model.pt": 3, "cv2/model.pt": 4}, r"cv1 \(1\), cv2 \(1\)"),
        ({"m_seed-1_a.pt": 1, "m_seed-1_b.pt": 2, "m_seed-2_a.pt": 3}, r"seed1 \(2\), seed2 \(1\)"),
        ({"run1_a.pt": 1, "run1_b.pt": 2, "run2_a.pt": 3, "run2_b.pt": 4}, r"run1 \(2\), run2 \(2\)"),
    ],
)
def test_folds_and_seeds_are_no_moments_of_one_run(written: dict[str, int], runs: str, tmp_path: Path):
    """Each recorded another epoch, by early stopping: that does not make one training of them. Named, it is said."""
    for name, epoch in written.items():
        save(tmp_path / name, {"model": make_tensors(epoch), "epoch": epoch})
    with pytest.raises(RunError, match=runs):
        open_run(tmp_path)
    named = open_run([tmp_path / name for name in written])
    assert any("the names tell several trainings apart" in note for note in named.warnings)


@pytest.mark.parametrize("name", ["MACE_run-1_epoch-{}.pt", "fold0_epoch_{}.pt", "run_{}.pt", "trial_{}.pt"])
def test_one_training_with_a_number_is_one_run(name: str, tmp_path: Path):
    """What does not change tells nothing apart, and `run_100.pt` may count the steps."""
    for epoch in (1, 2, 3):
        save(tmp_path / name.format(epoch), {"model": make_tensors(epoch), "epoch": epoch})
    run = open_run(tmp_path)
    assert (len(run.checkpoints), [note for note in run.warnings if "trainings" in note]) == (3, [])


@pytest.mark.parametrize("name", ["eval/predictions.pt", "runs/debug/state.pt", "cache/embeddings-0.pt", "vae.pt"])
def test_another_model_without_a_clock_does_not_make_two_runs(name: str, tmp_path: Path):
    """A run with clocks is averaged, whatever lies in the folders beside its checkpoints; that is said."""
    write_hf_run(tmp_path, [100, 200])
    save(tmp_path / name, {"logits": torch.ones(7)})
    run = open_run(tmp_path)
    assert names(run) == ["checkpoint-100", "checkpoint-200"]
    (passed,) = [passed for passed in run.passed_over if passed.warn]
    assert (passed.name, "other tensors than" in passed.reason) == (name, True)


def test_two_runs_with_clocks_remain_two(tmp_path: Path):
    """Clocks in both say that these are two trainings, of one model or not."""
    write_hf_run(tmp_path / "a", [100, 200])
    for step in (150, 250):
        save(tmp_path / "b" / f"step-{step}.pt", {"other": torch.ones(7)})
    with pytest.raises(RunError, match="the checkpoints of 2 runs"):
        open_run(tmp_path)
