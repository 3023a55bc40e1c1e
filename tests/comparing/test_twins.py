"""What only tensors tell: whether two checkpoints are one state, saved twice."""

from __future__ import annotations

from ema_cli.comparing.twins import first_different_tensor
from tests.folding.in_memory import checkpoint, model


def test_the_first_tensor_that_differs_in_spec_or_bytes_is_named():
    """Two checkpoints are compared to the byte, specs first."""
    one, other = model(1), model(1)
    assert first_different_tensor(checkpoint(one), checkpoint(other)) is None
    other["count"][1] += 1
    assert first_different_tensor(checkpoint(one), checkpoint(other)) == "count"
    del other["mask"]
    assert first_different_tensor(checkpoint(one), checkpoint(other)) == "mask"
