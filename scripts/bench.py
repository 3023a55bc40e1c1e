"""Measure ema-cli beside what else averages checkpoints, and beside the limit: to read the bytes and write the result.

Run by `make bench` on small sets, in about a minute; `--full` takes the sizes of docs/benchmarks.md. Data sets are
made under --data, one after the other, and deleted when they are measured.

    python scripts/bench.py --full --sets table --rounds 3 --before ../older/.venv/bin/ema-cli
    python scripts/bench.py --full --sets A,D --rounds 7
    python scripts/bench.py --from .bench/bench.json --markdown table.md --chart chart.png
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from benchmark import chart, machine, report
from benchmark.datasets import SCALES
from benchmark.rounds import NOT_THE_SAME, log
from benchmark.rows import KEYS, PEERS, chosen
from benchmark.session import Session, find_mergekit, read_or_exit


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="real sizes and cold sets: half an hour, 35 GB of disk")
    parser.add_argument("--scale", choices=SCALES, help=argparse.SUPPRESS)  # micro: for the tests
    parser.add_argument("--sets", metavar="A,B", help=f"only these: {', '.join(KEYS)}; table, or pieces")
    parser.add_argument("--rounds", type=int, help="quiet rounds of each (default: 3; with --full 5)")
    parser.add_argument(
        "--peers", metavar="NAMES", help=f"of {', '.join(PEERS)}, or none (default: all; small sets: some)"
    )
    parser.add_argument("--before", type=Path, metavar="EMA-CLI", help="another build's ema-cli, in the same rounds")
    parser.add_argument("--threads", type=int, help="for ema-cli (default: its own)")
    parser.add_argument("--data", type=Path, default=Path(".bench/data"), help="where sets go (default: .bench/data)")
    parser.add_argument("--keep", action="store_true", help="leave the sets there, and use those that are")
    parser.add_argument("--mergekit", type=Path, default=Path(".bench/mergekit"), help="its environment")
    parser.add_argument("--json", type=Path, default=Path(".bench/bench.json"), help="every run (default: %(default)s)")
    parser.add_argument("--markdown", type=Path, default=Path(".bench/bench.md"), help="report (default: %(default)s)")
    parser.add_argument("--chart", type=Path, default=Path(".bench/bench.png"), help="chart (default: %(default)s)")
    parser.add_argument("--from", dest="source", type=Path, metavar="JSON", help="measure nothing: report this file")
    options = parser.parse_args()
    options.before = options.before and options.before.absolute()
    options.scale = options.scale or ("full" if options.full else "small")
    if options.rounds is None:
        options.rounds = {"full": 5, "small": 3, "micro": 1}[options.scale]
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    try:
        options.keys = chosen(options.sets, full=options.scale == "full")
    except ValueError as error:
        parser.error(f"--sets: {error}")
    if options.peers is not None:
        options.peers = tuple(name for name in options.peers.split(",") if name not in ("", "none"))
        if unknown := set(options.peers) - set(PEERS):
            parser.error(f"--peers: '{min(unknown)}' is none of {', '.join(PEERS)}")
    return options


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, and store after every row what is there."""
    # Installed packages are compiled: nobody who takes part is to be compiled again in every run.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    options.data.mkdir(parents=True, exist_ok=True)
    mergekit = find_mergekit(options.mergekit.absolute())
    found: dict[str, Any] = {
        "schema_version": 1,
        "scale": options.scale,
        "machine": machine.facts(options.data, mergekit, options.before),
        "rows": {},
    }

    def save(row: dict[str, Any]) -> None:
        found["rows"][row["key"]] = row
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n")

    session = Session(
        options.scale,
        options.data,
        options.rounds,
        options.peers,
        mergekit,
        options.before,
        options.keep,
        options.threads,
    )
    session.measure(options.keys, save)
    return found


def main() -> int:
    """Measure or read, report, and return 1 where ema-cli failed or others computed something else."""
    options = parse_arguments()
    found = read_or_exit(options.source) if options.source else measure(options)
    text = report.markdown(found)
    print(text)
    for path in (options.markdown, options.chart):
        path.parent.mkdir(parents=True, exist_ok=True)
    options.markdown.write_text(text)
    drawn = chart.draw(found, options.chart)
    chart_at = options.chart if drawn else "none, nothing was measured against a limit"
    log(f"report: {options.markdown}; chart: {chart_at}; every run: {options.source or options.json}")
    rows = found["rows"].values()
    wrong = any(told.startswith(NOT_THE_SAME) for row in rows for told in row["same"].values())
    return int(wrong or any("ema-cli" in row["failed"] for row in rows))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
