"""safetensors files and sharded models: headers that lie or never end, indexes that lead elsewhere."""

from __future__ import annotations

import gzip
import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.hostile.conftest import Case, Harness, Kind, parameters
from tests.hostile.make import (
    ESCAPES,
    HEADER,
    SHOWN,
    WEIGHTS,
    data,
    entry,
    good_safetensors,
    mapping,
    safetensors,
    tensor,
    torch_zip,
    whole,
    writes,
)
from tests.hostile.programs import PROGRAMS

KIND = Kind("step-{}.safetensors", good_safetensors)
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
BIN_INDEX = "pytorch_model.bin.index.json"
BIN_SHARDS = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")


def header(label: str, made: Callable[[], Mapping[str, object] | bytes], says: str = "", tensor: str | None = None,
           **more: object) -> Case:  # fmt: skip
    """Return a case of a file with a header."""
    return Case(writes(lambda: safetensors(made())), says, tensor, label=label, **more)  # type: ignore[arg-type]


def x(begin: int = 36, end: int = 36, shape: tuple[int, ...] = (0,), dtype: str = "F32") -> dict[str, object]:
    """Return a header with one more tensor."""
    return {**HEADER, "x": entry(begin, end, shape, dtype)}


def raw(**changes: object) -> Callable[[], dict[str, object]]:
    """Return a header whose entry of x is the changes."""
    return lambda: {**HEADER, "x": {**entry(36, 36, (0,)), **changes}}


def million_tensors() -> bytes:
    """Return a header of a million tensors without elements."""
    one = b'"%x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return b"{" + b",".join(one % each for each in range(1_000_000)) + b"}"


def repeated(unit: bytes, count: int) -> Callable[[], bytes]:
    """Return a header in which something stands again and again."""
    return lambda: b'{"x":[' + b",".join([unit] * count) + b"]}"


