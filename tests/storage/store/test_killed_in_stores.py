"""Runs that are killed while they write into a store, and those that come after them: SIGKILL at a request."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from ema_cli.storage.names import StorePath
from ema_cli.storage.staging.shared_in_store import SharedStoreStaging
from ema_cli.storage.store import claim, clients, unfinished_uploads
from tests import signing_stand_in
from tests.conftest import Cli, write_hf_run
from tests.storage.proxy import Proxy, Request
from tests.storage.staging.test_in_store import local, present, uploads
from tests.storage.stores import obstore, put

LAW, OTHER = ("--half-life", "500ba"), ("--half-life", "200ba")
LEASE_SECONDS = 4  # of the runs whose claims grow old here: SeaweedFS dates objects by seconds
# What a run of its own does before it begins: a stand-in for the packages that sign, and the lease of its claim.
SIGNING = "import pytest; from tests import signing_stand_in; signing_stand_in.install(pytest.MonkeyPatch())"
SHORT = f"""from datetime import timedelta
from ema_cli.storage.store import claim
claim._LEASE, claim._RENEWED_SECONDS = timedelta(seconds={LEASE_SECONDS}), {LEASE_SECONDS / 4}"""


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Return a folder with a run in `ckpts`, and two pairs of keys."""
    write_hf_run(tmp_path / "ckpts", [500, 1000, 1500])
    signing_stand_in.write_keys(tmp_path, "mine", "theirs")
    return tmp_path


def start(before: str, arguments: tuple[object, ...]) -> subprocess.Popen[bytes]:
    """Start a process that runs some code, and then ema-cli."""
    code = f"{before}\nfrom ema_cli.__main__ import main\nmain()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    root = Path(__file__).parents[3]
    return subprocess.Popen(command, cwd=root, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill_when(is_time: Callable[[Request], bool], proxy: Proxy, before: str, *arguments: object) -> int:
    """Run ema-cli in a process of its own, and kill that when it sends some request; return its exit code."""

    def end(request: Request) -> str | None:
        if is_time(request):
            process.kill()
            process.wait(30)
        return None

    proxy.fault = end
    process = start(before, arguments)
    code = process.wait(120)
    proxy.settle()
    proxy.fault = lambda request: None
    return int(code)


def at(number: int, methods: tuple[str, ...] = ("PUT", "POST", "DELETE")) -> Callable[[Request], bool]:
    """Return whether a request is the n-th, from 0, of those that change anything."""
    seen = count()
    return lambda request: request.method in methods and next(seen) == number


def empty(folder: StorePath) -> None:
    """Remove what lies below an address."""
    for name in present(folder):
        obstore.delete(clients.client_of(folder), (folder / name).key)


def check_signed(
    name: str, number: int, proxy: Proxy, folder: StorePath, disk: Path, cli: Cli, old: dict[str, bytes]
) -> int:
    """Kill a run that replaces a signed release by another with another key; return its exit code.

    What verifies then is the old release with its signature or the new one with its own; and the next run makes it.
    """
    empty(folder)
    for path, content in old.items():
        put(folder / path, content)
    target = folder / name
    run = ("average", disk / "ckpts", *OTHER, "-o", target, "--force", "--sign", disk / "theirs.pem")
    code = kill_when(at(number), proxy, SIGNING, *run)
    left = present(folder)
    by = {key: cli("verify", target, "--signed-by", disk / f"{key}.pub").code for key in ("mine", "theirs")}
    assert sorted(by.values()) in ([0, 6], [6, 6])
    assert (0 in by.values()) is (cli("verify", target).code == 0)
    changed = {path for path in old if left.get(path) != old[path]}
    assert by["mine"] != 0 or not changed
    assert by["theirs"] != 0 or {Path(path).suffix for path in changed} >= {".safetensors", ".json", ".sig"}
    again = cli(*run)
    assert again.code == 0, again.err
    assert cli("verify", target, "--against", disk / "ckpts", "--signed-by", disk / "theirs.pub").code == 0
    assert present(folder).keys() == old.keys()
    return code


@pytest.fixture
def signed(disk: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, bytes]]:
    """Return what makes a signed release on the disk, and returns its files."""
    signing_stand_in.install(monkeypatch)

    def make(name: str) -> dict[str, bytes]:
        (disk / "old").mkdir()
        assert cli("average", disk / "ckpts", *LAW, "-o", disk / "old" / name, "--sign", disk / "mine.pem").code == 0
        return local(disk / "old")

    return make


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), [("release", 5), ("one.safetensors", 4)])
def test_after_a_kill_a_signature_is_that_of_the_release(
    proxy: Proxy, folder: StorePath, disk: Path, cli: Cli, signed: Callable[[str], Any], name: str, number: int
):
    """Never of another one, while a signed release is replaced by one with another key."""
    assert check_signed(name, number, proxy, folder, disk, cli, signed(name)) == -signal.SIGKILL


