"""What the programs share: the mean that is expected, how it is compared, and their command line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

Tensors = Mapping[str, torch.Tensor]


def mean(saved: Sequence[Tensors]) -> dict[str, torch.Tensor]:
    """Return the mean of floating tensors in float64, and the newest of the others."""
    return {
        name: torch.stack([each[name].double() for each in saved]).mean(0) if newest.is_floating_point() else newest
        for name, newest in saved[-1].items()
    }


def assert_held(held: Tensors, exact: Tensors, tolerance: float = 1e-6) -> None:
    """Check that a model holds the average, before a step."""
    assert held.keys() == exact.keys(), held.keys() ^ exact.keys()
    for name, tensor in held.items():
        torch.testing.assert_close(tensor.double(), exact[name].double(), rtol=tolerance, atol=tolerance, msg=name)


def copied(tensors: Tensors) -> dict[str, torch.Tensor]:
    """Return tensors that no later step changes."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def assert_trained(held: Tensors, before: Tensors) -> None:
    """Check that a step changed weights."""
    assert any(not torch.equal(tensor, before[name]) for name, tensor in held.items())


def main(train: Callable[[Path], None], resume: Callable[[Path], None]) -> None:
    """Do what the command line says."""
    (train if sys.argv[1] == "train" else resume)(Path(sys.argv[2]).absolute())
