"""What is written by range and from several threads is sent in order, byte by byte, with its sum."""

from __future__ import annotations

import hashlib
import random
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, pairwise
from pathlib import Path

import pytest

from ema_cli.errors import OutputError
from ema_cli.storage.names import StorePath
from ema_cli.storage.store import store_stream
from ema_cli.storage.store.clients import client_of
from ema_cli.storage.store.store_stream import StoreStream, memory_of_streams, shard_that_fits
from ema_cli.storage.store.uploads import abort
from tests.storage.stores import obstore

_numbers = count()


def address() -> StorePath:
    """Return the address of an object in an empty store."""
    return StorePath(f"memory://stream-{next(_numbers)}/x.bin")


def sent(stream: StoreStream) -> bytes:
    """Complete the upload of a stream, and return what is in the store."""
    stream.sync()
    stream.upload.end()
    stream.upload.wait()
    stream.close()
    return bytes(obstore.get(client_of(stream.path), stream.path.key).bytes())


@pytest.mark.parametrize("seed", range(6))
def test_what_threads_write_is_sent_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int):
    """Each takes the next range; the store has the bytes, and the sum is theirs."""
    monkeypatch.setattr(store_stream, "EARLY_BYTES", 300)
    draw = random.Random(seed)
    data, cuts = draw.randbytes(20_000), [7, *sorted(draw.sample(range(8, 20_000), 150)), 20_000]
    stream = StoreStream(address(), len(data), data[:7], None, spill=tmp_path / "spill")
    ranges, lock = pairwise(cuts), threading.Lock()

    def work() -> None:
        while True:
            with lock:
                taken = next(ranges, None)
            if taken is None:
                return
            stream.write(taken[0], memoryview(data)[slice(*taken)])

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(work) for _ in range(4)]:
            future.result()
    assert sent(stream) == data
    assert stream.sha256() == hashlib.sha256(data).hexdigest()
    assert data.endswith(stream.last)
    assert not list(tmp_path.iterdir())


def test_what_belongs_far_behind_waits_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As the second copy of tensors that share their bytes: nobody waits for it, and memory does not hold it."""
    monkeypatch.setattr(store_stream, "EARLY_BYTES", 10)
    data = bytes(range(200))
    stream = StoreStream(address(), 200, b"", None, spill=tmp_path / "spill")
    stream.write(100, data[100:150], ahead=True)
    stream.write(0, data[:60])
    assert (tmp_path / "spill").exists()
    stream.write(150, data[150:], ahead=True)
    stream.write(60, data[60:100])
    assert sent(stream) == data
    assert not list(tmp_path.iterdir())


class Framed:
    """A header and a footer with its checksum around each tensor, two parts between neighbours."""

    def __init__(self, tensors: list[bytes]) -> None:
        self.tensors = tensors

    def frame(self, checksum_of: Callable[[int, int], int]) -> Iterator[tuple[int, bytes]]:
        """Yield them."""
        for at, tensor in self.placed():
            yield at - 1, b"<"
            checksum = checksum_of(at, len(tensor))
            yield at + len(tensor), b"" if not tensor else checksum.to_bytes(4, "little")

    def summed(self) -> Iterator[tuple[int, int]]:
        """Yield where the tensors are."""
        return ((at, len(tensor)) for at, tensor in self.placed())

    def placed(self) -> Iterator[tuple[int, bytes]]:
        """Yield the tensors, each with its place."""
        at = 5
        for tensor in self.tensors:
            yield at, tensor
            at += len(tensor) + (5 if tensor else 1)


def test_what_follows_from_tensors_is_put_between_them(tmp_path: Path):
    """The checksums of files of torch.save, those of empty tensors too, whatever comes early."""
    tensors = [b"abc", b"", b"", b"defgh", b"i"]
    whole = b"HEAD" + b"".join(b"<" + t + (zlib.crc32(t).to_bytes(4, "little") if t else b"") for t in tensors)
    stream = StoreStream(address(), len(whole), b"HEAD", Framed(tensors), spill=tmp_path / "spill")
    for tensor, part in ((b"i", slice(0, 1)), (b"defgh", slice(2, 5)), (b"abc", slice(0, 3)), (b"defgh", slice(0, 2))):
        stream.write(whole.index(b"<" + tensor) + 1 + part.start, tensor[part])
    assert sent(stream) == whole
    nothing = StoreStream(address(), 5, b"HEAD", Framed([b""]), spill=tmp_path / "s")
    assert sent(nothing) == b"HEAD<"


def test_a_file_that_is_not_whole_is_an_error(tmp_path: Path):
    """Before the store is told to complete it."""
    stream = StoreStream(address(), 10, b"", None, spill=tmp_path / "spill")
    stream.write(0, b"12345")
    stream.write(6, b"7890")
    with pytest.raises(OutputError, match=r"x\.bin: got 5 of 10 bytes"):
        stream.sync()
    assert abort([stream.upload])


def test_who_waits_for_a_turn_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where the fold fails in another thread."""
    monkeypatch.setattr(store_stream, "EARLY_BYTES", 1)
    stream = StoreStream(address(), 10, b"", None, spill=tmp_path / "spill")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(stream.write, 5, b"67890")
        stream.give_up()
        with pytest.raises(OutputError, match="was given up"):
            waiting.result(10)


def test_shards_that_fit_are_found():
    """Small parts, and not so many shards that they are held themselves."""
    assert shard_that_fits(10**12, 100 << 20) == 10**12 >> 2
    assert memory_of_streams([10**12 >> 2] * 4) <= 100 << 20
    assert shard_that_fits(10**12, 10 << 20) is None
