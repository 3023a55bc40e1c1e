"""What the files of a run were that were read before: a file that is like one of them is read by that.

Checkpoints of one run have nearly the same bytes around their data. So a reader keeps what it made of them, under what
is equal in files that are alike, and compares the bytes of the next file with those that it kept. Only where every byte
is equal that it would look at, the result is taken over, with all checks that were made of it. A run has one `Before`,
and it is forgotten when the run is open.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

_MOST_BYTES = 24 << 20  # of all that is kept, about, besides one value that alone takes more

T = TypeVar("T")


class Before:
    """Results by their class and a key; those that were used longest ago make room for others. Safe in threads.

    One that alone takes more than all others may makes room for a larger one only: a model in hundreds of thousands of
    pieces takes longest to make anew. Pickled, as on its way to a worker, this is empty.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[type[Any], Hashable], tuple[Any, int]] = OrderedDict()
        self._nbytes = 0
        self._stays = False

    def __reduce__(self) -> tuple[type[Before], tuple[()]]:
        return Before, ()

    def get(self, kind: type[T], key: Hashable) -> T | None:
        """Return what was kept of a class under a key, None where nothing was, or it had to make room."""
        with self._lock:
            kept = self._kept.get((kind, key))
            if kept is None:
                return None
            self._kept.move_to_end((kind, key))
            value: T = kept[0]
            return value

    def keep(self, key: Hashable, value: object, nbytes: int) -> None:
        """Keep a value, which takes about so many bytes, in place of what was kept of its class under the key."""
        place = (type(value), key)
        with self._lock:
            self._nbytes += nbytes - self._kept.pop(place, (None, 0))[1]
            self._kept[place] = value, nbytes
            if self._nbytes > _MOST_BYTES:
                self._make_room()

    def _make_room(self) -> None:
        largest = max(self._kept, key=lambda place: self._kept[place][1])
        size = self._kept[largest][1]
        most = _MOST_BYTES + (size if size > _MOST_BYTES else 0)
        for place in list(self._kept):
            if self._nbytes <= most:
                return
            if place != largest or size <= _MOST_BYTES:
                self._nbytes -= self._kept.pop(place)[1]

    def one(self, make: Callable[[], T], kind: type[T], nbytes: int) -> T:
        """Return the one value of a class that a run has; it is made on first use, and takes about so many bytes."""
        value = self.get(kind, None)
        if value is None:
            value = make()
            self.keep(None, value, nbytes)
        return value

    def stay(self) -> None:
        """Let the next `clear` forget nothing: when its run is open, files of it are read once more."""
        self._stays = True

    def clear(self) -> None:
        """Forget all."""
        if self._stays:
            self._stays = False
            return
        with self._lock:
            self._kept.clear()
            self._nbytes = 0
