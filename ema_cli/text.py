"""Format and parse short texts: natural order, plurals, sizes. Imports only errors from this package."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, cast

from ema_cli.errors import UsageError


class _Pattern:
    def __init__(self, expression: str, flags: int) -> None:
        self._expression = expression
        self._flags = flags

    def __getattr__(self, name: str) -> Any:
        value = getattr(re.compile(self._expression, self._flags), name)
        setattr(self, name, value)  # so that it is not asked for again
        return value


def lazy_pattern(expression: str, flags: int = 0) -> re.Pattern[str]:
    """Return a pattern that is compiled when it is first used: tables hold a hundred, of which a run needs few."""
    return cast(re.Pattern[str], _Pattern(expression, flags))


_SIZE = lazy_pattern(r"(\d{1,12}(?:\.\d{1,12})?) ?(?:([kmgt])(i?))?b", re.IGNORECASE | re.ASCII)


def natural_key(text: str) -> tuple[tuple[int, str], ...]:
    """Return a sort key that puts step-9 before step-10."""
    parts = re.split(r"([0-9]+)", text)
    return tuple((int(part), "") if i % 2 else (-1, part) for i, part in enumerate(parts))


def size(nbytes: float) -> str:
    """Return a number of bytes for people, in powers of 1000: `1.23 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(nbytes) < 999.5:
            return f"{nbytes:.3g} {unit}" if unit != "B" else f"{nbytes:.0f} B"
        nbytes /= 1000
    return f"{nbytes:.4g} TB"


def plural(count: int, word: str) -> str:
    """Return a count with its noun: `1 tensor`, `1,200 tensors`."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def relative(share: float | None) -> str:
    """Return a relative distance for people, as a percentage; `-` if there is none."""
    if share is not None and math.isnan(share):
        return "nan"
    return format_optional(None if share is None else share * 100, "{:.3g}%")


def format_optional(value: float | None, form: str) -> str:
    """Return a number in a format as "{:.4g}", or a dash where there is none."""
    return "-" if value is None else form.format(value)


def some(names: Sequence[str], most: int = 4) -> str:
    """Return the first `most` names, and the number of others: `a, b, c, d and 3 more`."""
    rest = f" and {len(names) - most:,} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{rest}"


def first_few(texts: Sequence[str], most: int = 8) -> str:
    """Return the first `most` texts, and whether there are others: `0, 1, 2, ...`."""
    return ", ".join(texts[:most]) + (", ..." if len(texts) > most else "")


def parse_size(text: str, option: str) -> int:
    """Read a number of bytes such as `200MB` or `1.5GiB`; `option` names the source in errors.

    Raises:
        UsageError: for anything else, a bare number included.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"'{text[:60]}' is not a size", option=option, hint="a number and a unit: 200MB, 1GiB")
    number, prefix, binary = match.groups()
    power = " kmgt".index(prefix.lower()) if prefix else 0
    return int(Fraction(number) * (1024 if binary else 1000) ** power)
