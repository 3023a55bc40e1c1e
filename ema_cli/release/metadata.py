"""Compare side files and manifest of an average with those that averaging again would write.

Everything is compared, whatever the average says of itself. Only words of our own, which another version may choose
otherwise, are not compared where the average names another version, and are listed as such. No numpy.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from ema_cli._version import __version__
from ema_cli.manifest.types import Manifest, TensorRow
from ema_cli.planning.advice import non_finite_warnings
from ema_cli.release.snapshot import Snapshot
from ema_cli.runs.warnings import Remarks
from ema_cli.storage.location import location
from ema_cli.storage.replicas import BUFFERS_DIFFER
from ema_cli.storage.source import InputFile
from ema_cli.writing.card import CARD_NAME
from ema_cli.writing.outputs import Output

_STEP = 1 << 20
_MOST_CHARS = 80  # of a value in a problem
# They depend on the machine, are compared in another way, or cannot be: nobody repeats the evaluation of `tune`.
_NOT_COMPARED = ("libraries", "tool", "outputs", "tune", "watch", "warnings", "notes")
_NOT_SAMPLED = ("checksum",)


def is_of_this_version(manifest: Manifest) -> bool:
    """Return whether this version of ema-cli made the average, so that it would write the same text."""
    version: object = manifest["tool"]["version"]
    return version == __version__


def own_words(manifest: Manifest, output: Output) -> tuple[str, ...]:
    """Return what is not compared, in words: what another version of ema-cli may say otherwise."""
    if is_of_this_version(manifest):
        return ()
    return (*(name for name in output.texts if name == CARD_NAME), "warnings, notes and descriptions in the manifest")


def compare_remarks(
    manifest: Manifest, path: Path, least: Remarks, around: Remarks | None, *, sample: bool
) -> tuple[list[str], tuple[str, ...]]:
    """Compare the warnings and notes of a manifest with those that the checkpoints give.

    Return a problem for each that is missing; and, in words, those that are not compared: what lay around the
    checkpoints when they were averaged, and does not lie there now, can have given others.

    Args:
        manifest: the manifest of the published average.
        path: its path, for the problems.
        least: what the checkpoints give that entered.
        around: what they give with all that lies around them now; None where no run holds them.
        sample: whether only a part of each tensor was averaged again: then not all non-finite values are known, nor all
            buffers that differ between ranks.
    """
    if not is_of_this_version(manifest):
        return [], ()
    problems, not_compared = [], []
    for kind, ours, theirs, whole in (
        ("warnings", tuple(manifest["warnings"]), least.warnings, (around or least).warnings),
        ("notes", tuple(manifest.get("notes", ())), least.notes, (around or least).notes),
    ):
        if sample:
            unknown = non_finite_warnings([row["name"] for row in manifest["tensors"] if row["non_finite"]])
            ours, theirs, whole = (_without_texts(texts, unknown) for texts in (ours, theirs, whole))
            ours = tuple(text for text in ours if BUFFERS_DIFFER not in text or text in whole)
        missing = [text for text in theirs if text not in ours]
        problems += [f"{path}: does not say in its {kind} what the checkpoints give: {_text(text)}" for text in missing]
        if not missing and ours != whole:
            not_compared.append(f"{kind} of what lay around the checkpoints")
    return problems, tuple(not_compared)


def _without_texts(texts: Sequence[str], left_out: Collection[str]) -> tuple[str, ...]:
    return tuple(text for text in texts if text not in left_out)


def side_file_differences(snapshot: Snapshot, output: Output, left_out: Collection[str]) -> list[str]:
    """Return a problem for each side file that is not the one that the newest checkpoint gives.

    Args:
        snapshot: the published average.
        output: the output that averaging again would write.
        left_out: names of files whose content is not compared.
    """
    folder = snapshot.published.folder
    wanted: dict[str, bytes | InputFile] = {**output.copies, **output.texts}
    known = {*wanted, *(file.name for file in output.files)}
    more = sorted(name for name in snapshot.outputs if name not in known)
    problems = [f"{folder / name}: is nothing that the newest checkpoint gives" for name in more]
    for name, content in sorted(wanted.items()):
        path = folder / name
        if not location(path).info().exists:
            problems.append(f"{path}: is missing, but the newest checkpoint gives it")
        elif name not in left_out and not _has_content(location(path).open(), content):
            problems.append(f"{path}: is not what the newest checkpoint gives")
    return problems


def _has_content(file: InputFile, content: bytes | InputFile) -> bool:
    if isinstance(content, bytes):
        return file.size == len(content) and file.read(0, file.size) == content
    steps = range(0, file.size, _STEP)
    return file.size == content.size and all(
        file.read(at, min(_STEP, file.size - at)) == content.read(at, min(_STEP, file.size - at)) for at in steps
    )


def manifest_differences(
    manifest: Manifest, path: Path, again: Manifest, tensors: Iterable[TensorRow], *, sample: bool
) -> list[str]:
    """Return a problem for each difference between a manifest and the one that averaging again gives.

    Args:
        manifest: the manifest of the published average.
        path: its path, for the problems.
        again: the manifest of the repeated average, without its tensors.
        tensors: the tensors of the repeated average.
        sample: whether only a part of each tensor was averaged again. Then neither the checksums of all bytes read nor
            all non-finite values are known, and these are not compared.
    """
    left_out = (*_NOT_COMPARED, "tensors", *(_NOT_SAMPLED if sample else ()))
    without_words = not is_of_this_version(manifest)
    recorded = {name: value for name, value in manifest.items() if name not in left_out}
    made = {name: value for name, value in again.items() if name not in left_out}
    if sample:
        recorded["inputs"] = [
            {key: value for key, value in row.items() if key != "blocks"} for row in manifest["inputs"]
        ]
    # A manifest of an older version lacks what was not yet an option: it was repeated without that.
    made["recipe"] = {key: value for key, value in again["recipe"].items() if key in manifest["recipe"]}
    if without_words:
        recorded, made = _without_words(recorded), _without_words(made)
    pairs = ((recorded[name], made.get(name), name) for name in sorted(recorded))
    rows = {row["name"]: row for row in manifest["tensors"]}
    by_name = ((rows.get(row["name"]), _as_sampled(row, rows) if sample else row) for row in tensors)
    of_tensors = (
        (_without(row, "why"), _without(new, "why"), f"tensors '{new['name']}'")
        if without_words
        else (row, new, f"tensors '{new['name']}'")
        for row, new in by_name
        if row is not None
    )
    problems = []
    for ours, theirs, where in chain(pairs, of_tensors):
        difference = _first_difference(ours, theirs, where)
        if difference is not None:
            where, ours, theirs = difference
            problems.append(f"{path}: says {where} {_text(ours)}, but the checkpoints give {_text(theirs)}")
    return problems


def _without_words(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest without what another version may word otherwise; see `own_words`."""
    plain = dict(manifest)
    plain["fingerprint"] = _without(manifest["fingerprint"], "what")
    if plain.get("checksum") is not None:
        plain["checksum"] = _without(manifest["checksum"], "what")
    plain["inputs"] = [
        {
            **_without(row, "format", "trainer"),
            "clocks": {unit: _without(clock, "from") for unit, clock in row["clocks"].items()},
        }
        for row in manifest["inputs"]
    ]
    return plain


def _without(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


def _as_sampled(row: TensorRow, rows: Mapping[str, TensorRow]) -> TensorRow:
    known = rows.get(row["name"])
    return {**row, "non_finite": row["non_finite"] or (known is not None and known["non_finite"])}


def _first_difference(ours: Any, theirs: Any, where: str) -> tuple[str, Any, Any] | None:
    """Return the innermost first place at which two values differ, and its two values; None if they are equal."""
    if ours == theirs:
        return None
    inner: Iterable[tuple[Any, Any, str]] = ()
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        inner = ((ours.get(key), theirs.get(key), f"{where}.{key}") for key in sorted(ours.keys() | theirs.keys()))
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        inner = (
            (one, other, f"{where}[{number}]") for number, (one, other) in enumerate(zip(ours, theirs, strict=True))
        )
    differences = (_first_difference(*pair) for pair in inner)
    return next((difference for difference in differences if difference is not None), (where, ours, theirs))


def _text(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= _MOST_CHARS else f"{text[: _MOST_CHARS - 3]}..."
