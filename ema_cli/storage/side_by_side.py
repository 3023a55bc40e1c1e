"""Do the same for several places: one after another on a disk, side by side in a store, which has to be waited for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from ema_cli.storage.names import StorePath

T = TypeVar("T")
_AT_ONCE = 16


def side_by_side(function: Callable[[Path], T], paths: Sequence[Path]) -> Iterator[Callable[[], T]]:
    """Yield for each path a call that returns, or raises, what `function` does for it.

    In a store it is done ahead by several threads. On a disk it is done when it is called.
    """
    if len(paths) < 2 or not isinstance(paths[0], StorePath):
        yield from (partial(function, path) for path in paths)
        return
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(min(_AT_ONCE, len(paths)), "open")
    try:
        ahead = deque(pool.submit(function, path) for path in paths[: 2 * _AT_ONCE])
        for path in (*paths[2 * _AT_ONCE :], *[None] * len(ahead)):
            yield ahead.popleft().result
            if path is not None:
                ahead.append(pool.submit(function, path))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
