"""torch's zip files: archives that lie about what they hold, tensors that lie outside, names that steer a terminal."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.hostile.conftest import Case, Harness, Kind, in_turn, parameters
from tests.hostile.make import (
    ESCAPES,
    NAMES,
    SHOWN,
    WEIGHTS,
    archive,
    build,
    data,
    good_zip,
    mapping,
    million_entries,
    name,
    number,
    numbers,
    pack,
    saved,
    storage,
    tensor,
    text,
    torch_zip,
    weights,
    whole,
    writes,
)
from tests.hostile.programs import BOMBS, ENDLESS, PROGRAMS, UNREADABLE, endless

KIND = Kind("step-{}.pt", good_zip)
CENTRAL, END = b"PK\x01\x02", b"PK\x05\x06"


def zipped(label: str, pickle: Callable[[], bytes], says: str = "", tensor: str | None = None, **more: object) -> Case:
    """Return a case of a file around a pickle."""

    def write(path: Path, _canary: Path) -> None:
        path.write_bytes(torch_zip(pickle()))

    return Case(write, says, tensor, label=label, **more)  # type: ignore[arg-type]


# Dicts and lists without a tensor in them are left out, whatever else stands there.
COMPANIONS = ("a default factory", "a key", *(label for label in ENDLESS if label != "objects nested 40,000 deep"))


def planted(label: str, place: str) -> Case:
    """Return a case of a program at a place in the pickle: beside the weights, among them, or all there is."""
    says = {"among": "'x' cannot be averaged: it is", "root": "pickled object", "model": "pickled object"}.get(
        place, ""
    )

    def write(path: Path, canary: Path) -> None:
        value = PROGRAMS[label](canary)
        pickle = {
            "beside": lambda: saved(3, beside=value),
            "among": lambda: weights(x=value),
            "clock": lambda: whole(mapping({"model": mapping(WEIGHTS), "step": number(3), "epoch": value})),
            "root": lambda: whole(value),
            "model": lambda: whole(mapping({"model": value, "step": number(3)})),
        }[place]
        path.write_bytes(torch_zip(pickle()))

    fine = place in ("beside", "clock") or (place == "among" and label in COMPANIONS)
    named = place == "among" and not fine
    return Case(write, "" if fine else says, "x" if named else None, code=0 if fine else 3, label=f"{label}, {place}")


def patched(
    change: Callable[[bytearray], object], says: str, *, whole_file: bytes | None = None, **more: object
) -> Case:
    """Return a case of a good file, changed byte by byte."""

    def write(path: Path, _canary: Path) -> None:
        content = bytearray(whole_file or torch_zip(saved()))
        change(content)
        path.write_bytes(content)

    return Case(write, says, label=change.__name__, **more)  # type: ignore[arg-type]


def record(content: bytearray, of: str) -> int:
    """Return where the directory's record of an entry begins."""
    at = content.index(CENTRAL)
    while content[at + 46 : at + 46 + len(of)] != of.encode():
        at = content.index(CENTRAL, at + 1)
    return at


def same_name_twice(content: bytearray) -> None:
    """Call one entry as another."""
    at = record(content, "a/data/1")
    content[at + 46 : at + 54] = b"a/data/0"


def entry_larger_than_the_file(content: bytearray) -> None:
    """Let an entry claim a gigabyte."""
    struct.pack_into("<2L", content, record(content, "a/data/1") + 20, 1 << 30, 1 << 30)


def entry_over_another(content: bytearray) -> None:
    """Let an entry reach over the next."""
    struct.pack_into("<2L", content, record(content, "a/data/0") + 20, 60, 60)


def entry_at_another(content: bytearray) -> None:
    """Let two entries be one."""
    first, second = record(content, "a/data/0"), record(content, "a/data/1")
    content[second + 42 : second + 46] = content[first + 42 : first + 46]


def entry_pushed_over_another(content: bytearray) -> None:
    """Let the header before an entry's bytes say that they begin later, in the next entry."""
    struct.pack_into("<H", content, content.index(b"a/data/0") - 2, 70)


def encrypted(content: bytearray) -> None:
    """Mark an entry as encrypted."""
    content[record(content, "a/data/0") + 8] |= 1


def compressed_in_one_place(content: bytearray) -> None:
    """Let only the header before the bytes say that they are compressed."""
    struct.pack_into("<H", content, content.index(b"a/data/0") - 22, 8)


def directory_of_2_64_entries(content: bytearray) -> None:
    """Let a 64-bit end record count more entries than there are bytes."""
    end = content.rindex(END)
    size, start = struct.unpack_from("<2L", content, end + 12)
    large = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, (1 << 64) - 1, (1 << 64) - 1, size, start)
    content[end:end] = large + struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1)


def directory_of_2_60_bytes(content: bytearray) -> None:
    """Let a 64-bit end record give the directory more bytes than any file has."""
    end = content.rindex(END)
    large = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 5, 5, 1 << 60, 0)
    content[end:end] = large + struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1)


