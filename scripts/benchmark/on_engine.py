"""Average on an engine, and tell what that took from when the engine stood: `on_engine.py dask:local=2 RUN 400ba OUT`.

`none` in its place averages in this process, by two threads. Both begin with the same imports.
"""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import wait
from contextlib import nullcontext
from pathlib import Path

from ema_cli import Recipe, make_plan, open_run
from ema_cli.averaging import perform
from ema_cli.engines.opening import open_engine
from ema_cli.preparing import prepare
from ema_cli.writing.target import parse_target

NONE = "none"
WORKERS = 2
TICK = os.sysconf("SC_CLK_TCK")


def processor_seconds() -> float:
    """Return what this process, and all that it started and that are in its group, took so far."""
    group, ticks = os.getpgrp(), 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        if int(fields[2]) == group:
            ticks += sum(map(int, fields[11:15]))  # user, system, and the same of children that have ended
    return ticks / TICK


def main() -> None:
    """Average, and print wall and processor seconds as JSON."""
    name, run, half_life, output = sys.argv[1:]
    with nullcontext() if name == NONE else open_engine(name) as engine:
        if engine is not None:
            wait([engine.executor.submit(time.sleep, 0.2) for _ in range(WORKERS)])  # all of them stand
        began, taken = time.perf_counter(), processor_seconds()
        plan = make_plan(open_run(run), Recipe(half_life=half_life))
        job = prepare([plan], parse_target(output), force=False, manifest=False)
        perform(job, threads=WORKERS if engine is None else None, by=engine)
        wall = time.perf_counter() - began
        print(json.dumps({"wall": wall, "cpu": processor_seconds() - taken}), flush=True)


if __name__ == "__main__":
    main()
