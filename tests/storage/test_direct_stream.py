"""Large files that are written past the page cache."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from ema_cli.errors import EmaError, OutputError
from ema_cli.storage import direct_stream
from ema_cli.storage import segments as segments_module
from ema_cli.storage.direct_stream import DirectStream
from ema_cli.storage.segments import Segments

SEGMENT = 1 << 13
PAGE = 1 << 12
DATA = random.Random(0).randbytes(9 * SEGMENT + PAGE + 77)  # a last segment of a page and something
SHA256 = hashlib.sha256(DATA).hexdigest()

Pwrite = Callable[[int, memoryview, int], int]


@pytest.fixture(autouse=True)
def _small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments_module, "SEGMENT_BYTES", SEGMENT)


@contextmanager
def opened(path: Path, size: int = len(DATA), *, count: int = 4, summed: bool = True) -> Iterator[DirectStream]:
    """Yield a stream with `count` segments of its own."""
    segments = Segments(count)
    try:
        stream = DirectStream(path, size, segments, summed=summed)
        try:
            yield stream
        finally:
            stream.close()
    finally:
        segments.close()


def cut(seed: int, longest: int = 3 * SEGMENT) -> list[tuple[int, int]]:
    """Cut the data into ranges of random lengths."""
    lengths, ranges, begin = random.Random(seed), [], 0
    while begin < len(DATA):
        end = min(len(DATA), begin + lengths.randint(1, longest))
        ranges.append((begin, end))
        begin = end
    return ranges


def write(stream: DirectStream, begin: int, end: int) -> None:
    """Write a range of the data from memory that is used again at once."""
    memory = bytearray(DATA[begin:end])
    stream.write(begin, memoryview(memory))
    memory[:] = bytes(len(memory))


def meddle(monkeypatch: pytest.MonkeyPatch, change: Callable[[Pwrite, int, memoryview, int], int]) -> None:
    """Let all writes go through `change`, which gets the real one first."""
    real = os.pwrite
    monkeypatch.setattr(direct_stream.os, "pwrite", lambda *args: change(real, *args))


def refuse(*_arguments: object) -> None:
    """Do as a file system does that knows no such call."""
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


@pytest.mark.parametrize("summed", [True, False])
@pytest.mark.parametrize("order", ["in order", "backwards", "mixed"])
@pytest.mark.parametrize("count", [1, 2, 30])
def test_ranges_in_any_order_make_the_file_and_its_sum(tmp_path: Path, count: int, order: str, summed: bool):
    """However few segments are kept, and whatever their order: those that are not whole are written as they are."""
    for seed in range(10):
        ranges = cut(seed)
        if order == "backwards":
            ranges.reverse()
        elif order == "mixed":
            random.Random(seed).shuffle(ranges)
        with opened(tmp_path / f"{seed}", count=count, summed=summed) as stream:
            for begin, end in ranges:
                write(stream, begin, end)
            stream.sync()
            assert stream.sha256() == (SHA256 if summed else "")
        assert (tmp_path / f"{seed}").read_bytes() == DATA


@pytest.mark.parametrize("count", [1, 3, 6])
def test_several_threads_and_files_share_the_segments(tmp_path: Path, count: int):
    """Each of three files gets its own bytes, from four threads, with fewer segments than ranges on their way."""
    segments = Segments(count)
    streams = [DirectStream(tmp_path / f"{number}", len(DATA), segments) for number in range(3)]
    jobs = [(stream, *both) for both in cut(1) for stream in streams]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda job: write(*job), jobs))
    for stream in streams:
        stream.sync()
        assert stream.sha256() == SHA256
        stream.close()
        assert stream.path.read_bytes() == DATA
    segments.close()


def test_whole_segments_are_written_past_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each with one write, at places that disks ask for; only what is less than a page at the end is not."""
    direct: list[tuple[int, int]] = []
    others: list[tuple[int, int]] = []

    def change(real: Pwrite, descriptor: int, data: memoryview, position: int) -> int:
        (direct if descriptor == stream._direct else others).append((position, len(data)))
        return real(descriptor, data, position)

    meddle(monkeypatch, change)
    with opened(tmp_path / "x") as stream:
        if stream._direct < 0:
            pytest.skip("the file system here does not know it")
        for begin, end in cut(3):
            write(stream, begin, end)
        stream.sync()
    assert sorted(direct) == [*((SEGMENT * number, SEGMENT) for number in range(9)), (9 * SEGMENT, PAGE)]
    assert others == [(9 * SEGMENT + PAGE, 77)]