def entry_name_not_text(content: bytearray) -> None:
    """Give an entry a name that is no UTF-8."""
    content[record(content, "a/data/0") + 46 + 7] = 0xFF


def entry_name_steers(content: bytearray) -> None:
    """Give an entry a name that steers the terminal, and encrypt it."""
    at = record(content, "a/data/0")
    content[at + 46 : at + 54] = b"\x1b[31m\n\r\x07"
    content[at + 8] |= 1


def deflate_bomb() -> bytes:
    """Return an archive whose storage inflates to a hundred megabytes."""
    return archive({"a/data.pkl": saved(), "a/data/0": bytes(100 << 20), "a/data/1": bytes(12)}, zipfile.ZIP_DEFLATED)


def million_tensors() -> bytes:
    """Return a pickle of a million tensors, each of three remembered parts."""
    parts = (
        name("torch._utils._rebuild_tensor_v2")
        + b"q\x01"
        + pack(storage(), number(0), numbers(2, 3), numbers(3, 1), b"\x89", b"}")
        + b"q\x02"
    )
    each = b"".join(b"X\x07\x00\x00\x00%07dh\x01h\x02R" % number for number in range(1_000_000))
    return whole(b"(" + parts + b"1" + b"}" + text("model") + b"}(" + each + b"us")


def expanded(count: int) -> bytes:
    """Return a pickle of tensors, each a few bytes that stand for nearly a gigabyte."""
    return whole(mapping({f"w{each}": tensor(shape=(1 << 27,), strides=(0,)) for each in range(count)}))


def places() -> list[Case]:
    """Return tensors that do not lie where they say."""
    outside = "reaches past the end of its storage"
    forged = {
        "more elements than stored": (tensor(shape=(2, 4)), outside),
        "2^62 elements": (tensor(shape=(1 << 62,)), outside),
        "2^124 elements": (tensor(shape=(1 << 62, 1 << 62)), outside),
        "2^62 elements at one place": (tensor(shape=(1 << 62,), strides=(0,)), "is expanded"),
        "64 dimensions of 2^62 at one place": (tensor(shape=(1 << 62,) * 64, strides=(0,) * 64), "is expanded"),
        "strides past the end": (tensor(strides=(4, 1)), outside),
        "strides of 2^62": (tensor(strides=(1 << 62, 1 << 62)), outside),
        "an offset past the end": (tensor(offset=1), outside),
        "an offset of 2^62": (tensor(offset=1 << 62), outside),
        "a storage that claims more": (tensor(storage(count=1 << 40)), "has a storage of"),
        "a storage that claims less": (tensor(storage(count=5)), "has a storage of"),
        "a storage that is not there": (tensor(storage("7")), "missing"),
        "a storage outside": (tensor(storage("../data.pkl", 1)), "missing"),
        "an absolute storage": (tensor(storage("/outside", 1)), "missing"),
        "a storage of a dtype that steers": (tensor(storage(kind=f"torch.{'X' * 300}Storage")), "dtype"),
    }  # fmt: skip
    return [zipped(label, lambda x=x: weights(x=x), says, "x") for label, (x, says) in forged.items()]


def names() -> list[Case]:
    """Return names that could steer a terminal, or fill it."""
    lazy = build("a.B", b"}")
    return [
        zipped("a tensor's name", lambda: weights(**{ESCAPES: tensor(shape=(9,))}), SHOWN),
        zipped(
            "a good tensor's name",
            lambda: weights(**{ESCAPES: tensor(shape=(1,))}),
            "does not have it",
            code=4,
            inspects=0,
        ),
        zipped("a class's name", lambda: weights(x=text("os") + text(ESCAPES) + b"\x93)R"), SHOWN, "x"),
        zipped("a root's class", lambda: whole(text("os") + text(ESCAPES) + b"\x93)R"), SHOWN),
        zipped("a key at the top", lambda: whole(mapping({ESCAPES: lazy})), "no weights", passed=True),
        zipped("a name of surrogates", lambda: weights(**{"\ud800": tensor()}), r"\ud800"),
        zipped("a name of 100 KB", lambda: weights(**{"n" * 100_000: tensor()}), "name of 100000 characters"),
        zipped("a class of 100 KB", lambda: weights(x=text("os") + text("n" * 100_000) + b"\x93)R"), "characters"),
        zipped("a dtype of 100 KB", lambda: weights(x=tensor(storage(kind="a." + "n" * 60_000))), "characters"),
        zipped("a tensor under a number", lambda: whole(b"}K\x05" + tensor() + b"s"), "not a name"),
        zipped("__metadata__", lambda: weights(__metadata__=tensor()), "__metadata__"),
    ]


def many_to_one(value: bytes, count: int = 20_000) -> Case:
    """Return a case of many keys beside the model that lead to one value, which has as many."""
    again = b"".join(text(f"k{key}") + b"h\x01" for key in range(count))
    pickle = saved()[:-2] + text("k") + value + b"q\x01" + again + b"u."
    return Case(
        writes(lambda: torch_zip(pickle)), code=0, label=f"many keys to one {'list' if value[:1] == b'(' else 'dict'}"
    )


