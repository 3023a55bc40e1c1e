"""Start processes of trainings as forks of this one, which has imported what takes seconds: torch, and libraries.

A line of JSON on stdin for each training; the exit codes of its processes on stdout. It ends when stdin does.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import sys
import time
import traceback
from contextlib import suppress
from typing import Any

from tests.trainers.ranks import let_torchvision_load  # which imports torch, as all trainings do


def start(request: dict[str, Any], environment: dict[str, str]) -> int:
    """Fork a process that runs the module; return its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        told = os.open(request["told"], os.O_WRONLY | os.O_APPEND)
        for number, descriptor in enumerate((os.open(os.devnull, os.O_RDONLY), told, told)):
            os.dup2(descriptor, number)
        sys.argv = [request["module"], *request["arguments"]]
        os.environ.update(environment)
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else 1
    except BaseException:  # noqa: BLE001 - as an interpreter of its own would end
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(children: list[int], seconds: float) -> list[int]:
    """Return the exit codes; what is not done in time, or when another has failed for a while, is killed."""
    codes: dict[int, int] = {}
    until = time.monotonic() + seconds
    while len(codes) < len(children):
        for child in set(children) - codes.keys():
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > until:
                os.kill(child, signal.SIGKILL)
        if any(codes.values()):
            until = min(until, time.monotonic() + 10)  # the others may wait for it
        time.sleep(0.01)
    return [codes[child] for child in children]


def main() -> None:
    """Answer one request a line, until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print while they are imported
    let_torchvision_load()
    for line in sys.stdin:
        request = json.loads(line)
        for name in request["imported"]:
            with suppress(ImportError):  # which the processes tell
                importlib.import_module(name)
        gc.collect()
        gc.freeze()
        children = [start(request, environment) for environment in request["environments"]]
        answers.write(json.dumps(wait(children, request["seconds"])) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
