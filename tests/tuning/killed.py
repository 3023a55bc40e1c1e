"""Run the command line, and be killed at one of the changes it makes to files: `killed.py NUMBER ARGUMENTS...`.

With the number 0 it is not killed, and says at its end how many changes there were.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.utime", "shutil.rmtree"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Killer:
    """Count changes of files, and end the process before one of them."""

    def __init__(self, at: int) -> None:
        self.at, self.count = at, 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Look at what Python is about to do."""
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        if (writes and "/dev/" not in str(arguments[0])) or event in CHANGES:
            self.count += 1
            if self.count == self.at:
                os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    from ema_cli.cli.app import main

    killer = Killer(int(sys.argv[1]))
    sys.addaudithook(killer)
    sys.argv[1:] = sys.argv[2:]
    try:
        main()
    finally:
        if not killer.at:
            sys.stdout.write(f"changes {killer.count}\n")
