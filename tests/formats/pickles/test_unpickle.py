"""The unpickler: plain values come out equal, unknown ones as placeholders, and nothing in a pickle ever runs."""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import datetime
import functools
import pathlib
import pickle
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ema_cli.formats.pickles import machine
from ema_cli.formats.pickles.values import Inert, Name, PickleError, TensorRef
from tests.formats.pickles.pickled import Call, Color, Config, some_function, unpickle
from tests.hostile import stand_ins

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


class Box(dict):
    """A dict with a class of its own."""


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.complex_numbers(allow_nan=False)
)
KEYS = st.text() | st.integers(-(1 << 60), 1 << 60) | st.none() | st.booleans()
VALUES = st.recursive(
    SCALARS | st.integers(-(1 << 3000), 1 << 3000),
    lambda inner: (
        st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner, max_size=4) | st.tuples()
    ),
    max_leaves=12,
)  # fmt: skip


def test_keys_that_could_be_chosen_to_collide_are_placeholders() -> None:
    """Numbers whose hashes are all equal, as keys or as indices of the memo, do not make a dict slow."""
    modulus = (1 << 61) - 1  # an integer's hash is its remainder
    found = unpickle(pickle.dumps({number * modulus: number for number in range(1, 3_000)}))
    assert {key.kind for key in found} == {"key"}
    assert list(found.values()) == list(range(1, 3_000))
    assert {key.kind for key in unpickle(pickle.dumps({0.5: 1, (1, 2): 2}))} == {"key"}
    with pytest.raises(PickleError, match="beyond all reason"):
        unpickle(b"Np%d\n." % modulus)


@pytest.mark.slow
@given(value=VALUES, protocol=st.sampled_from(PROTOCOLS))
def test_plain_values_come_out_equal(value: Any, protocol: int) -> None:
    """Numbers, text and containers of them, in every protocol, are what was pickled."""
    assert unpickle(pickle.dumps(value, protocol)) == value


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS[1:])  # torch's own cannot be of protocol 0
@pytest.mark.parametrize("block", [1, 2, 3, 5, 7, 64])
def test_where_a_block_ends_makes_no_difference(
    protocol: int, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Instructions that the loop has written out do what those in the table do, to which a short block leaves them."""
    state = {"model": {f"{n}.weight": torch.zeros(n, 3) for n in range(70)}, "step": 70_000, "epoch": 300, "loss": -1}
    torch.save(state, tmp_path / "a.pt", pickle_protocol=protocol)
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        stored = archive.read("a/data.pkl")
    whole = plain(unpickle(stored))
    assert len(whole["model"]) == 70
    monkeypatch.setattr(machine.Machine, "block_bytes", block)
    assert plain(unpickle(stored)) == whole
    for cut in range(1, len(stored), 101):
        with pytest.raises(PickleError):
            unpickle(stored[:cut])


def plain(value: Any) -> Any:
    """Return what can be compared: descriptions of tensors are not."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return dataclasses.astuple(value) if isinstance(value, TensorRef) else value


def test_numbers_of_the_memo_may_come_in_any_order() -> None:
    """Numbers of the memo may come in any order, leave gaps, and be given again; MEMOIZE takes their count."""

    def put(value: int, how: bytes) -> bytes:
        return b"K%c%b0" % (value, how)

    assert unpickle(put(7, b"r\x09\0\0\0") + put(8, b"q\0") + b"h\x09h\0\x86.") == (7, 8)
    assert unpickle(put(7, b"q\5") + put(8, b"\x94") + put(9, b"q\0") + b"h\5h\1h\0\x87.") == (7, 8, 9)
    grown = put(7, b"q\2") + b"".join(put(10 + number, b"q%c" % number) for number in range(3))
    assert unpickle(grown + put(20, b"\x94") + b"h\0h\2h\3\x87.") == (10, 12, 20)
    assert unpickle(put(1, b"q\0") + put(2, b"q\0") + b"h\0.") == 2


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_other_plain_containers(protocol: int) -> None:
    """Sets come as lists, mappings of the standard library as dicts, whatever the protocol."""
    ordered = collections.OrderedDict([("b", 1), ("a", 2)])
    values = (
        ordered,
        collections.defaultdict(list, {"x": [1]}),
        {1, 2, 3},
        frozenset({4, 5}),
        set(),
        float("inf"),
        2.5 + 1j,
    )
    found = unpickle(pickle.dumps(values, protocol))
    assert (found[0], list(found[0])) == (dict(ordered), ["b", "a"])
    assert found[1] == {"x": [1]}
    assert [sorted(part) for part in found[2:5]] == [[1, 2, 3], [4, 5], []]
    assert found[5:] == (float("inf"), 2.5 + 1j)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_bytes_of_every_length_come_out_equal(protocol: int) -> None:
    """Bytes of every length, and a bytearray, come out equal."""
    value = [b"", b"ab", bytes(70_000)]
    assert unpickle(pickle.dumps(value, protocol)) == value
    assert unpickle(pickle.dumps(bytearray(b"xyz"), 5)) == b"xyz"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_one_object_in_two_places_stays_one(protocol: int) -> None:
    """References are kept, a list that holds itself and more than 256 of them, too."""
    shared: list[Any] = [1]
    shared.append(shared)
    many = [[number] for number in range(300)]
    found = unpickle(pickle.dumps({"a": shared, "b": shared, "many": many, "again": many[::-1]}, protocol))
    assert found["a"] is found["b"]
    assert found["a"][1] is found["a"]
    assert all(one is other for one, other in zip(found["many"], found["again"][::-1], strict=True))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_unknown_classes_become_placeholders_that_keep_what_they_held(protocol: int) -> None:
    """Arguments, state, items and values of an unknown class are kept; the class itself is never looked up."""

    def read(value: Any) -> Inert:
        found = unpickle(pickle.dumps(value, protocol))
        assert isinstance(found, Inert)
        return found

    here = Config.__module__
    namespace = read(argparse.Namespace(lr=0.1))
    assert (namespace.kind, namespace.state) == ("argparse.Namespace", {"lr": 0.1})
    config = read(Config(3, ["a"]))
    assert (config.kind, config.state) == (f"{here}.Config", {"width": 3, "names": ["a"]})
    color = read(Color.RED)
    assert (color.kind, color.args) == (f"{here}.Color", (1,))
    assert read(datetime.timedelta(days=2)).args == (2, 0, 0)
    assert read(datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC)).kind == "datetime.datetime"
    home = pathlib.PurePosixPath.__module__  # pathlib._local in Python 3.13
    assert read(pathlib.PurePosixPath("a/b")).kind == f"{home}.PurePosixPath"
    assert read(Box(a=1)).items == {"a": 1}
    assert read(np.arange(3)).kind.startswith("numpy.")
    assert read(np.float64(2.5)).kind.endswith("multiarray.scalar")
    assert read(collections.Counter("aab")).args == ({"a": 2, "b": 1},)
    read(functools.partial(int, base=2))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_functions_and_classes_are_names(protocol: int) -> None:
    """What a pickle names is a name to us, also where it is an attribute of a class."""
    found = unpickle(pickle.dumps([some_function, Config], protocol))
    assert found == [Name(f"{Config.__module__}.{name}") for name in ("some_function", "Config")]


