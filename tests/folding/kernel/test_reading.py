"""The compiled kernel as it reads: rows in spans of files and connections, in stretches, and reads that end early."""

from __future__ import annotations

import errno
import os
import socket
import struct
from array import array
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ema_cli.dtypes import DTYPES
from ema_cli.folding.kernel import Kernel, ReadEnd, Spans, SumSpec, WeightTable, WorkspaceSize, sum_bytes

tests = pytest.importorskip("tests.folding.kernel.test_compiled_kernel", reason="the extension is not built")
compiled_kernel, every_variant = tests.compiled_kernel, tests.every_variant


_MOST_SENT = 1 << 14  # bytes for which the system has room before anybody receives them


def connection(data: bytes) -> int:
    """Return the descriptor of a connection over which these bytes come, and then its end."""
    ours, other = socket.socketpair()
    with other:
        other.sendall(data)
    return ours.detach()


def spans_of(random: np.random.Generator, rows: Sequence[bytes]) -> tuple[Spans, list[int]]:
    """Write the rows into two files in memory, and to connections, each in spans; return these, and all descriptors."""
    files = [os.memfd_create("rows") for _ in range(2)]
    offsets, numbers, counts = [], array("q"), array("q")
    for row in rows:
        cuts = sorted(random.integers(0, len(row) + 1, int(random.integers(0, 3))).tolist())
        begins, ends = [0, *cuts], [*cuts, len(row)]
        for begin, end in zip(begins, ends, strict=True):
            file = files[int(random.integers(0, 2))]
            at = os.fstat(file).st_size + int(random.integers(0, 70))
            if random.random() < 0.3 and end - begin <= _MOST_SENT:
                files.append(connection(row[begin:end]))
                numbers.extend((files[-1], -1, end - begin))
            else:
                os.pwrite(file, b"\xff" + row[begin:end], at)
                numbers.extend((file, at + 1, end - begin))
            if begin == 0:
                offset = at + 1
        offsets.append(offset)
        counts.append(len(begins))
    return Spans(offsets, numbers, counts), files


def summed(
    kernel: Kernel, spec: SumSpec, rows: Sequence[bytes], group: int, seed: int | None
) -> list[tuple[bool, bytes]]:
    """Sum up a block that is read from files, or in memory where `seed` is None: each average, if finite."""
    nbytes = -(-spec.count * sum_bytes(spec.dtypes) // 64) * 64
    workspace = kernel.workspace(WorkspaceSize(group, nbytes, len(spec.weights.rows), len(spec.weights.bases)))
    sums, random = workspace.begin(spec), np.random.default_rng(seed)
    for last in range(len(rows) - 1, -1, -group):
        numbers = range(last, max(last - group, -1), -1)
        if seed is None or not sums.reads(numbers):
            for number, memory in zip(numbers, sums.rows(numbers, [0] * len(numbers)), strict=True):
                memory[:] = rows[number]
            sums.add(numbers)
            continue
        spans, files = spans_of(random, [rows[number] for number in numbers])
        end = sums.read_and_add(numbers, spans, bytearray(1))
        assert end.span == -1
        assert end.seconds > 0
        for file in files:
            os.close(file)
    return tests.completed(sums, spec, rows)


@every_variant
@given(block=tests.blocks(), stretch=st.sampled_from([8, 64, 1000, 1 << 18]), seed=st.integers(0, 2**32 - 1))
def test_what_is_read_gives_the_bytes_of_what_lies_in_memory(
    kernel: Kernel, block: tuple[SumSpec, list[bytes], int, int], stretch: int, seed: int
):
    """Any dtypes, averages and groups, in spans of any length at any place, and in stretches of any length."""
    spec, rows, group, _ = block
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled_kernel, "_STRETCH", stretch)
        found = summed(kernel, spec, rows, group, seed)
    assert found == summed(kernel, spec, rows, group, None)


COUNT = 1000
SPEC = SumSpec(COUNT, [DTYPES["F32"]] * 2, DTYPES["F32"], WeightTable.of([[0.5, 0.5]]))


