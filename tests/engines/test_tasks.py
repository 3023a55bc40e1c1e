"""How a file is cut into stretches."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ema_cli.engines import tasks

MIB, GIB = 1 << 20, 1 << 30


@given(nbytes=st.integers(96 * MIB, 1 << 42), header=st.integers(8, 100 * MIB))
def test_stretches_are_about_as_long_and_few_workers_share_them_evenly(nbytes: int, header: int):
    """They follow each other, begin at whole megabytes of the file, and two workers are done at about the same time."""
    size = min(max(48 * MIB, nbytes // 256), GIB) // MIB * MIB
    cuts = tasks._cuts(nbytes, header, size)
    assert (cuts[0], cuts[-1]) == (0, nbytes)
    assert all((header + cut) % MIB == 0 for cut in cuts[1:-1])
    stretches = [end - begin for begin, end in pairwise(cuts)]
    assert max(stretches) - min(stretches) <= 2 * MIB
    assert size - max(2 * MIB, size // 100) < min(stretches)
    assert max(stretches) <= min(GIB, 2 * size) + MIB
    slower = max(sum(stretches[::2]), sum(stretches[1::2]))
    assert slower < 1.07 * nbytes / 2


@pytest.mark.parametrize(("nbytes", "count"), [(64, 2), (110, 2), (240, 6), (411, 12), (600, 16), (1000, 31 - 7)])
def test_there_are_as_many_as_divide_well(nbytes: int, count: int):
    """Of so many megabytes; each has 32 of them at least."""
    assert len(tasks._cuts(nbytes * MIB, 1000, 32 * MIB)) - 1 == count
