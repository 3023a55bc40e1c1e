"""Averages are written into stores: whole, or not as a release, whatever happens meanwhile."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta, tzinfo
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from ema_cli.storage.lease import this_process
from ema_cli.storage.location import walk
from ema_cli.storage.names import StorePath
from ema_cli.storage.staging.in_store import StoreStaging
from ema_cli.storage.store import claim, clients, listing, store_stream, unfinished_uploads
from ema_cli.system.memory import peak_bytes
from tests.conftest import Cli, write_hf_run
from tests.storage.conftest import SECRET
from tests.storage.proxy import Proxy, Request
from tests.storage.stores import obstore, put, put_folder

_numbers = count()
LAW = ("--half-life", "500ba")
OTHER = ("--half-life", "200ba")


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run in `ckpts`."""
    folder = tmp_path_factory.mktemp("disk")
    write_hf_run(folder / "ckpts", [500, 1000, 1500])
    return folder


@pytest.fixture
def models() -> StorePath:
    """Return an address in an empty store in memory."""
    return StorePath(f"memory://models-{next(_numbers)}/models")


def present(folder: StorePath) -> dict[str, bytes]:
    """Return the objects below an address."""
    listing.forget_listings()
    client = clients.client_of(folder)
    keys = [meta["path"] for page in obstore.list(client, folder.key) for meta in page]
    return {key.removeprefix(f"{folder.key}/"): bytes(obstore.get(client, key).bytes()) for key in keys}