@pytest.mark.full
@pytest.mark.parametrize("name", ["release", "one.safetensors"])
def test_after_a_kill_at_any_change_a_signature_is_that_of_the_release(
    proxy: Proxy, folder: StorePath, disk: Path, cli: Cli, signed: Callable[[str], Any], name: str
):
    """At each request that changes anything, until none is left."""
    old, numbers = signed(name), count()
    while check_signed(name, next(numbers), proxy, folder, disk, cli, old) != 0:
        pass
    assert next(numbers) > 8


def check_taken_over(number: int, proxy: Proxy, folder: StorePath, disk: Path, cli: Cli) -> int:
    """Kill a run that takes over from one that was killed; return its exit code. The third leaves its release alone."""
    empty(folder)
    run = ("average", disk / "ckpts", *LAW, "-o", folder / "release")
    # Its claim is there, and says what it puts.
    assert kill_when(at(3), proxy, "", *run) == -signal.SIGKILL
    code = kill_when(at(number), proxy, "", *run)
    third = cli(*run, "--force")
    assert third.code == 0, third
    assert {name.partition("/")[0] for name in present(folder)} == {"release"}
    assert cli("verify", folder / "release", "--against", disk / "ckpts").code == 0
    assert uploads(folder) == 0
    return code


@pytest.mark.slow
def test_a_kill_during_a_take_over_leaves_nothing_to_the_next(
    proxy: Proxy, folder: StorePath, disk: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    """Not even what tells the time by the clock of the store, where the claim did not say that its process is gone."""
    monkeypatch.setattr(claim, "_LEASE", timedelta(0))
    assert check_taken_over(2, proxy, folder, disk, cli) == -signal.SIGKILL


@pytest.mark.full
def test_a_kill_at_any_change_during_a_take_over_leaves_nothing_to_the_next(
    proxy: Proxy, folder: StorePath, disk: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    """At each request that changes anything, until none is left."""
    monkeypatch.setattr(claim, "_LEASE", timedelta(0))
    numbers = count()
    while check_taken_over(next(numbers), proxy, folder, disk, cli) != 0:
        pass
    assert next(numbers) > 10


@pytest.mark.slow
def test_what_told_the_time_goes_with_the_next_run_whose_claim_it_is(
    proxy: Proxy, folder: StorePath, disk: Path, cli: Cli
):
    """A run finds another one's claim, and is killed while it asks the store how old that is."""
    clock = folder / f"{claim.claim_path(folder / 'release').name}-time"
    run = ("average", disk / "ckpts", *LAW, "-o", folder / "release")
    with claim.Claim(folder / "release"):
        killed = kill_when(lambda request: request.method == "HEAD" and "-time" in request.path, proxy, "", *run)
        assert killed == -signal.SIGKILL
        assert clock.name in present(folder)
    assert present(folder) == {}


@pytest.mark.slow
def test_the_claim_of_a_killed_run_of_another_machine_is_kept_until_it_is_old(
    proxy: Proxy, folder: StorePath, disk: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    """And no longer: a second run is refused, and takes over after that time."""
    monkeypatch.setattr(claim, "_LEASE", timedelta(seconds=LEASE_SECONDS))
    monkeypatch.setattr(claim, "is_dead", lambda held: False)  # this machine cannot tell
    run = ("average", disk / "ckpts", *LAW, "-o", folder / "release")
    assert kill_when(at(4), proxy, SHORT, *run) == -signal.SIGKILL
    died = time.monotonic()
    refused = cli(*run)
    assert (refused.code, "exists already; " in refused.err) == (5, True), refused
    assert f"{claim.claim_path(folder / 'release')} is the claim of a run that writes there, or died" in refused.err
    time.sleep(max(0.0, died + LEASE_SECONDS + 1.5 - time.monotonic()))
    again = cli(*run)
    assert again.code == 0, again.err
    assert "a run that died there left " in again.out + again.err
    assert cli("verify", folder / "release", "--against", disk / "ckpts").code == 0
    assert {name.partition("/")[0] for name in present(folder)} == {"release"}


@pytest.mark.slow
def test_a_run_that_takes_longer_than_its_lease_keeps_its_claim(
    proxy: Proxy, folder: StorePath, disk: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    """It renews the claim; a second run is refused all the time, and the first publishes."""
    monkeypatch.setattr(claim, "_LEASE", timedelta(seconds=LEASE_SECONDS))
    monkeypatch.setattr(claim, "is_dead", lambda held: False)
    run = ("average", disk / "ckpts", *LAW, "-o", folder / "release")
    began, goes_on = threading.Event(), threading.Event()

    def hold(request: Request) -> str | None:
        if request.method == "PUT" and "/release/model.safetensors?" in request.path:
            began.set()
            goes_on.wait(60)
        return None

    proxy.fault = hold
    process, codes = start(SHORT, run), []
    assert began.wait(30), [request.path for request in proxy.requests]
    for _ in range(3):
        time.sleep(LEASE_SECONDS / 2)
        codes.append(cli("average", disk / "ckpts", *OTHER, "-o", folder / "release", "--force").code)
    goes_on.set()
    assert process.wait(120) == 0
    assert codes == [5] * 3
    assert cli("verify", folder / "release", "--against", disk / "ckpts").code == 0
    assert {name.partition("/")[0] for name in present(folder)} == {"release"}


@pytest.mark.slow
def test_unfinished_uploads_are_aborted_however_many(proxy: Proxy, folder: StorePath, monkeypatch: pytest.MonkeyPatch):
    """The store lists them page by page. Those of a place with a longer name stay."""
    keys = unfinished_uploads._find_keys()
    assert keys is not None
    for number in range(7):
        for place in ("release", "release-2"):
            unfinished_uploads._ask(
                "POST", folder.bucket, (folder / place / f"{number}.bin").key, {"uploads": ""}, keys
            )
    monkeypatch.setattr(unfinished_uploads, "_AT_ONCE", 2)
    before = len(proxy.requests)
    assert unfinished_uploads.abort_unfinished(folder / "release") == 7
    assert sum("max-uploads=2" in request.path for request in proxy.requests[before:]) >= 7
    assert uploads(folder) == 7
    assert unfinished_uploads.abort_unfinished(folder / "release-2") == 7


@pytest.mark.slow
def test_a_store_that_refuses_to_list_unfinished_uploads(proxy: Proxy, folder: StorePath):
    """Nothing is removed, and no connection stays open, of which Python would warn."""
    proxy.fault = lambda request: "500" if "uploads" in request.path else None
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ResourceWarning)
        assert unfinished_uploads.abort_unfinished(folder / "release") == 0
        gc.collect()
    assert told == []


@pytest.mark.slow
def test_uploads_of_workers_that_died_are_aborted(proxy: Proxy, folder: StorePath):
    """They lie beside the output, where workers put whole files; who publishes, or gives up, removes all of it."""
    keys = unfinished_uploads._find_keys()
    assert keys is not None
    with SharedStoreStaging(folder / "release", "0123456789abcdef", claims=True) as staging:
        put(staging.tasks / "files" / "a.bin", b"whole")
        key = (staging.tasks / "files" / "b.bin").key
        unfinished_uploads._ask("POST", folder.bucket, key, {"uploads": ""}, keys)
        assert uploads(folder) == 1
    assert uploads(folder) == 0
    assert present(folder) == {}
