"""Folders of torch.distributed.checkpoint: `.metadata` that lies, hostile records, missing files."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hostile.conftest import Case, Harness, Kind, in_turn, parameters
from tests.hostile.make import (
    ESCAPES,
    SHOWN,
    archive,
    build,
    call,
    data,
    mapping,
    name,
    number,
    numbers,
    pack,
    storage,
    tensor,
    text,
    torch_zip,
    whole,
)
from tests.hostile.make_dcp import METADATA, SHARD, Folder, Offsets, described, index, placed
from tests.hostile.programs import BOMBS, CREATE, ENDLESS, IDLE, PROGRAMS, UNREADABLE, endless, fifo

KIND = Kind("step-{}", lambda path, step: Folder(step).write(path))


def folder(
    label: str, change: Callable[[Folder], object], says: str = "", tensor: str | None = None, **more: object
) -> Case:
    """Return a case of a folder that was changed before it was written."""

    def write(path: Path, _canary: Path) -> None:
        made = Folder()
        change(made)
        made.write(path)

    file = more.pop("file", ".metadata")
    return Case(write, says, tensor, file=file, label=label, **more)  # type: ignore[arg-type]


def raw(label: str, metadata: Callable[[Path], bytes], says: str, **more: object) -> Case:
    """Return a case of another `.metadata`."""

    def write(path: Path, canary: Path) -> None:
        Folder().write(path, metadata(canary))

    return Case(write, says, file=".metadata", label=label, **more)  # type: ignore[arg-type]


def beside(label: str, key: str, value: Callable[[Path], bytes], **more: object) -> Case:
    """Return a case of a value in `.metadata` where nobody looks."""

    def write(path: Path, canary: Path) -> None:
        made = Folder()
        made.more[key] = value(canary)
        made.write(path)

    return Case(write, label=f"{label}, {key}", code=0, **more)  # type: ignore[arg-type]


def item(label: str, of: str, value: Callable[[Path], bytes], says: str = "", **more: object) -> Case:
    """Return a case of a record that is no tensor's."""

    def write(path: Path, canary: Path) -> None:
        made = Folder()
        made.item(of, torch_zip(whole(value(canary)), {}))
        made.write(path)

    code = {"code": 3 if says else 0, **more}
    return Case(write, says, file=SHARD, label=f"{label}, {of}", **code)  # type: ignore[arg-type]


def replaced(of: bytes, by: bytes) -> Callable[[Folder], None]:
    """Return a change of where w's record lies."""

    def change(made: Folder) -> None:
        made.places[0] = (of, by)

    return change


def entry(made: Folder, value: bytes) -> None:
    """Describe w in another way."""
    made.entries["w"] = value


def stored(made: Folder, record: bytes) -> None:
    """Store w in another way."""
    made.tensor("w", record, made.entries["w"], (0, 0))


def irregular(made: Folder, count: int, tensors: int) -> None:
    """Cut tensors into pieces that form no grid: rows, each cut elsewhere."""
    for label in range(tensors):
        cuts = [((row, 0), (1, 1 + row % 7)) for row in range(count)]
        rest = [((row, 1 + row % 7), (1, 7 - row % 7)) for row in range(count)]
        made.entries[f"t{label}"] = described(*cuts, *rest, size=(count, 8))
        for at, _ in [*cuts, *rest]:
            made.place(f"t{label}", bytes(32), at)


def repeated_pieces(made: Folder) -> None:
    """Describe a hundred thousand tensors by one list of a hundred thousand empty pieces."""
    empty = build(f"{METADATA}.ChunkStorageMetadata", mapping({"offsets": numbers(0), "sizes": numbers(0)}))
    properties = build(f"{METADATA}.TensorProperties", pack(name("torch.float32"), b"N", b"\x89", b"N", b"\x89"))
    parts = {"properties": properties, "size": numbers(0), "chunks": empty + b"q\x010](" + b"h\x01" * 100_000 + b"e"}
    first = build(f"{METADATA}.TensorStorageMetadata", mapping(parts))
    made.entries["t"] = first + b"q\x02"
    made.entries |= {f"t{each}": b"h\x02" for each in range(100_000)}


def one_record(made: Folder) -> None:
    """Let a thousand tensors lie in one and the same record."""
    made.place("t0", made.record(tensor(), data(3)["0"]), (0, 0))
    place = made.places[-1][1]
    for each in range(1000):
        made.entries[f"t{each}"] = described()
        made.places.append((index(f"t{each}", (0, 0)), place))


def collisions(count: int) -> list[Offsets]:
    """Return pairs of numbers that Python hashes, as tuples, to one value; none is larger than 2^61."""
    mask, first, second, third = (1 << 64) - 1, 11400714785074694791, 14029467366897019727, 2870177450012600261
    inverse, found, at = pow(second, -1, 1 << 64), [], 0
    while len(found) < count:
        at += 1
        lane = (third + at * second) & mask
        lane = ((lane << 31 | lane >> 33) & mask) * first & mask
        other = (1 - lane) * inverse & mask
        if other < 1 << 61:
            found.append((at, other))
    assert len(set(map(hash, found[:5]))) == 1
    return found


