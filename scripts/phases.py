"""Show where the time of an average goes: `python scripts/phases.py ckpts/ --half-life 500ba`.

The fold runs on one thread, so that its parts add up, and writes into a file that is deleted. A part is timed where
ema-cli calls it; what is left over is Python between the parts. Only safetensors checkpoints of one model.
"""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ema_cli import Recipe, Time, averaging, job, make_plan, open_run, parse_target
from ema_cli.folding import block_task, fold
from ema_cli.folding.kernel import numpy_kernel
from ema_cli.folding.kernel.choice import chosen_kernel
from ema_cli.storage.output_stream import OutputStream
from ema_cli.writing import files

PARTS = (
    (block_task.CheckpointReader, "read_again", "read"),
    (numpy_kernel, "decode_pairs", "take pairs of bfloat16 apart"),
    (numpy_kernel, "decode", "convert to floats"),
    (numpy_kernel, "sum_products", "multiply and add"),
    (numpy_kernel, "keep_zeros", "keep the sign of zeros"),
    (numpy_kernel, "is_within", "check that all is finite"),
    (numpy_kernel, "encode", "round"),
    (fold, "write_block", "write"),
)


class Watch:
    """Seconds by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, with its time added to a part."""

        @functools.wraps(function)
        def measured(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - began

        return measured


def starting_seconds() -> float:
    """Return the least time of three starts of Python that import what an average imports."""
    imports = "import ema_cli.cli.app, ema_cli.averaging, ema_cli.cli.terminal"

    def once() -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", imports], check=True)
        return time.perf_counter() - began

    return min(once() for _ in range(3))


def main() -> None:
    """Average once, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--half-life", required=True)
    options = parser.parse_args()
    watch = Watch()
    if chosen_kernel().kernel is not numpy_kernel.NUMPY:
        from ema_cli.folding.kernel.compiled_kernel import CompiledSums

        CompiledSums.add = watch.timed("convert, multiply, add, round", CompiledSums.add)  # type: ignore[method-assign]
        CompiledSums.read_and_add = watch.timed(  # type: ignore[method-assign]
            "read, convert, multiply, add, round", CompiledSums.read_and_add
        )
    for owner, name, part in PARTS:
        setattr(owner, name, watch.timed(part, getattr(owner, name)))
    job.fold = watch.timed("fold", fold.fold)
    OutputStream.sync = watch.timed("fsync", OutputStream.sync)  # type: ignore[method-assign]
    averaging.read_all_back = watch.timed("read back", files.read_all_back)
    started = starting_seconds()
    began = time.perf_counter()
    plan = make_plan(open_run([options.run]), Recipe(half_life=Time.parse(options.half_life)))
    headers = time.perf_counter() - began
    with tempfile.TemporaryDirectory(dir=options.run.absolute().parent) as folder:
        os.sync()
        began = time.perf_counter()
        done = averaging.average(plan, parse_target(Path(folder) / "out.safetensors"), threads=1)
        total = started + headers + time.perf_counter() - began
    seconds = watch.seconds
    folded = seconds.pop("fold")
    after = {part: seconds.pop(part) for part in ("fsync", "read back") if part in seconds}
    table = {"start, and import": started, "headers and plan": headers, **seconds}
    table["Python between these"] = folded - sum(seconds.values())
    table |= after
    table["the rest: checks, layout, publishing"] = total - sum(table.values())
    print(f"{done.bytes_read / 1e9:.2f} GB in {total:.2f} s on one thread")
    for part, taken in table.items():
        print(f"{part:38} {taken:6.3f} s {taken / total:6.1%}")


if __name__ == "__main__":
    main()
