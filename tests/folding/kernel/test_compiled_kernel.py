"""The compiled kernel against numpy's, to the last bit, in each variant that this processor runs."""

from __future__ import annotations

import ctypes
import ctypes.util
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ema_cli.dtypes import DTYPES
from ema_cli.folding.kernel import BlockSums, Kernel, SumSpec, WeightTable, WorkspaceSize, sum_bytes
from ema_cli.folding.kernel.numpy_kernel import NUMPY
from tests.folding.kernel.products import rows_of_bits

compiled_kernel = pytest.importorskip(
    "ema_cli.folding.kernel.compiled_kernel", reason="the extension is not built", exc_type=ImportError
)

KERNELS = [pytest.param(compiled_kernel.CompiledKernel(number), id=name) for number, name in compiled_kernel.variants()]
every_variant = pytest.mark.parametrize("kernel", KERNELS)


@dataclass(frozen=True)
class Made:
    """What a kernel makes of a block: the bytes of each average, and its elements that are not finite."""

    stored: list[bytes]
    non_finite: list[tuple[list[tuple[int, int]], list[int]] | None]


def made(kernel: Kernel, spec: SumSpec, rows: Sequence[bytes], group: int, offset: int = 0) -> Made:
    """Sum up a block, `group` checkpoints at a time, each `offset` bytes further in its file."""
    nbytes = -(-spec.count * sum_bytes(spec.dtypes) // 64) * 64
    averages = len(spec.weights.rows)
    workspace = kernel.workspace(WorkspaceSize(group, nbytes, averages, len(spec.weights.bases)))
    sums = workspace.begin(spec)
    for last in range(len(rows) - 1, -1, -group):
        numbers = range(last, max(last - group, -1), -1)
        for number, memory in zip(numbers, sums.rows(numbers, [offset * number for number in numbers]), strict=True):
            memory[:] = rows[number]
        sums.add(numbers)
    stored, non_finite = [], []

    def load(number: int, memory: memoryview) -> None:
        memory[:] = rows[number]

    for average in range(averages):
        found = None
        if not sums.complete(average):
            elements = sums.settle(average, load)
            wrong = sorted(zip(elements.wrong.tolist(), elements.culprits.tolist(), strict=True))
            found = (wrong, sorted(elements.infinite.tolist()))
        stored.append(bytes(sums.encode(average)))
        non_finite.append(found if found != ([], []) else None)
    return Made(stored, non_finite)


FLOATS = ["BF16", "F16", "F32", "F64"]


def completed(sums: BlockSums, spec: SumSpec, rows: Sequence[bytes]) -> list[tuple[bool, bytes]]:
    """Return each average of sums to which all `rows` are added, and whether it is finite."""

    def load(number: int, memory: memoryview) -> None:
        memory[:] = rows[number]

    found: list[tuple[bool, bytes]] = []
    for average in range(len(spec.weights.rows)):
        if not (complete := sums.complete(average)):
            sums.settle(average, load)  # which NaN comes out of two depends on the place in a tile
        found.append((complete, bytes(sums.encode(average))))
    return found


@st.composite
def blocks(draw: st.DrawFn) -> tuple[SumSpec, list[bytes], int, int]:
    """A block of several checkpoints, how many of them are added at once, and how far apart in memory they lie."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    number = draw(st.sampled_from([1, 2, 3, 5, 16, 17, 33, 40]))
    if draw(st.integers(0, 9)) == 0:
        names = [draw(st.sampled_from(["C64", "C128"]))] * number
        target = names[0]
    else:
        kinds = draw(st.lists(st.sampled_from(FLOATS), min_size=1, max_size=4))
        names = [kinds[int(kind)] for kind in random.integers(0, len(kinds), number)]
        target = draw(st.sampled_from([names[-1], *FLOATS[:3]]))
    count = draw(st.one_of(st.integers(1, 70), st.integers(1, 700)))
    averages = draw(st.sampled_from([1, 1, 1, 2, 3, 33]))
    weights = random.standard_normal((averages, number))
    weights[random.random(weights.shape) < draw(st.sampled_from([0.0, 0.0, 0.3, 0.8]))] = 0
    sums = weights.sum(axis=1)
    weights[:, 0] += np.where(np.abs(sums) < 0.1, 1, 0)
    weights /= weights.sum(axis=1, keepdims=True)
    shape = draw(st.sampled_from(["any bits", "finite", "near", "equal", "tiny"]))
    dtypes = [DTYPES[name] for name in names]
    rows = rows_of_bits(random, dtypes, count, shape)
    spec = SumSpec(count, dtypes, DTYPES[target], WeightTable.of(weights.tolist()))
    return spec, rows, draw(st.sampled_from([1, 2, 7, 16, 32])), draw(st.integers(0, 63))


@every_variant
@given(block=blocks())
def test_every_bit_is_that_of_numpy(kernel: Kernel, block: tuple[SumSpec, list[bytes], int, int]):
    """Any dtypes, lengths, numbers of rows, places, weights and values: bytes and what is not finite are numpy's."""
    spec, rows, group, offset = block
    assert made(kernel, spec, rows, group, offset) == made(NUMPY, spec, rows, 4)


@every_variant
@pytest.mark.parametrize("name", [*FLOATS, "C64", "C128"])
def test_what_is_not_finite_in_a_lone_checkpoint_is_found(kernel: Kernel, name: str):
    """NaN and infinity, wherever they are in a block of any length."""
    dtype, random = DTYPES[name], np.random.default_rng(0)
    workspace, numpy = (each.workspace(WorkspaceSize(2, 1 << 13, 1, 1)) for each in (kernel, NUMPY))
    for count in (1, 63, 64, 65, 300):
        (row,) = rows_of_bits(random, [dtype], count, "finite")
        assert workspace.is_finite(dtype, memoryview(row))
        for bits in (dtype.exponent_mask, dtype.exponent_mask | 1):
            at = int(random.integers(0, count)) * dtype.itemsize
            spoilt = bytearray(row)
            spoilt[at : at + dtype.component_bits // 8] = bits.to_bytes(dtype.component_bits // 8, "little")
            assert not workspace.is_finite(dtype, memoryview(spoilt))
            found, expected = (each.find_non_finite(dtype, memoryview(spoilt)) for each in (workspace, numpy))
            assert found.wrong.tolist() == expected.wrong.tolist()
            assert found.infinite.tolist() == expected.infinite.tolist()


@pytest.fixture
def modes() -> Iterator[ctypes.CDLL]:
    """Round upwards, and take subnormals for zeros, as other libraries may leave a thread."""
    library = ctypes.CDLL(ctypes.util.find_library("m"))
    before = library.fegetround()
    library.fesetround(0x800)
    torch.set_flush_denormal(True)
    yield library
    torch.set_flush_denormal(False)
    library.fesetround(before)


@every_variant
@pytest.mark.skipif(platform.machine() != "x86_64", reason="0x800 is the upward mode of x86")
def test_modes_of_other_libraries_do_not_show(kernel: Kernel, modes: ctypes.CDLL):
    """Rounding and subnormals are those of IEEE 754 in each call, and afterwards as they were."""
    random = np.random.default_rng(0)
    dtypes = [DTYPES["F32"]] * 3
    near, tiny = (rows_of_bits(random, dtypes, 300, shape) for shape in ("near", "tiny"))
    spec = SumSpec(300, dtypes, DTYPES["F32"], WeightTable.of([[0.1, 0.2, 0.7]]))
    found = [made(kernel, spec, rows, 2) for rows in (near, tiny)]
    assert modes.fegetround() == 0x800
    assert np.float32(1e-45) * np.float32(1) == 0
    modes.fesetround(0)
    torch.set_flush_denormal(False)
    assert found == [made(NUMPY, spec, rows, 2) for rows in (near, tiny)]


@every_variant
def test_the_memory_of_a_workspace_is_what_it_says(kernel: Kernel):
    """What is planned for a thread is what its buffers take."""
    size = WorkspaceSize(4, 1 << 12, 3, 2)
    memory = compiled_kernel._Memory(size)
    every = [*memory.rows, *memory.newest, *memory.sums]
    assert [len(part) for part in (memory.rows, memory.newest, memory.sums)] == [4, 2, 3]
    assert sum(map(len, every)) == kernel.worker_bytes(size)


GOOD = {
    "variant": compiled_kernel.variants()[0][0], "rows": (bytes(40), bytes(40)), "kinds": b"\2\2",
    "weights": bytes(16), "newest": (bytes(40),), "newest_kinds": b"\2", "begins": b"\1", "sums": (bytearray(40),),
    "count": 10, "target": 2, "wide": False, "plain": False, "limit": 1.0, "ends": True,
}  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    [
        {"variant": -1}, {"variant": 99}, {"rows": ()}, {"rows": (bytes(40), bytes(39))}, {"rows": (bytes(40), 1)},
        {"rows": (bytes(40),) * 33, "kinds": b"\2" * 33, "weights": bytes(33 * 8)}, {"kinds": b"\2"},
        {"kinds": b"\2\3"},
        {"kinds": b"\2\xff"}, {"weights": bytes(15)}, {"newest": ()}, {"newest": (bytes(39),)}, {"newest_kinds": b"\4"},
        {"begins": b""}, {"sums": (bytearray(39),)}, {"sums": (bytes(40),)}, {"sums": ()}, {"count": -1},
        {"count": 11}, {"count": 2**62}, {"count": 2**80}, {"target": 3}, {"target": -1}, {"wide": True},
        {"limit": "x"},
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_refused(changed: dict[str, object]):
    """No argument makes it read or write beyond a buffer."""
    add = compiled_kernel._compiled.add
    assert add(*GOOD.values()) == 0
    with pytest.raises((ValueError, TypeError, OverflowError, BufferError)):
        add(*(GOOD | changed).values())


def test_rows_lie_in_memory_as_their_files_do():
    """Modulo 64, at any offset, for rows that are read, kept until the end, or copied: no copy from the page cache to
    them runs at an offset that is slow."""
    workspace = compiled_kernel.CompiledKernel(GOOD["variant"]).workspace(WorkspaceSize(4, 1 << 12, 1, 1))
    sums = workspace.begin(SumSpec(100, [DTYPES["BF16"]] * 6, DTYPES["BF16"], WeightTable.of([[1 / 6] * 6])))

    def place(row: memoryview) -> int:
        return int(np.frombuffer(row, np.uint8).ctypes.data) % 64

    for numbers, offsets in (((5, 4, 3, 2), (1, 752, 63, 10**12 + 7)), ((1, 0), (64, 31))):
        assert [place(row) for row in sums.rows(numbers, offsets)] == [offset % 64 for offset in offsets]
    assert [place(workspace.stored(100, offset)) for offset in (0, 33, 127)] == [0, 33, 63]
