"""A stand-in for the packages that sign, which are not installed where most tests run: "keys" are names, and nothing is
secret. tests/package has the real ones.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import pytest


class InvalidSignature(Exception):
    """Of cryptography."""


class UnsupportedAlgorithm(Exception):
    """Of cryptography."""


@dataclass(frozen=True)
class Digest:
    """A sum."""

    algorithm: str
    value: bytes


@dataclass(frozen=True)
class FileManifestItem:
    """A file with its sum."""

    path: PurePosixPath
    digest: Digest


class SerializationType:
    """How files were hashed."""

    from_args = staticmethod(dict)


class Manifest:
    """Files with their sums."""

    def __init__(self, name: str, items: Iterable[FileManifestItem], kind: dict[str, Any]) -> None:
        self.name = name
        self.kind = kind
        self.sums = {str(item.path): item.digest.value.hex() for item in items}


def write_keys(folder: Path, *names: str) -> None:
    """Write a private key and a public one for each name."""
    for name in names:
        (folder / f"{name}.pem").write_text(f"PRIVATE {name}")
        (folder / f"{name}.pub").write_text(f"PUBLIC {name}")


def signature(name: str, sums: dict[str, str], key: str, **more: object) -> str:
    """Return the text of a signature."""
    kind = {"method": "files", "hash_type": "sha256", **more}
    rows = [{"name": each, "algorithm": "sha256", "digest": sums[each]} for each in sums]
    statement = {"subject": [{"name": name}], "predicate": {"serialization": kind, "resources": rows}}
    payload = base64.b64encode(json.dumps(statement).encode()).decode()
    seal = hashlib.sha256(f"{key} {payload}".encode()).hexdigest()
    bundle = {"verificationMaterial": {"publicKey": {"hint": key}}, "dsseEnvelope": {"payload": payload, "seal": seal}}
    return json.dumps(bundle)


class Config:
    """Makes or checks signatures, as signing.Config and verifying.Config do."""

    def use_elliptic_key_signer(self, *, private_key: Path, password: bytes | None = None) -> Config:
        """Take a key, whose file names it."""
        kind, self.key, *secret = private_key.read_text().split()
        if kind not in ("PRIVATE", "ENCRYPTED") or [word.encode() for word in secret] != [password] * len(secret):
            raise ValueError("no key")
        return self

    def use_elliptic_key_verifier(self, *, public_key: Path) -> Config:
        """Take a key, whose file names it."""
        kind, self.key = public_key.read_text().split()
        if kind != "PUBLIC":
            raise ValueError("no key")
        return self

    def set_hashing_config(self, hashing: Any) -> Config:
        """Take what gives the sums."""
        self.hashing = hashing
        return self

    def sign(self, model_path: Path, signature_path: Path) -> None:
        """Write a signature."""
        manifest = self.hashing.hash(model_path)
        signature_path.write_text(signature(manifest.name, manifest.sums, self.key, **manifest.kind))

    def verify(self, model_path: Path, signature_path: Path) -> None:
        """Compare with a signature."""
        envelope = json.loads(signature_path.read_text())["dsseEnvelope"]
        if envelope["seal"] != hashlib.sha256(f"{self.key} {envelope['payload']}".encode()).hexdigest():
            raise InvalidSignature
        rows = json.loads(base64.b64decode(envelope["payload"]))["predicate"]["resources"]
        if self.hashing.hash(model_path).sums != {row["name"]: row["digest"] for row in rows}:
            raise ValueError("Signature mismatch")


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the stand-in where the packages would be."""
    modules = {
        "model_signing": {},
        "model_signing.signing": {"Config": Config},
        "model_signing.verifying": {"Config": Config},
        "model_signing.manifest": {
            "FileManifestItem": FileManifestItem, "Manifest": Manifest, "SerializationType": SerializationType
        },
        "model_signing._hashing": {},
        "model_signing._hashing.hashing": {"Digest": Digest},
        "cryptography": {},
        "cryptography.exceptions": {"InvalidSignature": InvalidSignature, "UnsupportedAlgorithm": UnsupportedAlgorithm},
    }  # fmt: skip
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, module)
