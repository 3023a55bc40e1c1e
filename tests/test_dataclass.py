"""Our dataclass does what that of the standard library does."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, field
from types import SimpleNamespace
from typing import Any

import pytest

import ema_cli.dataclass
from ema_cli.dataclass import dataclass

FORMS = ({}, {"frozen": True}, {"slots": True}, {"frozen": True, "slots": True}, {"frozen": True, "eq": False})


def classes(dataclass: Callable[..., Any], form: dict[str, bool]) -> SimpleNamespace:
    """Return a few classes that a decorator makes: defaults, keywords, no fields, a method of its own, a subclass."""

    @dataclass(**form)
    class Point:
        """A point."""

        x: int
        y: int = 2
        names: list[str] = field(default_factory=list)

    @dataclass(**form)
    class Named(Point):
        """One with a name, and what is made of it."""

        name: str = "?"
        key: int = field(default=1, kw_only=True)
        made: dict[str, int] = field(default_factory=dict, init=False)

        def __post_init__(self) -> None:
            self.made[self.name] = self.x

        def __repr__(self) -> str:
            return f"<{self.name}>"

    @dataclass(**form)
    class Empty:
        """Nothing."""

    @dataclass(**form, kw_only=True)
    class Keywords:
        """By name only, and not all of it counts."""

        a: int
        b: int = field(default=0, compare=False, repr=False)

    return SimpleNamespace(Point=Point, Named=Named, Empty=Empty, Keywords=Keywords)


CALLS: tuple[Callable[[SimpleNamespace], Any], ...] = (
    lambda of: [of.Point(1), of.Point(1, 3), of.Point(x=1, names=["a"])],
    lambda of: [of.Point(1) == of.Point(1, 2), of.Point(1) == of.Point(2), of.Point(1) == (1, 2, []), of.Point(1) != 1],
    lambda of: [of.Point(1).names is of.Point(1).names],
    lambda of: of.Point(),
    lambda of: of.Point(1, z=1),
    lambda of: of.Named(1, name="n", key=5),
    lambda of: of.Named(1, 2, [], "n", 5),
    lambda of: dataclasses.asdict(of.Named(1, name="n")),
    lambda of: dataclasses.replace(of.Point(1), y=7),
    lambda of: copy.copy(of.Point(1, names=["a"])),
    lambda of: [of.Empty(), of.Empty() == of.Empty()],
    lambda of: [of.Keywords(a=1, b=2), of.Keywords(a=1, b=2) == of.Keywords(a=1), of.Keywords(a=1) == of.Keywords(a=2)],
    lambda of: of.Keywords(1),
    lambda of: hash(of.Keywords(a=1)) == hash(of.Keywords(a=1, b=2)),
    lambda of: isinstance(hash(of.Point(1)), int),
    lambda of: setattr(of.Point(1), "x", 2),
    lambda of: delattr(of.Point(1), "x"),
    lambda of: [str(inspect.signature(of.Named)), of.Point.__match_args__, of.Point.__init__.__qualname__],
    lambda of: [each.name for each in dataclasses.fields(of.Named)],
)  # fmt: skip


def outcome(call: Callable[[SimpleNamespace], Any], of: SimpleNamespace) -> str:
    """Return what a call gives, or the kind of error."""
    try:
        return repr(call(of))
    except (TypeError, FrozenInstanceError) as error:
        return type(error).__name__


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_it_does_what_the_standard_library_does(form: dict[str, bool]):
    """Construction, comparison, representation, hashes, copies, what is refused, and what it says of itself."""
    ours, theirs = classes(dataclass, form), classes(dataclasses.dataclass, form)
    for call in CALLS:
        assert outcome(call, ours) == outcome(call, theirs), inspect.getsource(call)


@dataclass(frozen=True, slots=True)
class Pickled:
    """At the top of a module, where pickle looks."""

    a: int
    b: tuple[int, ...] = ()


def test_a_frozen_one_with_slots_is_pickled():
    """As blocks of a fold are, for other processes."""
    assert pickle.loads(pickle.dumps(Pickled(1, (2,)))) == Pickled(1, (2,))


def test_a_constructor_is_compiled_when_it_is_first_asked_for(monkeypatch: pytest.MonkeyPatch):
    """Once for each class, whoever asks: the first object, one of a subclass, or `inspect`."""
    asked: list[str] = []
    real = ema_cli.dataclass._constructor

    def constructor(made: Any, *, frozen: bool) -> Callable[..., None]:
        asked.append(made.__name__)
        return real(made, frozen=frozen)

    monkeypatch.setattr(ema_cli.dataclass, "_constructor", constructor)
    made = classes(dataclass, {"frozen": True, "slots": True})
    assert not asked
    assert made.Point(1) == made.Point(1, 2, [])
    assert list(inspect.signature(made.Named).parameters) == ["x", "y", "names", "name", "key"]
    made.Named(3)

    class Inherits(made.Keywords):
        pass

    assert Inherits(a=1).a == made.Keywords(a=1).a
    assert asked == ["Point", "Named", "Keywords"]
