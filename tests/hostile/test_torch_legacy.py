"""torch's legacy files: five pickles, any of which may be hostile, and storages that are not what they say."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.hostile.conftest import Case, Harness, Kind, in_turn, parameters
from tests.hostile.make import (
    ESCAPES,
    KEYS,
    MAGIC,
    PROTOCOL,
    SHOWN,
    SYSTEM,
    WEIGHTS,
    data,
    good_legacy,
    legacy,
    mapping,
    number,
    pack,
    saved,
    storage,
    stored,
    tensor,
    text,
    weights,
    whole,
    writes,
)
from tests.hostile.programs import ENDLESS, PROGRAMS, UNREADABLE, endless

KIND = Kind("step-{}.pt", good_legacy)
PARTS = ("magic", "protocol", "system", "root", "keys")
NOT_TORCH, UNKNOWN, NOT_LITTLE = "not one that torch.save wrote", "unknown protocol", "not little-endian"
SAYS = dict(zip(PARTS, (NOT_TORCH, UNKNOWN, NOT_LITTLE, "pickled object", "does not fit"), strict=True))


def put(part: str, value: bytes) -> bytes:
    """Return a file with one of its pickles replaced."""
    pickle = whole(value)
    if part == "root":
        return legacy(pickle, tail=keys())
    if part == "keys":
        return legacy(saved(), tail=pickle + stored())
    at = PARTS.index(part)
    return legacy(saved(), *(MAGIC, PROTOCOL, SYSTEM)[:at], pickle)


def planted(label: str, part: str) -> Case:
    """Return a case of a program in place of one of the pickles."""

    def write(path: Path, canary: Path) -> None:
        path.write_bytes(put(part, PROGRAMS[label](canary)))

    return Case(write, SAYS[part], passed=part == "magic", label=f"{label}, {part}")


def beside(label: str) -> Case:
    """Return a case of a program beside the weights."""

    def write(path: Path, canary: Path) -> None:
        path.write_bytes(legacy(saved(3, beside=PROGRAMS[label](canary))))

    return Case(write, code=0, label=f"{label}, beside")


def file(label: str, content: Callable[[], bytes], says: str, tensor: str | None = None, **more: object) -> Case:
    """Return a case of a file."""
    return Case(writes(content), says, tensor, label=label, **more)  # type: ignore[arg-type]


def keys(*names: bytes) -> bytes:
    """Return a list of storage keys as a pickle."""
    return whole(b"](" + b"".join(names) + b"e")


def counted(*counts: int) -> bytes:
    """Return the keys and storages, with other numbers of elements before their bytes."""
    return KEYS + stored(3, counts)


def claiming(count: int) -> bytes:
    """Return a file whose storage claims `count` elements, in the pickle and before its bytes."""
    root = saved(3, {**WEIGHTS, "w": tensor(storage(count=count))})
    return legacy(root, tail=KEYS + struct.pack("<q", min(count, (1 << 63) - 1)) + stored()[8:])


def system(little: bytes) -> bytes:
    """Return the facts of a system with another byte order."""
    return whole(mapping({"protocol_version": b"M\xe9\x03", "little_endian": little}))


def two_ways() -> bytes:
    """Return a pickle that describes one storage in two ways."""
    return weights(x=tensor(storage("0", 6, "torch.DoubleStorage")))


CASES = [
    *(planted(label, part) for part in PARTS for label in ("REDUCE", "NEWOBJ", "INST", "OBJ", "BUILD", "getattr")),
    *(beside(label) for label in PROGRAMS),
    *(
        Case(writes(lambda v=label: legacy(saved(3, beside=endless(v)))), code=0, label=f"{label}, beside")
        for label in ENDLESS
    ),
    *(
        Case(writes(lambda v=label, at=part: put(at, endless(v))),
            says, passed=part in ("magic", "root"), label=f"{label}, {part}")
        for part, says in (("magic", NOT_TORCH), ("protocol", UNKNOWN), ("system", NOT_LITTLE), ("root", "no weights"),
                           ("keys", "does not fit"))
        for label in ("2^60 paths", "a list in itself", "tuples nested 60,000 deep", "numbers that collide as keys")
    ),
    *in_turn(*(
        [Case(
            writes(lambda make=make, at=part: put(at, make())),
            "" if "too early" in says else says,
            passed="too early" in says,
            label=f"{label}, {part}",
        )
        for label, (make, says) in UNREADABLE.items()
        if label not in ("bytes of 2^62", "text of 2^63", "a view of a storage") or part == "keys"]
        for part in ("keys", "root")
    )),
    file("a negative count", lambda: legacy(saved(), tail=counted(-6, 3)), "is stored with -6"),
    file("another count", lambda: legacy(saved(), tail=counted(7, 3)), "of 6 elements is stored with 7"),
    file("a count of 2^62", lambda: legacy(saved(), tail=counted(1 << 62, 3)), "stored with"),
    file("claims of 2^59 elements", lambda: claiming(1 << 59), "cut short", passed=True),
    file("claims of 2^40 elements", lambda: claiming(1 << 40), "cut short", passed=True),
    file("trailing bytes", lambda: legacy(saved(), tail=KEYS + stored() + b"more"), "4 bytes follow"),
    file("a second file behind the first", lambda: legacy(saved()) * 2, "bytes follow"),
    file("a key twice", lambda: legacy(saved(), tail=keys(text("0"), text("0"), text("1")) + stored()), "one twice"),
    file(
        "a key that is missing",
        lambda: legacy(saved(), tail=keys(text("0")) + stored()[:32]),
        "missing",
        "b",
    ),
    file("a key of nothing", lambda: legacy(saved(), tail=keys(text("0"), text("9")) + stored()), "does not fit"),
    file("keys that are numbers", lambda: legacy(saved(), tail=keys(number(0), number(1)) + stored()), "does not fit"),
    file("keys in a tuple", lambda: legacy(saved(), tail=whole(pack(text("0"))) + stored()), "does not fit"),
    file("no storages", lambda: legacy(saved(), tail=KEYS), "cut short", passed=True),
    file("cut in the root", lambda: legacy(saved())[:200], "ends too early", passed=True),
    file("big-endian", lambda: legacy(saved(), MAGIC, PROTOCOL, system(b"\x89")), NOT_LITTLE),
    file("an endianness of 1", lambda: legacy(saved(), MAGIC, PROTOCOL, system(b"K\x01")), NOT_LITTLE),
    file("another protocol", lambda: legacy(saved(), MAGIC, whole(number(1002))), UNKNOWN),
    file("one storage in two ways", lambda: legacy(two_ways()), "in two ways"),
    file("an unknown storage", lambda: legacy(weights(x=tensor(storage("2", 1, "a.Odd"))), tail=keys(
        text("0"), text("1"), text("2")) + stored() + bytes(16)), "unknown type"),
    file("a storage type that steers", lambda: legacy(weights(x=tensor(storage("2", 1, "a.\x1b[31m\u202e"))), tail=keys(
        text("0"), text("1"), text("2")) + stored() + bytes(16)), r"\x1b[31m\u202e"),
    file("a key that steers", lambda: legacy(weights(x=tensor(storage(ESCAPES, 9)), y=tensor(storage(ESCAPES, 8)))),
        SHOWN),
    file("an offset past the end", lambda: legacy(weights(x=tensor(offset=1))), "reaches past the end", "x"),
    file("2^62 elements", lambda: legacy(weights(x=tensor(shape=(1 << 62,)))), "reaches past the end", "x"),
    file("strides past the end", lambda: legacy(weights(x=tensor(strides=(1 << 62, 1)))), "reaches past the end", "x"),
    file("a pickle of something else", lambda: whole(mapping({"a": number(1)})), NOT_TORCH, passed=True),
    file("the magic number and nothing", lambda: MAGIC, "ends too early", passed=True),
]  # fmt: skip


def test_the_handmade_file_is_what_torch_writes(tmp_path: Path) -> None:
    """torch reads the good file that the builders vary, and finds the weights in it."""
    good_legacy(tmp_path / "a.pt", 2)
    loaded = torch.load(tmp_path / "a.pt", weights_only=True)
    assert loaded["model"]["b"].tolist() == [2, 2, 2]
    assert loaded["model"]["w"].numpy().tobytes() == data(2)["0"]


@pytest.mark.parametrize("case", parameters(CASES))
def test_hostile_files(case: Case, harness: Harness) -> None:
    """No pickle of a legacy file runs; whatever contradicts itself is one clear error."""
    harness.check(KIND, case)
