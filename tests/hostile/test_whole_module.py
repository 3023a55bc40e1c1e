"""Whole pickled modules: what is in their state never runs, and a tree of modules without end has one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.hostile.conftest import Case, Harness, Kind, in_turn, parameters
from tests.hostile.make import (
    ESCAPES,
    SHOWN,
    WEIGHTS,
    build,
    data,
    legacy,
    mapping,
    name,
    number,
    tensor,
    text,
    torch_zip,
    whole,
    writes,
)
from tests.hostile.programs import ENDLESS, PROGRAMS, endless

MODULE = "torch.nn.Module"


def module(
    parameters: bytes | None = None, children: bytes = b"}", buffers: bytes = b"}", of: str = MODULE, **state: bytes
) -> bytes:
    """Push a module."""
    own = mapping(WEIGHTS) if parameters is None else parameters
    parts = {"_parameters": own, "_buffers": buffers, "_modules": children}
    return build(of, mapping({**parts, "training": b"\x88", **state}))


def good_module(path: Path, step: int) -> None:
    """Write a good module."""
    path.write_bytes(torch_zip(whole(module()), data(step)))


KIND = Kind("step-{}.pt", good_module)


def file(label: str, root: Callable[[], bytes], says: str = "", tensor: str | None = None, **more: object) -> Case:
    """Return a case of a zip file around a module."""
    return Case(writes(lambda: torch_zip(whole(root()))), says, tensor, label=label, **more)  # type: ignore[arg-type]


def planted(label: str, place: str) -> Case:
    """Return a case of a program in the state of a module."""

    def write(path: Path, canary: Path) -> None:
        value = PROGRAMS[label](canary)
        root = {
            "attribute": lambda: module(extra=value),
            "forward hook": lambda: module(_forward_hooks=b"}(" + number(0) + value + b"u"),
            "parameter": lambda: module(mapping({**WEIGHTS, "x": value})),
            "child": lambda: module(children=mapping({"x": value})),
            "state": lambda: name(MODULE) + b")\x81" + value + b"b",
        }[place]()
        path.write_bytes(torch_zip(whole(root)))

    # Dicts without a tensor in them are left out, whatever else stands there.
    left_out = place == "parameter" and label in ("a default factory", "a key")
    fine = place in ("attribute", "forward hook") or left_out
    says = {"parameter": "cannot be averaged", "child": "of no kind we know", "state": "pickled object"}.get(place, "")
    tensor = "x" if place == "parameter" and not fine else None
    return Case(write, "" if fine else says, tensor, code=0 if fine else 3, label=f"{label}, {place}")


def in_itself() -> bytes:
    """Push a module that is its own child."""
    return name(MODULE) + b")\x81q\x05" + mapping({"_parameters": b"}", "_buffers": b"}", "_modules": b"}" + text("a")
    + b"h\x05s"}) + b"b"  # fmt: skip


def paths(levels: int, width: int, leaf: bytes = b"}") -> bytes:
    """Push a module with `width` children that are one, and so on: width ** levels paths."""
    pushed = module(leaf) + b"q\x05"
    for _ in range(levels):
        children = b"".join(text(f"{number:x}") + b"h\x05" for number in range(width))
        pushed += b"0" + module(b"}", b"}(" + children + b"u") + b"q\x05"
    return pushed


def long_names(levels: int) -> bytes:
    """Push nested modules, each under the same long name, with many parameters at the end."""
    label = b"n" * 1_000_000
    pushed = module(b"}(" + b"".join(text(f"{each}") + tensor() for each in range(2000)) + b"u") + b"q\x05"
    pushed = text(label) + b"q\x060" + pushed
    for _ in range(levels):
        pushed += b"0" + module(b"}", b"}h\x06h\x05s") + b"q\x05"
    return pushed


def many(count: int, value: bytes = b"N") -> bytes:
    """Push a dict of many short names."""
    return b"}(" + b"".join(b"X\x07\x00\x00\x00%07d" % each + value for each in range(count)) + b"u"


def empty_dicts() -> bytes:
    """Push a tree of modules that share one dict of half a million parameters that are None."""
    shared = many(500_000) + b"q\x060"
    return shared + paths(3, 100, b"h\x06")


def transient_names() -> bytes:
    """Push a module whose buffers are all left out, by a list as long as theirs."""
    left_out = b"](" + b"".join(b"X\x07\x00\x00\x00%07d" % each for each in range(200_000)) + b"e"
    return module(buffers=many(200_000), _non_persistent_buffers_set=left_out)


def refused_state(**state: bytes) -> Callable[[], bytes]:
    """Return what pushes a module with another state."""
    return lambda: module(**state)


SHARED: Mapping[str, tuple[Callable[[], bytes], str]] = {
    "a module in itself": (in_itself, "nested without end"),
    "2^60 paths to one child": (lambda: paths(60, 2), "nested without end"),
    "2^60 paths to one tensor": (lambda: paths(60, 2, mapping(WEIGHTS)), "nested without end"),
    "a million million paths": (lambda: paths(3, 10_000), "nested without end"),
    "300 levels": (lambda: paths(300, 1, mapping(WEIGHTS)), "nested without end"),
    "names of 100 MB": (lambda: long_names(100), "without end"),
    "names of 1 MB": (lambda: long_names(1), "without end"),
    "shared dicts of nothing": (empty_dicts, "without end"),
}
CASES = [
    *in_turn(*([planted(label, place) for label in PROGRAMS] for place in ("attribute", "parameter", "child"))),
    *(planted("REDUCE", place) for place in ("forward hook", "state")),
    *in_turn(
        (file(label, lambda v=label: module(extra=endless(v)), code=0) for label in ENDLESS),
        (file(f"{label}, child", lambda v=label: module(children=mapping({"x": endless(v)})), "no kind we know")
         for label in ENDLESS),
    ),
    *(file(label, root, says, seconds=20 if "paths" in label else 10, full="paths" in label)
      for label, (root, says) in SHARED.items()),
    file("many buffers left out", transient_names, code=0),
    file("half a million tensors", lambda: module(many(550_000, b"N" + tensor()[:0] or b"N")), "", code=3, passed=True,
         seconds=20, full=True),
    file("a million tensors", lambda: b"".join([tensor(), b"q\x070", module(many(1_000_000, b"h\x07"))]), "at most",
         seconds=40, full=True),
    file("names left out as a number", refused_state(_non_persistent_buffers_set=number(5)), "by name"),
    file("names left out as text", refused_state(_non_persistent_buffers_set=text("w")), "by name"),
    file("children in a list", refused_state(_modules=b"]"), "pickled object"),
    file("parameters in a list", refused_state(_parameters=b"]"), "no names"),
    file("parameters under numbers", lambda: module(b"}" + number(1) + tensor() + b"s"), "no names"),
    file("hooks", refused_state(_state_dict_hooks=b"}" + number(0) + name("a.B") + b"s"), "has hooks"),
    file("hooks of a class that steers", lambda: text("a") + text(ESCAPES) + b"\x93)\x81" + mapping({
        "_parameters": b"}", "_buffers": b"}", "_modules": b"}", "_state_dict_hooks": mapping({"a": b"N"})}) + b"b",
        SHOWN),
    file("a child whose name steers", lambda: module(children=mapping({ESCAPES: b"N" + b"0" + number(1)})), SHOWN),
    file("two tensors of one name", lambda: module(mapping({"a.w": tensor()}), mapping({"a": module()})), "two tensors",
         "a.w"),
    file("a tensor whose name steers", lambda: module(mapping({ESCAPES: tensor(shape=(9,))})), SHOWN),
    Case(writes(lambda: legacy(whole(module()))), code=0, label="in a legacy file"),
    Case(writes(lambda: torch_zip(whole(mapping({"model": in_itself(), "step": number(3)})))), "nested without end",
         label="in itself, under a key"),
]  # fmt: skip


@pytest.mark.parametrize("case", parameters(CASES))
def test_hostile_modules(case: Case, harness: Harness) -> None:
    """No class of a module is called, no path of its children is followed without end."""
    harness.check(KIND, case)
