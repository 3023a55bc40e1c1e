"""Run the program on request, each time in a fresh process under limits; started by `conftest.py`.

The program's modules are loaded once, then each request forks: that takes milliseconds where a new interpreter takes a
third of a second, and whatever a hostile file does to the child, the next request starts clean.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ema_cli.cli import app
from tests.hostile.make import good_safetensors

ADDRESS_SPACE = 2 << 30


def warm_up() -> None:
    """Run the program once here, so that all it imports on the way is there in every child."""
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as nowhere:
        for step in (1, 2):
            good_safetensors(Path(folder, f"step-{step}.safetensors"), step)
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            for arguments in (["average", folder, "--half-life", "1ba", "-o", f"{folder}/out.safetensors"],
                              ["inspect", folder]):  # fmt: skip
                assert app.run(arguments) == 0
    gc.freeze()


def start(arguments: list[str], folder: str, log: Path, seconds: int) -> int:
    """Fork a child that runs the program in `folder` with its output in `log`; return its process id."""
    child = os.fork()
    if child:
        return child
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    os.chdir(folder)
    for number, name in ((0, "in"), (1, "out"), (2, "err")):
        path = os.devnull if name == "in" else f"{log}.{name}"
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["ema-cli", *arguments]
    code = 1
    try:
        app.main()
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if sys.exc_info()[0] not in (None, SystemExit):
            sys.excepthook(*sys.exc_info())  # as an interpreter of its own would end
        os._exit(code)


def wait(child: int, seconds: int) -> tuple[int, int]:
    """Return the child's exit code (negative: the signal that ended it) and its peak memory in bytes."""
    until = time.monotonic() + seconds
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)


def main() -> None:
    """Answer one request a line, until there are no more."""
    warm_up()
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        log = Path(request["log"])
        seconds = request["seconds"]
        # The processor's time is the limit; a machine busy with other things gets more on the clock.
        code, peak = wait(start(request["arguments"], request["folder"], log, seconds), 4 * seconds)
        print(json.dumps({"code": code, "peak": peak}), flush=True)  # noqa: T201 - it answers so


if __name__ == "__main__":
    main()
