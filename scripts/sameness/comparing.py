"""Compare what two programs gave, and print each difference."""

from __future__ import annotations

import json
from collections.abc import Iterator
from difflib import unified_diff
from pathlib import Path
from typing import Any

Steps = list[dict[str, Any]]


def compare_files(before: Path, after: Path) -> int:
    """Print what differs between two files of results; return 1 if anything does."""
    one, other = json.loads(before.read_text()), json.loads(after.read_text())
    found = 0
    if one["inputs"] != other["inputs"]:
        print(f"the inputs are not the same: {one['inputs'][:12]}..., and {other['inputs'][:12]}...")
        found += 1
    alone = sorted(one["cases"].keys() ^ other["cases"].keys())
    if one["whole"] and other["whole"]:
        found += len(alone)
        print("".join(f"only in {before if name in one['cases'] else after}: {name}\n" for name in alone), end="")
    elif alone:
        print(f"{len(alone)} cases are not compared: they are in one of the two alone, and not all were to be run")
    shared = [name for name in one["cases"] if name in other["cases"]]
    for name in shared:
        lines = list(differences(one["cases"][name], other["cases"][name]))
        if lines:
            print("\n".join([f"==== {name}", *lines, ""]))
            found += 1
    commands = sum("exit" in step for name in shared for step in one["cases"][name])
    print(f"{len(shared)} cases, {commands} commands: {f'{found} differ' if found else 'all are the same'}")
    return 1 if found else 0


def differences(one: Steps, other: Steps) -> Iterator[str]:
    """Yield what differs in one case."""
    for before, after in zip(one, other, strict=True):
        lines = [*_texts(before, after), *_files(before.get("files", {}), after.get("files", {}))]
        if lines:
            yield f"-- {before['line']}"
            yield from lines


def _texts(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """Yield another exit code, and unified diffs of the texts."""
    if before.get("exit") != after.get("exit"):
        yield f"exit: {before.get('exit')}, then {after.get('exit')}"
    if before.get("problem") != after.get("problem"):
        yield f"problem: {before.get('problem')}, then {after.get('problem')}"
    for name in ("stdout", "stderr"):
        texts = [_lines(each.get(name, "")) for each in (before, after)]
        lines = list(unified_diff(*texts, f"{name} before", f"{name} after", lineterm=""))
        if not lines and any(before.get(key) != after.get(key) for key in (name, f"{name}_sha256")):
            lines = [f"{name}: differs, but not in its lines"]
        yield from lines


def _lines(text: str) -> list[str]:
    """Return the lines of a text, those of JSON with a line for each value."""
    try:
        return json.dumps(json.loads(text), indent=1).splitlines()
    except ValueError:
        return text.splitlines()


def _files(before: dict[str, str], after: dict[str, str]) -> Iterator[str]:
    """Yield each file that is not the same."""
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            yield f"file {name}: {before.get(name, 'not written')}, then {after.get(name, 'not written')}"
