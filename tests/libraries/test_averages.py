"""Files of libraries that average while a model trains: raw weights or averages, as the library itself has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.conftest import Cli, oracle
from tests.libraries.rows import DATA
from tests.libraries.test_files import weights

Tensors = Mapping[str, torch.Tensor]


def network() -> nn.Module:
    """Return the model of whose parameters the lists in the files are."""
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def loaded(saved: Tensors, parameters: list[torch.Tensor] | None = None, prefix: str = "") -> Tensors:
    """Return what a model holds that loaded a state dict, and then a list of parameters, as torch_ema copies them."""
    model = network()
    model.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in saved.items()})
    for parameter, value in zip(model.parameters(), parameters or [], strict=parameters is not None):
        parameter.data.copy_(value)
    return {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}


def callback(saved: dict[str, Any]) -> dict[str, Any]:
    """Return the state of torch_ema's averages in a callback of Lightning."""
    state: dict[str, Any] = next(state["ema"] for name, state in saved["callbacks"].items() if "Averages" in name)
    return state


@dataclass(frozen=True, slots=True)
class Set:
    """One set of weights of a run: the folder, which set, the clocks by file, and how the library has the set."""

    folder: str
    weights: str
    checkpoints: Mapping[str, int]
    load: Callable[[Any], Tensors]


STEPS = {f"step-{step}.pt": step for step in (1, 2, 3)}
LATER = {f"step-{step}.pt": step for step in (2, 3, 4)}
LIGHTNING = {"epoch=0-step=4.ckpt": 4, "epoch=1-step=8.ckpt": 8, "epoch=2-step=12.ckpt": 12}
OWN = {"epoch=0-step=5.ckpt": 5, "epoch=1-step=10.ckpt": 10, "epoch=2-step=15.ckpt": 15}
BEGUN = dict(list(OWN.items())[1:])  # the first was saved before its averages began
SETS = (
    Set("torch-ema-0.3", "raw", STEPS, lambda saved: saved["model"]),
    Set("torch-ema-0.3", "ema", STEPS, lambda saved: loaded(saved["model"], saved["ema"]["shadow_params"])),
    Set("ema-pytorch-0.8.3/beside", "raw", LATER, lambda saved: saved["model"]),
    *(
        Set(f"ema-pytorch-0.8.3/{folder}", chosen, LATER, lambda saved, folder=folder, prefix=prefix: {
            name.removeprefix(prefix): tensor
            for name, tensor in (saved["ema"] if folder == "beside" else saved).items()
            if name.startswith(prefix)
        })
        for folder, chosen, prefix in (
            ("beside", "ema", "ema_model."), ("alone", "ema", "ema_model."), ("alone", "raw", "online_model."))
    ),
    Set("schedulefree-1.4.1/eval", "ema", STEPS, lambda saved: saved["model"]),
    Set("schedulefree-1.4.1/train", "raw", STEPS, lambda saved: saved["model"]),
    Set("lightning-2.6.6/averages", "raw", OWN, lambda saved: saved["current_model_state"]),
    Set("lightning-2.6.6/averages", "ema", BEGUN, lambda saved: saved["state_dict"]),
    Set("lightning-callback-2.6.6", "ema", LIGHTNING, lambda saved: saved["state_dict"]),
    Set("lightning-callback-2.6.6", "raw", LIGHTNING,
        lambda saved: loaded(saved["state_dict"], callback(saved)["collected_params"], "net.")),
)  # fmt: skip


@pytest.mark.parametrize("row", SETS, ids=lambda row: f"{row.folder}-{row.weights}")
def test_either_set_of_weights_is_averaged(row: Set, cli: Cli, tmp_path: Path) -> None:
    """Every number is that of the average, in float64, of what the library has; the names are the model's own."""
    half_life = 4
    law = ("--half-life", f"{half_life}ba", "--update-interval", "every")
    done = cli("average", DATA / row.folder, *law, "--weights", row.weights, "-o", tmp_path / "out.safetensors")
    assert done.code == 0, done
    saved = [row.load(torch.load(DATA / row.folder / name, weights_only=True)) for name in row.checkpoints]
    values = oracle(saved, weights(list(row.checkpoints.values()), half_life))
    written = load_file(tmp_path / "out.safetensors")
    assert written.keys() == values.keys()
    for name, value in values.items():
        assert written[name].dtype == saved[-1][name].dtype
        assert torch.allclose(written[name].double(), value.double(), rtol=1e-6, atol=1e-7), name


REFUSED = {
    "schedulefree-1.4.1/eval": "schedule-free optimizer was in eval mode",
    "lightning-2.6.6/averages": "Lightning's weight averaging was on",
    "lightning-callback-2.6.6": "its weights equal the averages that it keeps in 'callbacks.",
}


@pytest.mark.parametrize("folder", REFUSED)
def test_averages_in_the_place_of_the_model_are_refused(folder: str, cli: Cli, tmp_path: Path) -> None:
    """Nobody averages averages without knowing it."""
    done = cli("average", DATA / folder, "--half-life", "4ba", "-o", tmp_path / "out.safetensors")
    assert done.code == 4
    assert REFUSED[folder] in " ".join(done.err.split())


def test_what_had_not_begun_is_said(cli: Cli, tmp_path: Path) -> None:
    """Lightning's averages before their start are the untrained model: left out by name."""
    folder = DATA / "lightning-2.6.6" / "averages"
    done = cli("average", folder, "--half-life", "4ba", "--weights", "ema", "-o", tmp_path / "out.safetensors")
    told = " ".join(done.err.split())
    assert "epoch=0-step=5.ckpt is passed over: older than all that have averages: holds no averages yet" in told


def test_schedule_free_weights_in_train_mode_are_said(cli: Cli, tmp_path: Path) -> None:
    """They are averaged, with a word that there is something better."""
    folder = DATA / "schedulefree-1.4.1" / "train"
    done = cli("average", folder, "--half-life", "2ba", "-o", tmp_path / "out.safetensors")
    assert "schedule-free optimizer was in train mode" in " ".join(done.err.split())