@pytest.mark.parametrize(
    "key", [frozenset({1}), ((1, 2), 3), (Color.RED, 1), (Config, "a"), (frozenset(), None), Color.RED, Config]
)
def test_a_key_of_any_kind_does_not_stand_in_the_way(key: Any) -> None:
    """A dict somewhere in the file may have keys that are sets, nested tuples or objects: the rest is still read."""
    for protocol in (2, 4):
        found = unpickle(pickle.dumps({"beside": {key: "value"}, "model": 3}, protocol))
        assert found["model"] == 3


def dangerous_pickles(canary: Path) -> dict[str, bytes]:
    """Return pickles that create the file `canary` when they are read naively, by each way a pickle can call.

    The functions are harmless: another program does not have ours, and Python's own do no more than create the file.
    """
    create, path = stand_ins.create, str(canary)
    module, quoted = stand_ins.__name__.encode(), f"V{path}\n".encode()
    named = b"c%b\ncreate\n" % module
    pickles = {
        f"{label}, protocol {protocol}": pickle.dumps(Call(*call), protocol)
        for protocol in PROTOCOLS
        for label, call in {
            "a function": (create, path),
            "a class": (stand_ins.Creates, path),
            "open": (open, path, "w"),
            "Path.touch": (pathlib.Path.touch, canary),
            "map": (list, map(create, [path])),
            "a call in a call": (list, [Call(create, path)]),
            "a known call": (collections.OrderedDict, [("a", Call(create, path))]),
        }.items()
    }
    return pickles | {
        "INST": b"(" + quoted + b"i%b\ncreate\n." % module,
        "OBJ": b"(" + named + quoted + b"o.",
        "STACK_GLOBAL": b"\x80\x04\x8c%c%b\x8c\x06create\x93" % (len(module), module) + quoted + b"\x85R.",
        "getattr": b"cbuiltins\ngetattr\n(cimportlib\nimport_module\n(V%b\ntRVcreate\ntR(" % module + quoted + b"tR.",
        "BUILD": b"\x80\x02" + named + b"(" + quoted + b"tR}(Vx\nK\x01ub.",
        "popped": named + b"(" + quoted + b"tR0K\x01.",
    }


