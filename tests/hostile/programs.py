"""Pickles that would run code, and pickles that would take for ever: values to plant wherever a file is pickled."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from tests.hostile.make import ESCAPES, build, call, mapping, name, number, numbers, pack, storage, tensor, text

Value = Callable[[Path], bytes]


MODULE = "tests.hostile.stand_ins"
CREATE, CREATES = f"{MODULE}.create", f"{MODULE}.Creates"
IDLE = text("0")  # code that does nothing, for functions of Python's own that would carry out any


def _path(canary: Path) -> bytes:
    return text(str(canary))


def _import(module: str, attribute: str) -> bytes:
    return call("builtins.getattr", call("importlib.import_module", text(module)), text(attribute))


# Each pushes one value. The names in `CARRIED_OUT` would create the canary; the others show that nothing known to be
# dangerous is called, with arguments with which it does nothing.
PROGRAMS: dict[str, Value] = {
    "REDUCE": lambda canary: call(CREATE, _path(canary)),
    "eval": lambda _: call("builtins.eval", IDLE),
    "exec": lambda _: call("builtins.exec", IDLE),
    "exec of Python 2": lambda _: call("__builtin__.eval", IDLE),
    "open": lambda _: call("builtins.open", text("/dev/null"), text("w")),
    "getattr": lambda canary: _import(MODULE, "create") + pack(_path(canary)) + b"R",
    "a dotted name": lambda canary: b"\x80\x04" + text(MODULE) + text("create.__call__") + b"\x93"
    + pack(_path(canary)) + b"R",
    "STACK_GLOBAL": lambda canary: text(MODULE) + text("create") + b"\x93" + pack(_path(canary)) + b"R",
    "NEWOBJ": lambda canary: name(CREATES) + pack(_path(canary)) + b"\x81",
    "NEWOBJ_EX": lambda canary: name(CREATES) + b")" + mapping({"canary": _path(canary)}) + b"\x92",
    "INST": lambda canary: b"(" + _path(canary) + f"i{MODULE}\ncreate\n".encode(),
    "OBJ": lambda canary: b"(" + name(CREATE) + _path(canary) + b"o",
    "BUILD": lambda canary: name("functools.partial") + pack(name(CREATE)) + b"\x81"
    + pack(name(CREATE), pack(_path(canary)), b"}", b"}") + b"b)R",
    "BUILD of slots": lambda canary: build("torch.nn.Module", pack(mapping({"x": _path(canary)}), b"}")),
    "a class with __setstate__": lambda canary: build(CREATES, mapping({"x": _path(canary)})),
    "map": lambda canary: call("builtins.map", name(CREATE), b"](" + _path(canary) + b"e"),
    "nested pickle": lambda canary: call("pickle.loads", b"T" + struct.pack("<i", 3) + b"N..") + _path(canary) + b"0",
    "torch.load": lambda canary: call("torch.load", _path(canary)),
    "a code object": lambda _: call("types.FunctionType", call("types.CodeType", IDLE), b"}"),
    "copyreg": lambda canary: call("copyreg.__newobj__", name(CREATES), _path(canary)),
    "a class whose name steers the terminal": lambda canary: text(MODULE) + text(ESCAPES) + b"\x93"
    + pack(_path(canary)) + b"R",
    "a default factory": lambda canary: call("collections.defaultdict", name(CREATE), b"]") + _path(canary)
    + b"Ns",
    "a key": lambda canary: b"}" + call(CREATE, _path(canary)) + b"Ns",
}  # fmt: skip
CARRIED_OUT = (
    "REDUCE", "getattr", "a dotted name", "STACK_GLOBAL", "NEWOBJ", "NEWOBJ_EX", "INST", "OBJ", "BUILD",
    "a class with __setstate__", "copyreg", "a key",
)  # fmt: skip


def endless(label: str) -> bytes:
    """Push one value: a tuple of what stands under `label` and what it is made of."""
    return pack(ENDLESS[label]())


def doubling(levels: int) -> bytes:
    """Push a list of twice the list before, and so on: 2 ** levels paths in a few hundred bytes."""
    return b"]" + b"q\x01(h\x01h\x01l" * levels


# Each pushes one value that is small in the file and endless, or nearly so, to whoever walks through it.
ENDLESS: dict[str, Callable[[], bytes]] = {
    "2^60 paths": lambda: doubling(60),
    "2^60 paths through tuples": lambda: b")" + b"q\x01h\x01h\x01\x86" * 60,
    "2^60 paths through dicts": lambda: b"}" + (b"q\x01}(" + text("a") + b"h\x01"
    + text("b") + b"h\x01u") * 60,
    "a list in itself": lambda: b"]q\x01h\x01a",
    "a dict in itself": lambda: b"}q\x01" + text("a") + b"h\x01s",
    "lists nested 60,000 deep": lambda: b"]" * 60_000 + b"a" * 59_999,
    "tuples nested 60,000 deep": lambda: b")" + b"\x85" * 60_000,
    "dicts nested 40,000 deep": lambda: b"}" + b"q\x01}Nh\x01s" * 40_000,
    "objects nested 40,000 deep": lambda: b"N" + (b"q\x01ca\nB\nh\x01\x85R") * 40_000,
    "a key nested 60,000 deep": lambda: b"}" + b")" + b"\x85" * 60_000 + b"Ns",
    "a number of 8 million bits as a key": lambda: b"}" + number(1 << 8_000_000) + b"Ns",
    "numbers that collide as keys": lambda: b"}(" + b"".join(
        number(each * ((1 << 61) - 1)) + b"N" for each in range(1, 30_000)
    ) + b"u",
    "floats, tuples and classes as keys": lambda: b"}(" + b"G" + bytes(8) + b"N" + numbers(1, 2) + b"N"
    + name("a.B") + b"N" + tensor() + b"Nu",
}  # fmt: skip

# Of those, the containers: beside tensors they are left out, where an object might be one.
CONTAINERS = {"a default factory", "a key", *ENDLESS} - {"objects nested 40,000 deep"}

# Each is no pickle that torch writes: an error of the file, with what it says.
UNREADABLE: dict[str, tuple[Callable[[], bytes], str]] = {
    "an extension code": (lambda: b"\x82\x01", "instruction"),
    "a longer extension code": (lambda: b"\x84\x01\x00\x00\x00", "instruction"),
    "a buffer from outside": (lambda: b"\x97", "instruction"),
    "a read-only buffer": (lambda: b"N\x98", "instruction"),
    "a persistent number": (lambda: b"K\x01Q", "outside"),
    "a persistent name": (lambda: b"Pstorage\n", "outside"),
    "a persistent dict": (lambda: b"}Q", "outside"),
    "a persistent endless list": (lambda: doubling(60) + b"Q", "outside"),
    "a persistent tuple of another kind": (lambda: pack(text("file"), text("/outside")) + b"Q", "outside"),
    "a storage with a negative count": (lambda: storage(count=-1), "outside"),
    "a storage of 2^70 elements": (lambda: storage(count=1 << 70), "outside"),
    "a storage whose key is a number": (
        lambda: pack(text("storage"), name("torch.FloatStorage"), b"K\x00", text("cpu"), b"K\x06") + b"Q",
        "outside",
    ),
    "a view of a storage": (
        lambda: pack(text("storage"), name("a.B"), text("0"), text("cpu"), b"K\x06", pack(b"K\x00")) + b"Q",
        "view of another",
    ),
    "a value that was never remembered": (lambda: b"h\x63", "damaged"),
    "a memo that collides": (lambda: b"Np%d\n" % ((1 << 61) - 1), "beyond all reason"),
    "a million marks": (lambda: b"(" * 1_000_000, ""),
    "a negative memo": (lambda: b"Np-1\n", "beyond all reason"),
    "an empty stack": (lambda: b"0" * 3, "damaged"),
    "an odd number of items": (lambda: b"}(Nu", "damaged"),
    "items of a number": (lambda: b"K\x01NNs", "not a mapping"),
    "appended to a number": (lambda: b"K\x01Na", "not a list"),
    "a state for a number": (lambda: b"K\x01}b", "a state to a int"),
    "a call without a tuple": (lambda: name("a.B") + b"]R", "no tuple"),
    "a name that is a number": (lambda: b"K\x01K\x02\x93", "no text"),
    "protocol 255": (lambda: b"\x80\xff", "newer than any we know"),
    "a number of 5000 digits": (lambda: b"I" + b"9" * 5000 + b"\n", "damaged"),
    "a number that is text": (lambda: b"F" + b"x" * 60_000 + b"\n", "damaged"),
    "a line without an end": (lambda: b"c" + b"a" * 200_000, ""),
    "bytes of 2^62": (lambda: b"\x8e" + struct.pack("<Q", 1 << 62), "ends too early"),
    "text of 2^63": (lambda: b"\x8d" + struct.pack("<Q", 1 << 63), "ends too early"),
    "text of a negative length": (lambda: b"T" + struct.pack("<i", -5), "negative"),
    "a number of a negative length": (lambda: b"\x8b" + struct.pack("<i", -5), "negative"),
    "text that is not UTF-8": (lambda: text(b"\xff\xfe"), "damaged"),
    "a tensor with three sizes and one stride": (lambda: tensor(shape=(1, 2, 3), strides=(1,)), "do not belong"),
    "a tensor with a negative stride": (lambda: tensor(strides=(-3, 1)), "not counts"),
    "a tensor at a negative offset": (lambda: tensor(offset=-1), "not counts"),
    "a tensor of 65 dimensions": (lambda: tensor(shape=(1,) * 65), "do not belong"),
    "a tensor of 2^63 elements": (lambda: tensor(shape=(1 << 63,), strides=(1,)), "not counts"),
    "a tensor rebuilt from too little": (lambda: call("torch._utils._rebuild_tensor_v2", b"N"), "damaged"),
    "a tensor with a program for hooks": (
        lambda: call(
            "torch._utils._rebuild_tensor_v2",
            *(storage(), number(0), numbers(2, 3), numbers(3, 1), b"\x89", call(CREATE, IDLE)),
        ),
        "arguments",
    ),
    "a mapping of a number": (lambda: call("collections.OrderedDict", b"K\x05"), "damaged"),
    "pairs of three": (lambda: call("collections.OrderedDict", b"](" + pack(b"N", b"N", b"N") + b"e"), "damaged"),
    "a complex of text": (lambda: call("builtins.complex", text(ESCAPES), b"]"), "damaged"),
}  # fmt: skip

# Each asks for gigabytes or hours; the machine gives up, or carries it out in bounded memory.
BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "20 million empty lists": (lambda: b"(" + b"]" * 20_000_000 + b"l", "too long"),
    "20 million remembered values": (lambda: b"N" + b"\x94" * 20_000_000, "too long"),
    "keys without end": (lambda: b"G" + bytes(8) + b"q\x01}(" + b"h\x01h\x01" * 10_000_000 + b"u", "too long"),
    "a mapping of a million pairs, again and again": (
        lambda: b"G" + bytes(8) + b"N\x86q\x01(" + b"h\x01" * 1_000_000 + b"lq\x02(" + name("collections.OrderedDict")
        + b"q\x03" + b"h\x03h\x02\x85R" * 1000 + b"l",
        "gigabytes",
    ),
    "a million arguments, again and again": (
        lambda: b"(" + b"N" * 1_000_000 + b"tq\x01" + name("a.B") + b"q\x02(" + b"h\x02h\x01}NNs\x92" * 3000
        + b"l",
        "gigabytes",
    ),
    "a million elements, again and again": (
        lambda: b"(" + b"N" * 1_000_000 + b"lq\x01" + name("builtins.set") + b"q\x02(" + b"h\x02h\x01\x85R" * 3000
        + b"l",
        "gigabytes",
    ),
    "text of a million, letter by letter": (
        lambda: text("a" * 1_000_000) + b"q\x01" + name("builtins.list") + b"q\x02(" + b"h\x02h\x01\x85R" * 3000 + b"l",
        "gigabytes",
    ),
    "text of 200 MB with one character that is wide": (
        lambda: b"\x8d" + struct.pack("<Q", 60_000_004) + b"a" * 60_000_000 + "\U0001f600".encode(), ""
    ),
    "300 MB": (lambda: b"\x8e" + struct.pack("<Q", 300_000_000) + bytes(300_000_000), "too large"),
}  # fmt: skip


class Written(Protocol):
    """A checkpoint of several files that can be written anew."""

    def write(self, path: Path) -> None:
        """Write its files into a folder."""


def fifo(made: Written, file: str) -> Callable[[Path, Path], None]:
    """Return a builder that puts a FIFO in place of a file."""

    def write(path: Path, _canary: Path) -> None:
        made.write(path)
        (path / file).unlink()
        os.mkfifo(path / file)

    return write
