"""Two models that differ, and what torch makes of their values."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from ema_cli.comparing.comparison import Comparison, compare
from ema_cli.comparing.distance import Distance
from tests.folding.in_memory import checkpoint

Tensors = Mapping[str, torch.Tensor]


def model(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Return tensors of every kind, in three layers and more than one block."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)

    return {
        "layers.10.weight": normal(300, 333),
        "layers.2.weight": normal(40, 3),
        "layers.2.bias": normal(7, dtype=torch.bfloat16),
        "layers.2.half": normal(9, dtype=torch.float16),
        "embed.wide": normal(5, 5, dtype=torch.float64),
        "embed.waves": torch.view_as_complex(normal(6, 2, dtype=torch.float64)),
        "embed.scalar": normal(dtype=torch.float32),
        "embed.empty": torch.zeros(0, 3),
        "count": torch.tensor([seed, 1]),
        "mask": torch.tensor([True, False]),
    }


def flat(tensors: Tensors, names: list[str]) -> torch.Tensor:
    """Return the values of some tensors as one vector of float64, complex ones as pairs."""
    parts = []
    for name in names:
        tensor = tensors[name]
        tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        parts.append(tensor.double().flatten())
    return torch.cat(parts)


def check(found: Distance | None, one: Tensors, other: Tensors, names: list[str]) -> None:
    """Compare a distance with what torch makes of the values, by the definitions."""
    assert found is not None
    mine, theirs = flat(one, names), flat(other, names)
    norm = torch.linalg.vector_norm
    assert found.distance == pytest.approx(norm(mine - theirs).item(), rel=1e-13)
    assert found.norm_one == pytest.approx(norm(mine).item(), rel=1e-13)
    assert found.norm_other == pytest.approx(norm(theirs).item(), rel=1e-13)
    assert found.relative == pytest.approx((norm(mine - theirs) / norm(theirs)).item(), rel=1e-13)
    cosine = torch.nn.functional.cosine_similarity(mine, theirs, dim=0).item()
    assert found.cosine == pytest.approx(cosine, abs=1e-13)


def compare_values(one: list[float], other: list[float]) -> Comparison:
    """Compare two tensors of float32."""
    return compare(*(checkpoint({"x.weight": torch.tensor(values, dtype=torch.float32)}) for values in (one, other)))