def colliding_offsets(made: Folder) -> None:
    """Store pieces of w at offsets whose hashes are all equal."""
    for at in collisions(20_000):
        made.place("w", b"", at)


def planned(path: bytes) -> Callable[[Folder], None]:
    """Return a change of where w stood in what was saved."""
    return lambda made: made.more.update({"planner_data": mapping({"w": path})})


def algorithms(count: int) -> Callable[[Folder], None]:
    """Return a change by which items without number lie in one record."""

    def change(made: Folder) -> None:
        made.item("state.algorithms", torch_zip(whole(b"]"), {}))
        place = made.places[-1][1]
        for each in range(count):
            made.entries[f"state.algorithms.{each}"] = build(f"{METADATA}.BytesStorageMetadata", b"}")
            made.places.append((index(f"state.algorithms.{each}", None), place))

    return change


def lightning(value: Callable[[Path], bytes], legacy: bool = False) -> Callable[[Path, Path], None]:
    """Return a builder of a folder of Lightning's whose meta.pt holds a value."""

    def write(path: Path, canary: Path) -> None:
        Folder().write(path)
        content = mapping({"global_step": number(3), "pytorch-lightning_version": text("2"), "x": value(canary)})
        (path / "meta.pt").write_bytes(whole(value(canary)) if legacy else torch_zip(whole(content), {}))

    return write


def missing_shard(path: Path, _canary: Path) -> None:
    """Leave out the shard."""
    Folder().write(path)
    (path / SHARD).unlink()
    (path / "__1_0.distcp").write_bytes(b"")


