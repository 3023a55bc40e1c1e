"""Check who signed an average, and that what was signed is what was read."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath

from ema_cli.dataclass import dataclass
from ema_cli.errors import CheckpointError, Unreadable, at_terminal
from ema_cli.manifest.signature import Signature, read_signature
from ema_cli.manifest.signing import PublicKey, signed_by
from ema_cli.release.snapshot import Snapshot
from ema_cli.storage.location import location
from ema_cli.text import some

_BLOCK = 1 << 20
_ALONE = "."  # what a signature calls a file that was signed alone


@dataclass(frozen=True, slots=True)
class Signed:
    """The signature of an average, and what is known of it.

    Attributes:
        name: of its file.
        by: the path of the public key that it was made with; None where it was not checked, or no key fits.
        checked: whether keys were given.
        not_covered: the manifest and the sums, where the single file was signed alone.
    """

    name: str
    by: Path | None = None
    checked: bool = False
    not_covered: tuple[str, ...] = ()


def check_signature(snapshot: Snapshot, keys: Sequence[PublicKey]) -> tuple[Signed | None, list[str]]:
    """Return what is known of the signature of an average, None if it has none, and a problem for what does not hold.

    Args:
        snapshot: the average as it was read.
        keys: public keys, one of which must have signed it; none if nobody asks.

    Raises:
        CheckpointError: if this process cannot read a file.
    """
    path = snapshot.published.signature
    exists = location(path).info(follow=False).exists
    if not keys:
        return Signed(path.name) if exists else None, []
    if not exists:
        return None, [snapshot.problem(path.name, "is missing: nobody signed this")]
    try:
        signature = read_signature(path)
    except Unreadable:
        raise
    except CheckpointError as error:
        return Signed(path.name, checked=True), [snapshot.problem(path.name, error.message(at_terminal, known=path))]
    key = signed_by(signature, keys)
    if key is None:
        fact = f"was not made with {some([str(key.path) for key in keys])}"
        if signature.keyless:
            fact += ", but without a key: `model_signing verify` checks it"
        return Signed(path.name, checked=True), [snapshot.problem(path.name, fact)]
    not_covered = _sidecars(snapshot) if set(signature.sums) == {_ALONE} and not snapshot.published.is_folder else ()
    facts = _differences(snapshot, signature, not_covered)
    return Signed(path.name, key.path, True, not_covered), [snapshot.problem(path.name, fact) for fact in facts]


def _differences(snapshot: Snapshot, signature: Signature, not_covered: Sequence[str]) -> Iterator[str]:
    """Yield how the files that were read, or lie there, differ from those that were signed."""
    folder, alone = snapshot.published.folder, snapshot.published.path.name
    read = {name: reading.sha256 for name, reading in snapshot.readings.items()}
    read[snapshot.published.sums.name] = snapshot.sums_sha256
    signed = {alone if not_covered and name == _ALONE else name: sha256 for name, sha256 in signature.sums.items()}
    there = {name: read[name] if name in read else _sum_of(folder, name) for name in signed}
    changed = {name for name in signed if there[name] not in (signed[name], "")}
    yield from _listed("is of other bytes of", changed - snapshot.edited)
    yield from _listed("covers what is not there:", {name for name in signed if not there[name]})
    yield from _listed("does not cover", read.keys() - signed.keys() - snapshot.edited - {*not_covered})


def _listed(fact: str, names: Collection[str]) -> Iterator[str]:
    if names:
        yield f"{fact} {some(sorted(names))}"


def _sidecars(snapshot: Snapshot) -> tuple[str, ...]:
    return (snapshot.published.manifest.name, snapshot.published.sums.name)


def _sum_of(folder: Path, name: str) -> str:
    """Return the sha256 of a file that was signed and is no part of the average; nothing if it is not in the folder.

    Links are not followed.
    """
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts or not location(folder / inside).info(follow=False).is_file:
        return ""
    file, sha256 = location(folder / inside).open(), hashlib.sha256()
    for at in range(0, file.size, _BLOCK):
        sha256.update(file.read(at, min(_BLOCK, file.size - at)))
    return sha256.hexdigest()
