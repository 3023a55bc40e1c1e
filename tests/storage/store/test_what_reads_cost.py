"""How many requests are made of a store, and what each of them says. The store is SeaweedFS, or in memory."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file

from ema_cli.storage.location import location
from ema_cli.storage.names import StorePath
from ema_cli.storage.store import listing, object_file
from tests.conftest import Cli
from tests.storage.proxy import Proxy, Request
from tests.storage.stores import obstore, put

_numbers = count()


def put_many(folder: StorePath, files: dict[str, bytes]) -> None:
    """Put many objects at once."""
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda each: put(folder / each[0], each[1]), files.items()))
    listing.forget_listings()
    object_file._kept._ranges.clear()


def is_listing(request: Request) -> bool:
    """Return whether a request asks what there is."""
    return "list-type" in request.path


@pytest.mark.slow
def test_a_listing_takes_one_request_for_a_thousand_names(proxy: Proxy, folder: StorePath):
    """Whatever lies below the address, at any depth."""
    names = [f"step-{number % 7}/{number}" for number in range(1100)]
    put_many(folder, dict.fromkeys(names, b"1234"))
    begin = len(proxy.requests)
    assert len(location(folder).names()) == 7
    assert sum(len(location(folder / f"step-{step}").names()) for step in range(7)) == 1100
    assert not location(folder / "step-1" / "config.json").info().exists
    asked = proxy.requests[begin:]
    assert all(map(is_listing, asked))
    assert len(asked) == 2


@pytest.fixture
def run(tmp_path: Path) -> StorePath:
    """Return the address of a run in memory: three files of 3 MB."""
    folder = StorePath(f"memory://costs-{next(_numbers)}/run")
    for step in (100, 200, 300):
        tensors = {f"w{n}": torch.full((500, 500), float(step + n)) for n in range(3)}
        save_file(tensors, tmp_path / "file")
        put(folder / f"step-{step}.safetensors", (tmp_path / "file").read_bytes())
    return folder


def test_every_request_is_for_the_object_that_was_listed(
    run: StorePath, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    """By its ETag: those for headers, and those for tensors."""
    monkeypatch.setattr("ema_cli.folding.buffers._REQUEST_BYTES", 1 << 19)
    asked, real = list[tuple[str, Any]](), obstore.get

    def get(client: Any, key: str, *, options: Any) -> Any:
        asked.append((key, options.get("if_match")))
        return real(client, key, options=options)

    monkeypatch.setattr(obstore, "get", get)
    done = cli("average", run, "--profile", "uniform", "-o", tmp_path / "out.safetensors")
    assert done.code == 0, done.err
    client = put(run / "other", b"")
    tags = {key: obstore.head(client, key)["e_tag"].strip('"') for key, _ in asked}
    assert len(asked) > 3 * 5
    assert all(condition == f'"{tags[key]}"' for key, condition in asked)


def test_what_is_put_into_the_run_meanwhile_does_not_enter(
    run: StorePath, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    """A run is listed once, when it is opened: the average is that of what was there."""
    first, second, real = tmp_path / "first.safetensors", tmp_path / "second.safetensors", obstore.get
    other = save({f"w{n}": torch.full((500, 500), 9.0) for n in range(3)})
    assert cli("average", run, "--profile", "uniform", "-o", first).code == 0

    def get(client: Any, key: str, *, options: Any) -> Any:
        obstore.put(client, f"{run.key}/step-400.safetensors", other)
        return real(client, key, options=options)

    with monkeypatch.context() as patch:
        patch.setattr(obstore, "get", get)
        assert cli("average", run, "--profile", "uniform", "-o", second).code == 0
    assert first.read_bytes() == second.read_bytes()
    assert len(location(run).names()) == 3
    listing.forget_listings()
    assert len(location(run).names()) == 4


@pytest.mark.full
def test_a_hundred_checkpoints_of_fifty_shards_take_one_request_a_shard(proxy: Proxy, folder: StorePath, cli: Cli):
    """The first time; the second time the listing is all that is asked for."""
    shards = [f"model-{number:05d}-of-00050.safetensors" for number in range(1, 51)]
    contents = {shard: save({f"{shard}.w": torch.full((4, 4), 1.0)}) for shard in shards}
    index = json.dumps({"weight_map": {f"{shard}.w": shard for shard in shards}}).encode()
    files = {**contents, "model.safetensors.index.json": index, "config.json": b'{"model_type": "a"}'}
    put_many(folder, {f"step-{n}/{name}": data for n in range(1, 101) for name, data in files.items()})
    begin = len(proxy.requests)
    first = cli("inspect", folder, "--profile", "uniform")
    assert first.code == 0, first.err
    asked = Counter(request.path for request in proxy.requests[begin:] if not is_listing(request))
    assert max(asked.values()) == 1
    assert len([path for path in asked if "-of-00050" in path]) == 5000
    assert asked.total() <= 5000 + 2 * 100
    assert sum(map(is_listing, proxy.requests[begin:])) <= 6  # 5,200 names
    listing.forget_listings()
    object_file._kept._ranges.clear()
    begin = len(proxy.requests)
    assert cli("inspect", folder, "--profile", "uniform").out == first.out
    assert all(map(is_listing, proxy.requests[begin:]))