def test_nothing_in_a_pickle_runs(tmp_path: Path) -> None:
    """Whatever function a pickle calls, and by whatever instruction, it is not called; Python's reader calls it."""
    canary = tmp_path / "canary"
    for label, data in dangerous_pickles(canary).items():
        with contextlib.suppress(PickleError):
            unpickle(data)
        assert not canary.exists(), label
        with contextlib.suppress(AttributeError):  # where an instruction expects an object to be there afterwards
            close = getattr(pickle.loads(data), "close", None)
            close and close()
        assert canary.exists(), f"{label}: not dangerous, so it proves nothing"
        canary.unlink()


def test_nothing_that_a_pickle_names_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that a pickle names is not imported: importing runs it."""
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w').close()\nthing = print\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert unpickle(b"cevil_module\nthing\n.") == Name("evil_module.thing")
    assert unpickle(b"cevil_module\nthing\n)R.").kind == "evil_module.thing"
    assert "evil_module" not in sys.modules
    assert not (tmp_path / "canary").exists()


DAMAGED = {
    "nothing": b"",
    "no end": b"K\x01",
    "an empty stack": b".",
    "no mark": b"t.",
    "unknown instruction": b"\xff.",
    "protocol 6": b"\x80\x06K\x01.",
    "extension": b"\x82\x01.",
    "out-of-band buffer": b"\x80\x05\x97.",
    "text that is longer than the file": b"X\xff\xff\xff\x7fa.",
    "bytes of 2**63": b"\x8e" + struct.pack("<Q", 1 << 63) + b".",
    "negative length": b"\x8b\xff\xff\xff\xff.",
    "a memo that is empty": b"h\x05.",
    "no text in a line": b"Ixyz\n.",
    "a line without end": b"V abc",
    "append to a number": b"K\x01K\x02a.",
    "a state for a number": b"K\x01}b.",
    "arguments that are no tuple": b"cos\nsystem\nK\x01R.",
    "a persistent id in text": b"Pabc\n.",
    "a persistent id of something else": b"\x80\x02(X\x05\x00\x00\x00otherK\x01tQ.",
    "a module that is no text": b"K\x01K\x02\x93.",
    "pairs that are none": b"ccollections\nOrderedDict\n(K\x01tR.",
    "complex of a huge number": b"cbuiltins\ncomplex\n(L1" + b"0" * 400 + b"L\ntR.",
    "a number of too many digits": b"L" + b"1" * 5000 + b"L\n.",
    "text that is not UTF-8": b"X\x01\x00\x00\x00\xff.",
}


@pytest.mark.parametrize("label", DAMAGED)
def test_damage_is_said_to_be_damage(label: str) -> None:
    """A pickle that makes no sense gives a PickleError with words in it, never another exception."""
    with pytest.raises(PickleError) as caught:
        unpickle(DAMAGED[label])
    assert len(str(caught.value)) > 10


@given(data=st.data())
def test_damaged_pickles_give_nothing_but_pickle_errors(data: st.DataObject) -> None:
    """Any bytes, and any pickle with some bytes changed, are read or give a PickleError."""
    good = pickle.dumps(
        [{"a": [1, 2.5, "x"], (1, "b"): {1, 2}}, Config(1, []), np.arange(2), Color.RED, collections.OrderedDict(a=1)],
        data.draw(st.sampled_from(PROTOCOLS)),
    )
    changed = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    for text in (bytes(changed), data.draw(st.binary(max_size=40)) + b"."):
        with contextlib.suppress(PickleError):
            unpickle(text)


@pytest.mark.slow
def test_deep_nesting_neither_crashes_nor_hangs() -> None:
    """Fifty thousand nested containers are no reason to overflow the stack, as keys neither."""
    depth = 50_000
    assert isinstance(unpickle(b"]" * depth + b"a" * (depth - 1) + b"."), list)
    assert isinstance(unpickle(b")" + b"\x85" * depth + b"."), tuple)
    with contextlib.suppress(PickleError):
        unpickle(b"})" + b"\x85" * depth + b"K\x01s.")


def test_a_small_pickle_cannot_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that copy one large container again and again are stopped at a bound."""
    monkeypatch.setattr(machine, "_MAX_COPIED", 10_000)
    grown = b"(" + b"K\x01" * 1000 + b"lq\x000("
    calls = b"cbuiltins\nlist\n(h\x00tR" * 11
    assert len(unpickle(grown + calls[: len(calls) // 11] * 9 + b"l.")) == 9
    with pytest.raises(PickleError, match="repeats its containers"):
        unpickle(grown + calls + b"l.")
