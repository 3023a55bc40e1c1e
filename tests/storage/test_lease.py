"""A lease that lies in a folder says what it says: nothing in it breaks who looks at it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ema_cli.errors import OutputError
from ema_cli.storage import lease
from ema_cli.storage.lease import Held, Lease, LeaseLost, Watch


def held(**said: object) -> bytes:
    return json.dumps({"owner": "x", "machine": lease.this_machine(), "count": 1, **said}).encode()


@pytest.mark.parametrize(
    "text", [b"", b"[" * 100_000, b"5", b"\xff", held(process=10**30), held(process=-1), held(process="1"), held()]
)
def test_an_old_lease_is_taken_over_whatever_it_says(tmp_path: Path, text: bytes):
    """It stands still, so its owner is gone."""
    path = tmp_path / "lease"
    path.write_bytes(text)
    with Lease(path, seconds=0.2) as own:
        assert lease.owner_of(path) == own.owner
    assert not path.exists()


@pytest.mark.parametrize("text", [held(process=10**30), held(owner=["x"])])
def test_what_another_one_says_ends_the_work(tmp_path: Path, text: bytes):
    """As when another run took the place."""
    path = tmp_path / "lease"
    path.write_bytes(text)
    with pytest.raises(LeaseLost):
        Watch(path).check("own")


def test_who_is_faster_keeps_the_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two find the same old lease; the second one sees in time that what it takes away is not that one."""
    path, others = tmp_path / "lease", list[Lease]()
    path.write_bytes(held(process=1))

    def late(self: Path, target: Path) -> Path:
        monkeypatch.undo()
        others.append(Lease(path, seconds=0.2).__enter__())
        return self.rename(target)

    monkeypatch.setattr(Path, "rename", late)
    with pytest.raises(Held):
        Lease(path, seconds=0.2).__enter__()
    assert lease.owner_of(path) == others[0].owner
    others[0].__exit__(None, None, None)
    assert list(tmp_path.iterdir()) == []


def test_a_lease_that_cannot_be_written_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On a full disk: else the next run waits for an owner."""

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OutputError, match="No space left"):
        Lease(tmp_path / "lease").__enter__()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def anew() -> Iterator[None]:
    """Find out anew which machine this is, and forget it at the end."""
    lease.this_machine.cache_clear()
    yield
    lease.this_machine.cache_clear()


@pytest.mark.usefixtures("anew")
@pytest.mark.parametrize("boot", ["another", None])
def test_machines_of_one_name_are_not_one(monkeypatch: pytest.MonkeyPatch, boot: str | None):
    """A process of a machine that was started at another time, or of which nothing is known, may be alive."""
    gone = {**lease.this_process(), "process": (1 << 22) + 1}
    assert lease.is_dead(gone)
    read_text = Path.read_text

    def read(path: Path) -> str:
        if path.name != "boot_id":
            return read_text(path)
        if boot is None:
            raise FileNotFoundError
        return boot

    monkeypatch.setattr(Path, "read_text", read)
    lease.this_machine.cache_clear()
    assert not lease.is_dead(gone)
    assert lease.is_dead({**lease.this_process(), "process": (1 << 22) + 1}) is (boot is not None)
