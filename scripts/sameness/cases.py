"""The command lines: paragraphs of text files. The lines of one run one after the other, in a new folder of its own.

A line is a command line of ema-cli, perhaps with variables before it; or it prepares what follows:

    copy FROM TO          a file or a folder, links as links
    rename FROM TO
    remove PATH           a file or a folder
    mkdir PATH
    link TARGET PATH
    write PATH TEXT       a new file
    append PATH TEXT
    replace PATH OLD NEW  in a file, everywhere
    flip PATH AT          all bits of one byte; AT below 0 counts from the end
    cut PATH COUNT        so many bytes from the end of a file

`in/` is where the inputs lie. A variable without a value is left out of the environment.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "cases"
PROGRAM = "ema-cli"
_VARIABLE = re.compile(r"([A-Z0-9_]+)=(.*)", re.DOTALL)


@dataclass(frozen=True)
class Step:
    """One line: the words of a command, and the variables that stand before it."""

    line: str
    words: tuple[str, ...]
    variables: dict[str, str]

    @property
    def is_program(self) -> bool:
        """Return whether it runs ema-cli."""
        return self.words[0] == PROGRAM


@dataclass(frozen=True)
class Case:
    """Lines that run one after the other in one folder."""

    group: str
    steps: tuple[Step, ...]

    @property
    def name(self) -> str:
        """Return what tells it from all others: its lines."""
        return f"{self.group}: " + "; ".join(step.line for step in self.steps)


def read_cases() -> list[Case]:
    """Return all cases, in order."""
    found = [case for path in sorted(FOLDER.glob("*.txt")) for case in _parse(path)]
    names = [case.name for case in found]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise SystemExit(f"a case stands twice: {twice[0]}")
    return found


def choose_cases(only: str, part: str) -> tuple[list[Case], bool]:
    """Return the cases with a text in a line, or of those a part such as 2/3; and whether that is all there are."""
    number, _, parts = part.partition("/")
    if not (number.isdigit() and parts.isdigit() and 0 < int(number) <= int(parts)):
        raise SystemExit(f"--part: '{part}' is no part, such as 2/3")
    cases = read_cases()
    chosen = [case for case in cases if any(only in step.line for step in case.steps)]
    chosen = chosen[int(number) - 1 :: int(parts)]
    return chosen, len(chosen) == len(cases)


def _parse(path: Path) -> Iterator[Case]:
    """Yield the paragraphs of a file; lines that begin with # are for who reads it."""
    for paragraph in re.split(r"\n\s*\n", path.read_text()):
        lines = [line.strip() for line in paragraph.splitlines()]
        steps = tuple(_step(line) for line in lines if line and not line.startswith("#"))
        if steps:
            yield Case(path.stem, steps)


def _step(line: str) -> Step:
    words = shlex.split(line)
    variables: dict[str, str] = {}
    while words and (match := _VARIABLE.fullmatch(words[0])):
        variables[match[1]] = match[2]
        words.pop(0)
    if not words or (words[0] != PROGRAM and words[0] not in VERBS):
        raise SystemExit(f"no such command in the cases: {line}")
    return Step(line, tuple(words), variables)


def prepare(step: Step, folder: Path) -> None:
    """Do in the folder what a line says that is none of ema-cli."""
    VERBS[step.words[0]](folder, *step.words[1:])


def _copy(folder: Path, source: str, target: str) -> None:
    if (folder / source).is_dir():
        shutil.copytree(folder / source, folder / target, symlinks=True)
    else:
        shutil.copyfile(folder / source, folder / target)


def _remove(folder: Path, name: str) -> None:
    path = folder / name
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _change(folder: Path, name: str, change: Callable[[bytearray], bytes]) -> None:
    path = folder / name
    before = path.read_bytes()
    after = change(bytearray(before))
    if after == before:
        raise ValueError(f"{name}: is not changed, as a case wants it to be")
    path.write_bytes(after)


def _flip(folder: Path, name: str, at: str) -> None:
    def flip(content: bytearray) -> bytes:
        content[int(at)] ^= 0xFF
        return bytes(content)

    _change(folder, name, flip)


def _write(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


VERBS: dict[str, Callable[..., object]] = {
    "copy": _copy,
    "rename": lambda folder, source, target: (folder / source).rename(folder / target),
    "remove": _remove,
    "mkdir": lambda folder, name: (folder / name).mkdir(parents=True),
    "link": lambda folder, target, name: (folder / name).symlink_to(target),
    "write": _write,
    "append": lambda folder, name, text: _change(folder, name, lambda content: bytes(content) + text.encode()),
    "replace": lambda folder, name, old, new: _change(
        folder, name, lambda content: bytes(content).replace(old.encode(), new.encode())
    ),
    "flip": _flip,
    "cut": lambda folder, name, count: _change(folder, name, lambda content: bytes(content[: -int(count)])),
}
