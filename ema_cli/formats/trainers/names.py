"""What a name says of a file or folder: its clock, whether it may hold weights, whether it is done."""

from __future__ import annotations

import fnmatch
from fractions import Fraction
from pathlib import Path

from ema_cli.checkpoint import Clock, Progress
from ema_cli.errors import Unreadable
from ema_cli.formats.trainers.layouts import (
    COMPOSER_NAME,
    COMPRESSED_SUFFIXES,
    NAME_CLOCKS,
    NOT_WEIGHTS,
    UNFINISHED,
    WEIGHT_SUFFIXES,
)
from ema_cli.law.time import Unit
from ema_cli.storage.location import location


def name_clocks(name: str) -> Progress:
    """Return the clocks in a checkpoint's name; the innermost folder or file that has any decides."""
    for part in reversed(name.split("/")):
        clocks: dict[Unit, Clock] = {}
        for unit, pattern in NAME_CLOCKS:
            matches = pattern.findall(part)
            if matches:
                clocks[unit] = Clock(Fraction(matches[-1]), "name")
        if clocks:
            from_zero = Unit.EPOCH in clocks and not COMPOSER_NAME.search(part)
            return Progress(clocks, epoch_origin_unknown=from_zero)
    return Progress()


def names_in(folder: Path) -> set[str]:
    """Return the names in a folder, none for what is no folder or cannot be listed: whoever searches it says why."""
    try:
        return {entry.name for entry in location(folder).entries()}
    except Unreadable:
        return set()


def is_weights_name(name: str) -> bool:
    """Return whether a file of this name may hold weights: known suffix, not optimizer state and the like."""
    lower = name.lower()
    for suffix in COMPRESSED_SUFFIXES:
        lower = lower.removesuffix(suffix)
    return lower.endswith(WEIGHT_SUFFIXES) and not any(fnmatch.fnmatch(lower, pattern) for pattern in NOT_WEIGHTS)


def is_unfinished_name(name: str) -> bool:
    """Return whether the name is one that writers use until they are done; dot files are theirs, too."""
    return name.startswith(".") or any(fnmatch.fnmatch(name.lower(), pattern) for pattern in UNFINISHED)
