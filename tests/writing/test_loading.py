"""A file that a trainer takes for one of its own: a note says how it is loaded."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from tests.conftest import Cli, write_hf_run, write_torch_run


def write_lightning(folder: Path) -> None:
    """Write two checkpoints as Lightning does."""
    folder.mkdir()
    for epoch in (0, 1):
        module = torch.nn.Linear(2, 1)
        torch.nn.init.constant_(module.weight, epoch)
        saved = {"epoch": epoch, "global_step": 10 * (epoch + 1), "pytorch-lightning_version": "2.5.0", "loops": {}}
        torch.save({**saved, "state_dict": module.state_dict()}, folder / f"epoch={epoch}-step={10 * epoch + 10}.ckpt")


@pytest.mark.parametrize("name", ["avg.pt", "avg.pth"])
def test_an_average_of_lightning_s_says_how_it_is_loaded(
    cli: Cli, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    """The call in the note loads the average into the module."""
    write_lightning(tmp_path / "run")
    done = cli("average", "run", "--profile", "uniform", "-o", name, "--strict")
    assert done.code == 0, done
    (note,) = [line for line in done.err.splitlines() if line.startswith("note: ")]
    assert note.endswith("not for load_from_checkpoint, which takes avg.ckpt")
    call = note[note.index("module.") : note.index(";")]
    assert isinstance(ast.parse(call).body[0], ast.Expr)
    assert call == f"module.load_state_dict(torch.load('{name}'))"
    monkeypatch.chdir(tmp_path)
    module = torch.nn.Linear(2, 1)
    module.load_state_dict(torch.load(name))
    assert module.weight.tolist() == [[0.5, 0.5]]


def test_a_checkpoint_written_over_again_is_not_called_a_state_dict(cli: Cli, tmp_path: Path):
    """With --like-input it has all that Lightning's own has, whatever its name ends in."""
    write_lightning(tmp_path / "run")
    done = cli("average", "run", "--profile", "uniform", "-o", "avg.pt", "--like-input")
    assert done.code == 0, done
    assert "note: " not in done.err
    assert {"state_dict", "pytorch-lightning_version"} <= torch.load(tmp_path / "avg.pt").keys()


@pytest.mark.parametrize("name", ["avg.safetensors", "avg.pt", "avg.bin"])
def test_a_folder_is_not_written_under_the_name_of_a_file(cli: Cli, tmp_path: Path, name: str):
    """What is written like a folder is one; the hint has the name without the suffix, and that is taken."""
    write_hf_run(tmp_path / "run", [1, 2])
    law = ("--profile", "uniform", "--like-input")
    done = cli("average", "run", *law, "-o", name)
    assert (done.code, done.err) == (
        2,
        f"error: --output: '{name}' is a name for a file, and checkpoint-2 is a folder\nhint:  -o avg\n",
    )
    assert cli("average", "run", *law, "-o", "avg").code == 0
    assert (tmp_path / "avg" / "model.safetensors").exists()


def test_others_need_no_word(cli: Cli, tmp_path: Path):
    """Safetensors are no checkpoint of Lightning's, and a loop of one's own loads what it saves."""
    write_lightning(tmp_path / "run")
    assert "note: " not in cli("average", "run", "--profile", "uniform", "-o", "avg.safetensors").err
    write_torch_run(tmp_path / "own", [1, 2])
    assert "note: " not in cli("average", "own", "--profile", "uniform", "-o", "own.pt").err


def test_a_checkpoint_of_another_trainer_s_is_not_written(cli: Cli, tmp_path: Path):
    """`-o avg.ckpt` is for Lightning's runs alone, and the names in the hint are taken."""
    write_torch_run(tmp_path / "run", [1, 2])
    done = cli("average", "run", "--profile", "uniform", "-o", "avg.ckpt")
    assert (done.code, "-o avg.pt for one file" in done.err, "load_state_dict" in done.err) == (2, True, True), done
    for name in ("avg.safetensors", "avg.pt", "avg"):
        assert f"-o {name} " in done.err
        assert cli("average", "run", "--profile", "uniform", "-o", name).code == 0
