"""JSON from files that may be hostile: no duplicate keys, no NaN, exact decimals, no endless nesting."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NoReturn

from ema_cli.errors import CheckpointError, IncompleteCheckpoint
from ema_cli.storage.source import InputFile

_MAX_VALUES = 8_000_000  # a tensor takes some ten in a header; a million steps of a log, as many


def read_json(file: InputFile, max_bytes: int, *, constants: bool = False) -> Any:
    """Return the value of a JSON file of at most `max_bytes`; `constants` as in `parse_json`.

    Raises:
        IncompleteCheckpoint: where it looks half-written.
        CheckpointError: where it is too large or not strict JSON.
    """
    if file.size > max_bytes:
        raise CheckpointError(
            f"{file.size} bytes are too many for this file; at most {max_bytes} are read", subject=file.path
        )
    text = file.read(0, file.size)
    try:
        return parse_json(text, constants=constants)
    except ValueError as error:
        kind = IncompleteCheckpoint if _is_cut(text) else CheckpointError
        raise kind(f"not valid JSON: {error}", subject=file.path) from error


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dict.

    Raises:
        ValueError: for a key that stands twice.
    """
    values = dict(pairs)
    if len(values) < len(pairs):
        seen = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the key {name[:200]!r} stands twice")
            seen.add(name)
    return values


def parse_json(
    text: bytes,
    *,
    constants: bool = False,
    objects: Callable[[list[tuple[str, Any]]], Any] = unique,
    integers: Callable[[str], int] | None = None,
) -> Any:
    """Return the value of UTF-8 JSON `text`; decimals come as exact `Fraction`s.

    Args:
        text: the JSON.
        constants: whether NaN and infinities, which JSON does not have, are read, as None.
        objects: makes the value of a JSON object from its pairs.
        integers: makes the value of a whole number from its text.

    Raises:
        ValueError: for what is not strict JSON, and for duplicate keys (parsers differ on which one wins).
    """
    if sum(map(text.count, (b",", b"[", b"{"))) > _MAX_VALUES:
        raise ValueError(f"it holds more than {_MAX_VALUES} values")
    try:
        return json.loads(
            text.decode("utf-8"),
            object_pairs_hook=objects,
            parse_float=_exact,
            parse_int=integers,
            parse_constant=_no_value if constants else _refuse_constant,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _is_cut(text: bytes) -> bool:
    """Return whether a JSON object that does not parse looks half-written rather than damaged."""
    return text.count(b"{") > text.count(b"}") or not text.rstrip().endswith(b"}")


def _exact(text: str) -> Fraction:
    # Fraction("1e999999999") would be a number of a billion digits.
    mantissa, _, exponent = text.lower().partition("e")
    if len(mantissa) > 60 or len(exponent) > 4 or abs(int(exponent or 0)) > 400:
        raise ValueError(f"the number {text[:20]} is out of range")
    # Twice as fast as Fraction(text), which a log of millions of decimals feels.
    whole, _, decimals = mantissa.partition(".")
    digits, shift = int(whole + decimals), int(exponent or 0) - len(decimals)
    return Fraction(digits * 10**shift) if shift >= 0 else Fraction(digits, 10**-shift)


def _no_value(_: str) -> None:
    return None


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")
