"""Headers that were read before are not asked for again, and nothing else comes of it."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ema_cli.storage.names import StorePath
from ema_cli.storage.store import clients, header_cache, listing, object_file
from ema_cli.storage.store.header_cache import find, keep, keep_headers, opening
from tests.conftest import Cli
from tests.storage.proxy import Proxy
from tests.storage.stores import put_folder

LAW = ("--profile", "uniform")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return where headers are kept in this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep_headers(wanted=True)
    yield tmp_path / "ema-cli" / "headers.sqlite"
    keep_headers(wanted=False)


def test_a_range_is_found_under_the_identity_of_its_object(place: Path):
    """Any part of it; nothing of another object, and nothing around it. Nobody else reads the file."""
    keep("one", 100, b"0123456789")
    assert find("one", 100, 10) == b"0123456789"
    assert find("one", 103, 4) == b"3456"
    assert find("one", 99, 2) is find("one", 105, 6) is find("another", 100, 10) is None
    assert place.stat().st_mode & 0o777 == 0o600
    header_cache.close()
    assert find("one", 103, 4) == b"3456"


def test_only_what_is_read_to_open_a_checkpoint_is_kept(place: Path):
    """And no large ranges."""
    assert not header_cache.is_kept(100)
    with opening():
        assert header_cache.is_kept(100)
        assert not header_cache.is_kept(9 << 20)
        keep_headers(wanted=False)
        assert not header_cache.is_kept(100)


def test_the_oldest_makes_room(place: Path, monkeypatch: pytest.MonkeyPatch):
    """When a command ends."""
    monkeypatch.setattr(header_cache, "_MOST_BYTES", 4000)
    for number in range(10):
        keep(f"object {number}", 0, bytes([number]) * 1000)
    header_cache.close()
    assert [number for number in range(10) if find(f"object {number}", 0, 1000) is not None] == [7, 8, 9]


def test_damage_is_not_believed(place: Path):
    """A range of which a bit changed is not there; a file that is no database is made anew."""
    keep("one", 0, b"0123456789")
    header_cache.close()
    with sqlite3.connect(place) as database:
        database.execute("update ranges set data = ?", (b"0123456780",))
    database.close()
    assert find("one", 0, 10) is None
    header_cache.close()
    for beside in place.parent.iterdir():
        beside.unlink()
    place.write_bytes(b"this is no database" * 100)
    assert find("one", 0, 10) is None
    assert not place.exists()
    keep_headers(wanted=True)
    keep("one", 0, b"0123456789")
    assert find("one", 0, 10) == b"0123456789"


@pytest.mark.parametrize(
    "change", ["data = '0123456789'", "data = 5", "begin = -1", "begin = 0.5", "sum = null", "sum = 'x'"]
)
def test_values_of_other_types_are_not_believed(place: Path, change: str):
    """Whoever made the file: what cannot have been kept is not there."""
    keep("one", 0, b"0123456789")
    header_cache.close()
    with sqlite3.connect(place) as database:
        database.execute(f"update ranges set {change}")
    database.close()
    assert find("one", 2, 3) is None
    keep("one", 0, b"0123456789")
    assert find("one", 2, 3) == b"234"


def test_a_file_that_was_damaged_before_this_process_goes_too(place: Path, monkeypatch: pytest.MonkeyPatch):
    """Else no command would ever keep a header again."""
    monkeypatch.setattr(header_cache, "_path", None)
    place.parent.mkdir()
    place.write_bytes(b"this is no database" * 100)
    assert find("one", 0, 10) is None
    assert list(place.parent.iterdir()) == []


@pytest.mark.parametrize("folder", ["/proc/nothing", "relative"])
def test_without_a_folder_nothing_is_kept(place: Path, monkeypatch: pytest.MonkeyPatch, folder: str):
    """And that is no error."""
    monkeypatch.setenv("XDG_CACHE_HOME", folder)
    monkeypatch.setenv("HOME", "")
    keep_headers(wanted=True)
    keep("one", 0, b"0123456789")
    assert find("one", 0, 10) is None


@pytest.fixture
def run(proxy: Proxy, folder: StorePath, tmp_path: Path) -> StorePath:
    """Return the address of three checkpoints in two shards each."""
    files = {}
    for step in (100, 200, 300):
        for number in range(2):
            path = tmp_path / "shard"
            save_file({f"w{number}": torch.full((300, 300), float(step + number))}, path)
            files[f"step-{step}/model-0000{number + 1}-of-00002.safetensors"] = path.read_bytes()
        weights = ",".join(f'"w{n}": "model-0000{n + 1}-of-00002.safetensors"' for n in range(2))
        files[f"step-{step}/model.safetensors.index.json"] = f'{{"weight_map": {{{weights}}}}}'.encode()
        files[f"step-{step}/config.json"] = b'{"model_type": "a"}'
    put_folder(folder, files)
    listing.forget_listings()
    return folder


def forget() -> None:
    """Forget what a process knows of stores, as the next command does."""
    object_file._kept._ranges.clear()
    listing.forget_listings()


def asked(proxy: Proxy, begin: int) -> list[str]:
    """Return what headers were asked for since request number `begin`."""
    return [request.path for request in proxy.requests[begin:] if request.range.startswith("bytes=0-")]


@pytest.mark.slow
def test_the_second_command_asks_for_no_header(proxy: Proxy, run: StorePath, tmp_path: Path, cli: Cli):
    """The first takes a request for each file; the averages are the same, with and without what was kept."""
    begin = len(proxy.requests)
    first = cli("inspect", run, *LAW)
    assert first.code == 0, first.err
    shards = [path for path in asked(proxy, begin) if "safetensors" in path and "index" not in path]
    assert len(shards) == len(set(shards)) == 6
    forget()
    begin = len(proxy.requests)
    assert cli("inspect", run, *LAW).out == first.out
    assert len(proxy.requests) - begin == 1  # the listing
    forget()
    assert cli("average", run, *LAW, "-o", tmp_path / "kept.safetensors", "-q").code == 0
    forget()
    begin = len(proxy.requests)
    assert cli("average", run, *LAW, "-o", tmp_path / "anew.safetensors", "-q", "--no-cache").code == 0
    assert len([path for path in asked(proxy, begin) if "safetensors" in path and "index" not in path]) == 6
    assert (tmp_path / "kept.safetensors").read_bytes() == (tmp_path / "anew.safetensors").read_bytes()


@pytest.mark.slow
def test_an_object_that_was_replaced_is_read_anew(proxy: Proxy, run: StorePath, tmp_path: Path, cli: Cli):
    """Its header is that of what is there now."""
    assert cli("inspect", run, *LAW).code == 0
    save_file({"w0": torch.zeros(7, 7)}, tmp_path / "other")
    key = f"{run.key}/step-200/model-00001-of-00002.safetensors"
    clients.obstore().put(clients.client_of(run), key, (tmp_path / "other").read_bytes())
    forget()
    done = cli("inspect", run / "step-200")
    assert done.code == 0, done.err
    assert "90,049 parameters" in done.out


def safetensors_file(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a file of safetensors."""
    save_file(tensors, path)


