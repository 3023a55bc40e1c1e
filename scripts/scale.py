"""How long an average takes on many machines: a simulation, on paper; `--measure` checks it against two workers here.

The tasks are cut as `ema_cli.engines.tasks` cuts them. Each worker takes the next one as soon as it has none. A task
takes what reading takes, or what adding takes, whichever is longer.
"""

from __future__ import annotations

import argparse
import heapq
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

GB, MIB, GIB = 1e9, 1 << 20, 1 << 30
CHECKPOINTS, MODEL_BYTES, SHARD_BYTES = 50, 1.4e12, 5e9
MACHINES = (1, 8, 64)
REQUEST_BYTES = 4 * MIB
DOLLARS_FOR_REQUEST, DOLLARS_FOR_HOUR = 0.0004 / 1000, 5.0  # as an example: put in your own
CORES, SLOTS = 32, 8  # of a machine; a slot does one task at a time
SLOT_BYTES = 320 * MIB  # of memory: buffers, what Python and headers take


@dataclass(frozen=True)
class Place:
    """Where checkpoints and output are.

    Attributes:
        name: for the table.
        machine_rate: bytes that a machine reads a second, at most.
        task_rate: bytes that a task reads a second, at most.
        seconds_for_gb: of a processor, for each GB that is read and added.
        is_store: whether each read is a request, and files are made whole.
    """

    name: str
    machine_rate: float
    task_rate: float
    seconds_for_gb: float
    is_store: bool


# Processor seconds for a GB were measured on the machine of docs/benchmarks.md, from a page cache, and from a store.
STORE = Place("a store, 60 MB/s a connection", 12.5 * GB, 16 * 60e6, 1.6, is_store=True)
FILES = Place("a file system, 5 GB/s a node", 5 * GB, 5 * GB, 0.3, is_store=False)


