"""The loop that executes pickles: what it has written out does what the table of instructions says."""

from __future__ import annotations

import ast
import inspect
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ema_cli.formats.pickles import run
from ema_cli.formats.pickles.machine import Machine
from ema_cli.formats.pickles.values import PickleError
from tests.formats.pickles.pickled import Memory

PROTOCOL = b"\x80\x02"  # the first instruction is always found in the table, since no block of the file is read yet
PADDING = bytes(8)  # behind STOP: the loop leaves instructions at the end of a block to the table
DAMAGE = (PickleError, IndexError, KeyError, ValueError, TypeError, AttributeError, struct.error, OverflowError)

# By instruction: programs that use it, without PROTOCOL and STOP. What lies on the stack becomes one tuple.
PROGRAMS: dict[int, list[bytes]] = {
    0x94: [b"(N\x94K\x07\x94h\0h\1t", b"(K\1q\5K\2\x94h\1t"],
    ord("r"): [b"(Nr\0\0\0\0h\0t", b"(K\1r\7\0\0\0K\2r\0\0\0\0h\7h\0t"],
    ord("h"): [b"(K\5q\0h\0h\0t", b"(K\5q\x09h\x09t"],
    ord("j"): [b"(K\5q\0j\0\0\0\0t", b"(K\5r\0\1\0\0j\0\1\0\0t"],
    ord("K"): [b"K\xff"],
    0x85: [b"K\1\x85", b"\x85"],
    ord("M"): [b"M\x01\xff"],
    ord("("): [b"((K\1tK\2t"],
    ord("R"): [
        b"ccollections\nOrderedDict\n)R",
        b"cbuiltins\nlist\n(K\1K\2t\x85R",
        b"cos\nsystem\n(X\2\0\0\0lstR",
        b"ctorch._utils\n_rebuild_other\n)R",
        b"K\1)R",
        b"cos\nsystem\nK\1R",
    ],
    0x81: [b"cargparse\nNamespace\n)\x81"],
    ord(")"): [b")"],
    0x86: [b"K\1K\2\x86", b"K\1\x86"],
    ord("b"): [b"cargparse\nNamespace\n)\x81}(X\1\0\0\0aK\1ub", b"}}b", b"K\1}b"],
    ord("}"): [b"}"],
    ord("u"): [b"}(X\1\0\0\0aK\1X\1\0\0\0bK\2u", b"}(F0.5\nK\1u", b"K\1(K\1K\2u", b"}(K\1u", b"u"],
    ord("X"): [b"X\3\0\0\0abc", b"X\1\0\0\0\xff", b"X\3\0\0\0\xed\xa0\x80"],
    ord("t"): [b"(K\1K\2t", b"(t", b"t"],
    ord("Q"): [b"X\2\0\0\0idQ"],
    0x89: [b"\x89"],
    0x8C: [b"\x8c\x03abc", b"\x8c\x01\xff"],
    ord("J"): [b"J\xff\xff\xff\xff", b"J\1\0\0\x7f"],
    ord("q"): [b"(Nq\0h\0t", b"(K\1q\7K\2q\0h\7h\0t"],
}
ANY = [
    *(bytes([code]) for code in b"N()]}201\x85\x86\x87\x88\x89\x8f\x90\x91\x93\x94RbtldsuaeQ\x81\x92o"),
    b"K\1", b"M\1\2", b"J\1\0\0\0", b"X\1\0\0\0a", b"\x8c\1b", b"q\0", b"q\1", b"r\0\0\0\0", b"h\0", b"h\1",
    b"j\0\0\0\0", b"cbuiltins\nlist\n", b"cm\nn\n", b"ccollections\nOrderedDict\n",
]  # fmt: skip


def outcome(execute: Callable[[Machine], Any], program: bytes) -> object:
    """Return what is left after a program: its value, the memo, and where it ended; or that it is damaged."""
    machine = Machine(Memory(PROTOCOL + program + b"." + PADDING), 0, lambda identifier: ("outside", identifier))
    try:
        value = execute(machine)
    except DAMAGE:
        return "damaged"
    return repr((value, machine.memo, machine.memo_beyond, machine.stack, machine.marks, machine.position))


def by_table(machine: Machine) -> Any:
    """Execute a program as `run.execute` does, by the table alone."""
    while not run.step(machine):
        pass
    value = machine.stack.pop()
    if machine.stack or machine.marks:
        raise PickleError("it ends in the middle of a value")
    return value


def written_out() -> set[int]:
    """Return the instructions that the loop has a case for."""
    tree = ast.parse(inspect.getsource(run.execute))
    patterns = (node.value for node in ast.walk(tree) if isinstance(node, ast.MatchValue))
    return {pattern.value for pattern in patterns if isinstance(pattern, ast.Constant)}


def test_the_programs_use_all_instructions_that_are_written_out() -> None:
    """A case that is added to the loop is compared with the table, too."""
    assert written_out() == set(PROGRAMS)


@pytest.mark.parametrize("code", PROGRAMS, ids=lambda code: repr(bytes([code])))
def test_an_instruction_does_the_same_in_the_loop_and_by_the_table(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Value, memo and end are equal, or both refuse the program; and the loop did not ask the table for it."""
    expected = [outcome(by_table, program) for program in PROGRAMS[code]]
    asked: list[int] = []

    def step(machine: Machine, original: Callable[[Machine], bool] = run.step) -> bool:
        asked.append(machine.data[machine.position] if machine.data else PROTOCOL[0])
        return original(machine)

    monkeypatch.setattr(run, "step", step)
    assert outcome(run.execute, PROGRAMS[code][0]) == expected[0] != "damaged"
    assert code not in asked
    assert [outcome(run.execute, program) for program in PROGRAMS[code]] == expected


@given(program=st.lists(st.sampled_from(ANY), max_size=30).map(b"".join))
@example(b"(K\1q\1N\x94h\0h\1t")
def test_any_program_does_the_same_in_the_loop_and_by_the_table(program: bytes) -> None:
    """Instructions in any order leave the same behind, or are damage to both."""
    collected = b"(" + program + b"t"
    for text in (program, collected):
        assert outcome(run.execute, text) == outcome(by_table, text)
