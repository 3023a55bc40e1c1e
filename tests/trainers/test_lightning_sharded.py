"""Folders of shards that Lightning's ModelParallelStrategy wrote from two processes here and now."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Cli
from tests.trainers.conftest import Tensors, assert_rounds, load_dcp, names, recurrence, require
from tests.trainers.ranks import launch
from tests.trainers.write_lightning import EPOCH_LENGTH, make_model

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("ignore")]

STEPS = [4, 8, 12, 16]
NAMES = [f"epoch={(step - 1) // EPOCH_LENGTH}-step={step}.ckpt" for step in STEPS]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of two processes."""
    require("lightning")
    return launch("write_lightning", tmp_path_factory.mktemp("lightning") / "written")


@pytest.fixture(scope="module")
def whole(written: Path) -> list[Tensors]:
    """What the training held at each checkpoint, oldest first."""
    return [load_file(written / "truth" / f"{step}.safetensors") for step in STEPS]


def test_folders_are_what_the_training_held(written: Path, whole: list[Tensors]):
    """A .ckpt is a folder, and torch's own loader finds in its shards what the training held."""
    assert names(written / "run") == set(NAMES)
    for name, tensors in zip(NAMES, whole, strict=True):
        folder = written / "run" / name
        assert names(folder) == {".metadata", "meta.pt", "__0_0.distcp", "__1_0.distcp"}
        loaded = load_dcp(folder)["state_dict"]
        assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("law", "clocks", "half_life"),
    [(["--half-life", "6ba"], STEPS, 6), (["--half-life", "1ep"], [0, 1, 1, 2], 1)],
)
def test_a_sharded_lightning_run_averages_to_one_file(
    cli: Cli, written: Path, whole: list[Tensors], tmp_path: Path, law: list[str], clocks: list[int], half_life: int
):
    """The run's folder averages to one file, in steps and in completed epochs."""
    done = cli("average", written / "run", *law)
    assert (done.code, done.out) == (0, f"ema-{law[1]}.safetensors\n"), done
    assert_rounds(load_file(tmp_path / f"ema-{law[1]}.safetensors"), recurrence(whole, clocks, half_life))


def test_steps_and_epochs_of_sharded_lightning_come_from_meta_pt(cli: Cli, written: Path):
    """Steps and epochs come from meta.pt; the step that ends an epoch counts it."""
    told = cli("inspect", written / "run", "--json").json["run"]["checkpoints"]
    assert [each["name"] for each in told] == NAMES
    assert {each["trainer"] for each in told} == {"Lightning"}
    clocks = [{unit: each["value"] for unit, each in one["clocks"].items()} for one in told]
    assert clocks == [{"ba": step, "ep": step // EPOCH_LENGTH} for step in STEPS]
    assert {each["from"] for one in told for each in one["clocks"].values()} == {"file"}


def test_average_loads_into_the_module(cli: Cli, written: Path, tmp_path: Path):
    """The names are the module's own: it loads strictly and gives finite numbers."""
    assert cli("average", written / "run", "--half-life", "6ba").code == 0
    model = make_model(sharded=False)
    model.configure_model()
    model.load_state_dict(load_file(tmp_path / "ema-6ba.safetensors"), strict=True)
    assert torch.isfinite(model.eval().net(torch.ones(2, 5))).all()


def test_folder_without_metadata_is_passed_over(cli: Cli, written: Path, whole: list[Tensors], tmp_path: Path):
    """meta.pt and shards without .metadata are no checkpoint: named in a warning, and exit 3 when asked for by name."""
    run = shutil.copytree(written / "run", tmp_path / "run")
    (run / NAMES[-1] / ".metadata").unlink()
    done = cli("average", "run", "--half-life", "6ba", "-o", "out.safetensors")
    assert done.code == 0, done
    assert NAMES[-1] in done.err
    assert_rounds(load_file(tmp_path / "out.safetensors"), recurrence(whole[:-1], STEPS[:-1], 6))
    assert cli("average", f"run/{NAMES[-1]}", "--half-life", "6ba", "-o", "named.safetensors").code == 3