OUT = "which is not a file name"
WRONG = "is stored as something else than its folder's .metadata says"
AT = index("w", (0, 0))
NO_METADATA = "stands where an object with state_dict_metadata and storage_data belongs"
PATHS = {
    "..": text("../step-1/" + SHARD), "absolute": text("/outside"), "a folder": text("a/" + SHARD),
    "the folder itself": text("."), "the folder above": text(".."), "nothing": text(""), "hidden": text(".hidden"),
    "a zero": text("a\0b"), "a backslash": text("..\\a"), "a number": number(5), "endless": endless("2^60 paths"),
    "a huge number": number(1 << 100_000), "nested": endless("tuples nested 60,000 deep"),
    "a class": name("a.B"),
    "300 letters": text("a" * 300), "a megabyte": text("a" * 1_000_000), "text that steers": text("../" + ESCAPES),
}  # fmt: skip
CASES = [
    *in_turn(
        (beside(label, "storage_meta", PROGRAMS[label]) for label in PROGRAMS),
        (item(label, "train_state", PROGRAMS[label]) for label in PROGRAMS),
        (item(label, "state.algorithms", PROGRAMS[label]) for label in PROGRAMS),
        (Case(lightning(PROGRAMS[label]), code=0, label=f"{label}, meta.pt") for label in PROGRAMS),
        (raw(label, lambda canary, v=label: whole(PROGRAMS[v](canary)), NO_METADATA)
         for label in PROGRAMS if label not in ("a default factory", "a key", "nested pickle")),
    ),
    *(beside(label, "planner_data", PROGRAMS[label]) for label in ("REDUCE", "BUILD", "a key")),
    *in_turn(
        (beside(label, "storage_meta", lambda _, v=label: endless(v)) for label in ENDLESS),
        (item(label, "train_state", lambda _, v=label: endless(v)) for label in ENDLESS),
        (item(label, "state.algorithms", lambda _, v=label: endless(v)) for label in ENDLESS),
    ),
    *(raw(label, lambda _, make=make: whole(make()), says) for label, (make, says) in UNREADABLE.items()),
    *(raw(label, lambda _, make=BOMBS[label][0]: whole(make()), "", seconds=40, peak=7 << 28)
      for label in ("a million arguments, again and again",)),
    *(item(label, "train_state", lambda _, make=make: make(), says) for label, (make, says) in UNREADABLE.items()
      if label in ("a persistent number", "an extension code", "a memo that collides", "bytes of 2^62")),
    *(Case(lightning(PROGRAMS[label], legacy=True), "not one that torch.save wrote", file="meta.pt", passed=True,
           label=f"{label}, all of meta.pt") for label in ("REDUCE", "NEWOBJ", "BUILD")),
    *(folder(f"path: {label}", replaced(AT, placed(0, 9, path)), OUT, "w") for label, path in PATHS.items()),
    folder("a missing shard", replaced(AT, placed(0, 900, text("__7_0.distcp"))), "missing", file=None, passed=True),
    folder("past the end", replaced(AT, placed(1 << 40, 900)), "cut short", "w", file=SHARD, passed=True),
    folder("a record of 2^61", replaced(AT, placed(0, 1 << 61)), "cut short", "w", file=SHARD, passed=True),
    folder("a start of 2^70", replaced(AT, placed(1 << 70, 9)), "at no place", "w"),
    folder("a negative start", replaced(AT, placed(-9, 9)), "at no place", "w"),
    folder("compressed", replaced(AT, placed(0, 9, transform_descriptors=b"](" + text("zstd") + b"e")), "compressed",
        "w"),
    folder("nowhere stored", lambda made: made.places.pop(0), "nowhere stored", "w"),
    folder("pieces that overlap", lambda made: entry(made, described(((0, 0), (2, 2)), ((0, 1), (2, 1)))), "", "w"),
    folder("a hole", lambda made: entry(made, described(((0, 0), (1, 3)))), "cover it exactly once", "w"),
    folder("a piece outside", lambda made: entry(made, described(((0, 0), (3, 2)))), "reaches out of it", "w"),
    folder("other dimensions", lambda made: entry(made, described(((0,), (6,)))), "number of dimensions", "w"),
    folder("2^124 elements", lambda made: entry(made, described(size=(1 << 61, 1 << 61))), "than any file holds", "w"),
    folder("2^60 elements", lambda made: entry(made, described(size=(1 << 30, 1 << 30))), "larger than what is stored",
        "w"),
    folder("2^62 in 64 dimensions", lambda made: entry(made, described(size=(1 << 61,) * 64)), "than any file holds",
        "w"),
    folder("65 dimensions", lambda made: entry(made, described(size=(1,) * 65)), "no tuple of counts", "w"),
    folder("negative sizes", lambda made: entry(made, described(size=(-2, -3))), "no tuple of counts", "w"),
    folder("a dtype that steers", lambda made: entry(made, described(dtype="torch.\x1b[31m\u202e")), r"\x1b[31m", "w"),
    folder("another dtype", lambda made: entry(made, described(dtype="torch.int32")), "is I32 [2, 3], but F32", code=4,
        file=None, inspects=0),
    folder("a tensor that is a program", lambda made: entry(made, call(CREATE, IDLE)),
        "which is unknown", "w"),
    folder("irregular pieces", lambda made: irregular(made, 3000, 1), "form no grid", "t0"),
    folder("irregular pieces of many tensors", lambda made: irregular(made, 700, 5), "form no grid", seconds=20,
        full=True),
    folder("pieces without end", repeated_pieces, "too many pieces", seconds=40, full=True),
    folder("a thousand tensors in one record", one_record, "lies over", file=SHARD),
    folder("items in one record", algorithms(1000), "lies over"),
    folder("offsets that collide", colliding_offsets, "", code=0),
    folder("the record is another tensor", lambda made: stored(made, made.record(tensor(storage("0", 3), shape=(3,)),
        bytes(12))),
           WRONG, "w", file=SHARD, inspects=0),
    folder("a name that steers", lambda made: made.entries.update({ESCAPES: made.entries["w"]}), SHOWN),
    folder("a name of surrogates", lambda made: made.entries.update({"\ud800": made.entries["w"]}), r"\ud800"),
    folder("a name of a megabyte", lambda made: made.entries.update({"n" * 1_000_000: made.entries["w"]}),
        "characters"),
    folder("a path of other names", planned(pack(text("x"))), "stood elsewhere", "w"),
    folder("an endless path", planned(pack(endless("2^60 paths"))), "stood elsewhere", "w"),
    folder("a long path", planned(b"(" + text("a") * 1_000_000 + b"t"), "stood elsewhere", "w"),
    *(folder(f"w is a record of {label}", lambda made, v=value: made.places.__setitem__(
        0, (AT, placed(len(made.shard), len(v)))) or setattr(made, "shard", made.shard + v), says,
            "w" if says == WRONG else None,
        file=SHARD, inspects=0)
      for label, value, says in (
          ("another shape", torch_zip(whole(tensor(storage("0", 6), shape=(3, 2))), {"0": bytes(24)}), WRONG),
          ("another dtype", torch_zip(whole(tensor(storage("0", 6, "torch.IntStorage"))), {"0": bytes(24)}), WRONG),
          ("a dict", torch_zip(whole(mapping({"a": tensor()})), {"0": bytes(24)}), WRONG),
          ("a program", torch_zip(whole(call(CREATE, IDLE)), {"0": bytes(24)}), WRONG),
          ("no zip", bytes(200), "zip directory"),
          ("another zip", archive({"a": bytes(60)}), "not one that torch.save wrote"),
          ("a large pickle", torch_zip(whole(text("a" * 100_000) + b"0" + tensor()), {"0": bytes(24)}), "too large"),
      )),
    raw("nothing", lambda _: b"", "ends too early"),
    raw("text", lambda _: b"version https://git-lfs.github.com/spec/v1\n", ""),
    raw("a list", lambda _: pickle.dumps([1]), f"a list {NO_METADATA}"),
    Case(missing_shard, "missing", passed=True),
    Case(fifo(Folder(), ".metadata"), "not a regular file", file=".metadata", label="a FIFO for .metadata"),
    Case(fifo(Folder(), SHARD), "not a regular file", file=SHARD, label="a FIFO for a shard"),
]  # fmt: skip


@pytest.mark.parametrize("case", parameters(CASES))
def test_hostile_folders(case: Case, harness: Harness) -> None:
    """Nothing in `.metadata`, in a record or beside them runs, leads out of the folder, or takes for ever."""
    harness.check(KIND, case)
