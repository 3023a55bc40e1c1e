"""Objects that are read by a template: what they are read into is what their instructions say, one by one."""

from __future__ import annotations

import pickle
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from ema_cli.formats.pickles import template_compiler
from ema_cli.formats.pickles.beginnings import unpickle_beginning
from ema_cli.formats.pickles.templates import Rows
from ema_cli.formats.pickles.unpickle import unpickle
from ema_cli.formats.pickles.values import Inert, Name, PickleError
from tests.formats.pickles.pickled import Memory

MOST = 40_000_000


@dataclass
class Part:
    """A part of a tensor, as an object to pickle."""

    offsets: Any
    sizes: Any


@dataclass(frozen=True)
class Index:
    """What a record is of."""

    fqn: Any
    offset: Any
    index: Any = None


@dataclass
class Place:
    """Where a record lies."""

    file: Any
    start: Any
    length: Any


@dataclass
class Described:
    """All of it."""

    parts: Any
    places: Any
    more: Any = None


def described(
    names: Sequence[str], ranks: int, shapes: Sequence[tuple[int, ...]] = ((8, 3), (70000,)), *, own: bool = True
) -> Described:
    """Return a description as ranks make it together: places rank by rank, with texts of each rank's `own`."""
    parts: dict[str, list[Part]] = {name: [] for name in names}
    places: dict[Index, Place] = {}
    for rank in range(ranks):
        start = 0
        for number, name in enumerate(names):
            shape = shapes[number % len(shapes)]
            offset = torch.Size((rank * shape[0], *[0] * (len(shape) - 1)))
            parts[name].append(Part(offset, torch.Size(shape)))
            length = 1300 + 4 * torch.Size(shape).numel()
            text = (name + " ")[:-1] if own else name
            places[Index(text, torch.Size(tuple(offset)), rank)] = Place(f"__{rank}_0.distcp", start, length)
            start += length << (rank % 3 * 12)
    return Described(parts, places)


SMALL = pickle.dumps(described(["layers.0.weight", "layers.0.bias", "layers.1.weight"], 6), 4)


def by_template(data: bytes) -> Any:
    """Return what a pickle is read into with templates, written out: a PickleError where it cannot be read so."""
    return written(unpickle_beginning(Memory(data), len(data), MOST)[0])


def one_by_one(data: bytes) -> Any:
    """Return what a pickle is read into instruction by instruction, written out."""
    return written(unpickle(Memory(data), most=MOST)[0])


def written(value: Any, depth: int = 0) -> Any:
    """Return a value as tuples that can be compared, with `Rows` as the objects for which they stand."""
    if depth > 40:
        return "deeper"
    if isinstance(value, Inert):
        content = (value.args, value.items, value.values, value.state)
        return ("object", value.kind, *(written(part, depth + 1) for part in content))
    if isinstance(value, dict):
        pairs: list[Any] = []
        for key, entry in value.items():
            if isinstance(key, Rows):
                pairs += zip(objects(key), objects(entry), strict=True)
            else:
                pairs.append((written(key, depth + 1), written(entry, depth + 1)))
        return ("dict", *pairs)
    if isinstance(value, list | tuple):
        parts: list[Any] = []
        for part in value:
            parts += objects(part) if isinstance(part, Rows) else [written(part, depth + 1)]
        return (type(value).__name__, *parts)
    return (type(value).__name__, value.path if isinstance(value, Name) else value)


def objects(rows: Rows) -> list[Any]:
    """Return the objects for which rows stand, written out."""
    return [written(Inert(rows.kind, state=state), 1) for state in rows.states()]


def taken(data: bytes) -> int:
    """Return how many objects of a pickle are read by templates."""
    found: list[Rows] = []

    def look(value: Any) -> None:
        if isinstance(value, Rows):
            found.append(value)
        elif isinstance(value, Inert):
            look(value.state)
        elif isinstance(value, dict):
            for pair in value.items():
                look(pair)
        elif isinstance(value, list | tuple):
            for part in value:
                look(part)

    look(unpickle_beginning(Memory(data), len(data), MOST)[0])
    return sum(rows.count for rows in found)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("shapes", [((8, 3),), ((3,), (2, 3, 4)), ((2, 3, 4, 5), (1 << 33,), (300, 2))])
