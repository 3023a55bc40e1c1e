"""Put objects into stores, for tests; these are skipped where the package that reaches stores is not installed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from ema_cli.storage.names import StorePath
from ema_cli.storage.store.clients import client_of

obstore = pytest.importorskip("obstore")


def put(path: StorePath, content: bytes) -> Any:
    """Put an object, and return the client of its bucket."""
    client = client_of(path)
    obstore.put(client, path.key, content)
    return client


def put_folder(path: StorePath, files: Mapping[str, bytes]) -> None:
    """Put objects below an address, by the rest of their names."""
    for name, content in files.items():
        put(path / name, content)
