"""update_bn: the statistics of BatchNorm layers anew, as torch computes them; nothing is lost where it fails."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import swa_utils

from ema_cli import update_bn
from ema_cli.errors import RunError


class Net(nn.Module):
    """A model with two BatchNorm layers, one of which has a momentum of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3, momentum=0.3))
        self.second = nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        out: torch.Tensor = self.second(self.first(x * scale).mean((2, 3)))
        return out


def batches(count: int = 3) -> list[torch.Tensor]:
    """Return batches of different sizes."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4 + number, 2, 3, 3, generator=generator) for number in range(count)]


def trained() -> Net:
    """Return a model whose statistics are those of something else."""
    torch.manual_seed(0)
    model = Net()
    model(torch.randn(8, 2, 3, 3) * 5)
    return model.eval()


FORMS: dict[str, Any] = {
    "tensors": lambda inputs: inputs,
    "pairs": lambda inputs: [(x, torch.zeros(len(x))) for x in inputs],
    "lists": lambda inputs: [[x, 1] for x in inputs],
    "a generator": iter,
}


@pytest.mark.parametrize("form", FORMS)
def test_the_statistics_are_those_that_torch_computes(form: str) -> None:
    """Bit for bit, for each form of batch that torch takes; and momenta and mode are as before."""
    ours, theirs = trained(), trained()
    update_bn(ours, FORMS[form](batches()))
    swa_utils.update_bn(FORMS[form](batches()), theirs)
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    assert not ours.training
    assert ours.first[1].momentum == 0.3


def test_a_mapping_gives_the_arguments() -> None:
    """Batches as loaders for transformers make them: by the names of the model's arguments."""
    named, plain = trained(), trained()
    update_bn(named, [{"x": x, "scale": 2.0} for x in batches()])
    swa_utils.update_bn([2.0 * x for x in batches()], plain)
    assert all(torch.equal(named.state_dict()[name], value) for name, value in plain.state_dict().items())


def test_each_module_keeps_its_own_mode() -> None:
    """A part that was in eval mode in a model that trains is in eval mode afterwards."""
    model = trained().train()
    model.second.eval()
    update_bn(model, batches())
    assert (model.training, model.first.training, model.second.training) == (True, True, False)


def broken() -> Iterator[torch.Tensor]:
    """Yield a batch, and one that does not fit."""
    yield batches()[0]
    yield torch.zeros(1)


@pytest.mark.parametrize("loader", [broken, list])
def test_a_failure_leaves_the_model_as_it_was(loader: Any) -> None:
    """A batch that does not fit, or no batch at all: statistics, momenta and modes are those from before."""
    model = trained()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises((RuntimeError, RunError)):
        update_bn(model, loader())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert (model.training, model.first[1].momentum) == (False, 0.3)


def test_no_batch_is_said() -> None:
    """An iterator that was used up before is the usual mistake."""
    with pytest.raises(RunError, match="the loader yields no batch"):
        update_bn(trained(), [])


def test_a_model_without_batch_norm_is_left_alone() -> None:
    """The loader is not touched then."""
    update_bn(nn.Linear(2, 2), iter([]))
