"""Find the checkpoints that entered an average by its manifest, open them, and check that they are unchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from ema_cli.checkpoint import Checkpoint
from ema_cli.dataclass import dataclass
from ema_cli.errors import CheckpointError
from ema_cli.manifest.fingerprint import fingerprints
from ema_cli.manifest.recipe_record import read_options
from ema_cli.manifest.types import InputRow, Manifest
from ema_cli.runs.opening import open_by_name
from ema_cli.storage.location import location


@dataclass(frozen=True, slots=True)
class FoundInputs:
    """The paths of the inputs of a manifest, by name and in its order, and the names of the missing ones."""

    paths: Mapping[str, Path]
    missing: tuple[str, ...]


def find_inputs(manifest: Manifest, places: Sequence[Path]) -> FoundInputs:
    """Find each input of an average at or below one of `places`.

    Raises:
        CheckpointError: for a name that leads out of any folder, or if a place cannot be read.
    """
    paths, missing = {}, []
    for entry in manifest["inputs"]:
        name = str(entry["name"])
        path = _path_of(name, places)
        if path is None:
            missing.append(name)
        else:
            paths[name] = path
    return FoundInputs(paths, tuple(missing))


def open_inputs(manifest: Manifest, paths: Mapping[str, Path]) -> list[Checkpoint]:
    """Open inputs with the options that they were averaged with, under their names in the manifest.

    Raises:
        CheckpointError: for one that cannot be read.
        RunError: for one that holds raw weights where averages were averaged, or the other way round.
    """
    return open_by_name(paths, read_options(manifest["recipe"]))


def check_unchanged(manifest: Manifest, checkpoints: Sequence[Checkpoint], threads: int) -> None:
    """Check that checkpoints have the sampled fingerprints that the manifest lists under their names.

    An input of weight 0 was not read: it has no fingerprint, and its size is compared instead.

    Raises:
        CheckpointError: naming the first changed checkpoint and the number of other ones.
    """
    recorded = {entry["name"]: entry for entry in manifest["inputs"]}
    prints = fingerprints(checkpoints, threads)
    changed = [
        checkpoint
        for checkpoint, fingerprint in zip(checkpoints, prints, strict=True)
        if not _is_same(recorded[checkpoint.name], checkpoint, fingerprint)
    ]
    if changed:
        more = f", and so have {len(changed) - 1} more" if len(changed) > 1 else ""
        raise CheckpointError(
            f"has changed since it was averaged: its fingerprint is another{more}",
            subject=changed[0].path,
            hint="bring back the checkpoint as it was, or give the folder that it lies in",
        )


def _is_same(entry: InputRow, checkpoint: Checkpoint, fingerprint: str) -> bool:
    if entry["weight"] == 0 and entry["fingerprint"] is None:  # not read: only its size is known
        return bool(entry["bytes"] == checkpoint.nbytes)
    return bool(entry["fingerprint"] == fingerprint)


def _path_of(name: str, places: Sequence[Path]) -> Path | None:
    """Return the path of the input called `name`: below one of the places, or one of them."""
    plain = PurePosixPath(name)
    if plain.is_absolute() or ".." in plain.parts or "\0" in name:
        raise CheckpointError(f"the manifest's input '{name}' lies outside any folder that could be given")
    for place in places:
        if location(place / plain).info().exists:
            return place / plain
        if location(place).info().exists and place.absolute().parts[-len(plain.parts) :] == plain.parts:
            return place
    return None
