"""Show that two builds of ema-cli give the same results: files to the byte, texts, exit codes.

For a change that must not change results. The inputs are made once and kept; each build then runs all command lines of
`sameness/cases/` on them, and keeps the sha256 of each file that was written and each text that was printed:

    python scripts/same_results.py inputs before/inputs
    python scripts/same_results.py run before/inputs --program .venv/bin/ema-cli --out before/sums.json
    ... change the program ...
    python scripts/same_results.py run before/inputs --program .venv/bin/ema-cli --out after.json
    python scripts/same_results.py compare before/sums.json after.json

`inputs` needs torch and the program of that day (for averages that a later one is to read); `run` and `compare` need
nothing but Python and the path of a program. `compare` prints each difference, and exits with 1 if there is any.
Where a change is meant, the differences are what to look at, and the new sums the ones to keep. What differs in a file
shows a `diff -r` of what two runs left with --keep.

All commands take a minute and a half of a processor: they are forked from one Python that has imported what they
import. With --apart each starts its own, as users do, which takes four times as long; the results are to be the same.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path


def parse() -> argparse.Namespace:
    """Return what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    inputs = commands.add_parser("inputs", help="make the inputs, into a new folder")
    inputs.add_argument("folder", type=Path)
    inputs.add_argument("--program", type=Path, help="what makes the averages among them; default: beside this Python")
    inputs.add_argument("--composer", type=Path, help="the files that Composer wrote; default: those of the tests")
    run = commands.add_parser("run", help="run all command lines, and keep sums and texts")
    run.add_argument("folder", type=Path, help="what `inputs` made")
    run.add_argument("--program", type=Path, required=True, help="the ema-cli to run")
    run.add_argument("--out", type=Path, required=True, help="the file to write: JSON")
    run.add_argument("--keep", type=Path, help="leave what was written there, in a folder for each case")
    run.add_argument("--jobs", type=int, default=4, help="cases at once, which wait for the disk, too; default: 4")
    run.add_argument("--only", default="", help="only the cases that have this text in a line")
    run.add_argument("--part", default="1/1", help="only a part of the cases: 2/3 is the second of three")
    run.add_argument("--apart", action="store_true", help="each command in a Python of its own, which takes longer")
    compare = commands.add_parser("compare", help="print what differs; exit with 1 if anything does")
    compare.add_argument("before", type=Path)
    compare.add_argument("after", type=Path)
    return parser.parse_args()


def run(asked: argparse.Namespace) -> None:
    """Run the cases, and say what there is now."""
    from sameness.cases import choose_cases
    from sameness.running import run_all, summed_up, write_results

    began = time.monotonic()
    cases, whole = choose_cases(asked.only, asked.part)
    done = run_all(cases, asked.folder, asked.program, keep=asked.keep, jobs=asked.jobs, apart=asked.apart)
    write_results(asked.out, cases, done, asked.folder, whole=whole)
    print(f"{summed_up(done)}\n{time.monotonic() - began:.0f} s: {asked.out}")


def main() -> int:
    """Do what is asked for."""
    asked = parse()
    if asked.command == "inputs":
        from sameness.inputs import make_inputs

        print(f"{make_inputs(asked.folder, asked.program, asked.composer)} inputs in {asked.folder}")
        return 0
    if asked.command == "run":
        run(asked)
        return 0
    from sameness.comparing import compare_files

    return compare_files(asked.before, asked.after)


if __name__ == "__main__":
    sys.exit(main())
