"""What a user may say about how checkpoints are read."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import Literal

from ema_cli.errors import option

Choice = Literal["raw", "ema"] | None


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What a user may say.

    `key`: where in a pickled file the weights are. `weights`: which, where a file holds averages, too. `component`:
    which part of a pipeline of several models. `keep_prefix`: leave names as wrappers made them. `copy`: patterns of
    the names that are copied from the newest checkpoint instead of averaged.
    """

    key: str | None = None
    weights: Choice = None
    component: str | None = None
    keep_prefix: bool = False
    copy: tuple[str, ...] = ()

    def copies(self, name: str) -> bool:
        """Return whether the user wants tensor `name` copied."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.copy)


LEAVE_OUT = f"leave out {option('component')}"
