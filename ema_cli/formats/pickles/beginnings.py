"""Pickles that begin with the same bytes, and end in a few of their own: the beginning of the second is not executed.

At the end of the beginning the machine stands as it stood in the first pickle. So it goes on from there, in the second
pickle. What the beginning made is not plain text alone; in the place of the rest an `Opaque` stands then.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat
from typing import Any

from ema_cli.dataclass import dataclass
from ema_cli.formats.pickles.alike import AlikeMachine
from ema_cli.formats.pickles.machine import Machine
from ema_cli.formats.pickles.run import execute
from ema_cli.formats.pickles.unpickle import describe_storage, pickle_errors
from ema_cli.formats.pickles.values import Inert, Name
from ema_cli.storage.source import ByteSource

_MOST_REMEMBERED = 1 << 12  # things with a meaning that the end of another pickle may use; there may be millions


class Opaque:
    """Stands for a value that the beginning made. It can be passed on, and not be changed."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """How a machine stands between two entries of the attributes of the object that a pickle describes.

    Attributes:
        end: the byte at which the beginning ends.
        kind: the class of the object.
        values: the entries before it, keys and values, these opaque.
        memo: what is remembered first,
        remembered: and how much is in all. Of the rest nothing is asked but that it can be passed on.
    """

    end: int
    kind: str
    values: list[Any]
    memo: list[Any]
    remembered: int

    def go_on(self, source: ByteSource) -> Any:
        """Return what another pickle describes, which begins in the same way.

        Raises:
            PickleError: where it cannot be read from here on; it may be possible as a whole.
        """
        machine = Machine(source, self.end, describe_storage)
        machine.memo = [*self.memo]
        machine.memo.extend(repeat(Opaque(), self.remembered - len(self.memo)))
        machine.marks = [[Inert(self.kind), {}]]
        machine.stack = list(self.values)
        with pickle_errors():
            return execute(machine)


def unpickle_beginning(source: ByteSource, end: int, most: int) -> tuple[Any, Beginning | None]:
    """Return what a pickle describes, and how the machine stands at byte `end`; None where it stands in another way.

    In its lists and dicts `Rows` stand for objects that are alike, in dicts as key and value.

    Args:
        source: the pickle.
        end: the byte.
        most: how many instructions it may have.

    Raises:
        PickleError, CheckpointError: as `unpickle`.
    """
    machine = _Pausing(source, end, describe_storage)
    with pickle_errors():
        value = execute(machine, most=most)
        machine.finish()
    return value, machine.beginning


class _Pausing(AlikeMachine):
    """A machine that notes how it stands at a byte."""

    def __init__(self, source: ByteSource, pause: int, persistent: Callable[[Any], object]) -> None:
        super().__init__(source, 0, persistent)
        self.whole, self.limit = self.limit, min(self.limit, pause)
        self.beginning: Beginning | None = None

    def fetch(self, size: int) -> None:
        left = self.limit - self.base - self.position
        if size > left and self.limit < self.whole:
            if left == 0:
                self.beginning = self._stand()
            self.limit = self.whole
        super().fetch(size)

    def _stand(self) -> Beginning | None:
        match self.marks:
            case [[Inert() as around, dict() as attributes]] if not attributes and not self.memo_beyond:
                if not all(isinstance(key, str) for key in self.stack[::2]):
                    return None
                values = [Opaque() if number % 2 else key for number, key in enumerate(self.stack)]
                memo = [value if isinstance(value, str | Name) else Opaque() for value in self.memo[:_MOST_REMEMBERED]]
                return Beginning(self.limit, around.kind, values, memo, len(self.memo))
        return None
