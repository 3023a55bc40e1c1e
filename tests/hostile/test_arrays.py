"""Containers of other libraries: headers that lie, objects that only running them could read, trees without end."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests.hostile.conftest import Case, Harness, Kind, parameters
from tests.hostile.make import (
    WEIGHTS,
    archive,
    call,
    data,
    mapping,
    name,
    number,
    numbers,
    pack,
    text,
    torch_zip,
    whole,
)
from tests.hostile.programs import CONTAINERS, CREATE, ENDLESS, IDLE, PROGRAMS, endless

DTYPE = "{'descr': '%s', 'fortran_order': %s, 'shape': %s, }"
SHAPES = {"w": (2, 3), "b": (3,)}
PROGRAM = call(CREATE, IDLE)


# ---- numpy ----


def npy(content: bytes, descr: str = "<f4", order: str = "False", shape: str = "(2, 3)", header: str = "") -> bytes:
    """Return an array as numpy writes it, with any header."""
    said = ((header or DTYPE % (descr, order, shape)) + "\n").encode("latin-1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(said)) + said + content


def npz(step: int = 3, **more: bytes) -> bytes:
    """Return an archive of numpy's, with other arrays, and more of them."""
    arrays = {
        key: npy(content, shape=str(shape))
        for (key, shape), content in zip(SHAPES.items(), data(step).values(), strict=True)
    }
    return archive({f"{key}.npy": content for key, content in {**arrays, **more}.items()})


def deflated(size: int) -> bytes:
    """Return an archive with an array of zeros that is compressed."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file, file.open("w.npy", "w", force_zip64=True) as entry:
        entry.write(npy(b"", shape=f"({size // 4},)"))
        for _ in range(size >> 20):
            entry.write(bytes(1 << 20))
    return out.getvalue()


NPZ = Kind("step-{}.npz", lambda path, step: path.write_bytes(npz(step)))
W = data(3)["0"]
ARRAYS = {
    "a header that is a program": (
        lambda: npz(w=npy(W, header="__import__('tests.hostile.stand_ins')")), "none that numpy writes"),
    "a type that is a program": (lambda: npz(w=npy(W, descr="__import__")), "numpy's type"),
    "objects": (lambda: npz(w=npy(whole(PROGRAM), descr="|O", shape="()")), "Python objects"),
    "a shape of 2^60": (lambda: npz(w=npy(W, shape=f"({1 << 60},)")), "for which it has 24 bytes"),
    "a shape of 2^120": (lambda: npz(w=npy(W, shape=f"({1 << 60}, {1 << 60})")), "which no tensor has"),
    "a thousand dimensions": (lambda: npz(w=npy(W, shape="(" + "1, " * 1000 + ")")), "1000 dimensions"),
    "ten thousand lengths": (lambda: npz(w=npy(W, shape="(" + "9000000000000000000, " * 3000 + ")")), "dimensions"),
    "a header of 60 kB": (lambda: npz(w=npy(W, header=DTYPE % ("<f4", "False", "(2, 3)") + " " * 60_000)), ""),
    "a name twice": (lambda: npz(**{"w.npy/../w": npy(W)}), ""),
    "a gigabyte of zeros": (lambda: deflated(1200 << 20), "more than numbers of a model do"),
    "a name that leads elsewhere": (
        lambda: archive({"../../w.npy": npy(W), "/b.npy": npy(data(3)["1"], shape="(3,)")}), ""),
}  # fmt: skip


# ---- Paddle ----


def array(content: bytes, shape: bytes, dtype: bytes | None = None) -> bytes:
    """Push an array of numpy's as its pickles have it."""
    kind = call("numpy.dtype", text("f4"), b"\x89", b"\x88")
    kind += pack(number(3), text("<"), b"N", b"N", b"N", number(-1), number(-1), number(0)) + b"b"
    empty = call("numpy._core.multiarray._reconstruct", name("numpy.ndarray"), numbers(0), b"C\x01b")
    stored = b"B" + struct.pack("<I", len(content)) + content
    return empty + pack(number(1), shape, kind if dtype is None else dtype, b"\x89", stored) + b"b"


def pdparams(step: int = 3, **more: bytes) -> bytes:
    """Return a state dict as Paddle writes it."""
    arrays = {
        key: array(content, numbers(*shape))
        for (key, shape), content in zip(SHAPES.items(), data(step).values(), strict=True)
    }
    return whole(mapping({**arrays, **more}))


