"""Real stores for tests: SeaweedFS on loopback, started once for each process that runs tests."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ema_cli.storage.names import StorePath, as_path
from ema_cli.storage.store import clients, listing, object_file
from scripts.seaweed import BUCKET, find_weed, running_seaweed
from tests.storage.proxy import Proxy, running_proxy

KEY, SECRET = "a-key", "a-secret-that-nobody-prints"
_PATIENCE_SECONDS = 60


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run SeaweedFS, and return host and port of its S3 interface; it has the bucket `ckpts`."""
    weed = find_weed()
    if weed is None:
        pytest.skip("SeaweedFS is not installed")
    with running_seaweed(weed, tmp_path_factory.mktemp("seaweed"), KEY, SECRET) as address:
        _wait_for(address)
        yield address


def _wait_for(address: str) -> None:
    """Wait until the bucket is there."""
    obstore: Any = pytest.importorskip("obstore")
    client = obstore.store.S3Store(
        BUCKET, endpoint=f"http://{address}", access_key_id=KEY, secret_access_key=SECRET,
        client_options={"allow_http": True}, retry_config={"max_retries": 0},
    )  # fmt: skip
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            obstore.put(client, "there", b"")
            return
        except obstore.exceptions.BaseError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.fixture
def proxy(seaweed: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Return a proxy before SeaweedFS, by way of which s3:// leads there in this process."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    listing.forget_listings()
    with running_proxy(seaweed) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        # Last: what still runs of the test before would make a client of another server.
        monkeypatch.setattr(clients, "_clients", {})
        yield proxy
    listing.forget_listings()


@pytest.fixture
def nothing_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is known of any store, and nothing will be after the test."""
    monkeypatch.setattr(object_file, "_kept", type(object_file._kept)())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    listing.forget_listings()
    yield
    listing.forget_listings()


@pytest.fixture
def folder(proxy: Proxy, request: pytest.FixtureRequest) -> StorePath:
    """Return the address of an empty folder in SeaweedFS."""
    address = as_path(f"s3://ckpts/{request.node.name}")
    assert isinstance(address, StorePath)
    return address


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are not tried again for minutes."""
    quick = {"init_backoff": timedelta(milliseconds=10), "max_backoff": timedelta(milliseconds=50), "base": 2}
    monkeypatch.setattr(clients, "_RETRY", {"max_retries": 3, "retry_timeout": timedelta(seconds=5), "backoff": quick})
