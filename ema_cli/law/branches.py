"""Who stored an average: the start or the resume of a training that did, and those that it goes back to.

No torch, no numpy.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from ema_cli.dataclass import dataclass
from ema_cli.law.time import Time, Unit

_IDENTITY = re.compile(r"[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class Branch:
    """One start or resume of a training.

    Attributes:
        identity: 8 hexadecimal digits that no other start or resume has; empty for those of versions that wrote none.
        since: the clock that it was resumed from, None for a start.
    """

    identity: str
    since: Time | None = None

    def to_dict(self) -> dict[str, str]:
        """Return the branch as a stored average has it."""
        return {"id": self.identity, **({} if self.since is None else {"since": str(self.since)})}


Lineage = tuple[Branch, ...]
"""A start of a training and its resumes, each from a state of the one before; at least one branch, the oldest first."""

UNKNOWN: Lineage = (Branch(""),)
"""The lineage of what an earlier version stored."""


def lineage_to_list(lineage: Lineage) -> list[dict[str, str]]:
    """Return a lineage as a stored average, or a state, has it."""
    return [branch.to_dict() for branch in lineage]


def lineage_from_list(data: Sequence[Any], unit: Unit) -> Lineage:
    """Read what `lineage_to_list` returned, of averages that count in this unit.

    Raises:
        UsageError, ValueError, LookupError, TypeError, AttributeError: where the data are no lineage.
    """
    lineage = []
    for number, row in enumerate(data):
        identity, since = row["id"], row.get("since")
        is_unknown = number == 0 and identity == ""
        if not is_unknown and not _IDENTITY.fullmatch(identity):
            raise ValueError("it names no start or resume of a training")
        if (since is None) != (number == 0):
            raise ValueError("it begins with a resume, or goes on with a start")
        branch = Branch(identity, None if since is None else Time.parse(since))
        if branch.since is not None and branch.since.unit is not unit:
            raise ValueError("it was resumed from a clock in another unit")
        lineage.append(branch)
    if not lineage:
        raise ValueError("it names no start of a training")
    return tuple(lineage)


def belongs_to(lineage: Lineage, identity: str, clock: Time) -> bool:
    """Return whether what a branch stored at a clock is of this lineage: what came before the next resume is."""
    resumes = list(lineage)
    while resumes and resumes[0].identity != identity:
        resumes.pop(0)
    later = [branch.since for branch in resumes[1:] if branch.since is not None]
    return bool(resumes) and all(Fraction(clock.value) <= Fraction(since.value) for since in later)


def lineage_at(lineage: Lineage, clock: Time) -> Lineage:
    """Return the lineage as it was at a clock: without the resumes from there or later."""
    return tuple(
        branch for branch in lineage if branch.since is None or Fraction(branch.since.value) < Fraction(clock.value)
    )
