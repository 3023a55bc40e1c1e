"""What a job demands of an average before it is made: gates, each of which fails with exit code 6. No numpy."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ema_cli.errors import GateError, UsageError

_MOST_NAMES = 5
_MAX_KEYS_BYTES = 1 << 28


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

    @property
    def demand_anything(self) -> bool:
        """Return whether there is anything to check."""
        return self != Gates()

    def problem(
        self, plans: Sequence[Mapping[str, Any]], warnings: Sequence[str], names: Collection[str]
    ) -> GateError | None:
        """Return the error that says everything that does not hold; `plans` are facts, `names` those of the tensors.

        `warnings` are those of the run; those of the plans come with them.
        """
        found = [fact for plan in plans for fact in self._of_plan(plan)]
        if self.expect_keys is not None:
            found += _differences(self.expect_keys, names)
        if self.strict:
            told = dict.fromkeys([*warnings, *(each for plan in plans for each in plan["warnings"])])
            found += [f"--strict: {each}" for each in told]
        if not found:
            return None
        return GateError("; ".join(found), hint="nothing was averaged; change the run, or what is demanded of it")

    def _of_plan(self, plan: Mapping[str, Any]) -> list[str]:
        weights = {each["name"]: each["weight"] for each in plan["entries"] if each["weight"]}
        found = []
        if self.min_count is not None and len(weights) < self.min_count:
            enter = "checkpoint enters" if len(weights) == 1 else "checkpoints enter"
            found.append(f"--min-count {self.min_count}: {len(weights)} {enter} the average of {plan['law']}")
        if self.max_share is not None:
            name, weight = max(weights.items(), key=lambda each: each[1])
            if weight > self.max_share:
                found.append(
                    f"--max-share {self.max_share:g}: {name} holds {weight:.2%} of the average of {plan['law']}"
                )
        return found


def read_keys(path: Path) -> frozenset[str]:
    """Return the tensor names that a file lists: on lines, or in JSON: a list, an object's keys, an index, a manifest.

    Raises:
        UsageError: where there is no such file, or no name in it.
    """
    try:
        if path.stat().st_size > _MAX_KEYS_BYTES:
            raise UsageError("is too large for a list of names", option="expect_keys", subject=path)
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        fact = error.strerror if isinstance(error, OSError) else "is no text"
        raise UsageError(
            f"{fact}", option="expect_keys", subject=path, hint="a file with one name on each line"
        ) from error
    names = _in_json(text) if text.lstrip().startswith(("{", "[")) else None
    names = names if names is not None else [line.strip() for line in text.splitlines() if line.strip()]
    if not names:
        raise UsageError("lists no name", option="expect_keys", subject=path, hint="a file with one name on each line")
    return frozenset(names)


def _in_json(text: str) -> list[str] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(found, dict):
        rows = found.get("tensors")
        if "recipe" in found and isinstance(rows, list):
            return [str(row["name"]) for row in rows if isinstance(row, dict) and "name" in row]
        inner = found.get("weight_map", found)
        found = [name for name in inner if name != "__metadata__"] if isinstance(inner, dict) else None
    return found if isinstance(found, list) and all(isinstance(each, str) for each in found) else None


def _differences(expected: frozenset[str], names: Collection[str]) -> list[str]:
    missing, more = sorted(expected - set(names)), sorted(set(names) - expected)
    return [
        f"--expect-keys: {what} {', '.join(repr(each) for each in found[:_MOST_NAMES])}"
        + (f" and {len(found) - _MOST_NAMES} more" if len(found) > _MOST_NAMES else "")
        for what, found in (("missing", missing), ("unexpected", more))
        if found
    ]