def local(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder."""
    return {
        entry.path.relative_to(folder).as_posix(): entry.path.read_bytes() for entry in walk(folder) if entry.is_file
    }


@pytest.mark.parametrize("name", ["release", "release.safetensors", "release.pt"])
def test_what_is_written_to_a_store_is_what_is_written_to_a_disk(
    models: StorePath, disk: Path, tmp_path: Path, cli: Cli, name: str
):
    """A folder or a file with all that belongs to it, byte for byte, and nothing else."""
    done = cli("average", disk / "ckpts", *LAW, "-o", f"{models}/{name}", "-q")
    assert (done.code, done.out) == (0, f"{models}/{name}\n"), done.err
    (tmp_path / "models").mkdir()
    assert cli("average", disk / "ckpts", *LAW, "-o", tmp_path / "models" / name, "-q").code == 0
    assert present(models) == local(tmp_path / "models")
    assert cli("verify", f"{models}/{name}", "--against", disk / "ckpts").code == 0


def test_each_object_is_looked_at_once_before_the_manifest_is_put(
    models: StorePath, disk: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    """And whether the store heeds conditions is tried with the first claim in a bucket, not with the second."""
    done = list[tuple[str, str]]()

    def noted(name: str) -> Callable[..., Any]:
        real = getattr(obstore, name)

        def call(client: Any, key: str, *more: Any, **words: Any) -> Any:
            done.append((name, key))
            return real(client, key, *more, **words)

        return call

    for name in ("head", "put"):
        monkeypatch.setattr(obstore, name, noted(name))
    for again in (False, True):
        done.clear()
        assert cli("average", disk / "ckpts", *LAW, "-o", models / f"release-{again}", "-q").code == 0
        put_keys = [key for name, key in done if name == "put" and not key.endswith("-claim")]
        [*others, last] = put_keys
        assert last == f"models/release-{again}/ema-manifest.json"
        assert sorted(key for name, key in done if name == "head" and key in others) == sorted(others)
        claims = [key for name, key in done if name == "put" and key.endswith("-claim")]
        assert len(claims) == (2 if again else 3)  # made, tried to be made once more, and told what is put


def test_several_averages_are_written_to_a_store(models: StorePath, disk: Path, tmp_path: Path, cli: Cli):
    """In one folder, as on a disk."""
    both = (*LAW, *OTHER)
    assert cli("average", disk / "ckpts", *both, "-o", models / "several").code == 0
    assert cli("average", disk / "ckpts", *both, "-o", tmp_path / "several").code == 0
    assert present(models / "several") == local(tmp_path / "several")
    assert cli("verify", f"{models}/several").code == 0


def test_what_is_there_is_replaced_only_by_force(models: StorePath, disk: Path, cli: Cli):
    """And only where all of it is ema-cli's; what the new release has not is removed."""
    target = models / "release"
    assert cli("average", disk / "ckpts", *LAW, "-o", target, "--max-shard-size", "40B").code == 0
    before = present(models)
    refused = cli("average", disk / "ckpts", *OTHER, "-o", target)
    assert (refused.code, present(models)) == (5, before)
    assert cli("average", disk / "ckpts", *OTHER, "-o", target, "--force").code == 0
    after = present(models)
    assert any("-of-" in name for name in before)
    assert not any("-of-" in name for name in after)
    assert cli("verify", target, "--against", disk / "ckpts").code == 0
    put(target / "notes.txt", b"mine")
    refused = cli("average", disk / "ckpts", *LAW, "-o", target, "--force")
    assert refused.code == 5
    assert "notes.txt" in refused.err
    assert present(models) == {**after, "release/notes.txt": b"mine"}


def test_a_claim_keeps_a_second_run_out(models: StorePath, disk: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch):
    """Until it is old: then its run has died, and it is taken over."""
    put(claim.claim_path(models / "release"), b"another run's")
    before = present(models)
    refused = cli("average", disk / "ckpts", *LAW, "-o", models / "release")
    assert refused.code == 5
    assert f"{models}/release: the claim on it is held by another run" in refused.err
    assert present(models) == before
    monkeypatch.setattr(claim, "_LEASE", timedelta(0))
    assert cli("average", disk / "ckpts", *LAW, "-o", models / "release").code == 0
    assert cli("verify", models / "release").code == 0
    assert not any("claim" in name for name in present(models))


def test_a_claim_is_as_old_as_the_store_says(models: StorePath, disk: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch):
    """Not as the clock of this machine, which is an hour ahead: the refusal says how long to wait if that run died."""

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Ahead:
            return super().now(tz) + timedelta(hours=1)

    monkeypatch.setattr(claim, "datetime", Ahead)
    put(claim.claim_path(models / "release"), json.dumps({"machine": "another", "process": 1 << 22}).encode())
    before = present(models)
    refused = cli("average", disk / "ckpts", *LAW, "-o", models / "release")
    assert refused.code == 5
    seconds = re.search(r"alive (\d+) s ago.*if it died, this works in (\d+) s", refused.err, re.DOTALL)
    assert seconds is not None, refused.err
    assert int(seconds[1]) + int(seconds[2]) == 61
    assert present(models) == before


def test_a_claim_of_a_process_of_this_machine_that_is_gone(models: StorePath, disk: Path, cli: Cli):
    """It is taken over at once; that of one that lives is not."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    here = this_process()
    put(claim.claim_path(models / "release"), json.dumps({**here, "process": os.getppid()}).encode())
    assert cli("average", disk / "ckpts", *LAW, "-o", models / "release").code == 5
    put(claim.claim_path(models / "release"), json.dumps({**here, "process": process.pid}).encode())
    assert cli("average", disk / "ckpts", *LAW, "-o", models / "release").code == 0
    assert not any("claim" in name for name in present(models))


def test_a_claim_whose_renewal_had_no_answer_is_renewed_again(models: StorePath, monkeypatch: pytest.MonkeyPatch):
    """What the store has is ours, as another version than we know; what is another run's stays its own."""
    monkeypatch.setattr(claim, "_RENEWED_SECONDS", 3600)
    with claim.Claim(models / "release") as own:
        own._put(claim._version(own._held))  # the answer is lost
        for _ in range(2):
            before = own._held["e_tag"]
            own._renew_once()
            assert own._held["e_tag"] != before
        put(own.path, b"another run's")
        own._renew_once()
        assert present(models) == {own.path.name: b"another run's"}


@pytest.mark.parametrize("name", ["release", "one.safetensors"])
def test_what_has_no_manifest_yet_is_no_whole_average(models: StorePath, disk: Path, cli: Cli, name: str):
    """Verify says so, whatever else is there, and names the claim on it; exit 6."""
    target = models / name
    assert cli("average", disk / "ckpts", *LAW, "-o", target).code == 0
    own, whole = claim.claim_path(target), present(models)
    manifest = next(path for path in whole if "manifest" in path)
    put(own, b"another run's")
    assert cli("verify", target).code == 0  # a run that replaces it has not withdrawn it yet
    for gone in (manifest, *(path for path in whole if path != manifest)):
        obstore.delete(clients.client_of(target), (models / gone).key)
        done = cli("verify", target)
        assert (done.code, f"; {own} is the claim of a run that writes there, or died" in done.err) == (6, True)
    assert "is not there yet" in done.err


def test_of_several_the_claim_on_their_folder_is_named(models: StorePath, disk: Path, cli: Cli):
    """One claim is on all of them."""
    target = models / "several"
    assert cli("average", disk / "ckpts", *LAW, *OTHER, "-o", target).code == 0
    put(claim.claim_path(target), b"another run's")
    obstore.delete(clients.client_of(target), (target / "ema-200ba" / "ema-manifest.json").key)
    done = cli("verify", target)
    assert done.code == 6
    assert (
        f"ema-200ba/ema-manifest.json: is missing: this is no whole average; {claim.claim_path(target)} is" in done.err
    )


@pytest.mark.parametrize("pattern", ["several", "several/ema-{half_life}.safetensors"])
def test_of_several_none_verifies_before_all_are_there(
    models: StorePath, disk: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, pattern: str
):
    """Their manifests are withdrawn together, and their folder is a release only with the last of them."""
    assert cli("average", disk / "ckpts", *LAW, *OTHER, "-o", models / pattern).code == 0
    codes = []
    upload = StoreStaging._upload

    def upload_one(staging: StoreStaging, files: Mapping[StorePath, Path], *, new: bool = False) -> None:
        for path, file in files.items():
            codes.append(cli("verify", models / "several").code)
            upload(staging, {path: file}, new=new)

    monkeypatch.setattr(StoreStaging, "_upload", upload_one)
    law = ("--half-life", "400ba", "--half-life", "200ba", "--bias-correction")
    assert cli("average", disk / "ckpts", *law, "-o", models / pattern, "--force").code == 0
    assert set(codes) == {6}
    assert cli("verify", models / "several").code == 0


def test_what_another_run_put_is_not_removed(models: StorePath, disk: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch):
    """Where the claim was lost to it, and where it put its manifest first."""
    target = models / "release"
    check = claim.Claim.check

    def lose(own: claim.Claim) -> None:
        put(claim.claim_path(target), b"another run's")
        put(target / "model.safetensors", b"another run's, too")
        check(own)

    with monkeypatch.context() as patch:
        patch.setattr(claim.Claim, "check", lose)
        done = cli("average", disk / "ckpts", *LAW, "-o", target)
    assert done.code == 5
    assert "was lost to another run" in done.err
    assert present(models) == {
        ".release.ema-cli-claim": b"another run's", "release/model.safetensors": b"another run's, too"
    }  # fmt: skip
    obstore.delete(clients.client_of(target), [claim.claim_path(target).key, (target / "model.safetensors").key])
    with monkeypatch.context() as patch:
        patch.setattr(StoreStaging, "_check", lambda staging: put(target / "ema-manifest.json", b"another's"))
        done = cli("average", disk / "ckpts", *LAW, "-o", target)
    assert done.code == 5
    assert "ema-manifest.json: was put there by another run meanwhile" in done.err
    assert present(models) == {"release/ema-manifest.json": b"another's"}


def test_a_bucket_itself_is_no_output(disk: Path, cli: Cli):
    """What is beside it, as a claim, would be in another bucket."""
    done = cli("average", disk / "ckpts", *LAW, "-o", "memory://models/", "--force")
    assert done.code == 2
    assert "'memory://models' is no name for something new" in done.err
    assert "-o memory://models/release" in done.err


def test_a_web_server_is_not_written_to(disk: Path, cli: Cli):
    """It is said before anything is read."""
    done = cli("average", disk / "ckpts", *LAW, "-o", "https://127.0.0.1:9/release")
    assert done.code == 2
    assert done.err.startswith("error: https://127.0.0.1:9/release: is on a web server")


@pytest.mark.slow
@pytest.mark.parametrize("lasts", [False, True], ids=["once", "always"])
def test_an_upload_that_fails_leaves_nothing(
    proxy: Proxy, folder: StorePath, disk: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, *, lasts: bool
):
    """A store that is busy is asked again; where it stays so, it is an error, and no object remains."""
    monkeypatch.setattr(clients, "_RETRY", {"max_retries": 2, "retry_timeout": timedelta(seconds=3)})
    seen: list[Request] = []

    def busy(request: Request) -> str | None:
        if request.method != "PUT" or "model.safetensors" not in request.path:
            return None
        seen.append(request)
        return "503" if lasts or len(seen) == 1 else None

    proxy.fault = busy
    done = cli("average", disk / "ckpts", *LAW, "-o", folder / "release")
    proxy.fault = lambda request: None
    if lasts:
        assert done.code == 5
        assert "release/model.safetensors: cannot be written: 503" in done.err
        assert present(folder) == {}
    else:
        assert done.code == 0, done.err
        assert cli("verify", folder / "release").code == 0


@pytest.mark.slow
def test_large_files_go_up_in_parts(proxy: Proxy, folder: StorePath, large: Path, cli: Cli):
    """Equal ones, but for the last. Both averages are sent at once, and completed in the end."""
    run = large / "safetensors"
    laws = ("--half-life", "50ba", "--half-life", "100ba")
    done = cli("average", run, *laws, "-o", folder / "several")
    assert done.code == 0, done.err
    assert sum("partNumber" in request.path for request in proxy.requests) == 2 * 3
    ends = [r.number for r in proxy.requests if r.method == "POST" and "uploadId" in r.path]
    assert min(ends) > max(request.number for request in proxy.requests if "partNumber=2" in request.path)
    assert cli("verify", folder / "several", "--against", run).code == 0


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with runs of two files of 12 MB, `pt` and `safetensors`; in the first two tensors are tied."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("large")
    for suffix in ("pt", "safetensors"):
        (folder / suffix).mkdir()
    for step in (100, 200):
        generator = torch.Generator().manual_seed(step)
        tensors = {f"w{number}": torch.randn(1000, 500, generator=generator) for number in range(6)}
        save_file(tensors, folder / "safetensors" / f"step-{step}.safetensors")
        torch.save({**tensors, "z": tensors["w0"]}, folder / "pt" / f"step-{step}.pt")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "name"),
    [("safetensors", "r.safetensors"), ("safetensors", "r.pt"), ("pt", "r.pt"), ("pt", "r"), ("pt", "dcp:r")],
)
def test_tensors_are_sent_and_not_made_on_the_disk(
    models: StorePath, large: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, suffix: str, name: str
):
    """Whatever the form, the bytes are those on a disk. There is little room there: for small files alone."""
    run = large / suffix
    prefix, _, bare = name.rpartition(":")
    prefix = f"{prefix}:" if prefix else ""
    assert cli("average", run, "--profile", "uniform", "-o", f"{prefix}{tmp_path / bare}").code == 0
    monkeypatch.setattr("ema_cli.storage.staging.in_store.free_temporary_bytes", lambda: 100_000)
    monkeypatch.setattr("ema_cli.storage.store.store_stream.EARLY_BYTES", 1 << 20)
    done = cli("average", run, "--profile", "uniform", "-o", f"{prefix}{models / bare}", "--threads", "4")
    assert done.code == 0, done.err
    assert present(models) == local(tmp_path)
    assert cli("verify", models / bare, "--against", run).code == 0


