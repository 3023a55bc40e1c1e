"""A file over 5 GB, the most that S3 takes in one request, is sent in parts, within the memory that it may take."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path

import pytest

from ema_cli.storage.names import StorePath
from ema_cli.storage.store import clients, listing
from tests.conftest import Cli
from tests.storage.proxy import Proxy
from tests.storage.stores import obstore

ELEMENTS = 1_350_000_000  # of each of two tensors, of two bytes
_NEEDED_BYTES = 20 << 30


@pytest.mark.full
def test_a_file_over_5_gb_is_written(
    seaweed: str, proxy: Proxy, folder: StorePath, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    """And verified there; peak memory stays below what was given."""
    if shutil.disk_usage(tmp_path).free < _NEEDED_BYTES:
        pytest.skip("the disk is too small")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{seaweed}")  # not by way of the proxy
    monkeypatch.setattr(clients, "_clients", {})
    size = 2 * ELEMENTS
    header = {name: {"dtype": "BF16", "shape": [ELEMENTS], "data_offsets": [at, at + size]} for name, at in
              (("a", 0), ("b", size))}  # fmt: skip
    text = json.dumps(header).encode()
    with (tmp_path / "large.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + 2 * size)  # zeros, which take no room
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    most = before + (300 << 20)
    target = folder / "large.safetensors"
    done = cli("average", tmp_path / "large.safetensors", "--last", "1", "-o", target, "--max-memory", f"{most}B")
    assert done.code == 0, done
    listing.forget_listings()
    assert obstore.head(clients.client_of(target), target.key)["size"] > 5 * 10**9
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10 < most
    assert cli("verify", target).code == 0
    obstore.delete(clients.client_of(target), target.key)
