"""Read the metric that an evaluation prints."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from ema_cli.errors import EmaError
from ema_cli.text import some

_NUMBER = re.compile(
    r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+(?:\.\d*)?|\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?(?![\w])"
    r"|(?<![\w])[-+]?(?:nan|inf(?:inity)?)(?![\w])",
    re.IGNORECASE | re.ASCII,
)
_LARGEST = 1e150  # a sum of squares is finite
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class EvaluationFailed(EmaError):
    """An evaluation that gave no metric, with the reason."""

    exit_code = 6


def read_metric(text: str, name: str | None) -> float:
    """Return the last number on the last line of a text, or the value under `name` of its last JSON object.

    Raises:
        EvaluationFailed: where there is no such number, or it is not finite.
    """
    text = _COLOUR.sub("", text)
    return as_metric(_last_number(text) if name is None else _named(text, name))


def as_metric(value: Any) -> float:
    """Return what an evaluation gave as a number that can be compared.

    Raises:
        EvaluationFailed: where it is none, is not finite, or too large for a mean.
    """
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError, RuntimeError) as error:  # as torch and numpy say of several numbers
        shown = " ".join(repr(value)[:60].split())
        raise EvaluationFailed(f"its metric is {shown}, which is not a number") from error
    if not abs(number) <= _LARGEST:
        raise EvaluationFailed(f"its metric is {number:g}")
    return number


def _last_number(text: str) -> str:
    lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
    if not lines:
        raise EvaluationFailed("it printed nothing")
    numbers = _NUMBER.findall(lines[-1])
    if not numbers:
        raise EvaluationFailed(f"its last line has no number: '{lines[-1].strip()[:80]}'")
    return str(numbers[-1]).replace(",", "")


def _named(text: str, name: str) -> int | float:
    printed = list(_objects(text))
    if not printed:
        raise EvaluationFailed("it printed no JSON object")
    last = printed[-1]
    value = last.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        names = [key for key, number in last.items() if isinstance(number, int | float)]
        raise EvaluationFailed(f"its last JSON object has no number '{name}'; it has {some(names) or 'none'}")
    return value


def _objects(text: str) -> Iterator[dict[str, object]]:
    """Yield the JSON objects in a text, but not those inside others."""
    decoder, at = json.JSONDecoder(), text.find("{")
    while at >= 0:
        try:
            found, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            yield found
        at = text.find("{", end)
