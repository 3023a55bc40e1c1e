"""Short texts."""

from __future__ import annotations

import re

import pytest

from ema_cli import text


def test_a_lazy_pattern_is_compiled_once_and_does_what_any_does(monkeypatch: pytest.MonkeyPatch):
    """Not when it is written down, and whichever method is asked for."""
    compiled = []

    def compile_it(expression: str, flags: int) -> re.Pattern[str]:
        compiled.append(expression)
        return _compile(expression, flags)

    _compile = re.compile
    monkeypatch.setattr(text.re, "compile", compile_it)
    steps = text.lazy_pattern(r"step-(\d+)", re.IGNORECASE)
    assert compiled == []
    assert [match[1] for name in ("Step-1", "step-20", "x") if (match := steps.search(name))] == ["1", "20"]
    assert compiled == [r"step-(\d+)"]
    assert steps.sub("_", "a step-3") == "a _"
    assert steps.pattern == r"step-(\d+)"


@pytest.mark.parametrize(("count", "shown"), [(0, ""), (1, "0"), (3, "0, 1, 2"), (4, "0, 1, 2, ...")])
def test_the_first_few_of_many(count: int, shown: str):
    """Dots stand for the others, where there are others."""
    assert text.first_few([str(number) for number in range(count)], 3) == shown
