"""`dataclass`: as that of the standard library, and defined in a quarter of the time.

The library compiles up to seven methods for each class when its module is imported, which was a quarter of the start of
the program; all but one are hardly ever called. Here the constructor alone is compiled, when it is first asked for: a
command makes objects of few of the classes. `fields`, `replace` and `asdict` of the library work. Left out is what
nothing here needs: order, unsafe hashes and InitVar.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import MISSING, FrozenInstanceError, fields
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass  # what type checkers know
else:

    def dataclass(cls=None, /, *, init=True, repr=True, eq=True, frozen=False, slots=False, **options):
        """Make a dataclass; see `dataclasses.dataclass`."""
        if cls is None:
            return partial(dataclass, init=init, repr=repr, eq=eq, frozen=frozen, slots=slots, **options)
        made = dataclasses.dataclass(init=False, repr=False, eq=False, slots=slots, **options)(cls)
        methods = {"__init__": _Constructor(made, frozen=frozen)} if init else {}
        if repr:
            methods["__repr__"] = _represent
        if eq:
            methods |= _comparison(made, hashed=frozen)
        if frozen:
            methods |= {"__setattr__": _refuse, "__delattr__": _refuse}
        if frozen and slots:
            methods |= {"__getstate__": _state, "__setstate__": _set_state}
        for name, method in methods.items():
            if name not in vars(cls):
                setattr(made, name, method)
        return made


class _Factory:
    """The default, in signatures, of what is made anew for each object."""

    def __repr__(self) -> str:
        return "<factory>"


_NEW = _Factory()


class _Constructor:
    """Stands for the `__init__` of a class until somebody asks for it, and gives way to it then."""

    def __init__(self, made: Any, *, frozen: bool) -> None:
        self._made = made
        self._frozen = frozen

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        constructor = self._made.__init__ = _constructor(self._made, frozen=self._frozen)
        return constructor.__get__(instance, owner)


def _constructor(made: Any, *, frozen: bool) -> Callable[..., None]:
    """Return an `__init__` that takes the fields, and calls `__post_init__` where there is one."""
    scope: dict[str, Any] = {"_set_field_": object.__setattr__, "_new_": _NEW}
    parameters, keywords, lines = ["self"], ["*"], ["pass"]
    for field in fields(made):
        name = value = field.name
        parameter = default = f"_default_{name}"
        if field.default is not MISSING:
            scope[default] = field.default
            parameter = f"{name}={default}"
            value = name if field.init else default
        elif field.default_factory is not MISSING:
            scope[default] = field.default_factory
            parameter = f"{name}=_new_"
            value = f"{default}() if {name} is _new_ else {name}" if field.init else f"{default}()"
        elif field.init:
            parameter = name
        else:
            continue  # whoever made it so sets it
        if field.init:
            (keywords if field.kw_only else parameters).append(parameter)
        lines.append(f"_set_field_(self, {name!r}, {value})" if frozen else f"self.{name} = {value}")
    if hasattr(made, "__post_init__"):
        lines.append("self.__post_init__()")
    everything = ", ".join(parameters + (keywords if keywords[1:] else []))
    exec(f"def __init__({everything}):\n " + "\n ".join(lines), scope)
    constructor: Callable[..., None] = scope["__init__"]
    constructor.__qualname__ = f"{made.__qualname__}.__init__"
    constructor.__annotations__ = {field.name: field.type for field in fields(made) if field.init} | {"return": None}
    return constructor


def _comparison(made: Any, *, hashed: bool) -> dict[str, Any]:
    """Return `__eq__` and `__hash__` over the fields; without a hash where they may change."""
    names = [field.name for field in fields(made) if field.compare]
    compared: Callable[[Any], object] = attrgetter(*names) if names else type

    def equal(self: Any, other: object) -> bool:
        return compared(self) == compared(other) if other.__class__ is self.__class__ else NotImplemented

    def digest(self: Any) -> int:
        return hash(compared(self))

    return {"__eq__": equal, "__hash__": digest if hashed else None}


def _represent(self: Any) -> str:
    shown = (f"{field.name}={getattr(self, field.name)!r}" for field in fields(self) if field.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _refuse(self: Any, name: str, value: object = None) -> None:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _state(self: Any) -> list[Any]:
    return [getattr(self, field.name) for field in fields(self)]


def _set_state(self: Any, state: list[Any]) -> None:
    for field, value in zip(fields(self), state, strict=True):
        object.__setattr__(self, field.name, value)