def test_too_little_memory_to_send_is_refused_with_a_size_of_shards_that_fits(
    models: StorePath, large: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    """Before anything is read: files that are smaller than a part are held to the end. Here they weigh more."""
    held = store_stream.held_bytes
    monkeypatch.setattr(store_stream, "held_bytes", lambda size: held(size) * 100)
    most = f"{(peak_bytes() + 600_000_000) // 10**6}MB"
    arguments = ("average", large / "safetensors", "--profile", "uniform", "-o", models / "r", "--max-memory", most)
    refused = cli(*arguments, "--max-shard-size", "2MB")
    assert refused.code == 2, refused
    assert "are too few; this average needs" in refused.err
    assert present(models) == {}
    words = refused.err.split()
    size = words[words.index("--max-shard-size") + 1]
    assert size == "12MB"
    assert cli(*arguments, "--max-shard-size", size).code == 0


def kill_at(number: int, proxy: Proxy, disk: Path, target: StorePath, how: signal.Signals) -> int:
    """Replace a release in a process of its own, and end that when it sends its n-th change; return its exit code."""
    changes = count()

    def is_time(request: Request) -> bool:
        return request.method in ("PUT", "DELETE", "POST") and next(changes) == number

    return kill_when(is_time, proxy, [disk / "ckpts", *OTHER, "-o", str(target), "--force"], how)


def kill_when(
    is_time: Callable[[Request], bool], proxy: Proxy, arguments: list[object], how: signal.Signals = signal.SIGKILL
) -> int:
    """Average in a process of its own, and end that when it sends some request; return its exit code."""
    command: list[Any] = [sys.executable, "-m", "ema_cli", "average", *arguments]

    def end(request: Request) -> str | None:
        if is_time(request):
            process.send_signal(how)
            process.wait(30) if how is signal.SIGKILL else None
        return None

    proxy.fault = end
    process: Any = subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    code = process.wait(60)
    proxy.settle()
    proxy.fault = lambda request: None
    return int(code)


def check_after_kill(number: int, proxy: Proxy, folder: StorePath, disk: Path, cli: Cli, tmp_path: Path) -> int:
    """Kill a run that replaces a release; check that the old one, the new one or none is there, and make it again."""
    target = folder / f"release-{number}"
    for name in ("old", "new"):
        (tmp_path / name).mkdir(exist_ok=True)
    for name, law in (("old", LAW), ("new", OTHER)):
        made = cli("average", disk / "ckpts", *law, "-o", tmp_path / name / target.name, "--force")
        assert made.code == 0, made.err
    old, new = local(tmp_path / "old" / target.name), local(tmp_path / "new" / target.name)
    put_folder(target, old)
    code = kill_at(number, proxy, disk, target, signal.SIGKILL)
    left = present(target)
    if cli("verify", target).code == 0:
        assert left.items() <= old.items() or left.items() <= new.items()
    again = cli("average", disk / "ckpts", *OTHER, "-o", target, "--force")
    assert again.code == 0, again.err
    assert cli("verify", target, "--against", disk / "ckpts").code == 0
    return code


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 3])
def test_after_a_kill_there_is_the_old_release_or_the_new_one_or_none(
    proxy: Proxy, folder: StorePath, disk: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, number: int
):
    """Never a mix that verifies; the next run takes over."""
    monkeypatch.setattr(claim, "_LEASE", timedelta(0))
    assert check_after_kill(number, proxy, folder, disk, cli, tmp_path) == -signal.SIGKILL


