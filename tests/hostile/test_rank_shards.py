"""Files in which ranks saved pieces of tensors: offsets that lie, pieces without end, files that are none."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.formats.pieces.make import OWN
from tests.hostile.conftest import Case, Harness, Kind, parameters
from tests.hostile.make import ESCAPES, SHOWN, data, entry, safetensors

FIRST, OTHER = OWN.format(1, 1, 1), OWN.format(2, 1, 1)
WHERE = ({"w": [0, 0], "b": [0]}, {"w": [1, 0], "b": [2]})
HEADERS = (
    {"w": entry(0, 12, (1, 3)), "b": entry(12, 20, (2,))},
    {"w": entry(0, 12, (1, 3)), "b": entry(12, 16, (1,))},
)
KEY = "DCP_SHARDING_INFO"


class Ranks:
    """A folder to be written: what each of two ranks saved."""

    def __init__(self, step: int = 3) -> None:
        self.headers = [dict(header) for header in HEADERS]
        self.where: list[dict[str, object]] = [dict(where) for where in WHERE]
        self.texts: list[str | None] = [None, None]
        w, b = (data(step)[key] for key in "01")
        self.contents = [w[:12] + b[:8], w[12:] + b[8:]]

    def write(self, path: Path) -> None:
        """Write the files."""
        path.mkdir()
        for number, name in enumerate((FIRST, OTHER)):
            text = self.texts[number]
            if text is None:
                text = json.dumps({tensor: {"saved_offsets": at} for tensor, at in self.where[number].items()})
            header = {"__metadata__": {KEY: text}, **self.headers[number]}
            (path / name).write_bytes(safetensors(header, self.contents[number]))


KIND = Kind("step-{}", lambda path, step: Ranks(step).write(path))


def folder(label: str, change: Callable[[Ranks], object], says: str = "", tensor: str | None = None,
           **more: object) -> Case:  # fmt: skip
    """Return a case of files that were changed before they were written."""

    def write(path: Path, _canary: Path) -> None:
        made = Ranks()
        change(made)
        made.write(path)

    return Case(write, says, tensor, label=label, **more)  # type: ignore[arg-type]


def after(label: str, change: Callable[[Path], object], says: str, **more: object) -> Case:
    """Return a case of good files that were changed."""

    def write(path: Path, _canary: Path) -> None:
        Ranks().write(path)
        change(path)

    return Case(write, says, label=label, **more)  # type: ignore[arg-type]


def in_place(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Return a change that puts something else in the place of the second file."""

    def change(path: Path) -> None:
        (path / OTHER).unlink()
        make(path / OTHER)

    return change


def at(offsets: object) -> Callable[[Ranks], object]:
    """Return a change of where the second rank's half of w begins."""
    return lambda made: made.where[1].update(w=offsets)


def says_in(text: str) -> Callable[[Ranks], object]:
    """Return a change of what the second file says of offsets."""
    return lambda made: made.texts.__setitem__(1, text)


def empty(shape: tuple[int, ...], offsets: list[int], name: str = "x") -> Callable[[Ranks], object]:
    """Return a change that adds a piece without elements."""

    def change(made: Ranks) -> None:
        made.headers[1][name] = entry(16, 16, shape)
        made.where[1][name] = offsets

    return change


def many_files(path: Path) -> None:
    """Add 4,000 ranks, each with one element of a tensor, in no grid."""
    for rank in range(4000):
        offsets = [rank, 1] if rank % 3 else [rank, 0]
        header = {"__metadata__": {KEY: json.dumps({"x": {"saved_offsets": offsets}})}, "x": entry(0, 4, (1, 1))}
        (path / f"shard-{rank + 3:05}-model-00001-of-00001.safetensors").write_bytes(safetensors(header, bytes(4)))


def many_names(made: Ranks) -> None:
    """Name more tensors than any model has, over the two files."""
    for rank in (0, 1):
        end = len(made.contents[rank])
        made.headers[rank] |= {f"{rank}{each}": entry(end, end, (0,)) for each in range(270_000)}
        made.where[rank] |= {f"{rank}{each}": [0] for each in range(270_000)}