@pytest.mark.parametrize("where", ["open", "advice", "write", "short"])
def test_where_the_file_system_does_not_know_it_the_file_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
):
    """Whether it says so at once or of the first write, or writes less than it was given."""
    if where == "open":
        monkeypatch.delattr(direct_stream.os, "O_DIRECT")
    if where == "advice":
        monkeypatch.setattr(direct_stream.os, "posix_fadvise", refuse)

    def change(real: Pwrite, descriptor: int, data: memoryview, position: int) -> int:
        if where == "write" and descriptor == stream._direct:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if where == "short" and len(data) > 1000:
            return real(stream._descriptor, data[:1000], position)
        return real(descriptor, data, position)

    meddle(monkeypatch, change)
    with opened(tmp_path / "x") as stream:
        for begin, end in cut(4):
            write(stream, begin, end)
        stream.sync()
        assert stream.sha256() == SHA256
    assert (tmp_path / "x").read_bytes() == DATA


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_what_the_disk_refuses_is_told_and_nobody_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
):
    """By the next write or by the sync, with the name of the file, in every thread."""

    def change(real: Pwrite, descriptor: int, data: memoryview, position: int) -> int:
        if position >= 3 * SEGMENT:
            raise OSError(code, os.strerror(code))
        return real(descriptor, data, position)

    meddle(monkeypatch, change)

    def write_all() -> None:
        for begin, end in cut(5):
            write(stream, begin, end)
        stream.sync()

    with opened(tmp_path / "x", count=2) as stream, pytest.raises(OutputError) as caught:
        write_all()
    assert caught.value.subject == tmp_path / "x"
    assert os.strerror(code) in caught.value.fact


def test_what_is_no_error_of_the_disk_is_raised_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Else all would wait for a thread that has ended."""

    def change(*_arguments: object) -> int:
        raise MemoryError

    meddle(monkeypatch, change)
    with opened(tmp_path / "x", count=2) as stream:
        stream.write(0, DATA[:SEGMENT])
        with pytest.raises(MemoryError):
            stream.sync()


def test_who_waits_for_memory_goes_on_when_the_last_one_to_bring_some_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The only segment is on the disk, and comes too early for the sum; the thread that notes it is the last one."""
    waits = threading.Event()
    with opened(tmp_path / "x", count=1) as stream:
        segments, sum_up, make_room = stream._segments, stream.sum_up, stream._segments._make_room

        def sum_up_late(offset: int, data: memoryview) -> None:
            if offset:
                assert waits.wait(10)
            sum_up(offset, data)

        def make_room_or_wait() -> bool:
            is_made = make_room()
            if not is_made and not segments._queue and not segments._writing:
                waits.set()  # it still holds the lock: the other one goes on when this one waits
            return is_made

        monkeypatch.setattr(stream, "sum_up", sum_up_late)
        monkeypatch.setattr(segments, "_make_room", make_room_or_wait)
        with ThreadPoolExecutor(2) as pool:
            early = pool.submit(write, stream, SEGMENT, 2 * SEGMENT)
            while not segments._whole:
                pass
            late = pool.submit(write, stream, 0, SEGMENT)
            try:
                for each in (early, late):
                    each.result(timeout=10)
                assert stream.summed_up == 2 * SEGMENT
            finally:
                stream.give_up()