def wide(levels: int = 8, keys: int = 1000) -> bytes:
    """Push a dict many of whose keys lead to one dict, many of whose keys lead to one, and so on."""
    pushed = mapping({"x": array(bytes(4), numbers(1))})
    for _ in range(levels):
        pushed = (
            b"}(" + text("0") + pushed + b"q\x01" + b"".join(text(str(key)) + b"h\x01" for key in range(1, keys)) + b"u"
        )
    return pushed


PADDLE = Kind("step-{}.pdparams", lambda path, step: path.write_bytes(pdparams(step)))
PICKLES = {
    "a shape of 2^70": (lambda: pdparams(w=array(W, numbers(1 << 70))), "which no tensor has"),
    "a million lengths": (
        lambda: pdparams(w=array(W, b"(" + number(1 << 60) + b"q\x01" + b"h\x01" * 1_000_000 + b"t")),
        "1000001 dimensions"),
    "negative lengths": (lambda: pdparams(w=array(W, numbers(-2, -3))), "which no tensor has"),
    "more than is stored": (lambda: pdparams(w=array(W, numbers(1 << 40))), "bytes"),
    "a type that is a program": (lambda: pdparams(w=array(W, numbers(2, 3), PROGRAM)), "which no tensor has"),
    "a type without end": (lambda: pdparams(w=array(W, numbers(2, 3), endless("2^60 paths"))), "which no tensor has"),
    "an array that is a program": (lambda: pdparams(w=PROGRAM), "'w'"),
    "dicts without end": (lambda: pdparams(a=wide()), ""),
}  # fmt: skip


# ---- Flax ----


def ext(
    content: bytes, shape: bytes = b"\x92\x02\x03", dtype: bytes = b"\xa7float32", size: int | None = None
) -> bytes:
    """Return an array as Flax packs it, of a size that may be wrong."""
    packed = b"\x93" + shape + dtype + b"\xc6" + struct.pack(">I", len(content)) + content
    return b"\xc9" + struct.pack(">I", len(packed) if size is None else size) + b"\x01" + packed


def msgpack(step: int = 3, w: bytes | None = None, b: bytes | None = None, more: bytes = b"", pairs: int = 2) -> bytes:
    """Return a state as Flax packs it."""
    values = data(step)
    w, b = w or ext(values["0"]), b or ext(values["1"], b"\x91\x03")
    return b"\xdf" + struct.pack(">I", pairs) + b"\xa1w" + w + b"\xa1b" + b + more


FLAX = Kind("step-{}.msgpack", lambda path, step: path.write_bytes(msgpack(step)))
TREES = {
    "four thousand million pairs": (lambda: msgpack(pairs=(1 << 32) - 1), "no end"),
    "an array of 2^32 bytes": (lambda: msgpack(w=ext(W, size=(1 << 32) - 1)), "no end"),
    "bytes that are not there": (lambda: msgpack(w=b"\xc6\xff\xff\xff\xff"), "no end"),
    "a text of 2^32": (lambda: msgpack(w=b"\xdb\xff\xff\xff\xff"), "a text of 4294967295 bytes"),
    "a shape of 2^62": (
        lambda: msgpack(w=ext(W, b"\x92" + (b"\xcf" + struct.pack(">Q", 1 << 62)) * 2)), "which no tensor has"),
    "a shape of texts": (lambda: msgpack(w=ext(W, b"\x91\xa11")), "a shape that is none"),
    "negative lengths": (lambda: msgpack(w=ext(W, b"\x92\xfe\xfd")), "which no tensor has"),
    "objects": (lambda: msgpack(w=ext(W, dtype=b"\xa1O")), "which no tensor has"),
    "lists nested 60,000 deep": (lambda: msgpack(more=b"\xa1x" + b"\x91" * 60_000 + b"\xc0", pairs=3), "without end"),
    "four million values": (
        lambda: msgpack(more=b"\xa1x\xdd" + struct.pack(">I", 4_000_000) + b"\xc0" * 4_000_000, pairs=3),
        "without end"),
    "another extension": (lambda: msgpack(w=b"\xd4\x05\x00"), "an extension 5"),
    "a name twice": (lambda: msgpack(more=b"\xa1w" + ext(W), pairs=3), "twice"),
    "a name that is not text": (lambda: msgpack(more=b"\xa1\xff" + ext(W), pairs=3), "damaged"),
}  # fmt: skip


