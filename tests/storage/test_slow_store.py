"""A slow store: 20 ms a request, and 60 MB/s a connection. It takes longer, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ema_cli.storage.names import StorePath
from tests.conftest import Cli
from tests.storage.proxy import Proxy
from tests.storage.stores import put_folder
from tests.storage.test_store_staging import local, present

UNIFORM = ("--profile", "uniform")


@pytest.mark.slow
def test_a_slow_store_is_read_and_written(proxy: Proxy, folder: StorePath, tmp_path: Path, cli: Cli):
    """From there into there: the bytes are those of a disk, with no request twice and many parts at once."""
    (tmp_path / "run").mkdir()
    (tmp_path / "here").mkdir()
    for step in (100, 200):
        tensors = {f"w{number}": torch.full((1500, 1000), float(step + number)) for number in range(4)}
        save_file(tensors, tmp_path / "run" / f"step-{step}.safetensors")
    put_folder(folder / "run", local(tmp_path / "run"))
    assert cli("average", tmp_path / "run", *UNIFORM, "-o", tmp_path / "here" / "release").code == 0
    proxy.delay, proxy.rate = 0.02, 60_000_000
    before = len(proxy.requests)
    done = cli("average", folder / "run", *UNIFORM, "-o", folder / "there" / "release")
    assert done.code == 0, done
    assert present(folder / "there") == local(tmp_path / "here")
    asked = [
        (request.path, request.range) for request in proxy.requests[before:] if request.range and "run/" in request.path
    ]
    assert len(asked) == len(set(asked)) > 0
    assert cli("verify", folder / "there" / "release", "--against", folder / "run").code == 0