@pytest.mark.full
def test_after_a_kill_at_any_change_there_is_the_old_release_or_the_new_one_or_none(
    proxy: Proxy, folder: StorePath, disk: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    """At each request that changes anything, until none is left."""
    monkeypatch.setattr(claim, "_LEASE", timedelta(0))
    numbers = count()
    while check_after_kill(next(numbers), proxy, folder, disk, cli, tmp_path) != 0:
        pass
    assert next(numbers) > 8


@pytest.mark.slow
def test_an_interrupt_leaves_nothing(proxy: Proxy, folder: StorePath, disk: Path):
    """Neither objects nor the claim."""
    assert kill_at(2, proxy, disk, folder / "release", signal.SIGTERM) == 143
    assert present(folder) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["release", "one.safetensors"])
def test_an_interrupt_while_a_release_is_replaced_says_so(
    proxy: Proxy, folder: StorePath, disk: Path, cli: Cli, name: str
):
    """It is no release by then, so something was written: a single file is left, without its manifest.

    The same command makes the new one.
    """
    run = ["average", disk / "ckpts", *OTHER, "-o", folder / name, "--force"]
    assert cli("average", disk / "ckpts", *LAW, "-o", folder / name).code == 0
    old, withdrawn = present(folder), list[Request]()

    def interrupt(request: Request) -> str | None:
        if request.method == "PUT" and withdrawn:
            process.send_signal(signal.SIGINT)
        elif "delete" in request.path or request.method == "DELETE":
            withdrawn.append(request)
        return None

    proxy.fault = interrupt
    command = [sys.executable, "-m", "ema_cli", *map(str, run)]
    process = subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    _, said = process.communicate(timeout=60)
    proxy.fault = lambda request: None
    words = "interrupted; what was begun in the store is not whole: run this again"
    assert (process.returncode, said.splitlines()[-1]) == (130, words)
    assert cli("verify", folder / name).code != 0
    assert "." not in name or present(folder) == {name: old[name]}
    again = cli(*run)
    assert again.code == 0, again.err
    assert cli("verify", folder / name, "--against", disk / "ckpts").code == 0


