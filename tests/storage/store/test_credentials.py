"""Credentials and settings come from where the ecosystem keeps them, and are used for reading and writing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ema_cli.storage.names import StorePath
from ema_cli.storage.store import clients
from tests.conftest import Cli, write_hf_run
from tests.storage.conftest import KEY, SECRET
from tests.storage.loopback import Answer, Handler, serving
from tests.storage.proxy import Proxy
from tests.storage.staging.test_in_store import local
from tests.storage.stores import put_folder

ROLES = "/latest/meta-data/iam/security-credentials/"
LAW = ("--half-life", "500ba")


class Metadata(Handler):
    """The service at which a machine of AWS's asks for the keys of its role."""

    def handle_any(self) -> None:
        """Give a token to PUT; else name the role, or give its keys."""
        keys = {"AccessKeyId": KEY, "SecretAccessKey": SECRET, "Token": "", "Expiration": "2999-01-01T00:00:00Z"}
        if self.command == "PUT":
            text = "token" if self.path == "/latest/api/token" else ""
        else:
            text = "role" if self.path == ROLES else json.dumps(keys)
        self.give(Answer(200, text.encode()))


@pytest.fixture
def metadata() -> Iterator[str]:
    """Return the address of such a service on loopback."""
    with serving(Metadata) as address:
        yield address


def average_there(folder: StorePath, run: Path, cli: Cli) -> None:
    """Average a run from a store into it, and verify that; no secret is shown."""
    done = cli("average", folder / "run", *LAW, "-o", folder / "release")
    assert done.code == 0, done
    verified = cli("verify", folder / "release", "--against", folder / "run")
    assert verified.code == 0, verified
    assert SECRET not in done.out + done.err + verified.out + verified.err


@pytest.mark.slow
def test_the_role_of_a_machine_signs(
    folder: StorePath, proxy: Proxy, metadata: str, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    """Where the environment has no keys, the service that tells a machine its role is asked."""
    write_hf_run(tmp_path / "ckpts", [500, 1000])
    put_folder(folder / "run", local(tmp_path / "ckpts"))
    monkeypatch.setattr(clients, "_clients", {})
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", metadata)
    before = len(proxy.requests)
    average_there(folder, tmp_path / "ckpts", cli)
    assert all(request.signed for request in proxy.requests[before:])


@pytest.mark.slow
def test_who_asks_may_pay(folder: StorePath, proxy: Proxy, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch):
    """By the setting of obstore, each request for objects says so."""
    write_hf_run(tmp_path / "ckpts", [500, 1000])
    put_folder(folder / "run", local(tmp_path / "ckpts"))
    assert not any(request.pays for request in proxy.requests)
    monkeypatch.setattr(clients, "_clients", {})
    monkeypatch.setenv("AWS_REQUEST_PAYER", "true")
    before = len(proxy.requests)
    average_there(folder, tmp_path / "ckpts", cli)
    assert all(request.pays for request in proxy.requests[before:])