def ended(spans: Sequence[tuple[int, int, int]], stop: int = 0) -> ReadEnd:
    """Read two checkpoints of 4000 bytes, the first half of the spans and the second."""
    kernel = compiled_kernel.CompiledKernel(compiled_kernel.variants()[0][0])
    sums = kernel.workspace(WorkspaceSize(2, 1 << 12, 1, 1)).begin(SPEC)
    numbers = array("q", [number for span in spans for number in span])
    half = len(spans) // 2
    return sums.read_and_add([1, 0], Spans([10, 10], numbers, array("q", [half, half])), bytearray([stop]))


@pytest.fixture
def file() -> Iterator[int]:
    """Return a file in memory of 4010 bytes."""
    descriptor = os.memfd_create("row")
    os.pwrite(descriptor, np.ones(COUNT, np.float32).tobytes(), 10)
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize("offset", [2**31 - 2000, 2**32 - 2000, 5 << 30])
def test_offsets_may_have_more_than_32_bits(file: int, offset: int):
    """Of rows across 2 and 4 GiB, and beyond; and of the byte at which such a file ends."""
    os.pwrite(file, np.full(COUNT, 3, np.float32).tobytes(), offset)
    kernel = compiled_kernel.CompiledKernel(compiled_kernel.variants()[0][0])
    sums = kernel.workspace(WorkspaceSize(2, 1 << 12, 1, 1)).begin(SPEC)
    spans = Spans([10, offset], array("q", [file, 10, 4000, file, offset, 4000]), array("q", [1, 1]))
    assert sums.read_and_add([1, 0], spans, bytearray(1)).span == -1
    assert sums.complete(0)
    assert bytes(sums.encode(0)) == np.full(COUNT, 2, np.float32).tobytes()
    os.ftruncate(file, offset + 3000)
    end = ended([(file, 10, 4000), (file, offset, 4000)])
    assert (end.span, end.offset, end.error) == (1, offset + 3000, 0)


def test_a_file_that_ends_early_is_told(file: int):
    """The span and the byte at which the file ends, within the second span of the second row."""
    os.ftruncate(file, 3000)
    end = ended([(file, 10, 1600), (file, 10, 2400), (file, 10, 1600), (file, 1610, 2400)])
    assert (end.span, end.offset, end.error) == (3, 3000, 0)


def test_a_read_that_fails_is_told(file: int):
    """The system's number, for a descriptor that cannot be read from."""
    unreadable = os.open("/dev/null", os.O_WRONLY)
    end = ended([(file, 10, 4000), (unreadable, 10, 4000)])
    os.close(unreadable)
    assert (end.span, end.offset, end.error) == (1, 10, errno.EBADF)


def test_a_connection_that_ends_early_is_told(file: int):
    """The span, and how many of its bytes came."""
    ours = connection(b"\0" * 3000)
    end = ended([(file, 10, 1600), (file, 10, 2400), (file, 10, 100), (ours, -1, 3900)])
    os.close(ours)
    assert (end.span, end.offset, end.error) == (3, 3000, 0)


def test_a_connection_over_which_nothing_comes_is_told_after_its_time(file: int):
    """The system's number for a wait that ended, where it was told how long to wait."""
    ours, other = socket.socketpair()
    with ours, other:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 10_000))
        end = ended([(file, 10, 4000), (ours.fileno(), -1, 4000)])
    assert (end.span, end.offset, end.error) == (1, 0, errno.EAGAIN)


def test_reads_end_where_they_are_stopped(file: int):
    """Before the next read, with no span to blame."""
    assert ended([(file, 10, 4000)] * 2).span == -1
    assert ended([(file, 10, 4000)] * 2, stop=1).span == -2


@pytest.mark.parametrize("sizes", [[3999], [4001], [4000, 1], [4000, -1, 1], [2**62], []])
def test_spans_of_another_length_than_the_row_are_refused(file: int, sizes: list[int]):
    """Too few bytes, too many, or fewer than none: nothing is read."""
    with pytest.raises(ValueError, match="the spans of a row do not fit together"):
        ended([(file, 10, size) for size in sizes] * 2)


@pytest.mark.parametrize(("descriptor", "offset"), [(-1, 10), (2**31, 10), (None, -2), (None, 2**63 - 4000)])
def test_spans_that_are_nowhere_are_refused(file: int, descriptor: int | None, offset: int):
    """No descriptor, and no place in a file."""
    with pytest.raises(ValueError, match="the spans of a row do not fit together"):
        ended([(file if descriptor is None else descriptor, offset, 4000)] * 2)
