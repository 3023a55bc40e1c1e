"""The sha256 of a file that is written in any order."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from ema_cli.storage.checksums import RunningChecksum


@given(st.lists(st.integers(0, 300), max_size=12), st.randoms(use_true_random=False))
def test_the_sum_is_that_of_the_bytes_in_any_order(sizes: list[int], random):
    """However the parts of a file come, the sum is that of the whole."""
    data = random.randbytes(sum(sizes))
    begins = [sum(sizes[:number]) for number in range(len(sizes))]
    parts = list(zip(begins, sizes, strict=True))
    random.shuffle(parts)
    summed = RunningChecksum(lambda offset, size: data[offset : offset + size])
    for begin, size in parts:
        summed.add(begin, memoryview(data)[begin : begin + size])
    assert summed.hexdigest(len(data)) == hashlib.sha256(data).hexdigest()


@given(st.lists(st.integers(0, 300), max_size=12), st.randoms(use_true_random=False))
def test_what_others_wrote_is_read_back_in_its_turn(sizes: list[int], random):
    """Parts that are written elsewhere come in any order, too; a byte that nobody has written yet is not read."""
    data, there = random.randbytes(sum(sizes)), bytearray(sum(sizes))
    begins = [sum(sizes[:number]) for number in range(len(sizes))]
    parts = list(zip(begins, sizes, strict=True))
    random.shuffle(parts)
    summed = RunningChecksum(lambda offset, size: bytes(there[offset : offset + size]))
    for begin, size in parts:
        there[begin : begin + size] = data[begin : begin + size]
        if random.random() < 0.5:
            summed.add_written(begin, begin + size)
        else:
            summed.add(begin, memoryview(data)[begin : begin + size])
    assert summed.hexdigest(len(data)) == hashlib.sha256(data).hexdigest()


def test_bytes_that_were_not_followed_are_read_at_the_end():
    """Without a word on what was written, the whole file is read."""
    data = bytes(range(256)) * 20_000
    summed = RunningChecksum(lambda offset, size: data[offset : offset + size])
    summed.add(100, memoryview(data)[100:200])
    assert summed.hexdigest(len(data)) == hashlib.sha256(data).hexdigest()


def test_threads_that_write_side_by_side_give_one_sum():
    """Eight threads write a file; what comes while one of them sums up is taken in, too."""
    data = bytearray(8 << 20)
    source = bytes(number * 7 % 251 for number in range(1 << 16)) * 128
    lock = threading.Lock()

    def read(offset: int, size: int) -> bytes:
        with lock:
            return bytes(data[offset : offset + size])

    summed = RunningChecksum(read)

    def write(begin: int) -> None:
        part = source[begin : begin + 10_000]
        with lock:
            data[begin : begin + len(part)] = part
        summed.add(begin, memoryview(part))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(0, len(source), 10_000)))
    assert summed.hexdigest(len(source)) == hashlib.sha256(source).hexdigest()
