"""Schedule-free optimizers whose state lies in a file beside the weights, as transformers and Accelerate save it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ema_cli.storage.local_place import LocalPlace
from tests.conftest import Cli


def write(folder: Path, name: str, train_mode: bool | None, *, k: int = 9) -> None:
    """Write three checkpoints of a Trainer, whose optimizer is schedule-free unless `train_mode` is None."""
    for step in (100, 200, 300):
        checkpoint = folder / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        save_file({"w": torch.full((2,), float(step))}, checkpoint / "model.safetensors")
        (checkpoint / "config.json").write_text("{}")
        (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        group = {"lr": 0.1} if train_mode is None else {"k": k, "weight_sum": 1.0, "train_mode": train_mode}
        torch.save({"state": {0: {"z": torch.ones(2)}}, "param_groups": [group]}, checkpoint / name)


AVERAGE = ("average", "run", "--half-life", "100ba", "--update-interval", "every", "-o", "out.safetensors")
NAMES = ["optimizer.pt", "optimizer.bin", "optimizer.ckpt"]


@pytest.mark.parametrize("name", NAMES)
def test_the_average_of_an_optimizer_in_eval_mode_is_refused_as_raw(name: str, cli: Cli, tmp_path: Path) -> None:
    """It smooths already; `--weights ema` averages again, with a warning, and gives the numbers of the files."""
    write(tmp_path / "run", name, train_mode=False)
    for weights in ([], ["--weights", "raw"]):
        done = cli(*AVERAGE, *weights)
        assert (done.code, "schedule-free optimizer was in eval mode" in " ".join(done.err.split())) == (4, True)
        assert "--weights ema" in done.err
    done = cli(*AVERAGE, "--weights", "ema")
    assert (done.code, "averages, which are averaged again" in done.err) == (0, True)
    assert load_file(tmp_path / "out.safetensors")["w"].tolist() == [225.0, 225.0]


@pytest.mark.parametrize("name", NAMES)
def test_train_mode_is_warned_of(name: str, cli: Cli, tmp_path: Path) -> None:
    """The weights are averaged, and --strict stops at them."""
    write(tmp_path / "run", name, train_mode=True)
    done = cli(*AVERAGE)
    assert (done.code, "schedule-free optimizer was in train mode" in " ".join(done.err.split())) == (0, True)
    assert cli(*AVERAGE, "--force", "--strict").code == 6


def test_other_optimizers_say_nothing(cli: Cli, tmp_path: Path) -> None:
    """Nor does one that has not begun, or a file that is none."""
    write(tmp_path / "run", "optimizer.pt", train_mode=None)
    assert cli(*AVERAGE, "--strict").code == 0
    (tmp_path / "run" / "checkpoint-300" / "optimizer.pt").write_text("no optimizer")
    assert cli(*AVERAGE, "--strict", "--force").code == 0
    write(tmp_path / "begun", "optimizer.pt", train_mode=False, k=0)
    assert cli("average", "begun", *AVERAGE[2:], "--strict", "--force").code == 0


def test_one_optimizer_is_opened_for_a_run(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the newest checkpoint, however many there are."""
    write(tmp_path / "run", "optimizer.pt", train_mode=None)
    opened = []
    own = LocalPlace.open

    def open_noted(path: LocalPlace) -> object:
        opened.append(str(path))
        return own(path)

    monkeypatch.setattr(LocalPlace, "open", open_noted)
    assert cli("inspect", "run", "--half-life", "100ba").code == 0
    optimizers = [name for name in opened if "optimizer.pt" in name]
    assert len(optimizers) == 1
    assert "checkpoint-300" in optimizers[0]