NOWHERE = "does not say where the piece of 'w' begins"
INVALID = f"its '{KEY}' is not valid"
CASES = [
    folder("offsets below 0", at([1, -1]), NOWHERE, "w", file=OTHER),
    *(folder(f"offsets of {label}", at(offsets), NOWHERE, "w", file=OTHER, full=True) for label, offsets in {
        "one number": 1, "text": "10", "too few": [1], "too many": [1, 0, 0], "fractions": [1, 0.5],
        "2^70": [1 << 70, 0], "true": [True, 0], "null": None, "lists": [[1], [0]],
    }.items()),
    folder("offsets of 2^61", at([1 << 61, 0]), "more elements than any file holds", "w"),
    folder("offsets of 2^40", at([1 << 40, 0]), "hold 6 of its", "w", passed=True),
    folder("both at one place", at([0, 0]), "do not cover it exactly once", "w", full=True),
    folder("beside each other", at([0, 3]), "", code=4, inspects=0),
    folder("a hole", at([2, 0]), "hold 6 of its 9 elements", "w", passed=True),
    folder("no word of one", lambda made: made.where[1].pop("w"), NOWHERE, "w", file=OTHER, full=True),
    folder("a word of one more", lambda made: made.where[1].update(x=[9]), code=0),
    folder("another type", lambda made: made.headers[1].update(b=entry(12, 16, (1,), "I32")), "its piece of 'b' is I32",
        "b", file=OTHER),
    folder("another number of dimensions", lambda made: (made.headers[1].update(b=entry(12, 16, (1, 1))),
        made.where[1].update(b=[2, 0])), "its piece of 'b' is F32 [1, 1]", "b", file=OTHER),
    folder("nothing, far away", empty((0, 3), [1 << 40, 0]), "hold 0 of its", "x", passed=True),
    folder("nothing, further", empty((0, 3), [1 << 61, 0]), "more elements than any file holds", "x"),
    folder("no JSON", says_in("{"), INVALID, file=OTHER, full=True),
    folder("a list", says_in("[]"), NOWHERE, file=OTHER, full=True),
    folder("nested a million deep", says_in("[" * 1_000_000), INVALID, file=OTHER),
    folder("a number of 5000 digits", says_in('{"w":' + "9" * 5000 + "}"), INVALID, file=OTHER, full=True),
    folder("nine million values", says_in('{"w":[' + "1," * 9_000_000 + "1]}"), "more than 8000000 values", file=OTHER,
        full=True),
    folder("a key that stands twice", says_in('{"w":{"saved_offsets":[1,0]},"w":{}}'), "stands twice", file=OTHER,
        full=True),
    folder("a name that steers", empty((0,), [0], ESCAPES), SHOWN, code=4, inspects=0),
    folder("more names than any model has", many_names, "at most", seconds=60, full=True),
    after("one of another save",
        lambda path: (path / OTHER).write_bytes(safetensors({"w": entry(0, 24, (2, 3))})[:-12]),
        "do not cover it exactly once", tensor="w"),
    after("thousands of pieces in no grid", many_files, "'x'", passed=True, seconds=60, full=True),
    after("the first rank's is missing", lambda path: (path / FIRST).unlink(), "no file of rank 1", passed=True),
    after("a byte lost", lambda path: os.truncate(path / OTHER, (path / OTHER).stat().st_size - 1), "cut short",
        file=OTHER, passed=True),
    after("a FIFO", in_place(os.mkfifo), "not a regular file", file=OTHER),
    after("a device", in_place(lambda path: path.symlink_to("/dev/zero")), "not a regular file", file=OTHER),
    after("a folder for a file", in_place(Path.mkdir), "not a regular file", file=OTHER),
    after("shards without end", lambda path: (path / "shard-00003-model-00001-of-99999.safetensors").write_bytes(
        safetensors({}, b"")), "holds no shard 2 of 99999", passed=True),
]  # fmt: skip


@pytest.mark.parametrize("case", parameters(CASES))
def test_hostile_pieces(case: Case, harness: Harness) -> None:
    """Pieces cover each tensor exactly once, or are one clear error, in bounded time and memory."""
    harness.check(KIND, case)