def torch_file(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a file of torch.save."""
    torch.save(tensors, path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "names", "suffix", "most"),
    [
        (safetensors_file, 3, "model.safetensors", 1),
        (safetensors_file, 3000, "model.safetensors", 2),  # a header of more than is read at first
        (torch_file, 3, "pytorch_model.bin", 3),
    ],
    ids=["safetensors", "long-header", "bin"],
)
def test_a_shard_takes_few_requests(
    proxy: Proxy, folder: StorePath, tmp_path: Path, cli: Cli, write: Any, names: int, suffix: str, most: int
):
    """Three at most the first time, and none the second: then one lists them all. All else is its list of shards."""
    stem, _, end = suffix.partition(".")
    shards = [f"{stem}-0000{number}-of-00003.{end}" for number in range(1, 4)]
    for step in (100, 200):
        weights = {}
        for shard in shards:
            tensors = {f"{shard}.{'layer.' * 20}{n}": torch.full((1 + n % 7, 7), float(step)) for n in range(names)}
            tensors[f"{shard}.large"] = torch.full((512, 512), float(step))
            write(tmp_path / "file", tensors)
            put_folder(folder / f"step-{step}", {shard: (tmp_path / "file").read_bytes()})
            weights |= dict.fromkeys(tensors, shard)
        put_folder(folder / f"step-{step}", {f"{suffix}.index.json": json.dumps({"weight_map": weights}).encode()})
    forget()
    begin = len(proxy.requests)
    first = cli("inspect", folder, *LAW)
    assert first.code == 0, first
    asked_of = Counter(request.path for request in proxy.requests[begin:])
    of_shards = {path: count for path, count in asked_of.items() if f"-of-00003.{end}" in path and "index" not in path}
    assert len(of_shards) == 6
    assert max(of_shards.values()) <= most
    assert asked_of.total() <= sum(of_shards.values()) + 2 + 1
    forget()
    begin = len(proxy.requests)
    assert cli("inspect", folder, *LAW).out == first.out
    assert len(proxy.requests) - begin == 1, proxy.requests[begin:]