MANY = 20_000
ARCHIVES = [
    many_to_one(b"(" + b"K\x01" * MANY + b"l"),
    many_to_one(b"}(" + b"".join(text(f"x{key}") + b"K\x01" for key in range(MANY)) + b"u"),
    patched(same_name_twice, "'a/data/0' stands twice"),
    patched(entry_larger_than_the_file, "reaches past the end"),
    patched(entry_over_another, "overlaps another"),
    patched(entry_at_another, "overlaps another"),
    patched(entry_pushed_over_another, "overlaps another"),
    patched(encrypted, "is encrypted"),
    patched(compressed_in_one_place, "'a/data/0' is damaged"),
    patched(directory_of_2_64_entries, "zip directory"),
    patched(directory_of_2_60_bytes, "lies outside the file"),
    patched(entry_name_not_text, "not UTF-8"),
    patched(entry_name_steers, r"\x1b[31m\n\r\x07"),
    Case(writes(deflate_bomb), "is compressed", label="a deflate bomb"),
    Case(writes(million_entries), "entries", label="two million entries", seconds=40, full=True),
    Case(writes(lambda: archive({"a/readme": b"hello"})), "not one that torch.save wrote", passed=True, label="a zip"),
    Case(
        writes(lambda: torch_zip(saved(), None, **{"a/code/__torch__.py": b"import os", "a/constants.pkl": b"N."})),
        "TorchScript",
        label="TorchScript",
    ),
    Case(writes(lambda: torch_zip(saved(), None, **{"a/byteorder": b"big"})), "little-endian", label="big-endian"),
    Case(writes(lambda: torch_zip(saved(), None, **{"a/byteorder": b"\x1b[31m"})), r"\x1b", label="a byte order"),
    Case(writes(lambda: torch_zip(saved(), {"0": data(3)["0"]})), "missing", "b", label="a storage that is missing"),
    Case(writes(lambda: torch_zip(saved())[:-40]), "cut short", passed=True, label="cut short"),
    zipped("a million tensors", million_tensors, "at most", seconds=40, full=True),
    zipped("20 expanded tensors", lambda: expanded(20), "expanded"),
]
PLANTED = [
    *in_turn((planted(label, "beside") for label in PROGRAMS), (planted(label, "among") for label in PROGRAMS)),
    *(planted("REDUCE", place) for place in ("root", "model", "clock")),
]
SLOW_BOMBS = (  # each takes half a minute; the others reach the same limits
    "20 million empty lists",
    "keys without end",
    "a mapping of a million pairs, again and again",
    "300 MB",
)
PICKLES = [
    *in_turn(
        (zipped(label, lambda v=label: saved(3, beside=endless(v)), code=0) for label in ENDLESS),
        (zipped(f"{label}, among", lambda v=label: weights(x=endless(v)), *(
            [""] if label in COMPANIONS else ["cannot be averaged", "x"]
         ), code=0 if label in COMPANIONS else 3) for label in ENDLESS),
    ),
    *(zipped(label, lambda make=make: saved(3, beside=make()), says) for label, (make, says) in UNREADABLE.items()),
    *(
        zipped(
            label, lambda make=make: saved(3, beside=make()), says, code=3 if says else 0, seconds=80, peak=3 << 29,
            full=label in SLOW_BOMBS
        )
        for label, (make, says) in BOMBS.items()
    ),
    zipped("no pickle", lambda: b"", "ends too early"),
    zipped("a pickle without its end", lambda: saved()[:-1], "ends too early"),
]  # fmt: skip


def test_the_handmade_file_is_what_torch_writes(tmp_path: Path) -> None:
    """torch reads the good file that the builders vary, and finds the weights in it."""
    good_zip(tmp_path / "a.pt", 2)
    loaded = torch.load(tmp_path / "a.pt", weights_only=True)
    assert (loaded["step"], *loaded["model"]) == (2, *NAMES)
    assert loaded["model"]["w"].tolist() == [[0, 2, 4], [6, 8, 10]]


@pytest.mark.parametrize("case", parameters([*ARCHIVES, *places(), *names()]))
def test_archives_tensors_and_names(case: Case, harness: Harness) -> None:
    """An archive, a tensor or a name that lies is one clear error."""
    harness.check(KIND, case)


@pytest.mark.parametrize("case", parameters(PLANTED))
def test_planted_programs_never_run(case: Case, harness: Harness) -> None:
    """Code at any place of the pickle never runs; beside the weights it is not even in the way."""
    harness.check(KIND, case)


@pytest.mark.parametrize("case", parameters(PICKLES))
def test_endless_damaged_and_exploding_pickles(case: Case, harness: Harness) -> None:
    """What is endless, damaged or a bomb is read in bounded time and memory, or is one clear error."""
    harness.check(KIND, case)
