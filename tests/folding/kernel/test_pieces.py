"""Kernels add rows that lie in pieces in memory of others: where the pieces end does not show in the bytes."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ema_cli.folding.kernel import Kernel, SumSpec, WorkspaceSize, sum_bytes
from ema_cli.folding.kernel.numpy_kernel import NUMPY

tests = pytest.importorskip("tests.folding.kernel.test_compiled_kernel", reason="the extension is not built")
compiled_kernel, every_variant = tests.compiled_kernel, tests.every_variant


def summed(
    kernel: Kernel, spec: SumSpec, rows: Sequence[bytes], group: int, seed: int | None
) -> list[tuple[bool, bytes]]:
    """Sum up a block whose rows are cut at random, or whole where `seed` is None: each average, and if it is finite."""
    nbytes = -(-spec.count * sum_bytes(spec.dtypes) // 64) * 64
    workspace = kernel.workspace(WorkspaceSize(group, nbytes, len(spec.weights.rows), len(spec.weights.bases)))
    sums, random = workspace.begin(spec), np.random.default_rng(seed)
    for last in range(len(rows) - 1, -1, -group):
        numbers = range(last, max(last - group, -1), -1)
        if seed is None:
            for number, memory in zip(numbers, sums.rows(numbers, [0] * len(numbers)), strict=True):
                memory[:] = rows[number]
            sums.add(numbers)
        else:
            sums.add_pieces(numbers, [cut(random, rows[number]) for number in numbers])
    return tests.completed(sums, spec, rows)


def cut(random: np.random.Generator, row: bytes) -> list[memoryview]:
    """Return a row in pieces of any length, of none, too; each in memory of its own that begins at any address."""
    ends = sorted(random.integers(0, len(row) + 1, random.integers(0, 5)).tolist())
    parts = [row[begin:end] for begin, end in zip([0, *ends], [*ends, len(row)], strict=True)]
    return [
        memoryview(bytes(shift) + part)[shift:] for part, shift in zip(parts, random.integers(0, 9, 9), strict=False)
    ]


@every_variant
@given(block=tests.blocks(), stretch=st.sampled_from([8, 64, 1000, 1 << 15]), seed=st.integers(0, 2**32 - 1))
def test_where_pieces_end_does_not_show(
    kernel: Kernel, block: tuple[SumSpec, list[bytes], int, int], stretch: int, seed: int
):
    """In the middle of a number, too; for any dtypes, averages and groups, and in stretches of any length."""
    spec, rows, group, _ = block
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled_kernel, "_STRETCH_OF_PIECES", stretch)
        found = summed(kernel, spec, rows, group, seed)
    assert found == summed(kernel, spec, rows, group, None)


@given(block=tests.blocks(), seed=st.integers(0, 2**32 - 1))
def test_numpy_copies_pieces_together(block: tuple[SumSpec, list[bytes], int, int], seed: int):
    """The bytes are those of whole rows."""
    spec, rows, _, _ = block
    assert summed(NUMPY, spec, rows, 4, seed) == summed(NUMPY, spec, rows, 4, None)


ROWS = tuple(tests.GOOD.values())


@pytest.mark.parametrize(
    ("sizes", "counts", "more"),
    [
        ([40], [1, 0], {}), ([40, 39], [1, 1], {}), ([40, 41], [1, 1], {}), ([40, 40, 1], [1, 2], {}),
        ([40, 20], [1, 2], {}), ([40, 40], [1, 2**62], {}), ([40, 40], [-1, 2], {}), ([], [0, 0], {}),
        ([40, 40], [1], {}), ([40, 40], [1, 1], {"keeps": b"\0"}), ([40, 40], [1, 1], {"most": 0}),
    ],
)  # fmt: skip
def test_pieces_that_do_not_fit_are_refused(sizes: list[int], counts: list[int], more: dict[str, object]):
    """Too few bytes, too many, or in other numbers than is said: nothing is read."""
    writable = (*ROWS[:1], (bytearray(40), bytearray(40)), *ROWS[2:])
    given: dict[str, object] = {"keeps": b"\0\1", "most": 4, **more}
    add = compiled_kernel._compiled.add_pieces
    assert add(writable, (bytes(40), bytes(15), bytes(25)), array("q", [1, 2]), b"\0\1", 4) == 0
    with pytest.raises(ValueError):
        add(writable, tuple(map(bytes, sizes)), array("q", counts), given["keeps"], given["most"])  # type: ignore[arg-type]


@pytest.mark.parametrize("piece", [1, "x", None])
def test_what_is_no_memory_is_refused(piece: object):
    """Whatever stands among the pieces."""
    writable = (*ROWS[:1], (bytearray(40), bytearray(40)), *ROWS[2:])
    with pytest.raises(TypeError):
        compiled_kernel._compiled.add_pieces(writable, (bytes(40), piece), array("q", [1, 1]), b"\0\0", 4)  # type: ignore[arg-type]