def uploads(folder: StorePath) -> int:
    """Return how many unfinished uploads there are below an address in SeaweedFS."""
    keys = unfinished_uploads._find_keys()
    assert keys is not None
    query = {"uploads": "", "prefix": folder.key}
    return unfinished_uploads._ask("GET", folder.bucket, "", query, keys).count("<UploadId>")


@pytest.mark.slow
def test_what_a_killed_run_left_is_named_and_removed_by_the_next(
    proxy: Proxy, folder: StorePath, large: Path, cli: Cli
):
    """On the same machine at once: unfinished uploads, and objects that no manifest makes a release. Others' stay."""
    target = folder / "release"
    arguments: list[object] = [large / "safetensors", "--profile", "uniform", "-o", str(target)]
    put(folder / "release-2" / "model.safetensors", b"another's")
    for is_time, left in (
        (lambda request: "partNumber=2" in request.path, "1 unfinished upload"),
        (lambda request: request.method == "POST" and "uploadId" in request.path, "3 objects"),
    ):
        assert kill_when(is_time, proxy, arguments) == -signal.SIGKILL
        assert claim.claim_path(target).name in present(folder)
        again = cli("average", *arguments)
        assert again.code == 0, again.err
        assert f"{target}: a run that died there left {left}: removed" in again.out + again.err
        assert uploads(folder) == 0
        assert cli("verify", target, "--against", large / "safetensors").code == 0
        for path in present(target):
            obstore.delete(clients.client_of(target), (target / path).key)
    assert present(folder) == {"release-2/model.safetensors": b"another's"}