def test_who_waits_for_the_disk_is_let_go_when_the_file_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A thread that brings more than there is memory for, and one that waits for all to be written."""
    stands = threading.Event()

    def change(real: Pwrite, *args: object) -> int:
        stands.wait()
        return real(*args)  # type: ignore[arg-type]

    meddle(monkeypatch, change)
    with opened(tmp_path / "x", count=2) as stream:
        with ThreadPoolExecutor(2) as pool:
            brings = pool.submit(stream.write, 0, DATA)
            while not (stream._segments._writing and not stream._segments._free):
                pass
            waits = pool.submit(stream.sync)
            stream.give_up()
            for each in (brings, waits):
                with pytest.raises(OutputError, match="given up"):
                    each.result(timeout=10)
        stands.set()


def test_what_is_closed_before_its_end_leaves_the_segments_to_others(tmp_path: Path):
    """Nothing of it is written any more, whole or not."""
    segments = Segments(2)
    one, two = (DirectStream(tmp_path / name, len(DATA), segments) for name in "ab")
    write(one, 0, SEGMENT // 2)
    write(one, 3 * SEGMENT, 3 * SEGMENT + 5)
    one.close()
    write(two, 0, len(DATA))
    two.sync()
    assert two.sha256() == SHA256
    two.close()
    segments.close()
    assert not any((tmp_path / "a").read_bytes())


def test_what_is_not_written_yet_is_summed_up_from_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With enough segments nothing is read from the disk for the sum, though ranges come in pairs, the second first."""
    ranges = cut(6, SEGMENT)
    for number in range(0, len(ranges) - 1, 2):
        ranges[number], ranges[number + 1] = ranges[number + 1], ranges[number]
    with opened(tmp_path / "x", count=8) as stream:
        monkeypatch.setattr(direct_stream.OutputStream, "read", lambda *args: pytest.fail("read from the disk"))
        for begin, end in ranges:
            write(stream, begin, end)
        stream.sync()
        assert stream.sha256() == SHA256


def test_of_neighbours_one_is_read_from_the_disk_and_one_from_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Both wait for their turn in the sum; the first had to make room, and the second is not written yet."""
    stands = threading.Event()

    def change(real: Pwrite, descriptor: int, data: memoryview, position: int) -> int:
        if position == 4 * SEGMENT:
            stands.wait()
        return real(descriptor, data, position)

    meddle(monkeypatch, change)
    with opened(tmp_path / "x", count=4) as stream:
        write(stream, 3 * SEGMENT, 5 * SEGMENT)
        for number in (7, 8):
            write(stream, number * SEGMENT, number * SEGMENT + 1)
        write(stream, 0, 3 * SEGMENT)
        assert stream.summed_up == 5 * SEGMENT
        stands.set()
        write(stream, 5 * SEGMENT, 7 * SEGMENT)
        for number in (7, 8):
            write(stream, number * SEGMENT + 1, (number + 1) * SEGMENT)
        write(stream, 9 * SEGMENT, len(DATA))
        stream.sync()
        assert stream.sha256() == SHA256


def test_closed_segments_hold_no_memory(tmp_path: Path):
    """Though files that are closed are kept: of several passes each has its own memory."""
    segments = Segments(2)
    stream = DirectStream(tmp_path / "x", len(DATA), segments)
    memory = weakref.ref(segments._free[0].obj)
    stream.write(0, DATA)
    stream.sync()
    stream.close()
    segments.close()
    assert memory() is None
    assert stream.path.read_bytes() == DATA


def test_what_others_write_behind_a_stretch_is_not_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Another process makes the file as long as it will be, and writes its end, while this one opens it."""
    path, end = tmp_path / "x", 3 * SEGMENT
    truncate = os.ftruncate

    def truncate_late(descriptor: int, size: int) -> None:
        if not path.stat().st_size:
            path.write_bytes(bytes(end) + DATA[end:])
        truncate(descriptor, size)

    monkeypatch.setattr(direct_stream.os, "ftruncate", truncate_late)
    segments = Segments(2)
    stream = DirectStream(path, end, segments, summed=False, shared=True)
    stream.extend(len(DATA))
    write(stream, 0, end)
    stream.sync()
    stream.close()
    segments.close()
    assert path.read_bytes() == DATA


def test_a_descriptor_that_cannot_be_closed_leaves_no_other_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Some file systems say only now that the disk is full."""
    with opened(tmp_path / "x") as stream:
        if stream._direct < 0:
            pytest.skip("the file system here does not know it")
        close, direct = os.close, stream._direct

        def close_badly(descriptor: int) -> None:
            close(descriptor)
            if descriptor == direct:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        with monkeypatch.context() as bad:
            bad.setattr(direct_stream.os, "close", close_badly)
            with pytest.raises(OutputError, match="Input/output error"):
                stream.close()
        assert stream._descriptor < 0
        monkeypatch.setattr(stream, "close", lambda: None)


def test_a_thread_that_cannot_be_started_is_an_error(monkeypatch: pytest.MonkeyPatch):
    """With what to do."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(EmaError, match="no thread can be started"):
        Segments(2)