def test_objects_are_what_their_instructions_say(
    shapes: Sequence[tuple[int, ...]], protocol: int, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shapes of any length, numbers of any size, texts of its own or remembered ones: the same as one by one."""
    monkeypatch.setattr(template_compiler, "_MOST_ROWS", 7)
    data = pickle.dumps(described([f"layers.{number}" for number in range(5)], 12, shapes, own=own), protocol)
    assert by_template(data) == one_by_one(data)
    assert taken(data) > 60 if protocol > 2 else taken(data) == 0  # as torch writes no other


def test_most_objects_of_a_large_description_are_read_by_a_template() -> None:
    """Frames, of which a large pickle is made, and the batches of its dicts interrupt that for a few."""
    data = pickle.dumps(described([f"model.layers.{number}.weight" for number in range(40)], 50), 4)
    assert data.count(b"\x95") > 3
    assert by_template(data) == one_by_one(data)
    assert taken(data) > 0.95 * 3 * 40 * 50


def test_texts_beyond_plain_ones_are_read() -> None:
    """Names in other letters, long names, and names of which one is the end of another."""
    for names in (["größe", "größer"], ["n" * 300, "n" * 299], ["a.b", "b"], ["", "x"]):
        data = pickle.dumps(described(names, 9), 4)
        assert by_template(data) == one_by_one(data)


def same_or_refused(data: bytes) -> bool:
    """Check that a pickle is read with templates as without, or not at all; return whether it is read."""
    try:
        found = by_template(data)
    except PickleError:
        return False
    assert found == one_by_one(data), data
    return True


PIECE = pickle.dumps([described(["w"], 40).parts["w"]], 4)
TRICKS = {
    "drops what is on top": b"0",
    "drops the group": b"1",
    "repeats what is on top": b"2",
    "remembers what is on top": b"\x94",
    "remembers under another number": b"r\x09\x00\x00\x00",
    "makes a tuple of the last": b"\x85",
    "makes a tuple of the last two": b"\x86",
    "appends the last alone": b"a",
    "sets the last alone": b"s",
    "ends the group twice": b"e(e",
    "gives the last a state": b"}b",
    "calls": b"R",
    "makes a list of the group": b"l",
    "makes a tuple of the group": b"t",
    "uses an early part again": b"h\x10",
    "uses any part again": b"j\x40\x00\x00\x00",
    "begins a group": b"(",
    "ends": b".",
    "a frame, and remembers": b"\x95\x01\x00\x00\x00\x00\x00\x00\x00\x94",
    "a frame, and drops": b"\x95\x01\x00\x00\x00\x00\x00\x00\x000",
}


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("data", [PIECE, SMALL], ids=["list", "all"])
def test_a_program_that_does_more_with_its_objects_is_not_misread(trick: str, data: bytes, full: bool) -> None:
    """Instructions anywhere between those of torch's: the objects are used as they say, or it is refused."""
    for at in range(list(TRICKS).index(trick) % 19, len(data), 1 if full else 19):
        same_or_refused(data[:at] + TRICKS[trick] + data[at:])


def test_a_part_that_is_used_twice_is_refused_with_templates() -> None:
    """What was passed over is not there for another use: such a file is read without templates."""
    parts = described(["w"], 40).parts["w"]
    for used in ([parts, parts[20]], [parts, parts[20].offsets], [parts, parts[20].__dict__]):
        data = pickle.dumps(used, 4)
        with pytest.raises(PickleError):
            by_template(data)
        assert one_by_one(data)


def test_changed_programs_are_read_as_without_templates_or_refused(full: bool) -> None:
    """Bytes changed, cut, repeated and moved at random, a few or in pieces."""
    drawn = random.Random(17)
    read = 0
    for _ in range(40_000 if full else 1_200):
        data = bytearray(drawn.choice((SMALL, PIECE)))
        for _ in range(drawn.choice((1, 1, 1, 2, 3))):
            begin = drawn.randrange(len(data))
            end = min(len(data), begin + drawn.choice((0, 1, 1, 2, 5, 39, 92)))
            part = bytes(data[begin:end])
            match drawn.randrange(4):
                case 0:
                    data[begin:end] = bytes(drawn.choice((byte, drawn.randrange(256))) for byte in part)
                case 1:
                    del data[begin:end]
                case 2:
                    data[begin:begin] = part
                case 3:
                    at = drawn.randrange(len(data))
                    data[at:at] = part
        read += same_or_refused(bytes(data))
    assert read > 50
