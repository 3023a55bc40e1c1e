"""The instructions of a pickle, protocols 0 to 5: what each does to the stack machine."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

from ema_cli.formats.pickles.machine import Machine
from ema_cli.formats.pickles.values import PickleError

STOP = ord(".")


def _push(value: Callable[[], Any]) -> Callable[[Machine], object]:
    return lambda machine: machine.push(value())


def _text(layout: str, errors: str) -> Callable[[Machine], object]:
    return lambda machine: machine.push(machine.take(machine.number(layout)).decode("utf-8", errors))


def _bytes(layout: str) -> Callable[[Machine], object]:
    return lambda machine: machine.push(machine.payload(machine.number(layout)))


def _integer(layout: str) -> Callable[[Machine], object]:
    return lambda machine: machine.push(machine.number(layout))


def _long(layout: str) -> Callable[[Machine], object]:
    return lambda machine: machine.push(int.from_bytes(machine.take(machine.number(layout)), "little", signed=True))


def _text_integer(machine: Machine) -> None:
    text = machine.line()
    machine.push({"00": False, "01": True}[text] if text in ("00", "01") else int(text))


def _text_string(machine: Machine) -> None:
    machine.push(machine.line()[1:-1])


def _escaped_string(machine: Machine) -> None:
    machine.push(machine.line("raw_unicode_escape"))


def _float(machine: Machine) -> None:
    machine.push(struct.unpack(">d", machine.take(8))[0])


def _tuple_of(size: int) -> Callable[[Machine], object]:
    def act(machine: Machine) -> None:
        if len(machine.stack) < size:
            raise PickleError("its stack is empty")
        values = tuple(machine.stack[-size:])
        del machine.stack[-size:]
        machine.push(values)

    return act


def _dict_of_mark(machine: Machine) -> None:
    pairs = machine.pop_mark()
    machine.push({})
    machine.set_items(pairs)


def _one_item(machine: Machine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.set_items([key, value])


def _reduce(machine: Machine) -> None:
    args, function = machine.stack.pop(), machine.stack.pop()
    machine.call(function, args)


def _new_object_ex(machine: Machine) -> None:
    keywords, args, function = machine.stack.pop(), machine.stack.pop(), machine.stack.pop()
    if keywords:
        machine.count_copies(args)
        args = (*args, keywords)
    machine.call(function, args)


def _object(machine: Machine) -> None:
    function, *args = machine.pop_mark()
    machine.call(function, tuple(args))


def _instance(machine: Machine) -> None:
    args = machine.pop_mark()
    machine.name(machine.line(), machine.line())
    machine.call(machine.stack.pop(), tuple(args))


def _stack_name(machine: Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if not (isinstance(name, str) and isinstance(module, str)):
        raise PickleError("it names something by what is no text")
    machine.name(module, name)


_INSTRUCTIONS: Mapping[bytes, Callable[[Machine], object]] = {
    b"\x80": lambda machine: _refuse_newer(machine.number("B")),
    b"\x95": lambda machine: machine.frame(machine.number("<Q")),
    b"(": lambda machine: machine.push_mark(),
    b"0": lambda machine: machine.pop(),
    b"1": lambda machine: machine.drop_mark(),
    b"2": lambda machine: machine.push(machine.stack[-1]),
    b"N": _push(lambda: None),
    b"\x88": _push(lambda: True),
    b"\x89": _push(lambda: False),
    b"]": _push(list),
    b"}": _push(dict),
    b")": _push(tuple),
    b"\x8f": _push(list),  # EMPTY_SET: a list will do, and needs no hashes
    b"\x91": lambda machine: machine.push(machine.pop_mark()),  # FROZENSET
    b"I": _text_integer,
    b"J": _integer("<i"),
    b"K": _integer("<B"),
    b"M": _integer("<H"),
    b"L": lambda machine: machine.push(int(machine.line().removesuffix("L"))),
    b"\x8a": _long("<B"),
    b"\x8b": _long("<i"),
    b"F": lambda machine: machine.push(float(machine.line())),
    b"G": _float,
    b"S": _text_string,
    b"V": _escaped_string,
    b"T": _text("<i", "surrogateescape"),
    b"U": _text("<B", "surrogateescape"),
    b"X": _text("<I", "surrogatepass"),
    b"\x8c": _text("<B", "surrogatepass"),
    b"\x8d": _text("<Q", "surrogatepass"),
    b"B": _bytes("<I"),
    b"C": _bytes("<B"),
    b"\x8e": _bytes("<Q"),
    b"\x96": _bytes("<Q"),
    b"t": lambda machine: machine.push(tuple(machine.pop_mark())),
    b"\x85": _tuple_of(1),
    b"\x86": _tuple_of(2),
    b"\x87": _tuple_of(3),
    b"l": lambda machine: machine.push(machine.pop_mark()),
    b"d": _dict_of_mark,
    b"a": lambda machine: machine.append([machine.stack.pop()]),
    b"e": lambda machine: machine.append(machine.pop_mark()),
    b"\x90": lambda machine: machine.append(machine.pop_mark()),  # ADDITEMS, to a set
    b"s": _one_item,
    b"u": lambda machine: machine.set_items(machine.pop_mark()),
    b"b": lambda machine: machine.build(),
    b"c": lambda machine: machine.name(machine.line(), machine.line()),
    b"\x93": _stack_name,
    b"R": _reduce,
    b"\x81": _reduce,  # NEWOBJ: cls.__new__(cls, *args)
    b"\x92": _new_object_ex,
    b"o": _object,
    b"i": _instance,
    b"P": lambda machine: machine.persistent(machine.line()),
    b"Q": lambda machine: machine.persistent(machine.stack.pop()),
    b"g": lambda machine: machine.get(int(machine.line())),
    b"h": lambda machine: machine.get(machine.number("<B")),
    b"j": lambda machine: machine.get(machine.number("<I")),
    b"p": lambda machine: machine.put(int(machine.line())),
    b"q": lambda machine: machine.put(machine.number("<B")),
    b"r": lambda machine: machine.put(machine.number("<I")),
    b"\x94": lambda machine: machine.put(len(machine.memo) + len(machine.memo_beyond)),
}
ACTIONS = {code[0]: action for code, action in _INSTRUCTIONS.items()}


def _refuse_newer(protocol: int) -> None:
    if protocol > 5:
        raise PickleError(f"it is of protocol {protocol}, newer than any we know")
