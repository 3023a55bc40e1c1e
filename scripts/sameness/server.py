"""Start one program many times, quickly: `python server.py PROGRAM`, with the Python that the program runs under.

It forks for each command line, and the child runs the program's file as Python would. What children import, the server
imports, too, so that those that follow need not; nothing else is shared. Requests and replies are lines of JSON.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, TextIO


def main(program: str) -> None:
    """Answer requests until there are no more."""
    sys.path[0] = str(Path(program).parent)  # as if the program were run, and not this file
    # What is printed while modules are imported must not be taken for a reply.
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)
    requests = os.fdopen(os.dup(0), buffering=1)
    os.dup2(nothing, 0)
    for line in requests:
        answer(program, json.loads(line), replies)


def answer(program: str, request: dict[str, Any], replies: TextIO) -> None:
    """Run the program in a child, and reply with its exit code; import what it has imported."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(told)
        known = set(sys.modules)
        code = 1
        try:
            become(program, request)
            code = run(program)
            os.write(tell, " ".join(sorted(set(sys.modules) - known)).encode()[:65536])
        finally:
            os._exit(code)  # without taking every module apart, which takes longer than many a command
    os.close(tell)
    code = exit_code(child, request["seconds"])
    with os.fdopen(told) as pipe:
        names = pipe.read().split() if code is not None else []
    replies.write(json.dumps({"exit": code}) + "\n")
    for name in names:
        with contextlib.suppress(ImportError, AttributeError, ValueError):
            importlib.import_module(name)
    gc.freeze()  # of no collection in a child are these


def become(program: str, request: dict[str, Any]) -> None:
    """Make this process what a new one would be: its arguments, folder, environment, streams."""
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["variables"])
    os.umask(0o022)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    sys.argv = [program, *request["arguments"]]


def run(program: str) -> int:
    """Run the program, and all that Python runs at its end; return its exit code."""
    try:
        runpy.run_path(program, run_name="__main__")
        code: object = None
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 - told as Python tells it
        traceback.print_exc()
        code = 1
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return code or 0


def exit_code(child: int, seconds: int) -> int | None:
    """Wait for the child, and return its exit code; None where it took too long."""

    def give_up(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except TimeoutError:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


if __name__ == "__main__":
    main(sys.argv[1])