# ---- stable-baselines3 ----


def model(
    step: int = 3, about: bytes | None = None, policy: bytes | None = None, method: int = zipfile.ZIP_STORED
) -> bytes:
    """Return an archive as stable-baselines3 makes it."""
    said = json.dumps({"num_timesteps": step, "policy_class": {":type:": "x", ":serialized:": "gASV"}}).encode()
    saved = torch_zip(whole(mapping(WEIGHTS)), data(step))
    return archive({"data": about or said, "policy.pth": policy or saved}, method)


SB3 = Kind("model_{}_steps.zip", lambda path, step: path.write_bytes(model(step)), ("--half-life", "1sp"))
MODELS = {
    "counters nested without end": (lambda: model(about=b'{"a":' + b"[" * 100_000), "not valid JSON"),
    "counters of 2^100": (lambda: model(about=b'{"num_timesteps": 1' + b"0" * 5000 + b"}"), ""),
    "a policy that is compressed": (
        lambda: model(policy=bytes(50_000_000), method=zipfile.ZIP_DEFLATED), "compressed or missing"),
    "a policy of nothing": (lambda: model(policy=b"x"), "'policy.pth' in it"),
}  # fmt: skip


# One of each kind; the others are for `make test-full`.
QUICK = (
    "objects", "a shape of 2^120", "a gigabyte of zeros", "a million lengths", "dicts without end",
    "a type that is a program", "an array of 2^32 bytes", "lists nested 60,000 deep", "counters nested without end",
)  # fmt: skip
Made = dict[str, tuple[Callable[[], bytes], str]]


def cases(of: Made, codes: Mapping[str, int] | None = None) -> list[Case]:
    """Return cases of files, some of which are read: alone, or without an error of the run."""
    found = []
    for label, (make, says) in of.items():
        case = Case(lambda path, _, make=make: path.write_bytes(make()), says, label=label, passed="no end" in says)
        code = (codes or {}).get(label)
        case = case if code is None else replace(case, code=code, inspects=0)
        found.append(replace(case, full=label not in QUICK))
    return found


def planted(label: str, value: Callable[[Path], bytes]) -> Case:
    """Return a case of a value beside Paddle's arrays: containers are left out, and an object might be a tensor."""
    is_left_out = label in CONTAINERS
    return Case(
        lambda path, canary: path.write_bytes(pdparams(x=value(canary))),
        "" if is_left_out else "'x'",
        code=0 if is_left_out else 3,
        label=f"{label}, in Paddle's",
        full=True,
    )


READ = {"a header of 60 kB": 0, "a name twice": 4, "a name that leads elsewhere": 4}
NUMPY_CASES, FLAX_CASES, SB3_CASES = cases(ARRAYS, READ), cases(TREES), cases(MODELS)
PADDLE_CASES = [
    *cases(PICKLES),
    *(planted(label, PROGRAMS[label]) for label in PROGRAMS),
    *(planted(label, lambda _, label=label: endless(label)) for label in ENDLESS),
]


@pytest.mark.parametrize("case", parameters(NUMPY_CASES))
def test_hostile_archives_of_numpy(case: Case, harness: Harness) -> None:
    """Nothing in a header is evaluated, and nothing is inflated that no model holds."""
    harness.check(NPZ, case)


@pytest.mark.parametrize("case", parameters(PADDLE_CASES))
def test_hostile_pickles_of_paddle(case: Case, harness: Harness) -> None:
    """Nothing in the pickle runs, and nothing in it is walked through for ever."""
    harness.check(PADDLE, case)


@pytest.mark.parametrize("case", parameters(FLAX_CASES))
def test_hostile_trees_of_flax(case: Case, harness: Harness) -> None:
    """No length in the file is believed before the file has so many bytes."""
    harness.check(FLAX, case)


@pytest.mark.parametrize("case", parameters(SB3_CASES))
def test_hostile_models_of_stable_baselines(case: Case, harness: Harness) -> None:
    """What is pickled beside the policy is not looked at, and nothing is inflated."""
    harness.check(SB3, case)