@pytest.mark.full
def test_after_a_kill_at_any_change_the_next_run_leaves_only_its_release(
    proxy: Proxy, folder: StorePath, disk: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    """Where nothing was before: what is not whole does not verify, and nothing of the run that died stays."""
    monkeypatch.setattr(claim, "_LEASE", timedelta(0))
    target = folder / "release"
    arguments: list[object] = [disk / "ckpts", *LAW, "--max-shard-size", "40B", "-o", str(target)]
    assert cli("average", *arguments[:-1], tmp_path / "release").code == 0
    whole, kills = local(tmp_path / "release"), 0
    while True:
        seen = count()

        def is_time(request: Request, seen: Any = seen, kills: int = kills) -> bool:
            return request.method in ("PUT", "POST", "DELETE") and next(seen) == kills

        if kill_when(is_time, proxy, arguments) == 0:
            break
        kills += 1
        left, code = present(target), cli("verify", target).code
        assert code == (0 if left == whole else 6)
        again = cli("average", *arguments, *(["--force"] if left == whole else []))
        assert again.code == 0, again
        assert present(folder) == {f"release/{name}": content for name, content in whole.items()}
        assert uploads(folder) == 0
        for name in whole:
            obstore.delete(clients.client_of(target), (target / name).key)
    assert kills > 6


def test_a_claim_of_a_dead_run_is_no_leave_to_remove_what_is_not_its_own(
    models: StorePath, disk: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    """Whatever it says: a whole release, and what lies elsewhere, stays."""
    monkeypatch.setattr(claim, "_LEASE", timedelta(0))
    target, other = models / "release", models / "other" / "notes.txt"
    put(other, b"mine")
    put(target / "a.bin", b"left")
    said = {"puts": [other.key, f"{target.key}/../other/notes.txt", f"{target.key}/a.bin", 7], "last": None}
    put(claim.claim_path(target), json.dumps(said).encode())
    assert cli("average", disk / "ckpts", *LAW, "-o", target).code == 0
    whole = present(target)
    assert "a.bin" not in whole
    assert present(models)["other/notes.txt"] == b"mine"
    manifest = target / "ema-manifest.json"
    said = {"puts": [(target / name).key for name in whole], "last": [manifest.key]}
    put(claim.claim_path(target), json.dumps(said).encode())
    refused = cli("average", disk / "ckpts", *LAW, "-o", target)
    assert (refused.code, "exists already" in refused.err) == (5, True)
    assert present(target) == whole


@pytest.mark.parametrize("died", [False, True])
def test_a_run_may_wait_for_a_claim_only_while_its_owner_may_live(models: StorePath, disk: Path, cli: Cli, died: bool):
    """Else only --force replaces the whole release that is there, and the hint says so."""
    target = models / "release"
    arguments = ("average", disk / "ckpts", *LAW, "-o", target)
    assert cli(*arguments).code == 0
    put(claim.claim_path(target), json.dumps({**this_process(), "ended": died}).encode())
    refused = cli(*arguments)
    assert (refused.code, "exists already" in refused.err) == (5, True)
    told = [words in refused.err for words in ("is the claim of a run", "try again in a minute", "--force")]
    assert told == ([False, False, True] if died else [True, True, False])


def fault_of_writes(kind: str, number: int) -> Callable[[Request], str | None]:
    """Return a fault of one request that changes something: of the first, whose number is 0, or a later one."""
    seen = count()
    return lambda request: kind if request.method in ("PUT", "POST", "DELETE") and next(seen) == number else None


def check_after_fault(
    fault: Callable[[Request], str | None],
    proxy: Proxy,
    target: StorePath,
    disk: Path,
    cli: Cli,
    old: dict[str, bytes],
) -> int:
    """Replace a release while faults happen; check that the old one, the new one or none is there."""
    for path in present(target):
        obstore.delete(clients.client_of(target), (target / path).key)
    put_folder(target, old)
    proxy.fault = fault
    done = cli("average", disk / "ckpts", *OTHER, "-o", target, "--force")
    proxy.fault = lambda request: None
    assert done.code in (0, 5), done
    assert SECRET not in done.out + done.err
    left, verified = present(target), cli("verify", target).code
    if done.code == 0:
        assert cli("verify", target, "--against", disk / "ckpts").code == 0
    else:
        lines = [line for line in done.err.splitlines() if not line.startswith("warning: ")]
        assert lines[0].startswith((f"error: {target}", f"error: {claim.claim_path(target)}")), done.err
        assert len(lines) <= 2
        assert left == old if verified == 0 else "ema-manifest.json" not in left
    return done.code


@pytest.fixture
def old(disk: Path, tmp_path: Path, cli: Cli, impatient: None) -> dict[str, bytes]:
    """Return the files of an older release; requests are not tried again for minutes."""
    assert cli("average", disk / "ckpts", *LAW, "-o", tmp_path / "release").code == 0
    return local(tmp_path / "release")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "number", "code"),
    [("cut", 3, 0), ("503", 2, 0), ("429", 5, 0), ("500", 4, 0), ("stall", 4, 0), ("flip", 6, 5), ("416", 5, 5)],
)
def test_a_fault_of_a_write_is_made_good_or_an_error(
    proxy: Proxy,
    folder: StorePath,
    disk: Path,
    cli: Cli,
    old: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    number: int,
    code: int,
):
    """Each kind once. After it there is the old release, the new one or none."""
    if kind == "stall":  # else a busy machine would look like a fault
        monkeypatch.setattr(clients, "SILENCE", timedelta(seconds=1))
    fault = fault_of_writes(kind, number)
    assert check_after_fault(fault, proxy, folder / "release", disk, cli, old) == code
    # Where a part of an older release is left, the claim says whose it is: so the next run needs no --force.
    left = [name for name in present(folder) if "claim" in name]
    assert not left if code == 0 else left in ([], [claim.claim_path(folder / "release").name])
    if left:
        assert cli("average", disk / "ckpts", *OTHER, "-o", folder / "release").code == 0
        assert {name.partition("/")[0] for name in present(folder)} == {"release"}