HEADERS = [
    Case(writes(struct.pack("<Q", 1 << 60) + b"{}"), "a header of 1152921504606846976 bytes", label="a header of 2^60"),
    Case(writes(struct.pack("<Q", (1 << 64) - 1)), "bytes is no safetensors header", label="a header of 2^64"),
    Case(writes(struct.pack("<Q", 99_000_000) + b"{}"), "cut short", passed=True, label="a header past the end"),
    Case(writes(b"\x05"), "holds 1 bytes", passed=True, label="one byte"),
    Case(writes(safetensors(HEADER)[:-1]), "cut short", passed=True, label="a byte lost"),
    Case(writes(safetensors(HEADER) + b"x"), "1 bytes follow", label="a byte more"),
    header("nothing in it", lambda: b"", "does not begin"),
    header("a space before it", lambda: b" {}", "does not begin"),
    header("lists nested a million deep", lambda: b'{"x":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}", "too deeply"),
    header("dicts nested 100,000 deep", lambda: b'{"x":' * 100_000 + b"1" + b"}" * 100_000, "too deeply"),
    header("four million lists", repeated(b"[]", 4_000_000), "more than 8000000 values"),
    header("three million lists", repeated(b"[]", 3_000_000), "exactly dtype", "x"),
    header("a number of 5000 digits", lambda: b'{"x":' + b"9" * 5000 + b"}", "not valid"),
    header("a number of a billion digits", lambda: b'{"x":1e999999999}', "out of range"),
    header("NaN", lambda: b'{"x":NaN}', "not JSON"),
    header("a duplicate key", lambda: b'{"w":{"dtype":"F32","dtype":"F32"}}', "'dtype' stands twice"),
    header("a duplicate tensor", lambda: json.dumps(HEADER).encode()[:-1] + b', "w": {}}', "'w' stands twice"),
    header("a duplicate key of a megabyte", lambda: b'{"%s":1,"%s":1}' % ((b"k" * 1_000_000,) * 2), "stands twice"),
    header("a duplicate key that steers", lambda: (f'{{{json.dumps(ESCAPES)}:1,{json.dumps(ESCAPES)}:1}}').encode(),
        "twice"),
    header("not UTF-8", lambda: b'{"\xff":1}', "not valid"),
    header("text of 90 MB with one character that is wide", lambda: b'{"x":"' + b"a" * 90_000_000
           + "\U0001f600".encode() + b'"}', "exactly dtype", "x", peak=3 << 29),
    header("a list", lambda: b"{}[]", "not valid"),
    header("2^62 elements", lambda: x(36, 36 + (1 << 62), (1 << 60,)), "cut short", passed=True),
    header("2^124 elements", lambda: x(36, 36, (1 << 62, 1 << 62)), "but has 0", "x"),
    header("2^62 dimensions of 1", lambda: x(36, 40, (1,) * 65), "not counts", "x"),
    header("offsets that go back", lambda: x(36, 32), "but has -4", "x"),
    header("negative sizes", lambda: x(36, 44, (-1, -2)), "not counts", "x"),
    header("a size of 1.5", raw(shape=[1.5]), "not counts", "x"),
    header("a size that is true", raw(shape=[True]), "not counts", "x"),
    header("offsets of 2^70", raw(data_offsets=[1 << 70, 1 << 70]), "not counts", "x"),
    header("over another", lambda: x(32, 36, (1,)), "overlap", "x"),
    header("a hole", lambda: x(40, 44, (1,)), "a hole", "x"),
    header("an unknown dtype", lambda: x(dtype="F99"), "unknown", "x"),
    header("a dtype that steers", lambda: x(dtype=ESCAPES), "unknown", "x"),
    header("a dtype of a megabyte", lambda: x(dtype="n" * 1_000_000), "unknown", "x"),
    header("a dtype that is a list", raw(dtype=[["F32"] * 1000]), "unknown", "x"),
    header("more in an entry", raw(more=1), "exactly dtype", "x"),
    header("a name that steers", lambda: {ESCAPES: {}}, SHOWN),
    header("a good name that steers", lambda: {**HEADER, ESCAPES: entry(36, 36, (0,))}, SHOWN, code=4, inspects=0),
    header("a name in markup", lambda: {**HEADER, "[red]x[/red][/]": entry(36, 36, (0,))}, "[red]x[/red][/]", code=4,
           inspects=0),
    header("a name of surrogates", lambda: b'{"\\ud800":{}}', r"\ud800"),
    header("a name of a megabyte", lambda: {"n" * 1_000_000: {}}, "1000000 characters"),
    header("metadata that is a list", lambda: {**HEADER, "__metadata__": [1]}, "text to text"),
    header("metadata of numbers", lambda: {**HEADER, "__metadata__": {"a": 1}}, "text to text"),
    header("our own metadata, forged", lambda: {**HEADER, "__metadata__": {"ema_cli": "[" * 100_000}},
           "is averaged already", code=4, inspects=0, passed=True),
    header("a million tensors", million_tensors, "holds 1000000 tensors", seconds=40, full=True),
]  # fmt: skip


def good_shards(path: Path, step: int) -> None:
    """Write a model in two shards."""
    write_shards(path, {}, step)


def write_shards(path: Path, weight_map: Mapping[str, object], step: int = 3) -> None:
    """Write a model in two shards, with another map from names to shards."""
    path.mkdir()
    for shard, label, key, shape in zip(SHARDS, ("w", "b"), "01", ((2, 3), (3,)), strict=True):
        content = data(step)[key]
        (path / shard).write_bytes(safetensors({label: entry(0, len(content), shape)}, content))
    index = {"metadata": {}, "weight_map": {"w": SHARDS[0], "b": SHARDS[1], **weight_map}}
    (path / INDEX).write_text(json.dumps(index))


def good_bin_shards(path: Path, step: int) -> None:
    """Write a pickled model in two shards."""
    path.mkdir()
    for shard, label, key in zip(BIN_SHARDS, ("w", "b"), "01", strict=True):
        (path / shard).write_bytes(torch_zip(whole(mapping({label: WEIGHTS[label]})), {key: data(step)[key]}))
    index = {"metadata": {}, "weight_map": dict(zip(("w", "b"), BIN_SHARDS, strict=True))}
    (path / BIN_INDEX).write_text(json.dumps(index))


SHARDED = Kind("checkpoint-{}", good_shards)
PICKLED = Kind("checkpoint-{}", good_bin_shards)


def pointing(label: str, shard: object, says: str, **more: object) -> Case:
    """Return a case of an index that puts w elsewhere."""
    build = lambda path, _: write_shards(path, {"w": shard})  # noqa: E731
    return Case(build, says, label=label, **{"tensor": "w", "file": INDEX, **more})  # type: ignore[arg-type]


def changed(label: str, change: Callable[[Path], object], says: str, **more: object) -> Case:
    """Return a case of a good folder that was changed."""

    def write(path: Path, _canary: Path) -> None:
        write_shards(path, {})
        change(path)

    return Case(write, says, label=label, **{"file": INDEX, **more})  # type: ignore[arg-type]


def in_place(file: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Return a change that puts something else in place of a file."""

    def change(path: Path) -> None:
        (path / file).unlink()
        make(path / file)

    return change


def text_index(text: bytes) -> Callable[[Path], object]:
    """Return a change of the index."""
    return lambda path: (path / INDEX).write_bytes(text)


def two_indexes(path: Path) -> None:
    """Let an index name another, which names it."""
    (path / INDEX).write_text(json.dumps({"weight_map": {"w": "other.index.json"}}))
    (path / "other.index.json").write_text(json.dumps({"weight_map": {"w": INDEX}}))


def planted(label: str) -> Case:
    """Return a case of a program in a pickled shard."""

    def write(path: Path, canary: Path) -> None:
        good_bin_shards(path, 3)
        shard = whole(mapping({"x": PROGRAMS[label](canary), "w": tensor()}))
        (path / BIN_SHARDS[0]).write_bytes(torch_zip(shard, {"0": data(3)["0"]}))

    # Dicts without a tensor in them are left out, whatever else stands there.
    left_out = label in ("a default factory", "a key")
    named = ("", None) if left_out else ("'x'", "x")
    return Case(write, *named, file=BIN_SHARDS[0], code=0 if left_out else 3, label=label)


NOT_A_NAME = "which is not a file name"
INDEXES = [
    *(pointing(label, shard, NOT_A_NAME) for label, shard in {
        "..": f"../checkpoint-1/{SHARDS[0]}", "absolute": "/outside", "a folder": f"a/{SHARDS[0]}",
            "the folder": ".",
        "above": "..", "nothing": "", "hidden": ".hidden", "a zero": "a\0b", "a backslash": "..\\a", "a number": 5,
        "a list": [SHARDS[0]], "null": None, "a megabyte": "a" * 1_000_000, "text that steers": "../" + ESCAPES,
        "nested": json.loads("[" * 400 + "]" * 400),
    }.items()),
    pointing("itself", INDEX, "is no shard"),
    changed("two indexes", two_indexes, "is no shard"),
    pointing("a missing shard", "model-9.safetensors", "is missing", file=None, tensor=None, passed=True),
    pointing("surrogates", "\ud800", "is missing", file=None, tensor=None, passed=True),
    pointing("the other shard", SHARDS[1], "is in the", file=SHARDS[1]),
    pointing("a configuration", "config.json", "is no shard"),
    changed("an index of a list", text_index(b"[1]"), "has no 'weight_map'"),
    changed("an empty map", text_index(b'{"weight_map":{}}'), "has no 'weight_map'"),
    changed("a duplicate key", text_index(b'{"weight_map":{"w":"a","w":"b"}}'), "'w' stands twice"),
    changed("nested a million deep", text_index(b"[" * 1_000_000 + b"]" * 1_000_000 + b"{}"), "too deeply"),
    changed("cut short", text_index(b'{"weight_map":{"w"'), "not valid JSON", passed=True),
    changed("101 MB", lambda path: os.truncate(path / INDEX, 101_000_000), "too many"),
    changed("a map of a million", text_index(b'{"weight_map":{' + b",".join(b'"%x":"a"' % each for each in range(
        1_000_000)) + b"}}"), "names 1000000 tensors", seconds=20),
    changed("a name that steers", text_index(json.dumps({"weight_map": {ESCAPES: "/a"}}).encode()), SHOWN),
    changed("a FIFO for a shard", in_place(SHARDS[0], os.mkfifo), "not a regular file", file=SHARDS[0]),
    changed("a FIFO for the index", in_place(INDEX, os.mkfifo), "not a regular file"),
    changed("a device for a shard", in_place(SHARDS[0], lambda path: path.symlink_to("/dev/zero")),
        "not a regular file",
            file=SHARDS[0]),
    changed("a folder for a shard", in_place(SHARDS[0], Path.mkdir), "not a regular file", file=SHARDS[0]),
    changed("a shard that links to itself", in_place(SHARDS[0], lambda path: path.symlink_to(path)), "missing",
        file=None,
            passed=True),
    changed("an index that links to itself", in_place(INDEX, lambda path: path.symlink_to(path)), "cannot be opened"),
    changed("a compressed shard", in_place(SHARDS[0], lambda path: path.write_bytes(gzip.compress(bytes(9)))),
            "safetensors", file=SHARDS[0], passed=False),
]  # fmt: skip


@pytest.mark.parametrize("case", parameters(HEADERS))
def test_hostile_headers(case: Case, harness: Harness) -> None:
    """A header that lies, repeats itself or never ends is one clear error."""
    harness.check(KIND, case)


@pytest.mark.parametrize("case", parameters(INDEXES))
def test_hostile_indexes(case: Case, harness: Harness) -> None:
    """No index leads out of its folder, or to itself; what it names is read as strictly as any file."""
    harness.check(SHARDED, case)


@pytest.mark.parametrize("case", parameters([planted(label) for label in PROGRAMS]))
def test_pickled_shards(case: Case, harness: Harness) -> None:
    """No program in a pickled shard runs."""
    harness.check(PICKLED, case)
