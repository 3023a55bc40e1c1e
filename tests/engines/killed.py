"""Run the command line, and be killed, or stand still, at one of the changes of files: `-m tests.engines.killed`.

`KILL_AT` says at which change the one who asks is killed, as `any 7`, `fsync 1` or `rename 2`; `STOP_AT` at which one
of its own a worker stands still: the first that comes there, which leaves its number in the file `STOPPED`. Only
changes below the current folder count; several pieces of one file that are written in a row are one change.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ema_cli.engines import tasks
from ema_cli.storage.staging import renames

tasks._LEAST_BYTES, tasks._ALIGNED_BYTES = 2048, 64  # a small file is cut, too

_KINDS = {"os.rename": "rename", "os.remove": "remove", "os.mkdir": "mkdir", "os.rmdir": "rmdir", "os.link": "link"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_FOLDER = Path.cwd()


class Changes:
    """Count changes of files, and do something before one of them."""

    def __init__(self, at: str, do: Callable[[], None]) -> None:
        self.kind, _, number = at.partition(" ")
        self.number = int(number or -1)
        self.do = do
        self.counts: Counter[str] = Counter()
        self.last = ""
        self.lock = threading.Lock()

    def watch(self) -> None:
        """Look at what Python is about to do, and at what it does not tell of."""
        sys.addaudithook(self.audit)
        for name in ("fsync", "pwrite", "ftruncate"):
            setattr(os, name, self.counted(name, getattr(os, name)))
        renames.rename_with = self.counted("rename", renames.rename_with)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note what Python tells of."""
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING:
            self.note("open", arguments[0])
        elif event in _KINDS:
            self.note(_KINDS[event], arguments[0])

    def counted(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that is noted before it is called."""

        def call(first: Any, *rest: Any, **more: Any) -> Any:
            self.note(kind, first)
            return function(first, *rest, **more)

        return call

    def note(self, kind: str, place: Any) -> None:
        """Count a change of a place, by its path or the number of an open file."""
        if isinstance(place, int):
            with suppress(OSError):
                place = Path(f"/proc/self/fd/{place}").readlink()
        path = _FOLDER / os.fsdecode(place)
        if _FOLDER not in path.parents:
            return
        with self.lock:
            before, self.last = self.last, f"{kind} {path}"
            if self.last == before:
                return
            self.counts.update([kind, "any"])
            if self.counts[self.kind] == self.number and self.kind in (kind, "any"):
                self.do()


def kill() -> None:
    """End this process as a lack of memory does."""
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    """Stand still, unless another process does."""
    with suppress(FileExistsError), Path(os.environ["STOPPED"]).open("x") as file:
        file.write(str(os.getpid()))
        file.flush()
        os.kill(os.getpid(), signal.SIGSTOP)


if __name__ == "__main__":
    from ema_cli.__main__ import main

    Changes(os.environ.get("KILL_AT", ""), kill).watch()
    main()
elif "STOP_AT" in os.environ:
    Changes(os.environ["STOP_AT"], stop).watch()
