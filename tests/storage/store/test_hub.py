"""Runs on the Hugging Face Hub: here a small one on loopback, asked by huggingface_hub's own file system."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ema_cli.errors import UsageError
from ema_cli.storage.location import location
from ema_cli.storage.names import as_path
from ema_cli.storage.store import hub as storage_hub
from ema_cli.storage.store import listing, object_file
from tests.conftest import Cli, write_hf_run
from tests.storage.hub import Hub, running_hub

pytest.importorskip("huggingface_hub")

LAW = ("--half-life", "500ba")


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """Return a Hub to which hf:// leads in this process."""
    monkeypatch.setattr(object_file, "_kept", type(object_file._kept)())
    monkeypatch.setattr(storage_hub, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    listing.forget_listings()
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        yield hub
    listing.forget_listings()


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run."""
    folder = tmp_path_factory.mktemp("disk")
    write_hf_run(folder, [500, 1000, 1500])
    return folder


@pytest.fixture
def files(disk: Path) -> dict[str, bytes]:
    """Return the files of a run, below `run`."""
    paths = (path for path in disk.rglob("*") if path.is_file())
    return {f"run/{path.relative_to(disk).as_posix()}": path.read_bytes() for path in paths}


@pytest.mark.parametrize(
    "address", ["hf://org/model/run", "hf://org/model@main/run/", "hf://datasets/org/model@v1/run"]
)
def test_a_run_on_the_hub_is_averaged(
    hub: Hub, files: dict[str, bytes], disk: Path, tmp_path: Path, cli: Cli, address: str
):
    """The same bytes as from a disk; every file is asked for by the commit, and not by the revision."""
    commit = hub.commit("org/model", files)
    hub.revisions["org/model"]["v1"] = commit
    assert cli("average", disk, *LAW, "-o", tmp_path / "here.safetensors").code == 0
    done = cli("average", address, *LAW, "-o", tmp_path / "there.safetensors")
    assert done.code == 0, done.err
    assert (tmp_path / "there.safetensors").read_bytes() == (tmp_path / "here.safetensors").read_bytes()
    read = [path for _, path, _ in hub.requests if "/resolve/" in path]
    assert read
    assert all(f"/resolve/{commit}/" in path for path in read)
    assert cli("verify", tmp_path / "there.safetensors", "--against", address).code == 0


def test_several_checkpoints_are_asked_for_at_once(hub: Hub, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch):
    """From the first to the last byte of their tensors: a request takes a while, whatever it brings."""
    monkeypatch.setattr("ema_cli.folding.buffers._ALONE_BYTES", 1 << 17)
    monkeypatch.setattr(object_file, "_PIECE_BYTES", 1 << 17)
    (tmp_path / "run").mkdir()
    for step in (100, 200, 300, 400):
        save_file({"w": torch.full((400_000,), float(step))}, tmp_path / "run" / f"step-{step}.safetensors")
    hub.commit("org/model", {f"run/{path.name}": path.read_bytes() for path in (tmp_path / "run").iterdir()})
    lock, met, running = threading.Lock(), list[int](), 0

    def take_a_while(path: str) -> None:
        nonlocal running
        with lock:
            running += "/resolve/" in path
            met.append(running)
        time.sleep(0.01)
        with lock:
            running -= "/resolve/" in path

    hub.fault = take_a_while
    assert cli("average", "hf://org/model/run", "--profile", "uniform", "-o", tmp_path / "out.safetensors").code == 0
    assert torch.equal(load_file(tmp_path / "out.safetensors")["w"], torch.full((400_000,), 250.0))
    assert sum(number > 1 for number in met) > len(met) / 2


def test_a_revision_that_moves_does_not_mix(hub: Hub, files: dict[str, bytes], disk: Path, tmp_path: Path, cli: Cli):
    """What is pushed while it is averaged is not read: the commit was pinned when the run was opened."""
    hub.commit("org/model", files)
    other = {name: bytes(len(data)) for name, data in files.items()}

    def push(path: str) -> None:
        if "/resolve/" in path:
            hub.commit("org/model", other)

    hub.fault = push
    assert cli("average", "hf://org/model@main/run", *LAW, "-o", tmp_path / "a.safetensors").code == 0
    assert cli("average", disk, *LAW, "-o", tmp_path / "b.safetensors").code == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert cli("inspect", "hf://org/model@main/run", *LAW).code != 0  # the next command looks anew


def test_a_bucket_is_read_and_one_that_changes_meanwhile_is_an_error(
    hub: Hub, files: dict[str, bytes], tmp_path: Path, cli: Cli
):
    """It has no commits: what was read is compared with what is there in the end."""
    hub.buckets["org/ckpts"] = dict(files)
    target = tmp_path / "a.safetensors"
    done = cli("average", "hf://buckets/org/ckpts/run", *LAW, "-o", target)
    assert done.code == 0, done.err
    changed = "run/checkpoint-1000/model.safetensors"

    def change(path: str) -> None:
        if "/resolve/" in path:
            hub.buckets["org/ckpts"][changed] = bytes(len(files[changed]))

    object_file._kept._ranges.clear()
    hub.fault = change
    done = cli("average", "hf://buckets/org/ckpts/run", *LAW, "-o", target, "--force")
    assert done.code == 3
    assert done.err.startswith(f"error: hf://buckets/org/ckpts/{changed}: ")


def test_any_range_is_read(hub: Hub):
    """Exactly the bytes that are asked for, each once; what comes short is asked for again."""
    data = bytes(range(256)) * 8192
    hub.commit("org/model", {"x.bin": data})
    file = location(as_path("hf://org/model/x.bin")).open()
    assert file.size == len(data)
    for offset, size in [(0, 8), (1 << 20, 5), (len(data) - 22, 22), (5, 0), (300_000, 700_000)]:
        assert file.read(offset, size) == data[offset : offset + size]
    faults = iter(["cut", None])
    hub.fault = lambda path: next(faults, None) if "/resolve/" in path else None
    out = bytearray(1000)
    file.read_into(900_000, memoryview(out))
    assert out == data[900_000:901_000]


@pytest.mark.parametrize(
    ("address", "fact"),
    [
        ("hf://org/nothing/run", "does not exist"),
        ("hf://org/model@v9/run", "does not exist"),
        ("hf://org/model/runs", "does not exist"),
        ("hf://org/model/run/checkpoint-500/nothing.safetensors", "does not exist"),
    ],
)
def test_what_is_not_there_is_an_error(hub: Hub, files: dict[str, bytes], cli: Cli, address: str, fact: str):
    """Repositories, revisions, folders and files."""
    hub.commit("org/model", files)
    done = cli("inspect", address, *LAW)
    assert done.code == 2, done
    assert done.err.startswith(f"error: {address}: {fact}")


def test_what_the_hub_refuses_is_an_error(hub: Hub, files: dict[str, bytes], cli: Cli):
    """With what the Hub says, and a way on."""
    hub.commit("org/model", files)
    hub.fault = lambda path: "403" if "/resolve/" in path else None
    done = cli("inspect", "hf://org/model/run", *LAW)
    assert done.code == 3, done
    assert ": cannot be read at byte 0: the Hub answers 403" in done.err
    assert "private or gated: HF_TOKEN, or `hf auth login`; or public: --anonymous" in done.err
    done = cli("inspect", "hf://org/model/run", *LAW, "--anonymous")
    assert "hint:  it is not public: leave out --anonymous; HF_TOKEN, or `hf auth login`" in done.err


def test_a_token_is_sent_and_not_shown(hub: Hub, files: dict[str, bytes], cli: Cli, monkeypatch: pytest.MonkeyPatch):
    """Unless what is public is read anonymously."""
    monkeypatch.setenv("HF_TOKEN", "hf_a_secret_token")
    hub.commit("org/model", files)
    storage_hub._file_system.cache_clear()
    done = cli("inspect", "hf://org/model/run", *LAW)
    assert done.code == 0, done.err
    assert tokens(hub) == {"Bearer hf_a_secret_token"}
    assert "secret" not in done.out + done.err
    hub.requests.clear()
    assert cli("inspect", "hf://org/model/run", *LAW, "--anonymous").code == 0
    assert tokens(hub) == {""}


def tokens(hub: Hub) -> set[str]:
    """Return what came with the requests for a repository; huggingface_hub's first one of a process asks for none."""
    return {token for _, path, token in hub.requests if "org/model" in path}


def test_the_hub_is_not_written_to(cli: Cli, disk: Path):
    """The hint says how a release gets there."""
    done = cli("average", disk, *LAW, "-o", "hf://org/model/release")
    assert done.code == 2
    assert "is on the Hugging Face Hub, from which is read only" in done.err
    assert "hf upload" in done.err


@pytest.mark.parametrize("word", ["hf://org", "hf://datasets/org", "hf://"])
def test_an_address_names_a_repository(word: str):
    """An owner alone is none."""
    with pytest.raises(UsageError, match=r"names no (repository|bucket)"):
        as_path(word)


def test_without_the_extra_the_error_says_how_to_install_it(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    """Whatever is done with an address."""

    def missing(name: str) -> None:
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(storage_hub, "import_module", missing)
    storage_hub._file_system.cache_clear()
    done = cli("inspect", "hf://org/model/run")
    assert done.code == 2
    assert done.err.startswith("error: hf://org/model/run: an address of the Hub needs the package huggingface_hub")
    assert done.err.endswith("hint:  install it: pip install 'ema-cli[hub]'\n")