def tasks_of(place: Place) -> list[float]:
    """Return the bytes of the output that each task makes: shards in a store, else stretches of them."""
    from ema_cli.engines import tasks

    largest = max(tasks._LEAST_BYTES, min(SHARD_BYTES // tasks._TASKS, tasks._MOST_BYTES))
    whole, rest = divmod(MODEL_BYTES, SHARD_BYTES)
    shards = [SHARD_BYTES] * int(whole) + ([rest] if rest else [])
    if place.is_store:
        return shards
    most = max(largest, min(MODEL_BYTES // tasks._TASKS, tasks._MOST_BYTES))
    return [min(most, shard - at) for shard in shards for at in range(0, int(shard), int(most))]


def finish(durations: list[float], slots: int) -> float:
    """Return when the last of some tasks ends, if each slot takes the next as soon as it is free."""
    ends = [0.0] * slots
    for duration in durations:
        heapq.heappush(ends, heapq.heappop(ends) + duration)
    return max(ends)


def simulate(place: Place, machines: int) -> dict[str, str]:
    """Return a row of the table."""
    slots, tasks = machines * SLOTS, tasks_of(place)
    at_once = min(SLOTS, -(-len(tasks) // machines))  # of a machine
    limits = {
        "the network of a machine" if place.is_store else "the file system": place.machine_rate / at_once,
        "connections": place.task_rate,
        "processors": CORES / at_once / place.seconds_for_gb * GB,
    }
    limit = min(limits, key=lambda name: limits[name])
    durations = [CHECKPOINTS * task / limits[limit] + 0.05 for task in tasks]
    seconds = finish(durations, slots)
    even = sum(durations) / slots
    if seconds > 1.25 * even:
        limit = f"{limit}, and the last tasks"
    read = CHECKPOINTS * MODEL_BYTES
    requests = read / REQUEST_BYTES if place.is_store else 0
    dollars = requests * DOLLARS_FOR_REQUEST + machines * seconds / 3600 * DOLLARS_FOR_HOUR
    return {
        "checkpoints and output on": place.name,
        "machines": f"{machines}",
        "time": f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.0f} min",
        "read at": f"{read / seconds / GB:.0f} GB/s",
        "requests": f"{requests / 1e6:.0f} million" if requests else "-",
        "price": f"${dollars:.0f}",
        "memory of a machine": f"{SLOTS * SLOT_BYTES / GIB:.1f} GiB",
        "limit": limit,
    }


def table() -> str:
    """Return the table of the page, as Markdown."""
    rows = [simulate(place, machines) for place in (STORE, FILES) for machines in MACHINES]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([*row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


class _SlowFiles(SimpleHTTPRequestHandler):
    """Sends ranges of files, each connection so many bytes a second."""

    protocol_version = "HTTP/1.1"
    rate = 4e6

    def do_GET(self) -> None:
        """Send a range, in pieces, with pauses."""
        path = Path(self.directory) / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        size = path.stat().st_size
        first, _, last = self.headers.get("Range", f"bytes=0-{size - 1}").removeprefix("bytes=").partition("-")
        begin, end = int(first), min(int(last or size - 1), size - 1) + 1
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(end - begin))
        self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
        self.send_header("ETag", f'"{path.name}-{size}"')
        self.end_headers()
        with path.open("rb") as file:
            file.seek(begin)
            while begin < end:
                piece = file.read(min(1 << 16, end - begin))
                self.wfile.write(piece)
                begin += len(piece)
                time.sleep(len(piece) / self.rate)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def measure(megabytes: int, repeats: int) -> None:
    """Compare what the simulation says of two workers, by what one of them takes for each task, with what they take.

    The checkpoints come from a web server here that sends 4 MB/s a connection: so workers wait, as they do for a store,
    and two of them do not take each other's processors.
    """
    import numpy as np
    from safetensors.numpy import save_file

    from ema_cli import Recipe, make_plan, open_run
    from ema_cli.averaging import perform
    from ema_cli.engines.engine import Engine
    from ema_cli.engines.opening import open_engine
    from ema_cli.preparing import prepare
    from ema_cli.result import Result
    from ema_cli.writing.target import parse_target

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_SlowFiles, directory=name))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for step in range(1, 9):
            values = np.random.default_rng(step).standard_normal((megabytes * MIB // 4,), dtype=np.float32)
            save_file({"weights": values}, folder / f"step-{step}.safetensors", metadata={"format": "pt"})
        names = [f"http://127.0.0.1:{server.server_address[1]}/step-{step}.safetensors" for step in range(1, 9)]
        plan = make_plan(open_run(names, name_clock="ba"), Recipe(half_life="3ba"))

        def once(engine: Engine, number: int) -> tuple[Result, float]:
            (folder / f"out{number}").mkdir()
            job = prepare([plan], parse_target(folder / f"out{number}" / "x.safetensors"), force=False)
            began = time.monotonic()
            result = perform(job, by=engine)
            seconds = time.monotonic() - began
            (folder / f"out{number}" / "x.safetensors").unlink()
            return result, seconds

        pairs = []
        with open_engine("processes=1") as one, open_engine("processes=2") as two:
            one, number = replace(one, threads=1), 0
            for engine in (one, replace(two, threads=1)):
                once(engine, number := number + 1)  # the processes start
            for _ in range(repeats):
                alone, seconds = once(one, number := number + 1)
                (share,) = alone.workers
                beside = seconds - share.seconds  # what the one who asks does by itself
                predicted = beside + finish([share.seconds / share.tasks] * share.tasks, 2)
                _, measured = once(replace(two, threads=1), number := number + 1)
                pairs.append((predicted, measured))
                print(f"one worker {seconds:.2f} s; two: predicted {predicted:.2f} s, measured {measured:.2f} s")
        # The fastest of each: what else the machine does makes the others slower.
        predicted, measured = (min(column) for column in zip(*pairs, strict=True))
        print(f"the fastest of {repeats}: predicted {predicted:.2f} s, measured {measured:.2f} s", end="")
        print(f", {measured / predicted:.2f} of it")


def main() -> None:
    """Print the table, or measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", action="store_true", help="average with one worker and with two, and compare")
    parser.add_argument("--megabytes", type=int, default=128, help="of each of eight checkpoints")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.megabytes, arguments.repeats)
    else:
        print(table(), end="")


if __name__ == "__main__":
    main()
