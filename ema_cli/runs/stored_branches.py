"""Which start or resume of a training is meant, where several have stored averages in a folder.

It is the one that no other was resumed from. What its predecessors stored after they were left is none of its past.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

from ema_cli.errors import RunError, option
from ema_cli.law.branches import Lineage, belongs_to
from ema_cli.law.time import Time
from ema_cli.runs.passed_over import PassedOver
from ema_cli.runs.stored_file import FIRST, StoredAverage
from ema_cli.storage.names import relative_name


def choose_branch(
    averages: Sequence[StoredAverage], wanted: str | None, root: Path
) -> tuple[list[StoredAverage], list[PassedOver]]:
    """Return the averages of one start or resume of a training and of its past, and the others with the reason.

    Args:
        averages: all that are there; at least one.
        wanted: the identity of the one that the user means, None for the only one that no other was resumed from.
        root: the folder, for errors.

    Raises:
        RunError: where there are several, or the one that no other was resumed from has got less far than another.
    """
    branches: dict[str, list[StoredAverage]] = {}
    for average in averages:
        branches.setdefault(average.branch, []).append(average)
    if wanted is not None and wanted not in branches:
        raise RunError(
            f"{option('component', wanted)} has stored nothing there",
            subject=root,
            hint=f"there is {_listed(branches)}",
        )
    lineages = {identity: max((one.lineage for one in group), key=len) for identity, group in branches.items()}
    chosen = wanted if wanted is not None else _only_one(branches, lineages, root)
    lineage = lineages[chosen]
    kept = [average for average in averages if belongs_to(lineage, average.branch, average.clock)]
    others = [average for average in averages if not belongs_to(lineage, average.branch, average.clock)]
    return kept, [
        PassedOver(average.checkpoint.name, _reason(average, lineage), warn=wanted is None) for average in others
    ]


def _only_one(branches: Mapping[str, Sequence[StoredAverage]], lineages: Mapping[str, Lineage], root: Path) -> str:
    """Return the only branch that no other was resumed from, if it has also got as far as any."""
    past = {branch.identity for lineage in lineages.values() for branch in lineage[:-1]}
    newest = [identity for identity in branches if identity not in past]
    if len(newest) == 1 and _last_clock(branches[newest[0]]) == max(map(_last_clock, branches.values())):
        return newest[0]
    starts = {lineages[identity][0].identity for identity in newest}
    several = branches if len(newest) == 1 else {identity: branches[identity] for identity in newest}
    folders = dict.fromkeys(
        path.parent if path.stem == FIRST else path.parent.parent
        for group in several.values()
        for path in (average.checkpoint.path for average in group)
    )
    if len(starts) == len(folders) == len(several):
        listed = ", ".join(relative_name(folder, root) for folder in folders)
        raise RunError(
            f"holds what {len(starts)} trainings stored: {listed}",
            subject=root,
            hint="name the folder of one training",
        )
    what = "trainings" if len(starts) > 1 else "branches of one training"
    raise RunError(
        f"holds what {len(several)} {what} stored: {_listed(several)}",
        subject=root,
        hint=f"say which is meant: {option('component', max(several))}",
    )


def _reason(average: StoredAverage, lineage: Lineage) -> str:
    """Return why an average is none of a lineage's."""
    identities = [branch.identity for branch in lineage]
    if average.branch not in identities:
        return f"stored by another branch of the training, or another training ({average.branch or 'not named'})"
    since = lineage[identities.index(average.branch) + 1].since
    return f"of a branch that was given up: the training was resumed from {since}"


def _last_clock(averages: Sequence[StoredAverage]) -> Fraction:
    return max(Fraction(average.clock.value) for average in averages)


def _listed(branches: Mapping[str, Sequence[StoredAverage]]) -> str:
    return ", ".join(f"{identity or 'one without a name'} ({_span(group)})" for identity, group in branches.items())


def _span(averages: Sequence[StoredAverage]) -> str:
    clocks: list[Time] = sorted((average.clock for average in averages), key=lambda clock: clock.value)
    return str(clocks[0]) if clocks[0] == clocks[-1] else f"{clocks[0]} to {clocks[-1]}"
