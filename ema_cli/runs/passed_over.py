"""A path that a search found and does not take, with the reason."""

from __future__ import annotations

from ema_cli.dataclass import dataclass


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A path in the folder that does not enter, with the reason.

    Attributes:
        warn: the user may have wanted it.
        note: nobody would want it, and it is said all the same.
        excluded: the user left it out.
        damaged: it is a checkpoint of the run that cannot be read: it is said by itself.
        unfinished: it is still being written, by its name or its contents.
    """

    name: str
    reason: str
    warn: bool = False
    note: bool = False
    excluded: bool = False
    damaged: bool = False
    unfinished: bool = False
