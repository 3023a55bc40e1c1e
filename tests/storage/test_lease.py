"""A lease that lies in a folder says what it says: nothing in it breaks who looks at it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ema_cli.storage import lease
from ema_cli.storage.lease import Lease, LeaseLost, Watch


def held(**said: object) -> bytes:
    return json.dumps({"owner": "x", "machine": lease._machine(), "count": 1, **said}).encode()


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
