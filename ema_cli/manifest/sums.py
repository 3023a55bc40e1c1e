"""The sums of an average, and the names of what lies beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ema_cli.errors import CheckpointError
from ema_cli.storage.location import location

FOLDER_NAME = "ema-manifest.json"
SUMS_NAME = "SHA256SUMS"
FILE_SUFFIX = ".manifest.json"
SUMS_SUFFIX = ".sha256"
_MAX_SUMS_BYTES = 1 << 20  # beside one file; longer ones are somebody else's
_STEP = 1 << 20
_TOOL = b'\n "tool": {\n  "name": "ema-cli",'
_SUM_LINE = re.compile(r"(\\?)([0-9a-f]{64}) [ *](.+)")
_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}


def manifest_path(path: Path, *, is_folder: bool) -> Path:
    """Return where the manifest of the average at `path` lies."""
    return path / FOLDER_NAME if is_folder else path.with_name(path.name + FILE_SUFFIX)


def sums_path(path: Path, *, is_folder: bool) -> Path:
    """Return where the sums of the average at `path` lie."""
    return path / SUMS_NAME if is_folder else path.with_name(path.name + SUMS_SUFFIX)


def sidecars(path: Path) -> tuple[Path, Path]:
    """Return where the manifest and the sums of the single file at `path` lie."""
    return manifest_path(path, is_folder=False), sums_path(path, is_folder=False)


def is_own_sidecar(path: Path, name: str) -> bool:
    """Return whether what lies at `path`, beside a file called `name`, is a manifest or sums as ema-cli writes them.

    Sums of that file alone are not: anybody may have made those, to compare with. No manifest is read whole.

    Raises:
        CheckpointError: where it cannot be read.
    """
    if not location(path).info(follow=False).is_file:
        return False
    file = location(path).open()
    if path.name.endswith(SUMS_SUFFIX):
        text = file.read(0, min(file.size, _MAX_SUMS_BYTES))
        try:
            return set(parse_sums(text, str(path))) == {name, name + FILE_SUFFIX}
        except CheckpointError:
            return False
    # Near the end it tells whose it is.
    for begin in range(file.size - _STEP, -_STEP, -_STEP):
        begin, end = max(begin, 0), min(begin + _STEP + len(_TOOL), file.size)
        if _TOOL in file.read(begin, end - begin):
            return file.read(file.size - 3, 3) == b"\n}\n"
    return False


def sums_text(sums: Mapping[str, str]) -> bytes:
    """Return the text of sums, by name, as `sha256sum` writes them: odd names escaped, with a backslash before."""
    lines = []
    for name, sha256 in sorted(sums.items()):
        escaped = "".join(_ESCAPES.get(char, char) for char in name)
        lines.append(f"{'' if escaped == name else chr(92)}{sha256}  {escaped}\n")
    return "".join(lines).encode(errors="surrogateescape")


def parse_sums(text: bytes, subject: str) -> dict[str, str]:
    """Return the sha256 of each name in a text that `sha256sum -c` reads.

    Raises:
        CheckpointError: naming the `subject`, where it is none.
    """
    found: dict[str, str] = {}
    lines = text.decode(errors="surrogateescape").split("\n")  # not splitlines(): other characters end lines there, too
    for number, line in enumerate(lines if lines[-1] else lines[:-1], 1):
        match = _SUM_LINE.fullmatch(line)
        name = match[3] if match else ""
        if match and match[1]:
            name = re.sub(r"\\([\\nr])", lambda each: {"\\": "\\", "n": "\n", "r": "\r"}[each[1]], name)
        if match is None or name in found:
            raise CheckpointError(f"line {number} is no sum of a file of its own", subject=subject)
        found[name] = match[2]
    return found
