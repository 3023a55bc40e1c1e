"""Make signatures with a private key, and ask which public key one was made with. The package model-signing does it.

That package is an extra, `ema-cli[sign]`, and is loaded when a key is given.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

from ema_cli.dataclass import dataclass
from ema_cli.errors import UsageError
from ema_cli.formats.mark import SIGNATURE_NAME
from ema_cli.manifest.signature import SERIALIZATION, Signature
from ema_cli.planning.named_file import read_named_file
from ema_cli.storage.names import StorePath, as_path
from ema_cli.storage.output_stream import output_errors, sync_file

PASSWORD_VARIABLE = "EMA_SIGN_PASSWORD"
_MAX_KEY_BYTES = 1 << 16
_KINDS = "PEM, of the elliptic curve P-256, P-384 or P-521"
_PRIVATE_HINT = "make one: openssl ecparam -name prime256v1 -genkey -noout -out key.pem"
_PUBLIC_HINT = "make it of the private key: openssl ec -in key.pem -pubout -out key.pub"
_PASSWORD_HINT = f"its password goes into the variable {PASSWORD_VARIABLE}"


@dataclass(frozen=True, slots=True)
class Signer:
    """A private key, ready to sign."""

    config: Any

    def sign(self, name: str, sums: Mapping[str, str], path: Path) -> None:
        """Write a signature of files of which the sums are known.

        Args:
            name: what the signature calls the average.
            sums: the sha256 of each file, by name.
            path: where the signature goes.

        Raises:
            OutputError: where it cannot be written.
        """
        ignored = [SIGNATURE_NAME] if path.name == SIGNATURE_NAME else []
        with output_errors(path):
            self.config.set_hashing_config(_Known(_signed_manifest(name, sums, ignored))).sign(path.parent, path)
            sync_file(path)


def open_signer(path: Path, ask: Callable[[str], str] | None = None) -> Signer:
    """Return a signer with the private key at `path`.

    Args:
        path: the file of the key.
        ask: asks for the password of an encrypted key, where the environment does not have it.

    Raises:
        UsageError: where there is no key that will do, or the package is not installed.
    """
    key = _read_key(path, "sign", _PRIVATE_HINT)
    signing = _load("signing", "sign")
    password = None
    if b"ENCRYPTED" in key:
        password = os.environ.get(PASSWORD_VARIABLE) or (ask(f"Password of {path}: ") if ask is not None else None)
        if not password:
            raise UsageError("is encrypted", option="sign", subject=path, hint=_PASSWORD_HINT)
    try:
        secret = password.encode() if password else None  # the package takes a text, and fails with it
        return Signer(signing.Config().use_elliptic_key_signer(private_key=path, password=secret))
    except (ValueError, TypeError, AttributeError, _unsupported()) as error:
        if password:
            raise UsageError(
                f"is not encrypted with this password, or cannot sign here ({_KINDS})",
                option="sign",
                subject=path,
                hint=_PASSWORD_HINT,
            ) from error
        raise UsageError(
            f"is no private key that can sign here ({_KINDS})", option="sign", subject=path, hint=_PRIVATE_HINT
        ) from error


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key, ready to check signatures with."""

    path: Path
    config: Any


def open_public_keys(paths: Sequence[Path]) -> list[PublicKey]:
    """Return the public keys at `paths`.

    Raises:
        UsageError: where one is no key that will do, or the package is not installed.
    """
    keys = []
    for path in paths:
        _read_key(path, "signed_by", _PUBLIC_HINT)
        verifying = _load("verifying", "signed_by")
        try:
            keys.append(PublicKey(path, verifying.Config().use_elliptic_key_verifier(public_key=path)))
        except (ValueError, TypeError, AttributeError, _unsupported()) as error:
            raise UsageError(
                f"is no public key that can be checked with here ({_KINDS})",
                option="signed_by",
                subject=path,
                hint=_PUBLIC_HINT,
            ) from error
    return keys


def signed_by(signature: Signature, keys: Sequence[PublicKey]) -> PublicKey | None:
    """Return the first key with which exactly this was signed: these names with these sums. None if there is none."""
    from cryptography.exceptions import InvalidSignature

    known = _Known(_signed_manifest("", signature.sums, []))
    with tempfile.TemporaryDirectory(prefix="ema-cli-") as folder:
        copy = Path(folder, SIGNATURE_NAME)  # the package reads a local file, and it must be what was read here
        with output_errors(copy):
            copy.write_bytes(signature.text)
        for key in keys:
            try:
                with contextlib.redirect_stdout(io.StringIO()):  # it warns there of signatures from before 1.0
                    key.config.set_hashing_config(known).verify(copy.parent, copy)
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError, InvalidSignature):
                continue  # whatever the file holds, it is no signature with this key
            return key
    return None


@dataclass(frozen=True, slots=True)
class _Known:
    """Stands where model-signing has its way to hash files: gives the sums that are known already."""

    manifest: Any

    def hash(self, model_path: object, *, files_to_hash: object = None) -> Any:
        """Return the sums."""
        return self.manifest

    def add_ignored_paths(self, *, model_path: object, paths: object) -> None:
        """Ignore nothing, whatever the signature says."""


def _signed_manifest(name: str, sums: Mapping[str, str], ignored: Sequence[str]) -> Any:
    """Return sums as model-signing has them."""
    from model_signing import manifest
    from model_signing._hashing.hashing import Digest

    items = [
        manifest.FileManifestItem(path=PurePosixPath(file), digest=Digest("sha256", bytes.fromhex(sha256)))
        for file, sha256 in sums.items()
    ]
    kind = {**SERIALIZATION, "allow_symlinks": False, "ignore_paths": ignored}
    return manifest.Manifest(name, items, manifest.SerializationType.from_args(kind))


def _read_key(path: Path, option: str, hint: str) -> bytes:
    if isinstance(as_path(path), StorePath):
        raise UsageError(
            "is in a store, and keys are read from this machine alone",
            option=option,
            subject=as_path(path),
            hint="name a local file",
        )
    return read_named_file(path, _MAX_KEY_BYTES, option=option, hint=hint)


def _load(name: str, option: str) -> Any:
    """Return a module of model-signing.

    Raises:
        UsageError: where it is not installed, or not all that it needs.
    """
    try:
        return import_module(f"model_signing.{name}")
    except ImportError as error:
        raise UsageError(
            f"needs the package model-signing ({error})", option=option, hint="install it: pip install 'ema-cli[sign]'"
        ) from error


def _unsupported() -> type[Exception]:
    """Return the class of error for a kind of key that cryptography does not know."""
    from cryptography.exceptions import UnsupportedAlgorithm

    error: type[Exception] = UnsupportedAlgorithm
    return error
