"""Folders that torch.distributed.checkpoint wrote from two processes of an FSDP2 training, in its users' layouts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Cli
from tests.trainers.conftest import Tensors, assert_rounds, load_dcp, names, recurrence
from tests.trainers.ranks import launch
from tests.trainers.write_dcp import LAYOUTS, STEPS, TOKENS_A_STEP, Net

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("ignore")]

# Where in what torch's own loader gives the model is.
PLACES = {"torchtitan": [], "app": ["app", "model"], "plain": ["model"]}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One training, saved in each layout."""
    return launch("write_dcp", tmp_path_factory.mktemp("dcp") / "written")


@pytest.fixture(scope="module")
def whole(written: Path) -> list[Tensors]:
    """The whole tensors of the four checkpoints, oldest first, as torch gathered them."""
    return [load_file(written / "truth" / f"step-{step}.safetensors") for step in STEPS]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_are_what_the_training_held(written: Path, whole: list[Tensors], layout: str):
    """torch's own loader finds in both processes' files, which both hold tensors, what the training gathered."""
    for step, tensors in zip(STEPS, whole, strict=True):
        folder = written / layout / "checkpoint" / f"step-{step}"
        assert names(folder) == {".metadata", "__0_0.distcp", "__1_0.distcp"}
        loaded = load_dcp(folder)
        for key in PLACES[layout]:
            loaded = loaded[key]
        assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_average_of_shards(cli: Cli, written: Path, whole: list[Tensors], tmp_path: Path):
    """Uneven shards, columns, bfloat16, scalars, integers, replicas: one file with the model's own names.

    How they were nested and what lay beside them makes no difference to a bit.
    """
    before = sorted(written.rglob("*"))
    results = []
    for layout in LAYOUTS:
        done = cli("average", written / layout / "checkpoint", "--half-life", "15ba", "-o", f"{layout}.safetensors")
        assert (done.code, done.out) == (0, f"{layout}.safetensors\n"), done
        results.append(load_file(tmp_path / f"{layout}.safetensors"))
        assert_rounds(results[-1], recurrence(whole, STEPS, 15))
    assert sorted(written.rglob("*")) == before
    assert {name: tensor.dtype for name, tensor in results[0].items()} == {
        name: tensor.dtype for name, tensor in whole[-1].items()
    }
    assert all(torch.equal(other[name], tensor) for other in results for name, tensor in results[0].items())


def test_average_with_an_interval(cli: Cli, written: Path, whole: list[Tensors], tmp_path: Path):
    """An update interval thins folders as it thins files, and the result has the half-life's name."""
    done = cli("average", written / "app" / "checkpoint", "--half-life", "20ba", "--update-interval", "20ba")
    assert (done.code, done.out) == (0, "ema-20ba.safetensors\n"), done
    assert_rounds(load_file(tmp_path / "ema-20ba.safetensors"), recurrence(whole, STEPS, 20, 20))


def test_average_loads_into_the_model(cli: Cli, written: Path, tmp_path: Path):
    """The names are the model's own, without `app.model.`: it loads strictly and gives finite numbers."""
    assert cli("average", written / "app" / "checkpoint", "--half-life", "15ba", "-o", "out.safetensors").code == 0
    model = Net()
    for name in ("uneven", "same"):
        model.register_buffer(name, torch.zeros(3, 5) if name == "uneven" else torch.zeros(2, 3))
    model.load_state_dict(load_file(tmp_path / "out.safetensors"), strict=True)
    assert torch.isfinite(model.eval()(torch.ones(2, 4, dtype=torch.int64))).all()


def test_clocks_of_torchtitan(cli: Cli, written: Path):
    """Steps and tokens come from train_state; the last checkpoint, the model alone, has its step from its name."""
    told = cli("inspect", written / "torchtitan" / "checkpoint", "--json").json["run"]
    assert [each["name"] for each in told["checkpoints"]] == [f"step-{step}" for step in STEPS]
    assert [each["clocks"] for each in told["checkpoints"]] == [
        *(
            {
                "ba": {"value": step, "from": "file"},
                "tok": {"value": step * TOKENS_A_STEP, "from": "file"},
            }
            for step in STEPS[:-1]
        ),
        {"ba": {"value": STEPS[-1], "from": "name"}},
    ]
    assert {each["trainer"] for each in told["checkpoints"][:-1]} == {"torchtitan"}
    assert told["differences"] == []


@pytest.mark.parametrize("layout", ["app", "plain"])
def test_clocks_of_a_loop(cli: Cli, written: Path, layout: str):
    """A step that the loop saved beside or among the model's state is the clock."""
    told = cli("inspect", written / layout / "checkpoint", "--json").json["run"]
    assert [each["clocks"] for each in told["checkpoints"]] == [
        {"ba": {"value": step, "from": "file"}} for step in STEPS
    ]


def test_average_in_tokens(cli: Cli, written: Path, whole: list[Tensors], tmp_path: Path):
    """A half-life in tokens takes the tokens that torchtitan counted."""
    checkpoints = [written / "torchtitan" / "checkpoint" / f"step-{step}" for step in STEPS[:-1]]
    done = cli("average", *checkpoints, "--half-life", "900tok", "--update-interval", "500tok")
    assert done.code == 0, done
    tokens = [step * TOKENS_A_STEP for step in STEPS[:-1]]
    assert_rounds(load_file(tmp_path / "ema-900tok.safetensors"), recurrence(whole[:-1], tokens, 900, 500))


def test_half_written_is_passed_over(cli: Cli, written: Path, whole: list[Tensors], tmp_path: Path):
    """A folder without .metadata, which torch writes last, is named in a warning; asked for by name it is exit 3."""
    run = shutil.copytree(written / "plain" / "checkpoint", tmp_path / "run")
    (run / "step-40" / ".metadata").unlink()
    done = cli("average", "run", "--half-life", "15ba", "-o", "out.safetensors")
    assert done.code == 0, done
    assert "step-40" in done.err
    assert_rounds(load_file(tmp_path / "out.safetensors"), recurrence(whole[:-1], STEPS[:-1], 15))
    named = cli("average", "run/step-30", "run/step-40", "--half-life", "15ba", "-o", "named.safetensors")
    assert named.code == 3, named
    assert "step-40" in named.err


@pytest.mark.parametrize("harm", ["missing", "cut"])
def test_file_of_one_process_is_missing_or_cut(cli: Cli, written: Path, tmp_path: Path, harm: str):
    """Where one process's file is not there or ends early, that file is named: exit 3, and nothing is written."""
    run = shutil.copytree(written / "torchtitan" / "checkpoint", tmp_path / "run")
    file = run / "step-30" / "__1_0.distcp"
    if harm == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    done = cli("average", *(f"run/step-{step}" for step in STEPS), "--half-life", "15ba")
    assert done.code == 3, done
    assert "step-30" in done.err
    assert "__1_0.distcp" in done.err
    assert names(tmp_path) == {"run"}
