"""What happens to a NaN or an infinity: an error that names it, or a note."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ema_cli.errors import NonFiniteError
from ema_cli.folding.blocks import Block, make_blocks, make_groups
from ema_cli.folding.kernel import NonFiniteElements
from ema_cli.folding.non_finite import NonFinite
from tests.folding.in_memory import checkpoint

CHECKPOINTS = [checkpoint({"a": torch.ones(3), "b": torch.ones(3)}, name) for name in ("step-1", "step-2")]


@pytest.fixture
def block() -> Block:
    """Return a block of two tensors of three elements."""
    targets = {name: spec.dtype for name, spec in CHECKPOINTS[0].tensors.specs.items()}
    return next(make_blocks(CHECKPOINTS, make_groups(CHECKPOINTS, targets, frozenset()), 1024))


def elements(wrong: dict[int, int], infinite: tuple[int, ...] = ()) -> NonFiniteElements:
    """Return elements of a block that are wrong, by the checkpoint to blame, and others that are infinite."""
    return NonFiniteElements(
        wrong=np.array([*wrong], dtype=np.intp),
        culprits=np.array([*wrong.values()], dtype=np.intp),
        infinite=np.array(infinite, dtype=np.intp),
    )


def test_the_first_wrong_element_is_an_error(block: Block):
    """Of several the one that comes first in the block is named, with its checkpoint."""
    with pytest.raises(NonFiniteError, match=r"^step-2: 'b' is not finite at element 0$"):
        NonFinite(CHECKPOINTS, allowed=False).note(block, elements({4: 0, 3: 1}))
    with pytest.raises(NonFiniteError, match=r"^'a' is too large for F32 at element 1 of the average$") as raised:
        NonFinite(CHECKPOINTS, allowed=False).note(block, elements({1: -1}))
    assert "wider" not in str(raised.value.hint)  # there is none


def test_tensors_that_are_let_through_are_noted(block: Block):
    """With leave, the tensors are noted, apart from those whose infinities are equal everywhere."""
    ledger = NonFinite(CHECKPOINTS, allowed=True)
    ledger.note(block, elements({5: 1}, infinite=(0,)))
    assert (ledger.let_through, ledger.infinite, ledger.names) == ({"b"}, {"a"}, {"a", "b"})


def test_equal_infinities_need_no_leave(block: Block):
    """An attention mask is no error."""
    ledger = NonFinite(CHECKPOINTS, allowed=False)
    ledger.note(block, elements({}, infinite=(3,)))
    assert (ledger.let_through, ledger.infinite) == (set(), {"b"})
