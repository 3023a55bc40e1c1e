"""The checksums of an average, and the names of the files next to it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ema_cli.errors import CheckpointError
from ema_cli.formats.mark import FILE_SUFFIX, FOLDER_NAME, SIGNATURE_SUFFIX, SUMS_NAME, SUMS_SUFFIX
from ema_cli.manifest.signature import read_signature, signature_path
from ema_cli.manifest.types import OutputRow
from ema_cli.storage.location import location
from ema_cli.text import lazy_pattern

_MAX_SUMS_BYTES = 1 << 20  # next to one file; a longer checksum file is not ours
MAX_SUMS_BYTES = 16 << 20  # of a folder: a hundred thousand files
_STEP = 1 << 20
_TOOL = b'\n "tool": {\n  "name": "ema-cli",'
_SUM_LINE = lazy_pattern(r"(\\?)([0-9a-f]{64}) [ *](.+)")
_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}


def manifest_path(path: Path, *, is_folder: bool) -> Path:
    """Return the path of the manifest of the average at `path`."""
    return path / FOLDER_NAME if is_folder else path.with_name(path.name + FILE_SUFFIX)


def sums_path(path: Path, *, is_folder: bool) -> Path:
    """Return the path of the checksums of the average at `path`."""
    return path / SUMS_NAME if is_folder else path.with_name(path.name + SUMS_SUFFIX)


def sidecars(path: Path) -> tuple[Path, Path]:
    """Return the paths of the manifest and the checksums of the single file at `path`."""
    return manifest_path(path, is_folder=False), sums_path(path, is_folder=False)


def are_there(folder: Path, rows: Iterable[OutputRow], *, thorough: bool) -> bool:
    """Return whether the files that a manifest lists are there with their sizes, and if `thorough` their sums."""
    try:
        for row in rows:
            file = location(folder / row["name"]).open()
            if file.size != row["bytes"]:
                return False
            if thorough:
                sha256 = hashlib.sha256()
                for at in range(0, file.size, _STEP):
                    sha256.update(file.read(at, min(_STEP, file.size - at)))
                if sha256.hexdigest() != row["sha256"]:
                    return False
    except CheckpointError:
        return False
    return True


def files_beside(path: Path) -> tuple[Path, ...]:
    """Return the paths of all that may belong to the single file at `path`: its sidecars, and their signature."""
    return *sidecars(path), signature_path(path, is_folder=False)


def is_own_sidecar(path: Path, name: str) -> bool:
    """Return whether ema-cli wrote the file at `path`, next to one called `name`: a manifest, checksums or a signature.

    Checksums or a signature of that file alone are not ours: anyone may have made them. No manifest is read whole.

    Raises:
        CheckpointError: if it cannot be read.
    """
    if not location(path).info(follow=False).is_file:
        return False
    file = location(path).open()
    if path.name.endswith((SUMS_SUFFIX, SIGNATURE_SUFFIX)):
        try:
            if path.name.endswith(SIGNATURE_SUFFIX):
                return {name, name + FILE_SUFFIX, name + SUMS_SUFFIX} == set(read_signature(path).sums)
            text = file.read(0, min(file.size, _MAX_SUMS_BYTES))
            return set(parse_sums(text, str(path))) == {name, name + FILE_SUFFIX}
        except CheckpointError:
            return False
    # A manifest names its tool near its end, so the search goes backwards.
    for begin in range(file.size - _STEP, -_STEP, -_STEP):
        begin, end = max(begin, 0), min(begin + _STEP + len(_TOOL), file.size)
        if _TOOL in file.read(begin, end - begin):
            return file.read(file.size - 3, 3) == b"\n}\n"
    return False


def sums_text(sums: Mapping[str, str]) -> bytes:
    """Return the text of checksums by name, in the form of `sha256sum`: a line with escapes begins with a backslash."""
    lines = []
    for name, sha256 in sorted(sums.items()):
        escaped = "".join(_ESCAPES.get(char, char) for char in name)
        lines.append(f"{'' if escaped == name else chr(92)}{sha256}  {escaped}\n")
    return "".join(lines).encode(errors="surrogateescape")


def parse_sums(text: bytes, subject: str) -> dict[str, str]:
    """Return the sha256 of each name in a text that `sha256sum -c` reads.

    Raises:
        CheckpointError: naming the `subject`, if it is no such text.
    """
    sums: dict[str, str] = {}
    for number, line in enumerate(_lines(text.decode(errors="surrogateescape")), 1):
        match = _SUM_LINE.fullmatch(line)
        name = match[3] if match else ""
        if match and match[1]:
            name = re.sub(r"\\([\\nr])", lambda escape: {"\\": "\\", "n": "\n", "r": "\r"}[escape[1]], name)
        if match is None or name in sums:
            raise CheckpointError(f"line {number} is no sum of a file of its own", subject=subject)
        sums[name] = match[2]
    return sums


def _lines(text: str) -> Iterator[str]:
    """Yield the lines of a text one by one, as millions of them would take much memory."""
    begin = 0
    while begin < len(text):
        end = text.find("\n", begin)  # not splitlines(): other characters end lines there, too
        end = len(text) if end < 0 else end
        yield text[begin:end]
        begin = end + 1
