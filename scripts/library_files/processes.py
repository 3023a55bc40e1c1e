"""Several processes that train together, as `torchrun` starts them: on this machine, without graphics cards."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

_SCRIPTS = Path(__file__).parents[1]


def launch(module: str, ranks: int, *arguments: str) -> None:
    """Run a module in as many processes as there are ranks; torch's environment variables say which each is.

    Raises:
        RuntimeError: where one fails, with what the first printed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks,
              "OMP_NUM_THREADS": 1, "DS_ACCELERATOR": "cpu", "PYTHONPATH": _SCRIPTS}  # fmt: skip
    command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
    running = []
    for rank in range(ranks):
        own = {name: str(value) for name, value in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        running.append(
            subprocess.Popen(command, env={**os.environ, **own}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        )
    told = [process.communicate(timeout=300)[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError("\n".join(text.decode() for text in told))
