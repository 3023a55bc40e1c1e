"""What parts of an average tell of themselves: who is done, who is missing, and what is to be done."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import obstore
import pytest

from ema_cli.errors import UsageError
from ema_cli.storage import begun_parts
from ema_cli.storage.begun_parts import BegunPart, not_there_yet, others_at, record_name
from ema_cli.storage.location import look_anew
from ema_cli.storage.named_paths import check_exists
from ema_cli.storage.names import StorePath
from ema_cli.storage.small_file import write_small_file
from ema_cli.storage.staging.local import SHARED_PREFIX, TASKS
from ema_cli.storage.store.contents import put_text

ALIKE = {"numpy": "2.1.0", "checkpoints": "a" * 64, "weights": "b" * 64, "passes": "1 pass"}
DIGESTS = "0123456789abcdef", "fedcba9876543210"
_numbers = count()


@pytest.fixture(params=["disk", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a place on a disk, or in a store in memory."""
    return tmp_path if request.param == "disk" else StorePath(f"memory://begun-{next(_numbers)}/models")


def told_in(target: Path, digest: str = DIGESTS[0]) -> Path:
    """Return the folder in which the parts of an average tell of themselves."""
    if isinstance(target, StorePath):
        return target.with_name(f".{target.name}{SHARED_PREFIX}{digest}")
    return target.with_name(f"{SHARED_PREFIX}{digest}") / TASKS


def begin(folder: Path, part: str, target: str = "x", *, own: int = 2, done: int = 2, **alike: str) -> BegunPart:
    """Leave what a part tells that was begun, and the records of some of its tasks."""
    number, _, of = part.partition("/")
    tasks = [int(number) + int(of) * task for task in range(own)]
    begun = BegunPart(int(number), int(of), target, {"pass": tasks}, {**ALIKE, **alike})
    if not isinstance(folder, StorePath):
        (folder / "pass").mkdir(parents=True, exist_ok=True)
    begun.write(folder)
    for task in tasks[:done]:
        path = folder / "pass" / record_name(task)
        if isinstance(path, StorePath):
            put_text(path, "{}")
        else:
            path.write_text("{}")
    look_anew([folder])
    return begun


def said_of(place: Path) -> tuple[str, str]:
    """Return the error for a place that a user names."""
    with pytest.raises(UsageError) as caught:
        check_exists(place)
    assert caught.value.subject == place
    return caught.value.fact, str(caught.value.hint)


@pytest.mark.parametrize(
    ("parts", "state", "hint"),
    [
        (
            {"0/3": 2, "2/3": 2},
            "of 3 parts, 0, 2 are made, 1 is missing",
            "run 1 of 3 as the others were run: part='1/3'",
        ),
        (
            {"0/8": 2, "1/8": 2, "2/8": 1},
            "of 8 parts, 0-1 are made, 2 (1 of 2 tasks done) is begun, 3-7 are missing",
            "run 2-7 of 8 as the others were run, what is begun unless it still runs: part='2/8'",
        ),
        (
            {"0/2": 2, "1/2": 2},
            "of 2 parts, 0-1 are made",
            "run any part again, unless one is just publishing: part='0/2'",
        ),
        (
            {"2/3": 2, "2/4": 2, "0/4": 2, "1/4": 2},
            "of 3 parts, 2 is made, 0-1 are missing; of 4 parts, 0-2 are made, 3 is missing",
            "run 3 of 4 as the others were run: part='3/4'",
        ),
    ],
    ids=["missing", "begun", "all made", "of two numbers"],
)  # fmt: skip
def test_what_is_made_and_what_is_missing(folder: Path, parts: dict[str, int], state: str, hint: str):
    """It is said of each part, and which to run."""
    for part, done in parts.items():
        begin(told_in(folder / "x"), part, done=done)
    assert said_of(folder / "x") == (f"is not there yet, but in the making: {state}", hint)
    assert said_of(folder / "x" / "200ba")[0].endswith(state), "what several averages are one folder of"


