"""What only tensors tell: whether two checkpoints are one state, saved twice."""

from __future__ import annotations

from ema_cli.comparing.twins import compare_tensors
from tests.folding.in_memory import checkpoint, model


def test_compare_finds_the_tensor_that_differs():
    """Two checkpoints are compared to the byte, specs first."""
    one, other = model(1), model(1)
    assert compare_tensors(checkpoint(one), checkpoint(other)) is None
    other["count"][1] += 1
    assert compare_tensors(checkpoint(one), checkpoint(other)) == "count"
    del other["mask"]
    assert compare_tensors(checkpoint(one), checkpoint(other)) == "mask"
