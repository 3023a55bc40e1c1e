"""Compare headers, side files and manifest of an average with what averaging its checkpoints again would write.

Another version of ema-cli may write other text: of an average by another version only the copied files are compared.
No numpy.
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
_MOST_TOLD = 80  # characters of a value
_OF_THE_MACHINE = ("libraries", "tool", "outputs")  # or compared in another way
_NOT_SAMPLED = ("checksum", "warnings")


def is_of_this_version(manifest: Manifest) -> bool:
    """Return whether this version of ema-cli made the average, and so would write the very same."""
    version: object = manifest["tool"]["version"]
    return version == __version__


def frame_differences(files: Mapping[Path, InputFile], output: Output, folder: Path, *, sample: bool) -> list[str]:
    """Return which files of weights in a folder, all with the right tensors, have something else around these.

    With `sample` only what is before them is looked at: a file of torch's has checksums of all of them.
    """
    problems = []
    for file in output.files:
        held = _Held(files[folder / file.name])
        held.write(0, file.header)
        if not sample and not held.different:
            file.finish(held)
        if held.different or file.size != held.file.size:
            where = f"from byte {held.different[0]} on" if held.different else "at its end"
            fact = "holds the tensors that the checkpoints give, but something else around them"
            problems.append(f"{held.path}: {fact}, {where}")
    return problems


@dataclass(slots=True)
class _Held:
    """A file that is there, as one that is written: where it holds something `different`, that is noted."""

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
    """Return which files beside the weights are not those that the newest checkpoint gives."""
    wanted: dict[str, bytes | InputFile] = dict(output.copies)
    problems = []
    if is_of_this_version(manifest):
        wanted.update(output.texts)
        known = {*wanted, *(file.name for file in output.files)}
        more = sorted(each["name"] for each in manifest["outputs"] if each["name"] not in known)
        problems += [f"{published.folder / name}: is nothing that the newest checkpoint gives" for name in more]
    for name, content in sorted(wanted.items()):
        path = published.folder / name
        if not location(path).info().exists:
            problems.append(f"{path}: is missing, but the newest checkpoint gives it")
        elif not _same(location(path).open(), content):
            problems.append(f"{path}: is not what the newest checkpoint gives")
    return problems


def _same(file: InputFile, content: bytes | InputFile) -> bool:
    if isinstance(content, bytes):
        return file.size == len(content) and file.read(0, file.size) == content
    steps = range(0, file.size, _STEP)
    return file.size == content.size and all(
        file.read(at, min(_STEP, file.size - at)) == content.read(at, min(_STEP, file.size - at)) for at in steps
    )


def manifest_differences(
    manifest: Manifest, path: Path, again: Manifest, tensors: Iterable[TensorRow], *, sample: bool
) -> list[str]:
    """Return what the manifest at `path` says otherwise than the one that is made `again`, with its `tensors`.

    With `sample` neither the sums of all that was read, nor all values that are not finite, are known again.
    """
    left_out = (*_OF_THE_MACHINE, "tensors", *(_NOT_SAMPLED if sample else ()))
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
    """Return the innermost place at which two values differ first, with what is there; None if they are equal."""
    if ours == theirs:
        return None
    inner: Iterable[tuple[Any, Any, str]] = ()
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        inner = ((ours.get(key), theirs.get(key), f"{where}.{key}") for key in sorted(ours.keys() | theirs.keys()))
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        inner = (
            (one, other, f"{where}[{number}]") for number, (one, other) in enumerate(zip(ours, theirs, strict=True))
        )
    found = (_first_difference(*each) for each in inner)
    return next((each for each in found if each is not None), (where, ours, theirs))


def _text(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= _MOST_TOLD else f"{text[: _MOST_TOLD - 3]}..."
