"""Objects are sent piece by piece: there once they are completed, and of an aborted one nothing stays."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ema_cli.errors import OutputError
from ema_cli.storage.names import StorePath
from ema_cli.storage.store import uploads
from ema_cli.storage.store.clients import client_of
from ema_cli.storage.store.uploads import Upload, held_bytes, part_bytes, parts_at_once, sending_bytes
from tests.storage.proxy import Proxy
from tests.storage.stores import obstore

MIB = 1 << 20


@given(st.one_of(st.integers(1, 64 * MIB), st.integers(1, 5 << 40)))
def test_parts_are_what_stores_take(size: int):
    """At most 10,000, none below 5 MiB but the last, all equal but the last, and that is small."""
    part = part_bytes(size)
    whole, last = divmod(size, part)
    assert whole + (last > 0) <= 10_000
    assert part >= 5 * MIB
    if size > 5 * MIB:
        assert 0 < last <= held_bytes(size) <= 10_000
    else:
        assert held_bytes(size) == size


@pytest.mark.parametrize(
    ("size", "part", "at_once"), [(1, 5 * MIB, 4), (431_000_000, 8_450_980, 4), (10**12, 111_111_123, 1)]
)
def test_memory_is_bounded(size: int, part: int, at_once: int):
    """48 MiB an object, or two parts where these have to be larger."""
    assert abs(part_bytes(size) - part) < 20_000
    assert parts_at_once(size) == at_once
    assert sending_bytes(size) <= max(48 * MIB, 2 * part_bytes(size))


@pytest.mark.slow
def test_nothing_is_there_before_the_end(proxy: Proxy, folder: StorePath):
    """However much was sent; of an older one nothing changes until then."""
    check_nothing_is_there_before_the_end(folder)
    assert sum("partNumber" in request.path for request in proxy.requests) == 2 * 3


def check_nothing_is_there_before_the_end(folder: StorePath) -> None:
    """Send an object of three parts, and another in its place, and look what others see."""
    path, size = folder / "parts.bin", 12 * MIB
    older: bytes | None = None
    for first in (0, 100):
        upload = Upload(path, size)
        for number in range(12):
            upload.send(bytes([first + number]) * MIB)
        if older is None:
            with pytest.raises(FileNotFoundError):
                obstore.head(client_of(path), path.key)
        else:
            assert bytes(obstore.get(client_of(path), path.key).bytes()) == older
        upload.end()
        upload.wait()
        older = b"".join(bytes([first + number]) * MIB for number in range(12))
        assert bytes(obstore.get(client_of(path), path.key).bytes()) == older


@pytest.mark.slow
def test_the_store_forgets_what_is_aborted(proxy: Proxy, folder: StorePath):
    """It is told so, and whoever sends is told, too."""
    upload = Upload(folder / "x.bin", 12 * MIB)
    for _ in range(8):
        upload.send(bytes(MIB))
    assert uploads.abort([upload])
    assert "DELETE" in [request.method for request in proxy.requests if "uploadId" in request.path]
    with pytest.raises(OutputError, match=r"x\.bin: the upload was stopped"):
        upload.send(b"more")


@pytest.mark.slow
def test_the_store_checks_what_it_gets(proxy: Proxy, folder: StorePath, monkeypatch: pytest.MonkeyPatch):
    """A part of which a byte changed on its way is refused: its sum comes with it."""
    monkeypatch.setattr("ema_cli.storage.store.clients._RETRY", {"max_retries": 0})
    proxy.fault = lambda request: "flip" if "partNumber=1" in request.path else None
    upload = Upload(folder / "x.bin", 5 * MIB)
    upload.send(bytes(MIB))
    upload.end()
    with pytest.raises(OutputError, match=r"x\.bin: cannot be written: 400 Bad Request"):
        upload.wait()


def test_whoever_sends_waits_for_a_slow_store(monkeypatch: pytest.MonkeyPatch):
    """Memory does not fill with what is not sent yet."""
    taken: list[bytes] = []

    def put(_client: object, _key: str, pieces: object, **_: object) -> None:
        for piece in pieces:  # type: ignore[attr-defined]
            time.sleep(0.02)
            taken.append(piece)

    monkeypatch.setattr(obstore, "put", put)
    upload = Upload(StorePath("memory://slow/x.bin"), 10)
    most = 0
    for number in range(10):
        upload.send(bytes([number]))
        most = max(most, number + 1 - len(taken))
    upload.end()
    upload.wait()
    assert b"".join(taken) == bytes(range(10))
    assert most <= uploads._WAITING_PIECES + 2
