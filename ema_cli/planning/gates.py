"""Gates: demands on an average before it is made. One that is not met fails with exit code 6. No numpy."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from ema_cli.dataclass import dataclass
from ema_cli.errors import GateError, UsageError, option
from ema_cli.planning.named_file import read_named_text
from ema_cli.planning.plan import Plan
from ema_cli.text import some

_MOST_NAMES = 5
_MOST_CHARS = 60  # of a line that is no name
_MAX_KEYS_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Gates:
    """What is demanded: at least `min_count` checkpoints that enter, none with more than `max_share` of the average,
    with `strict` nothing to warn of, and exactly the tensors in `expect_keys`.

    Raises:
        UsageError: for values that make no sense.
    """

    min_count: int | None = None
    max_share: float | None = None
    strict: bool = False
    expect_keys: frozenset[str] | None = None

    def __post_init__(self) -> None:
        if self.min_count is not None and self.min_count < 1:
            raise UsageError(f"{self.min_count} is not a number of checkpoints", option="min_count", hint="at least 1")
        if self.max_share is not None and not 0 < self.max_share <= 1:
            raise UsageError(f"{self.max_share:g} is not above 0 and at most 1", option="max_share", hint="as 0.5")

    def problem(self, plans: Sequence[Plan], warnings: Sequence[str], names: Collection[str]) -> GateError | None:
        """Return the error that says everything that does not hold, None where all does.

        Args:
            warnings: those of the run; those of the plans come with them.
            names: those of the tensors in the average.
        """
        facts = [fact for plan in plans for fact in self._of_plan(plan)]
        if self.expect_keys is not None:
            facts += _differences(self.expect_keys, names)
        if self.strict:
            every = dict.fromkeys([*warnings, *(warning for plan in plans for warning in plan.advice.warnings)])
            facts += _warned(every)
        return _failed(facts) if facts else None

    def demand(self, warnings: Sequence[str]) -> None:
        """Check that there is nothing to warn of that all bytes of the checkpoints showed, if that is demanded.

        Raises:
            GateError: saying what there is.
        """
        if self.strict and warnings:
            raise _failed(_warned(warnings))

    def _of_plan(self, plan: Plan) -> list[str]:
        facts = []
        count, law = len(plan.read), plan.recipe.law.name
        if self.min_count is not None and count < self.min_count:
            enter = "checkpoint enters" if count == 1 else "checkpoints enter"
            facts.append(f"{option('min_count', self.min_count)}: {count} {enter} the average of {law}")
        if self.max_share is not None:
            heaviest = max(plan.read, key=lambda entry: entry.weight)
            if heaviest.weight > self.max_share:
                demanded = option("max_share", float(f"{self.max_share:g}"))
                holds = f"{heaviest.checkpoint.name} holds {heaviest.weight:.2%} of the average of {law}"
                facts.append(f"{demanded}: {holds}")
        return facts


def _warned(warnings: Iterable[str]) -> list[str]:
    return [f"{option('strict', True)}: {warning}" for warning in warnings]


def _failed(facts: Sequence[str]) -> GateError:
    return GateError("; ".join(facts), hint="nothing was averaged; change the run, or what is demanded of it")


def read_keys(path: Path) -> frozenset[str]:
    """Return the tensor names that a file lists: on lines, or in JSON: a list, an object's keys, an index, a manifest.

    Raises:
        UsageError: where there is no such file, or no name in it.
    """
    hint = "a file with one name on each line, or the manifest of an average"
    text = read_named_text(path, _MAX_KEYS_BYTES, option="expect_keys", hint=hint)
    try:
        names = _in_json(text)
        names = names if names is not None else _on_lines(text)
        if not names:
            raise ValueError("lists no name")
    except ValueError as error:
        raise UsageError(str(error), option="expect_keys", subject=path, hint=hint) from error
    return frozenset(names)


def _on_lines(text: str) -> list[str]:
    """Return the names on the lines of a text.

    Raises:
        ValueError: for another text, as sums, a table or a program; a name with a space is read from JSON alone.
    """
    lines = [line.strip() for line in text.splitlines()]
    for number, line in enumerate(lines, 1):
        if len(line.split()) > 1:
            shown = line if len(line) <= _MOST_CHARS else f"{line[:_MOST_CHARS]}..."
            raise ValueError(f"is no list of names: its line {number} is {shown!r}")
    return [line for line in lines if line]


def _in_json(text: str) -> list[str] | None:
    """Return the names in a text of JSON, None where it is none.

    Raises:
        ValueError: where the JSON is of something else.
    """
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None  # a name may begin so, as `['params']['kernel']`
    if isinstance(content, dict):
        rows = content.get("tensors")
        if "recipe" in content and isinstance(rows, list):  # a manifest
            return [str(row["name"]) for row in rows if isinstance(row, dict) and "name" in row]
        inner = content.get("weight_map", content)
        content = [name for name in inner if name != "__metadata__"] if isinstance(inner, dict) else None
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return content
    raise ValueError("is JSON, and no list or object of names")


def _differences(expected: frozenset[str], names: Collection[str]) -> list[str]:
    missing, unexpected = sorted(expected - set(names)), sorted(set(names) - expected)
    return [
        f"{option('expect_keys')}: {what} {some([repr(name) for name in different], _MOST_NAMES)}"
        for what, different in (("missing", missing), ("unexpected", unexpected))
        if different
    ]
