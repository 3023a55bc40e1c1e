"""Batches that are taken over from another pickle: the same is read as without them."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ema_cli.formats.pickles.batches import Batches
from ema_cli.formats.pickles.machine import Machine
from ema_cli.formats.pickles.run import execute
from ema_cli.formats.pickles.unpickle import describe_storage
from tests.formats.pickles.pickled import Memory

TENSOR = (
    b"X\6\0\0\0%bctorch._utils\n_rebuild_tensor_v2\n("
    b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0%cX\3\0\0\0cpu"
    b"K\4tQK\0K\4\x85K\1\x85\x89ccollections\nOrderedDict\n)RtR"
)
USES = b"".join(b"X\3\0\0\0%03dh\0" % number for number in range(99))  # what is remembered first, 99 times


def model(count: int = 100, key: bytes = b"0") -> bytes:
    """Return the instructions of a dict with so many tensors, in one batch."""
    items = b"".join(TENSOR % (b"w%05d" % number, key) for number in range(count))
    return b"}(" + items + b"u"


def read(program: bytes, batches: Batches | None) -> tuple[Any, list[Any]]:
    """Return the value of a program and the memo."""
    machine = Machine(Memory(b"\x80\x02" + program + b"."), 0, describe_storage)
    return execute(machine, batches), machine.memo


def taken_over(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the position behind each batch that is taken over."""
    positions: list[int] = []
    original = Batches.take_over

    def take_over(self: Batches, machine: Machine, position: int) -> int:
        end = original(self, machine, position)
        positions.extend([end] if end else [])
        return end

    monkeypatch.setattr(Batches, "take_over", take_over)
    return positions


def test_a_batch_that_comes_again_is_taken_over(monkeypatch: pytest.MonkeyPatch):
    """Whatever comes before and behind it; what is read is what is read without."""
    taken, batches = taken_over(monkeypatch), Batches()
    for step in (b"K\1", b"M\1\2", b"X\3\0\0\0abc"):
        program = b"(" + step + model() + step + b"t"
        assert repr(read(program, batches)) == repr(read(program, None))
    assert len(taken) == 2


def test_what_a_batch_names_is_known_where_it_is_taken_over(monkeypatch: pytest.MonkeyPatch):
    """Classes and functions are those of the pickle, whether its batches were executed or not."""
    taken, batches = taken_over(monkeypatch), Batches()
    for step in (b"K\1", b"cmine\nown\n", b"K\2"):
        named = []
        for known in (batches, None):
            machine = Machine(Memory(b"\x80\x02(" + step + model() + b"t."), 0, describe_storage)
            machine.names = set()
            execute(machine, known)
            named.append(machine.names)
        assert named[0] == named[1]
        assert {"torch.FloatStorage", "collections.OrderedDict"} <= named[0]
        assert ("mine.own" in named[0]) == (b"mine" in step)
    assert len(taken) == 2


def test_a_batch_that_is_the_whole_pickle_is_taken_over(monkeypatch: pytest.MonkeyPatch):
    """A bare state dict ends with its batch: no more bytes follow than the end of the program."""
    taken, batches = taken_over(monkeypatch), Batches()
    for _ in range(2):
        assert len(read(model(), batches)[0]) == 100
    assert len(taken) == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (model(), model(key=b"1")),
        (model(100), model(101)),
        # What the batch uses is another thing in the second pickle.
        *[
            (b"(" + one + b"q\0}(" + USES + b"ut", b"(" + other + b"q\0}(" + USES + b"ut")
            for one, other in (
                (b"X\1\0\0\0a", b"X\1\0\0\0b"),
                (b"K\1", b"\x88"),
                (b"cm\nn\n", b"cm\no\n"),
                (b"]", b"]"),
            )
        ],
    ],
)
def test_another_batch_is_read_itself(first: bytes, second: bytes, monkeypatch: pytest.MonkeyPatch):
    """One byte, or what is remembered under a number, is enough to make it another."""
    taken, batches = taken_over(monkeypatch), Batches()
    for program in (first, second):
        assert repr(read(program, batches)) == repr(read(program, None))
    assert not taken


def test_two_pickles_share_nothing_that_can_be_changed():
    """Hooks that a pickle puts into a remembered dict do not come up in the next one."""
    items = b"".join(b"X\3\0\0\0%03dccollections\nOrderedDict\n)Rq%c0K\1" % (n, n) for n in range(99))
    batches, program = Batches(), b"(}(" + items + b"uh\0X\1\0\0\0kK\7st"
    assert repr(read(program, batches)) == repr(read(program, batches)) == repr(read(program, None))
    lists = b"(}(" + b"".join(b"X\3\0\0\0%03d]q%c" % (n, n) for n in range(99)) + b"uh\0K\7at"
    assert repr(read(lists, batches)) == repr(read(lists, batches)) == repr(read(lists, None))


def test_batches_of_more_bytes_than_a_limit_are_forgotten(monkeypatch: pytest.MonkeyPatch):
    """They take memory for as long as the program runs. Those that come again stay."""
    monkeypatch.setattr("ema_cli.formats.pickles.batches.MOST_BYTES", 30_000)
    batches = Batches()
    for number in range(9):
        read(b"(" + b"Nq%c" % 0 + b"N\x94" * number + model() + b"t", batches)
        assert batches._nbytes <= 30_000
    assert len(batches._batches) < 9
    for number in (8, 7, 6):
        read(b"(" + b"Nq%c" % 0 + b"N\x94" * number + model() + b"t", batches)
    assert 9 in batches._batches  # the first was taken over; the last found no room
    assert 7 not in batches._batches


@pytest.mark.slow
@given(st.data())
def test_any_two_pickles_are_read_as_without_batches(data: st.DataObject):
    """Two dicts of the same names, with values of any plain kinds, changed here and there."""
    value = st.one_of(st.integers(), st.text(max_size=3), st.booleans(), st.floats(allow_nan=False), st.none(),
                      st.just([]), st.just({}), st.tuples(st.integers(0, 3)))  # fmt: skip
    items = data.draw(st.lists(value, min_size=70, max_size=80))
    batches = Batches()
    for _ in range(3):
        head = data.draw(st.sampled_from(["epoch", "step", ("a", "b")]))
        saved = (head, {f"n{number:03}": item for number, item in enumerate(items)}, head)
        program = pickle.dumps(saved, protocol=2)[2:-1]
        assert repr(read(program, batches)) == repr(read(program, None))
        if data.draw(st.booleans()):
            items[data.draw(st.integers(0, 69))] = data.draw(value)
