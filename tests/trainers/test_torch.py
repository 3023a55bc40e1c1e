"""What torch itself writes: its old format, whole modules, and the names that its wrappers give."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.conftest import Cli
from tests.trainers.conftest import Tensors, assert_rounds, recurrence
from tests.trainers.ranks import launch

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("ignore")]

STEPS = [10, 20, 30]


class Net(nn.Module):
    """Someone's own class: tied weights, a transposed view, half precision, counters."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 6))
        self.tied = nn.Linear(6, 4)
        self.tied.weight = self.body[0].weight
        self.turned = nn.Parameter(torch.randn(3, 5).t())
        self.small = nn.Parameter(torch.randn(3).bfloat16())
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("forgotten", torch.ones(2), persistent=False)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the output."""
        out: torch.Tensor = self.tied(self.body(batch)) * self.turned.sum() * self.small.float().sum()
        return out


def train(folder: Path, save: Callable[[nn.Module, torch.optim.Optimizer, int, Path], None], wrap: Any = None) -> Any:
    """Train for 30 steps and save every tenth with `save`; return the bare state dicts."""
    torch.manual_seed(9)
    folder.mkdir()
    model = Net()
    wrapped = wrap(model) if wrap else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    saved: list[Tensors] = []
    for step in range(1, STEPS[-1] + 1):
        model(torch.randn(8, 6)).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in STEPS:
            save(wrapped, optimizer, step, folder)
            saved.append({name: tensor.detach().clone() for name, tensor in model.state_dict().items()})
    return saved


def save_legacy(model: nn.Module, optimizer: torch.optim.Optimizer, step: int, folder: Path) -> None:
    """Save a dict in torch's format before 1.6."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "args": Net}
    path = folder / f"ckpt_{step}.pt"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(path)


def save_legacy_bare(model: nn.Module, _optimizer: torch.optim.Optimizer, step: int, folder: Path) -> None:
    """Save a state dict by itself in torch's format before 1.6; the step is in the name."""
    torch.save(model.state_dict(), folder / f"step_{step}.pth", _use_new_zipfile_serialization=False)


def save_module(model: nn.Module, _optimizer: torch.optim.Optimizer, step: int, folder: Path) -> None:
    """Save the whole module; the step is in the name."""
    torch.save(model, folder / f"step-{step}.pt")


def save_module_legacy(model: nn.Module, _optimizer: torch.optim.Optimizer, step: int, folder: Path) -> None:
    """Save the whole module in torch's format before 1.6."""
    torch.save(model, folder / f"step-{step}.pt", _use_new_zipfile_serialization=False)


def save_module_within(model: nn.Module, _optimizer: torch.optim.Optimizer, step: int, folder: Path) -> None:
    """Save the whole module under a key, as older object detectors do."""
    torch.save({"model": model, "global_step": step}, folder / f"{step}.pt")


