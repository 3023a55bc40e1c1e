"""What a signature says of an average: the sum of each file that it covers, in the format of model-signing.

The format is a sigstore bundle: a signed statement with the name and the sum of each file. Here it is only read;
whether a key made it, `signing` asks the package.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ema_cli.dataclass import dataclass
from ema_cli.errors import CheckpointError
from ema_cli.formats.json_text import parse_json
from ema_cli.formats.mark import SIGNATURE_NAME, SIGNATURE_SUFFIX
from ema_cli.storage.small_file import read_small_file
from ema_cli.text import lazy_pattern

SERIALIZATION = {"method": "files", "hash_type": "sha256"}
_MAX_BYTES = 16 << 20  # of fifty thousand files
_SHA256 = lazy_pattern("[0-9a-f]{64}")


def signature_path(path: Path, *, is_folder: bool) -> Path:
    """Return the path of the signature of the average at `path`."""
    return path / SIGNATURE_NAME if is_folder else path.with_name(path.name + SIGNATURE_SUFFIX)


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature that nobody has checked yet.

    Attributes:
        path: its file.
        sums: the sha256 of each file that it covers, by name; "." is the name of a file that was signed alone.
        keyless: whether it was made with a certificate, and not with a key.
        text: its file, whole.
    """

    path: Path
    sums: Mapping[str, str]
    keyless: bool
    text: bytes


def read_signature(path: Path) -> Signature:
    """Return what a signature says.

    Raises:
        CheckpointError: where it cannot be read, or is of another format.
    """
    text = read_small_file(path, _MAX_BYTES)
    try:
        bundle = parse_json(text)
        statement = parse_json(base64.b64decode(bundle["dsseEnvelope"]["payload"], validate=True))
        predicate = statement["predicate"]
        kind = {name: predicate["serialization"][name] for name in SERIALIZATION}
        rows = [(row["name"], row["algorithm"], row["digest"]) for row in predicate["resources"]]
        keyless = "publicKey" not in bundle["verificationMaterial"]
    except (ValueError, LookupError, TypeError) as error:
        raise CheckpointError("is no signature that model-signing makes", subject=path) from error
    sums = {name: digest for name, _, digest in rows if isinstance(name, str)}
    if kind != SERIALIZATION or len(sums) < len(rows) or not all(_is_sha256(*row[1:]) for row in rows):
        raise CheckpointError("holds other sums than the sha256 of whole files", subject=path)
    return Signature(path, sums, keyless, text)


def _is_sha256(algorithm: Any, digest: Any) -> bool:
    return algorithm == "sha256" and isinstance(digest, str) and _SHA256.fullmatch(digest) is not None
