"""In which order objects come into a store: what tells that a release is whole comes last."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import pytest

from ema_cli.storage.names import StorePath
from ema_cli.storage.store import claim, clients
from tests.conftest import Cli, write_hf_run
from tests.storage.staging.test_in_store import present
from tests.storage.stores import obstore

_numbers = count()
LAW, OTHER = ("--half-life", "500ba"), ("--half-life", "200ba")


@pytest.fixture
def models() -> StorePath:
    """Return an address in an empty store in memory."""
    return StorePath(f"memory://order-{next(_numbers)}/models")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run of a model of transformers."""
    write_hf_run(tmp_path / "ckpts", [500, 1000, 1500])
    return tmp_path / "ckpts"


@pytest.fixture
def changes(models: StorePath, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Return what is put and removed, in order, as it comes: name of the call and of the object; no claims."""
    seen: list[tuple[str, str]] = []

    def noted(name: str) -> Any:
        call = getattr(obstore, name)

        def change(client: Any, key: str, *arguments: Any, **words: Any) -> Any:
            done = call(client, key, *arguments, **words)
            if not claim.is_claim(StorePath(f"memory://x/{key}")):
                seen.append((name, key.removeprefix(f"{models.key}/")))
            return done

        return change

    for name in ("put", "delete"):
        monkeypatch.setattr(obstore, name, noted(name))
    return seen


def test_the_manifest_of_a_folder_comes_last_and_goes_first(
    models: StorePath, run: Path, cli: Cli, changes: list[tuple[str, str]]
):
    """Between the two nothing there is a release."""
    assert cli("average", run, *LAW, "-o", models / "release").code == 0
    assert changes[-1] == ("put", "release/ema-manifest.json")
    assert ("put", "release/model.safetensors") in changes[:-1]
    changes.clear()
    assert cli("average", run, *OTHER, "-o", models / "release", "--force").code == 0
    assert changes[0] == ("delete", "release/ema-manifest.json")
    assert changes[-1] == ("put", "release/ema-manifest.json")


def test_a_single_file_comes_after_its_manifest_and_its_sums(
    models: StorePath, run: Path, cli: Cli, changes: list[tuple[str, str]]
):
    """The older ones go before: they are no other file's."""
    beside = {"one.safetensors.manifest.json", "one.safetensors.sha256"}  # and the signature of an older file goes
    assert cli("average", run, *LAW, "-o", models / "one.safetensors").code == 0
    assert changes[-1] == ("put", "one.safetensors")
    assert {name for call, name in changes[:-1] if call == "put"} == beside
    changes.clear()
    assert cli("average", run, *OTHER, "-o", models / "one.safetensors", "--force").code == 0
    gone = [name for call, name in changes if call == "delete"]
    assert gone[0] == "one.safetensors.manifest.json"
    assert beside <= set(gone)
    assert changes[-1] == ("put", "one.safetensors")


@pytest.mark.parametrize(
    ("pattern", "last"),
    [("several", "ema-manifest.json"), ("several/ema-{half_life}.safetensors", ".safetensors")],
    ids=["folders", "files"],
)
def test_of_several_the_last_are_the_manifests_or_the_files(
    models: StorePath, run: Path, cli: Cli, changes: list[tuple[str, str]], pattern: str, last: str
):
    """So none is a release before the tensors of all are there."""
    assert cli("average", run, *LAW, *OTHER, "-o", models / pattern).code == 0
    assert [name.endswith(last) for _, name in changes[-2:]] == [True, True]
    assert not any(name.endswith(last) for _, name in changes[:-2])


def test_while_objects_come_verify_says_that_the_release_is_not_whole(
    models: StorePath, run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    """After each of them, until the manifest is there; and it names the claim of the run that writes."""
    put, said = obstore.put, []

    def watched(client: Any, key: str, *arguments: Any, **words: Any) -> Any:
        done = put(client, key, *arguments, **words)
        if key.startswith(f"{models.key}/release/"):
            with monkeypatch.context() as patch:
                patch.setattr(obstore, "put", put)
                said.append(cli("verify", models / "release"))
        return done

    monkeypatch.setattr(obstore, "put", watched)
    assert cli("average", run, *LAW, "-o", models / "release").code == 0
    assert len(said) >= 3
    assert [outcome.code for outcome in said] == [6] * (len(said) - 1) + [0]
    for outcome in said[:-1]:
        assert f"{claim.claim_path(models / 'release')} is the claim of a run that writes there, or died" in outcome.err
    assert present(models).keys() >= {"release/ema-manifest.json"}
    assert clients.client_of(models) is not None
