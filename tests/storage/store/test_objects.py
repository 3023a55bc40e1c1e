"""Objects in a store are read as files are, and never two versions of one. Here the store is in memory."""

from __future__ import annotations

import threading
from importlib import import_module
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ema_cli.errors import CheckpointError, Missing, Unreadable, UsageError
from ema_cli.storage.info import Kind
from ema_cli.storage.location import location, walk
from ema_cli.storage.named_paths import check_exists
from ema_cli.storage.names import StorePath, as_path
from ema_cli.storage.store import clients
from tests.conftest import Cli
from tests.storage.stores import obstore, put, put_folder

_numbers = count()


@pytest.fixture
def bucket() -> StorePath:
    """Return the address of an empty store in memory."""
    address = as_path(f"memory://objects-{next(_numbers)}")
    assert isinstance(address, StorePath)
    return address


def test_objects_make_folders(bucket: StorePath):
    """What lies around objects is a folder, at any depth; what nobody put there is nothing."""
    for name in ("run/step-1/model.pt", "run/step-1/deep/x", "run/step-2.pt", "running.pt"):
        put(bucket / name, b"1234")
    kinds = {name: location(bucket / name).info().kind for name in ("run", "run/step-1/deep", "run/step-2.pt", "ru")}
    assert kinds == {"run": Kind.FOLDER, "run/step-1/deep": Kind.FOLDER, "run/step-2.pt": Kind.FILE, "ru": Kind.MISSING}
    assert sorted(location(bucket / "run").names()) == ["step-1", "step-2.pt"]
    assert {entry.name: entry.kind for entry in location(bucket / "run" / "step-1").entries()} == {
        "model.pt": Kind.FILE, "deep": Kind.FOLDER,
    }  # fmt: skip
    assert sorted(str(entry.path) for entry in walk(bucket / "run") if entry.is_file) == [
        f"{bucket}/run/step-1/deep/x", f"{bucket}/run/step-1/model.pt", f"{bucket}/run/step-2.pt",
    ]  # fmt: skip
    assert sorted(location(bucket).names()) == ["run", "running.pt"]


def test_an_object_that_marks_a_folder_is_none(bucket: StorePath):
    """Consoles put an empty object in the place of a folder."""
    put(bucket / "run", b"")
    put(bucket / "run" / "x.pt", b"1234")
    assert location(bucket / "run").info().is_folder
    assert location(bucket / "run").names() == ["x.pt"]


@pytest.mark.parametrize("name", ["run", "run/x.pt"])
def test_what_is_not_there_is_missing(bucket: StorePath, name: str):
    """Looked at, listed and opened."""
    place = location(bucket / name)
    assert not place.info().exists
    for call in (place.names, place.open):
        with pytest.raises(Missing):
            call()


def test_a_store_is_asked_once(bucket: StorePath, monkeypatch: pytest.MonkeyPatch):
    """One listing answers for all that lies below it, what is missing too."""
    put_folder(bucket / "run", {f"step-{number}/{name}": b"1234" for number in range(20) for name in "abc"})
    asked: list[str] = []
    for name in ("list", "list_with_delimiter", "head", "get"):
        real = getattr(obstore, name)

        def ask(*arguments: Any, name: str = name, real: Any = real, **options: Any) -> Any:
            asked.append(name)
            return real(*arguments, **options)

        monkeypatch.setattr(obstore, name, ask)
    assert location(bucket / "run").info().is_folder
    for number in range(20):
        folder = bucket / "run" / f"step-{number}"
        assert sorted(location(folder).names()) == ["a", "b", "c"]
        assert not location(folder / "config.json").info().exists
        assert location(folder / "a").open().size == 4
    assert asked == ["list"]


def test_whoever_names_a_place_again_sees_what_is_there_now(bucket: StorePath):
    """In a process that lives long, as a notebook's."""
    put(bucket / "run" / "a.pt", b"1234")
    check_exists(bucket / "run")
    assert location(bucket / "run").names() == ["a.pt"]
    put(bucket / "run" / "b.pt", b"1234")
    check_exists(bucket / "run")
    assert sorted(location(bucket / "run").names()) == ["a.pt", "b.pt"]