@pytest.mark.full
def test_whatever_happens_to_writes_there_is_the_old_release_the_new_one_or_none(
    proxy: Proxy, folder: StorePath, disk: Path, cli: Cli, old: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
):
    """Hundreds of runs, with faults of all kinds at any request, one or several."""
    monkeypatch.setattr(claim, "_LEASE", timedelta(0))
    outcomes, kinds = [], ("cut", "503", "429", "500", "416", "flip")
    for seed in range(300):
        draw = random.Random(seed)
        share = draw.choice((0.03, 0.1, 0.3))

        def fault(request: Request, draw: random.Random = draw, share: float = share) -> str | None:
            return draw.choice(kinds) if request.method != "GET" and draw.random() < share else None

        outcomes.append(check_after_fault(fault, proxy, folder / "release", disk, cli, old))
    assert set(outcomes) == {0, 5}


MEDDLING = (
    "delete a tensor file",
    "replace a tensor file",
    "replace the manifest",
    "delete the manifest",
    "take the claim",
)


def meddle(what: str, target: StorePath) -> None:
    """Do to a release that is being written what others may do."""
    key = {
        "tensor": (target / "model.safetensors").key,
        "manifest": (target / "ema-manifest.json").key,
        "claim": claim.claim_path(target).key,
    }[what.split()[-1].replace("file", "tensor")]
    client = clients.client_of(target)
    if what.startswith("delete"):
        with suppress(FileNotFoundError):
            obstore.delete(client, key)
    else:
        obstore.put(client, key, b"{}" if "manifest" in what else b"somebody else's")