def test_what_is_made_beside_it_is_another_matter(folder: Path):
    """Of another name; and where nobody told anything, or not the whole of it."""
    begin(told_in(folder / "y"), "0/2", target="y")
    assert said_of(folder / "x")[0] == "does not exist"
    for text in ("", "[", "[" * 100_000, "{}", '{"target": "x", "tasks": 3, "alike": {}}'):
        path = told_in(folder / "x", DIGESTS[1]) / "part-1-of-2.json"
        if isinstance(path, StorePath):
            put_text(path, text)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        look_anew([folder])
        assert not_there_yet(folder / "x") is None, text


@pytest.mark.parametrize(
    ("alike", "words"),
    [
        ({"numpy": "2.2.1"}, "with numpy 2.2.1"),
        ({"checkpoints": "c" * 64, "weights": "d" * 64}, "with other checkpoints"),
        ({"weights": "d" * 64}, "with other weights"),
        ({"passes": "2 passes"}, "in 2 passes, by its memory or its open files"),
    ],
)
def test_parts_of_different_averages(folder: Path, alike: dict[str, str], words: str):
    """What they differ in first is said: it makes all else differ."""
    own = begin(told_in(folder / "x"), "0/2")
    begin(told_in(folder / "x", DIGESTS[1]), "1/2", **alike)
    fact, hint = said_of(folder / "x")
    assert fact == (
        "is not there yet, and 2 different averages are in the making: of 2 parts, 0 is made, 1 is missing; "
        f"{words}, of 2 parts, 1 is made, 0 is missing"
    )
    assert hint == "run all parts with the same checkpoints, options and versions; the last one publishes"
    (said,) = others_at(folder / "x", own)
    assert said == f"part 1 of 2 was begun {words}: all parts need the same"


def test_parts_of_different_numbers(folder: Path):
    """Whoever is one of three says so to who comes as one of two."""
    own = begin(told_in(folder / "x"), "0/2")
    assert others_at(folder / "x", own) == []
    begin(told_in(folder / "x"), "1/3")
    (said,) = others_at(folder / "x", own)
    assert said == "part 1 was begun as one of 3, this one of 2: all need one number"


def test_of_what_lies_beside_a_place_nothing_is_listed_that_lies_deeper(monkeypatch: pytest.MonkeyPatch):
    """In a bucket it may be all that somebody has; a part that ends looks there, too."""
    folder, listed = StorePath(f"memory://begun-{next(_numbers)}/models"), list[str]()
    put_text(folder / "other" / "a", "")
    own = begin(told_in(folder / "x"), "0/2")
    real = obstore.list
    monkeypatch.setattr(obstore, "list", lambda client, key=None, **how: listed.append(key) or real(client, key, **how))
    assert said_of(folder / "x")[0].startswith("is not there yet")
    look_anew([folder])
    assert others_at(folder / "x", own) == []
    assert folder.key not in listed


def test_a_note_that_is_too_long_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Anybody may have put it there."""
    begin(told_in(folder / "x"), "0/2", done=0)
    monkeypatch.setattr(begun_parts, "_MOST_BYTES", 10)
    assert said_of(folder / "x")[0] == "does not exist"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("part-1-of-2.json", '{"target": "x", "tasks": {"pass": [1e999]}, "alike": {}}'),
        ("part-1-of-2.json", '{"target": "x", "tasks": {"pass": [null]}, "alike": {}}'),
        ("part-1-of-2.json", '{"target": "x"}'),
        ("part-1-of-2.json", "[]"),
        ("part-1-of-2.json", "[" * 100_000),
        ("part-7-of-3.json", '{"target": "x", "tasks": {}, "alike": {}}'),
        ("part-0-of-0.json", '{"target": "x", "tasks": {}, "alike": {}}'),
    ],
)
def test_what_is_no_note_is_passed_over(folder: Path, name: str, text: str):
    """No part has such a name, or wrote such a text."""
    begin(told_in(folder / "x"), "0/2")
    write_small_file(told_in(folder / "x") / name, text)
    look_anew([folder])
    assert said_of(folder / "x")[0] == "is not there yet, but in the making: of 2 parts, 0 is made, 1 is missing"