def test_any_range_is_read(bucket: StorePath):
    """At the beginning, in the middle, at the end; none past it."""
    data = bytes(range(256)) * 8192  # 2 MiB: more than is kept of a beginning
    put(bucket / "x.bin", data)
    file = location(bucket / "x.bin").open()
    for offset, size in [(0, 8), (8, 300_000), (1 << 20, 5), (len(data) - 22, 22), (len(data) - 600_000, 10), (5, 0)]:
        assert file.read(offset, size) == data[offset : offset + size]
        out = bytearray(size)
        file.read_into(offset, memoryview(out))
        assert out == data[offset : offset + size]
    with pytest.raises(CheckpointError, match=f"ends at byte {len(data)}"):
        file.read(len(data) - 2, 3)


def test_a_header_takes_one_request(bucket: StorePath, monkeypatch: pytest.MonkeyPatch):
    """First bytes, a header's length and the header, read one after another; the same of what a file ends with."""
    data = bytes(range(256)) * 8192
    put(bucket / "x.bin", data)
    file, ranges, real = location(bucket / "x.bin").open(), list[Any](), obstore.get

    def get(*arguments: Any, options: Any) -> Any:
        ranges.append(options["range"])
        return real(*arguments, options=options)

    monkeypatch.setattr(obstore, "get", get)
    for offset, size in [(0, 4), (0, 8), (8, 5000), (2000, 100)]:
        assert location(bucket / "x.bin").open().read(offset, size) == data[offset : offset + size]
    assert ranges == [(0, 1 << 18)]
    for offset, size in [(len(data) - 22, 22), (len(data) - 42, 20), (len(data) - 9000, 8000)]:
        assert file.read(offset, size) == data[offset : offset + size]
    assert ranges[1:] == [(len(data) - (1 << 18), len(data))]


@pytest.mark.parametrize("content", [b"abcd" * 100_000, b"abc"])
def test_an_object_that_was_replaced_is_an_error(bucket: StorePath, content: bytes):
    """With as many bytes or fewer: what is read is of the object that was opened."""
    put(bucket / "x.bin", b"1234" * 100_000)
    file = location(bucket / "x.bin").open()
    assert file.read(0, 4) == b"1234"
    put(bucket / "x.bin", content)
    with pytest.raises(CheckpointError) as caught:
        file.read_into(300_000, memoryview(bytearray(8)))
    assert str(caught.value) == f"{bucket}/x.bin: changed while it was used"


def test_an_object_that_is_gone_is_an_error(bucket: StorePath):
    """It names the object."""
    put(bucket / "x.bin", b"1234" * 100_000)
    file = location(bucket / "x.bin").open()
    obstore.delete(put(bucket / "other", b""), "x.bin")
    with pytest.raises(Missing) as caught:
        file.read(0, 8)
    assert str(caught.value) == f"{bucket}/x.bin: disappeared while it was used"


def test_a_store_that_ignores_conditions_mixes_nothing(bucket: StorePath, monkeypatch: pytest.MonkeyPatch):
    """Its answers say the ETag of what they send, and that is compared."""
    put(bucket / "x.bin", b"1234" * 100_000)
    file, real = location(bucket / "x.bin").open(), obstore.get
    put(bucket / "x.bin", b"abcd" * 100_000)

    def get(client: Any, key: str, *, options: Any) -> Any:
        return real(client, key, options={"range": options["range"]})

    monkeypatch.setattr(obstore, "get", get)
    with pytest.raises(CheckpointError, match="changed while it was used"):
        file.read(0, 8)


def test_without_the_extra_the_error_says_how_to_install_it(cli, monkeypatch: pytest.MonkeyPatch):
    """Whatever is done with an address."""

    def missing(name: str) -> None:
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(clients, "import_module", missing)
    clients.obstore.cache_clear()
    try:
        for words in (["inspect"], ["average", "--profile", "uniform"], ["verify"]):
            done = cli(words[0], "s3://bucket/run", *words[1:])
            assert done.code == 2
            assert done.err.startswith("error: s3://bucket/run: an address needs the package obstore")
            assert done.err.endswith("hint:  install it: pip install 'ema-cli[cloud]'\n")
    finally:
        clients.obstore.cache_clear()