def save_dict(model: nn.Module, optimizer: torch.optim.Optimizer, step: int, folder: Path) -> None:
    """Save a dict as a plain loop does."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    torch.save(state, folder / f"ckpt_{step}.pt")


@pytest.mark.parametrize(
    "save", [save_legacy, save_legacy_bare, save_module, save_module_legacy, save_module_within, save_dict]
)
def test_formats_of_torch_save(program: Cli, tmp_path: Path, save: Any):
    """Old format or new, state dict or whole module: the average has what state_dict() has, with its names.

    The module's class is not importable from where the command runs.
    """
    saved = train(tmp_path / "run", save)
    (path, *_) = (tmp_path / "run").iterdir()
    assert torch.load(path, weights_only=False) is not None
    done = program("average", "run", "--half-life", "15ba", "-o", "out.safetensors", env={"PYTHONPATH": ""})
    assert done.code == 0, done
    averaged = load_file(tmp_path / "out.safetensors")
    assert_rounds(averaged, recurrence(saved, STEPS, 15))
    Net().load_state_dict(averaged, strict=True)


@pytest.mark.parametrize("cut", [0.5, 0.97])
def test_legacy_file_cut_short(cli: Cli, tmp_path: Path, cut: float):
    """A file in the old format that ends early is passed over in a folder, and exit 3 by name."""
    saved = train(tmp_path / "run", save_legacy)
    newest = tmp_path / "run" / "ckpt_30.pt"
    newest.write_bytes(newest.read_bytes()[: int(newest.stat().st_size * cut)])
    done = cli("average", "run", "--half-life", "15ba", "-o", "out.safetensors")
    assert done.code == 0, done
    assert "ckpt_30.pt" in done.err
    assert_rounds(load_file(tmp_path / "out.safetensors"), recurrence(saved[:-1], STEPS[:-1], 15))
    assert cli("average", "run/ckpt_30.pt", "--half-life", "15ba", "-o", "named.safetensors").code == 3


def test_names_of_torch_compile(cli: Cli, tmp_path: Path):
    """`_orig_mod.` of torch.compile is stripped, which is said; the result loads into the bare model."""
    saved = train(tmp_path / "run", save_dict, torch.compile)
    stored = torch.load(tmp_path / "run" / "ckpt_10.pt")["model"]
    assert all(name.startswith("_orig_mod.") for name in stored)
    done = cli("average", "run", "--half-life", "15ba", "-o", "out.safetensors")
    assert done.code == 0, done
    assert "_orig_mod." in done.err
    assert_rounds(load_file(tmp_path / "out.safetensors"), recurrence(saved, STEPS, 15))


def test_prefix_kept(cli: Cli, tmp_path: Path):
    """--keep-prefix leaves the names as they are in the file."""
    saved = train(tmp_path / "run", save_dict, torch.compile)
    assert cli("average", "run", "--half-life", "15ba", "--keep-prefix", "-o", "out.safetensors").code == 0
    exact = {f"_orig_mod.{name}": tensor for name, tensor in recurrence(saved, STEPS, 15).items()}
    assert_rounds(load_file(tmp_path / "out.safetensors"), exact)


def test_compiled_before_and_not_after(cli: Cli, tmp_path: Path):
    """A run that was compiled in one part and not in the other is one run: names are compared without the prefix."""
    saved = train(tmp_path / "run", save_dict)
    train(tmp_path / "compiled", save_dict, torch.compile)
    shutil.copy(tmp_path / "compiled" / "ckpt_30.pt", tmp_path / "run")
    done = cli("average", "run", "--half-life", "15ba", "-o", "out.safetensors")
    assert done.code == 0, done
    assert_rounds(load_file(tmp_path / "out.safetensors"), recurrence(saved, STEPS, 15))


@pytest.fixture(scope="module")
def distributed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trainings with DDP: around a compiled model, within one, and around activation checkpointing."""
    return launch("write_wrapped", tmp_path_factory.mktemp("wrapped") / "written", ranks=1)


@pytest.mark.parametrize(
    ("kind", "prefix"),
    [
        ("ddp", "module."),
        ("ddp-of-compiled", "module._orig_mod."),
        ("compiled-ddp", "_orig_mod.module."),
        ("checkpointed", "module."),
    ],
)
def test_names_of_wrappers(cli: Cli, distributed: Path, tmp_path: Path, kind: str, prefix: str):
    """Whatever wraps the model, in whatever order, its own names are what the average has."""
    run = distributed / kind
    saved = [load_file(run / "truth" / f"{step}.safetensors") for step in STEPS]
    stored = torch.load(run / "out" / "step_10.pt")["model"]
    assert all(name.startswith(prefix) for name in stored)
    done = cli("average", run / "out", "--half-life", "15ba", "-o", "out.safetensors")
    assert done.code == 0, done
    assert "prefix" in done.err
    assert_rounds(load_file(tmp_path / "out.safetensors"), recurrence(saved, STEPS, 15))
