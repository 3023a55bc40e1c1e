"""Fuzz the entry of the compiled kernel under AddressSanitizer and UndefinedBehaviorSanitizer.

Run by `make fuzz`. The extension is built anew, with both, into `.fuzz/kernel`; another process calls it with random
arguments: memory of any length, too little here and there, at any address, rows and sums over each other. It may
refuse them, and nothing else.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import time
from array import array
from pathlib import Path

FOLDER = Path(".fuzz/kernel")
SOURCE = Path("ema_cli/folding/kernel/compiled.c")
SIZES = (2, 2, 4, 8)
REFUSALS = (ValueError, TypeError, OverflowError, BufferError)


def build(compiler: str) -> None:
    """Build the extension with both sanitizers, which end the process at the first finding."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    options = ["-std=gnu11", "-O1", "-g", "-fPIC", "-shared", "-Wno-psabi", "-fno-fast-math", "-ffp-contract=off"]
    include = f"-I{sysconfig.get_path('include')}"
    target = FOLDER / "_compiled.abi3.so"
    subprocess.run([compiler, *options, *sanitizers, include, SOURCE, "-o", target, "-lm"], check=True)


def memory(source: random.Random, arena: bytearray, nbytes: int) -> memoryview:
    """Return memory of about so many bytes: somewhere in the arena, or by itself, which ends where it ends."""
    if source.random() < 0.02:  # too little: by a byte, or so much that it shows behind the byte that Python adds
        nbytes = max(0, nbytes - source.choice((1, 2, 8, 64)))
    if source.random() < 0.5 and nbytes < len(arena):
        start = source.randrange(len(arena) - nbytes)
        return memoryview(arena)[start : start + nbytes]
    return memoryview(bytearray(source.randbytes(nbytes)))


def arguments(source: random.Random, arena: bytearray) -> tuple[object, ...]:
    """Return arguments of `add`, most of which fit together."""
    wide = source.random() < 0.5
    kinds = range(4 if wide or source.random() < 0.02 else 3)
    rows, averages = source.choice((1, 2, 3, 16, 32, 33)), source.choice((1, 1, 2, 3, 32, 33))
    count = source.choice((0, 1, 31, 32, 63, 64, 65, 127, 128, 129, source.randrange(2000)))
    row_kinds = bytes(source.choices(kinds, k=rows))
    newest_kinds = bytes(source.choices(kinds, k=averages))
    return (
        source.choice((0, 1, 2, 2, 3)),
        tuple(memory(source, arena, count * SIZES[kind]) for kind in row_kinds),
        row_kinds,
        memory(source, arena, 8 * rows * averages),
        tuple(memory(source, arena, count * SIZES[kind]) for kind in newest_kinds),
        newest_kinds,
        source.randbytes(averages),
        tuple(memory(source, arena, count * (8 if wide else 4)) for _ in range(averages)),
        count + source.choice((0,) * 99 + (1,)),
        source.choice(kinds),
        wide,
        source.random() < 0.5,
        source.choice((1.0, float("inf"), float("nan"))),
        source.random() < 0.5,
    )


def reading(source: random.Random, arena: bytearray, given: tuple[object, ...], file: int) -> tuple[object, ...]:
    """Return arguments of `read_and_add`: those of `add`, and spans of a file for its rows, most of which fit."""
    rows, kinds, count = given[1], given[2], given[8]
    assert isinstance(rows, tuple)
    assert isinstance(kinds, bytes)
    assert isinstance(count, int)
    most = source.choice((1, 7, 64, 128, 256, 1 << 20))
    keeps = bytes(source.choices((0, 1), k=len(kinds)))
    spans, counts = [], []
    for kind in kinds:
        left, number = count * SIZES[kind], 0
        while left or not number:
            size = left if source.random() < 0.5 else source.randrange(left + 1)
            size += source.choice((0,) * 499 + (1, -1))
            spans.append((source.choice((file,) * 499 + (-1, 2**31)), source.choice((0, 1, 63, 10**5, -1)), size))
            left, number = max(0, left - size), number + 1
        counts.append(number + source.choice((0,) * 499 + (1, -1)))
    numbers = array("q", [number for span in spans for number in span]).tobytes()
    shift = source.choice((0, 0, 1, 5))  # where it lies
    held = bytearray(shift) + numbers[: len(numbers) - source.choice((0,) * 99 + (1, 24))]
    needed = [count if kept else min(most, count) for kept in keeps]
    memories = tuple(memory(source, arena, number * SIZES[kind]) for number, kind in zip(needed, kinds, strict=True))
    stop = bytearray([int(source.random() < 0.02)])
    return (
        (given[0], memories if len(memories) == len(rows) else rows, *given[2:]),
        *(memoryview(held)[shift:], array("q", counts).tobytes(), keeps, most, stop),
    )


def in_pieces(source: random.Random, arena: bytearray, given: tuple[object, ...]) -> tuple[object, ...]:
    """Return arguments of `add_pieces`: those of `add`, and pieces for its rows, most of which fit."""
    rows, kinds, count = given[1], given[2], given[8]
    assert isinstance(rows, tuple)
    assert isinstance(kinds, bytes)
    assert isinstance(count, int)
    pieces, counts = [], []
    for kind in kinds:
        left, number = count * SIZES[kind], 0
        while left or not number:
            size = left if source.random() < 0.5 else source.randrange(left + 1)
            pieces.append(memory(source, arena, size))
            left, number = left - size, number + 1
        counts.append(number + source.choice((0,) * 499 + (1, -1)))
    keeps = bytes(source.choices((0, 1), k=len(kinds)))
    most = source.choice((1, 7, 64, 128, 256, 1 << 20))
    return given, tuple(pieces), array("q", counts).tobytes(), keeps, most


def fuzz(seconds: float, seed: int) -> None:
    """Call the extension until the time is over; print how often it took its arguments."""
    sys.path.insert(0, str(FOLDER.resolve()))
    import _compiled

    source, arena = random.Random(seed), bytearray(1 << 16)
    ends, calls, taken, read, held = time.monotonic() + seconds, 0, 0, 0, 0
    file = os.memfd_create("rows")
    os.write(file, source.randbytes(30_000))
    while time.monotonic() < ends:
        calls += 1
        given = arguments(source, arena)
        try:
            if calls % 3 == 0:
                _compiled.add(*given)
            elif calls % 3 == 1:
                _compiled.add_pieces(*in_pieces(source, arena, given))
                held += 1
            else:
                _compiled.read_and_add(*reading(source, arena, given, file))
                read += 1
            taken += 1
        except REFUSALS:
            continue
    print(f"kernel: {calls} calls, {taken} with arguments that fit, {read} from a file, {held} in pieces, seed {seed}")
    if not read or not held or taken == calls:
        sys.exit("kernel: none or all of the arguments fit: that tests nothing")


def main() -> None:
    """Build, and fuzz in a process with the sanitizer loaded first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        fuzz(options.seconds, options.seed)
        return
    compiler = shutil.which("gcc")
    if compiler is None:
        sys.exit("kernel: gcc is needed, with its sanitizers")
    build(compiler)
    library = subprocess.run([compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    # Each buffer in a block of malloc's own, so that the sanitizer sees where it ends. Python itself leaks at its end.
    environment = {"LD_PRELOAD": library.stdout.strip(), "PYTHONMALLOC": "malloc", "ASAN_OPTIONS": "detect_leaks=0"}
    command = [sys.executable, __file__, "--inside", "--seconds", str(options.seconds), "--seed", str(options.seed)]
    sys.exit(subprocess.run(command, env=os.environ | environment, check=False).returncode)


if __name__ == "__main__":
    main()