def test_a_web_server_is_not_listed():
    """Its files are named one by one."""
    with pytest.raises(Unreadable, match="a web server does not list"):
        location("https://127.0.0.1:9/run").names()


def test_an_average_of_a_run_in_a_store_is_that_of_the_run_on_a_disk(bucket: StorePath, tmp_path: Path, cli):
    """The same bytes; the other commands take addresses too."""
    run = Path(__file__).parents[2] / "data" / "composer" / "every-batch"
    put_folder(bucket / "run", {path.name: path.read_bytes() for path in run.iterdir()})
    law = ("--half-life", "8ba", "--update-interval", "4ba")
    here, there = tmp_path / "here.safetensors", tmp_path / "there.safetensors"
    assert cli("average", run, *law, "-o", here).code == 0
    assert cli("average", f"{bucket}/run/", *law, "-o", there).code == 0
    assert here.read_bytes() == there.read_bytes()
    assert cli("inspect", f"{bucket}/run/", *law).out.startswith(f"{bucket}/run: 25 checkpoints of Composer")
    assert cli("verify", here, "--against", f"{bucket}/run").code == 0
    one = f"{bucket}/run/ep0-ba4-rank0.pt"
    assert cli("compare", one, run / "ep0-ba4-rank0.pt").code == 0
    two = cli("average", one, f"{bucket}/run/ep0-ba8-rank0.pt", "--profile", "uniform", "-o", tmp_path / "two.pt")
    assert two.code == 0, two.err


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_SECRET_ACCESS_KEY"])
@pytest.mark.parametrize("value", ["se cret", "secret\n", "h\u00f6st"])
def test_settings_that_cannot_be_are_named(name: str, value: str, monkeypatch: pytest.MonkeyPatch):
    """The package would break off. Their values, which may be secrets, are not shown."""
    monkeypatch.setattr(clients, "_clients", {})
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError) as caught:
        clients.client_of(StorePath("s3://bucket/run"))
    assert caught.value.fact.startswith(f"{name} holds ")
    assert value not in str(caught.value)


def test_blocks_of_several_checkpoints_are_read_at_once(
    bucket: StorePath, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    """From the first on: nobody waits to learn that a store makes him wait. Here each of six waits for five others."""
    for step in (100, 200, 300):
        save_file({"w": torch.full((600, 600), float(step))}, tmp_path / "file")
        put(bucket / f"step-{step}.safetensors", (tmp_path / "file").read_bytes())
    monkeypatch.setattr("ema_cli.folding.buffers._REQUEST_BYTES", 1 << 19)
    together, calls, real = threading.Barrier(6), count(), obstore.get

    def get(client: Any, key: str, *, options: Any) -> Any:
        if options["range"][1] - options["range"][0] > 300_000 and next(calls) < 6:
            together.wait(20)
        return real(client, key, options=options)

    monkeypatch.setattr(obstore, "get", get)
    done = cli("average", bucket, "--profile", "uniform", "-o", tmp_path / "out.safetensors", "--threads", "1")
    assert done.code == 0, done.err
    assert next(calls) > 6


def test_a_profile_of_aws_that_cannot_be_used_is_an_error(monkeypatch: pytest.MonkeyPatch):
    """Whatever boto3 raises. Here something stands for boto3."""

    def session() -> None:
        raise LookupError("The config profile (nobody) could not be found")

    stand_in = SimpleNamespace(Session=session)
    monkeypatch.setattr(clients, "_clients", {})
    monkeypatch.setattr(clients, "import_module", lambda name: stand_in if "boto3" in name else import_module(name))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(UsageError) as caught:
        clients.client_of(StorePath("s3://bucket/run"))
    assert "AWS_PROFILE cannot be used: The config profile (nobody) could not be found" in str(caught.value)
