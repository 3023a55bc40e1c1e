"""The values that a caller from Python gives to options: each is of its kind, or an error names the option."""

from __future__ import annotations

import os
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

from ema_cli.errors import UsageError
from ema_cli.text import parse_size

_MOST = 2**40  # of what is counted: no machine has so many


def as_number(value: object, name: str) -> float:
    """Return the number that a caller gives as the value of an option; a text of one will do.

    Raises:
        UsageError: for anything else.
    """
    try:
        if isinstance(value, bool) or not isinstance(value, str | Real):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"{_shown(value)} is not a number", option=name, hint="as 0.5") from error


def as_count(value: object, name: str, what: str, *, least: int = 1) -> int:
    """Return the whole number that a caller gives as the value of an option.

    Raises:
        UsageError: for anything else, and for less than the least; it says of `what` it is no number.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= int(value) <= _MOST:
        raise UsageError(f"{_shown(value)} is not a number of {what}", option=name, hint=f"at least {least}")
    return int(value)


def as_size(value: object, name: str) -> int:
    """Return the bytes that a caller gives as the value of an option: a number, or a text as `200MB`.

    Raises:
        UsageError: for anything else.
    """
    return parse_size(value, name) if isinstance(value, str) else as_count(value, name, "bytes")


def as_text(value: object, name: str) -> str:
    """Return the text that a caller gives as the value of an option.

    Raises:
        UsageError: for anything else.
    """
    if not isinstance(value, str):
        raise UsageError(f"{_shown(value)} is no text", option=name)
    return value


def as_texts(value: object, name: str) -> tuple[str, ...]:
    """Return the texts that a caller gives as the value of an option that takes one or several.

    Raises:
        UsageError: for anything else.
    """
    texts = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (value,)
    if isinstance(value, bytes) or not all(isinstance(text, str) for text in texts):
        raise UsageError(f"{_shown(value)} is no text, and no list of texts", option=name)
    return tuple(str(text) for text in texts)


def as_list(value: object) -> list[Any]:
    """Return what a caller gives where there may be one or several."""
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else [value]


def check_texts(**options: object) -> None:
    """Check that each of some options is a text, where it is given.

    Raises:
        UsageError: for anything else.
    """
    for name, value in options.items():
        if value is not None:
            as_text(value, name)


def check_path_kinds(**options: object) -> None:
    """Check that each of some options is a path, where it is given.

    Raises:
        UsageError: for anything else.
    """
    for name, value in options.items():
        if value is not None and not isinstance(value, str | os.PathLike):
            raise UsageError(f"{_shown(value)} is no path", option=name)


def check_flags(**options: object) -> None:
    """Check that each of some options is true or false.

    Raises:
        UsageError: for anything else.
    """
    for name, value in options.items():
        if not isinstance(value, bool):
            raise UsageError(f"{_shown(value)} is neither True nor False", option=name)


def check_keywords(caller: str, given: Iterable[str], known: type) -> None:
    """Check that keywords are among those of a TypedDict: Python takes any in the place of `**keywords`.

    Raises:
        TypeError: for another one, in the words that Python has for parameters.
    """
    for name in given:
        if name not in known.__annotations__:
            raise TypeError(f"{caller}() got an unexpected keyword argument '{name}'")


def check_instance(value: object, kind: type, what: str) -> None:
    """Check that an argument is of a class of this package.

    Raises:
        UsageError: for anything else; it says `what` is wanted.
    """
    if not isinstance(value, kind):
        raise UsageError(f"{_shown(value)} is no {kind.__name__.lower()}", hint=f"give {what}")


def _shown(value: object) -> str:
    try:
        return repr(value)[:60]
    except ValueError:  # an int with more digits than Python writes
        return "a number that long"