def check_after_meddling(
    what: str, number: int, proxy: Proxy, target: StorePath, disk: Path, cli: Cli, old: dict[str, bytes]
) -> int:
    """Replace a release while somebody else changes it at the n-th change; return the exit code.

    What verifies then is the old release or the new one, byte for byte.
    """
    for path in present(target):
        obstore.delete(clients.client_of(target), (target / path).key)
    obstore.delete(clients.client_of(target), claim.claim_path(target).key)
    put_folder(target, old)
    changes, lock, done_it = count(), threading.Lock(), threading.Event()

    def fault(request: Request) -> str | None:
        with lock:
            is_time = request.method in ("PUT", "POST", "DELETE") and not done_it.is_set() and next(changes) == number
            if is_time:
                done_it.set()
        if is_time:
            meddle(what, target)
        return None

    proxy.fault = fault
    done = cli("average", disk / "ckpts", *OTHER, "-o", target, "--force")
    proxy.fault = lambda request: None
    assert done.code in (0, 5, 6), done
    if done.code:
        assert str(target.parent) in done.err
    left = present(target)
    if cli("verify", target).code == 0:
        against = cli("verify", target, "--against", disk / "ckpts")
        assert against.code == 0, against.err
        assert left == old or all(left[name] != old[name] for name in ("ema-manifest.json", "model.safetensors"))
    return int(done.code)


@pytest.mark.slow
@pytest.mark.parametrize("what", MEDDLING)
def test_what_others_change_meanwhile_makes_no_mix(
    proxy: Proxy, folder: StorePath, disk: Path, cli: Cli, old: dict[str, bytes], what: str
):
    """Each kind once, when the tensors are being sent: what verifies is one release."""
    check_after_meddling(what, 3, proxy, folder / "release", disk, cli, old)


@pytest.mark.full
def test_whatever_others_change_meanwhile_makes_no_mix(
    proxy: Proxy, folder: StorePath, disk: Path, cli: Cli, old: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
):
    """At each change of a run, until there are no more."""
    outcomes = [
        check_after_meddling(what, number, proxy, folder / "release", disk, cli, old)
        for what in MEDDLING
        for number in range(16)
    ]
    assert {0, 5} <= set(outcomes)
