"""Run the program in forks of one process that has imported it: a tenth of the time that a start takes.

A line of JSON on stdin for each run; its exit code on stdout. With strace the fork waits until it is attached, so
that strace counts calls from the first of the program's own.
"""

from __future__ import annotations

import gc
import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from ema_cli.__main__ import main
from ema_cli.cli.app import run

PATIENCE_SECONDS = 60


def serve() -> None:
    """Serve until stdin ends; return in each fork, which is to be the program."""
    with redirect_stdout(io.StringIO()):
        run([*sys.argv[1:], "--dry-run"])  # imports what it needs only now
    gc.freeze()
    while line := sys.stdin.readline():
        request = json.loads(line)
        Path(request["told"]).write_text("")
        child = os.fork()
        if child == 0:
            become(request)
            return
        strace = attach(child, request["strace"]) if request["strace"] else None
        if request["signal"]:
            time.sleep(request["delay"])
            os.kill(child, request["signal"])
        _, status = os.waitpid(child, 0)
        if strace:
            strace.communicate()
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()
    sys.exit()


def become(request: dict[str, Any]) -> None:
    """Make this fork what the program is when a shell has started it."""
    signal.alarm(PATIENCE_SECONDS)  # so that a run that hangs ends
    os.chdir(request["place"])
    null, told = os.open(os.devnull, os.O_RDWR), os.open(request["told"], os.O_WRONLY)
    for number, descriptor in enumerate((null, null, told)):
        os.dup2(descriptor, number)
    sys.argv[1:] = request["arguments"]
    if request["strace"]:
        os.kill(os.getpid(), signal.SIGSTOP)


def attach(child: int, options: list[str]) -> subprocess.Popen[str]:
    """Attach strace to the child that has stopped itself, and let it go on."""
    os.waitpid(child, os.WUNTRACED)
    strace = subprocess.Popen(["strace", "-f", "-p", str(child), *options], stderr=subprocess.PIPE, text=True)
    assert strace.stderr is not None
    told = strace.stderr.readline()
    if "attached" not in told:
        os.kill(child, signal.SIGKILL)
        sys.exit(f"strace: {told}")
    os.kill(child, signal.SIGCONT)
    return strace


if __name__ == "__main__":
    serve()
    main()
