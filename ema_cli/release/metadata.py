"""Compare headers, side files and manifest of an average with those that averaging again would write.

Another version of ema-cli may write other text: if another version made the average, only the copied files are
compared. No numpy.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from ema_cli._version import __version__
from ema_cli.manifest.types import Manifest, TensorRow
from ema_cli.release.published import Published
from ema_cli.storage.location import location
from ema_cli.storage.source import InputFile
from ema_cli.writing.outputs import Output

_STEP = 1 << 20
_MOST_CHARS = 80  # of a value in a problem
_NOT_COMPARED = ("libraries", "tool", "outputs")  # they depend on the machine, or are compared in another way
_NOT_SAMPLED = ("checksum", "warnings")


def is_of_this_version(manifest: Manifest) -> bool:
    """Return whether this version of ema-cli made the average, so that it would write the same text."""
    version: object = manifest["tool"]["version"]
    return version == __version__


def frame_differences(files: Mapping[Path, InputFile], output: Output, folder: Path, *, sample: bool) -> list[str]:
    """Return a problem for each tensor file whose bytes around the tensors differ from the expected ones.

    The tensors themselves must have been compared before.

    Args:
        files: the published files, opened, by path.
        output: the output that averaging again would write.
        folder: the folder of the published files.
        sample: compare only the bytes before the tensors: a torch file ends with checksums of all tensors.
    """
    problems = []
    for file in output.files:
        sink = _ComparingSink(files[folder / file.name])
        sink.write(0, file.header)
        if not sample and not sink.different:
            file.finish(sink)
        if sink.different or file.size != sink.file.size:
            where = f"from byte {sink.different[0]} on" if sink.different else "at its end"
            fact = "holds the tensors that the checkpoints give, but something else around them"
            problems.append(f"{sink.path}: {fact}, {where}")
    return problems


@dataclass(slots=True)
class _ComparingSink:
    """An output that compares instead of writing: `different` lists the offsets at which the file has other bytes."""

    file: InputFile
    path: Path = field(init=False)
    different: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.path = self.file.path

    def read(self, offset: int, size: int) -> bytes:
        return self.file.read(offset, max(0, min(size, self.file.size - offset)))

    def write(self, offset: int, data: bytes | memoryview) -> None:
        if self.read(offset, len(data)) != data:
            self.different.append(offset)


def side_file_differences(manifest: Manifest, output: Output, published: Published) -> list[str]:
    """Return a problem for each side file that is not the one that the newest checkpoint gives."""
    wanted: dict[str, bytes | InputFile] = dict(output.copies)
    problems = []
    if is_of_this_version(manifest):
        wanted.update(output.texts)
        known = {*wanted, *(file.name for file in output.files)}
        more = sorted(row["name"] for row in manifest["outputs"] if row["name"] not in known)
        problems += [f"{published.folder / name}: is nothing that the newest checkpoint gives" for name in more]
    for name, content in sorted(wanted.items()):
        path = published.folder / name
        if not location(path).info().exists:
            problems.append(f"{path}: is missing, but the newest checkpoint gives it")
        elif not _has_content(location(path).open(), content):
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
    recorded = {name: value for name, value in manifest.items() if name not in left_out}
    made = {name: value for name, value in again.items() if name not in left_out}
    if sample:
        recorded["inputs"] = [
            {key: value for key, value in row.items() if key != "blocks"} for row in manifest["inputs"]
        ]
    pairs = ((recorded[name], made.get(name), name) for name in sorted(recorded))
    rows = {row["name"]: row for row in manifest["tensors"]}
    by_name = ((rows.get(row["name"]), _as_sampled(row, rows) if sample else row) for row in tensors)
    of_tensors = ((row, new, f"tensors '{new['name']}'") for row, new in by_name if row is not None)
    problems = []
    for ours, theirs, where in chain(pairs, of_tensors):
        difference = _first_difference(ours, theirs, where)
        if difference is not None:
            where, ours, theirs = difference
            problems.append(f"{path}: says {where} {_text(ours)}, but the checkpoints give {_text(theirs)}")
    return problems


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
