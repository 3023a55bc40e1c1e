"""Rounds: every competitor once, in an order that rotates; a noisy round is repeated, and does not count."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .compare import NotTheSame, compare
from .measure import Command, RunError, cached_share, evict, noise, timed, warm
from .memory import peak_memory

Prepare = Callable[[], None]
NOT_THE_SAME = "not the same"


def log(line: str) -> None:
    """Write a line of progress to stderr."""
    print(line, file=sys.stderr, flush=True)


def rehearse(
    commands: dict[str, Command], comparable: Sequence[str], prepare: Prepare, half_lives: Sequence[str]
) -> dict[str, Any]:
    """Run every competitor once, untimed: for its memory, for its output, and to have its code in the page cache.

    Who fails is taken out of `commands`. The first of the commands is ours. It has to write an output for every
    half-life; others are compared with the last of them.
    """
    memory: dict[str, Any] = {}
    failed: dict[str, str] = {}
    same: dict[str, str] = {}
    ours = next(iter(commands.values()))
    result = ours.output
    try:
        for name, command in list(commands.items()):
            try:
                prepare()
                memory[name] = asdict(peak_memory(command))
                if command is ours:
                    result = find_output(command.output, half_lives)
                elif name in comparable:
                    same[name] = compare(result, command.output).as_text()
            except RunError as error:
                failed[name] = str(error)
                log(f"  {name} failed: {error}")
                del commands[name]
                if command is ours:
                    commands.clear()
                    break
            except NotTheSame as error:
                same[name] = f"{NOT_THE_SAME}: {error}"
                log(f"  {name} computes something else: {error}")
            finally:
                # Of a large output there may be no room for a second one.
                if command is not ours or not commands.keys() & set(comparable):
                    discard(command.output)
    finally:
        discard(ours.output)
    return {"memory": memory, "failed": failed, "same": same}


def find_output(output: Path, half_lives: Sequence[str]) -> Path:
    """Return the average of the last of these half-lives, which is a file or one of several in a folder.

    Raises:
        RunError: where there is not one output for every half-life.
    """
    if len(half_lives) == 1:
        return output
    found = sorted(output.rglob("*.safetensors"))
    wanted = [path for path in found if re.search(rf"(?<!\d){half_lives[-1]}\b", path.as_posix())]
    if len(found) != len(half_lives) or len(wanted) != 1:
        raise RunError(
            f"{len(half_lives)} outputs were asked for, and these are there: {[path.name for path in found]}"
        )
    return wanted[0]


def measure(
    commands: dict[str, Command],
    wanted: int,
    prepare: Prepare,
    failed: dict[str, str],
    most: int,
    run: Callable[[Command], Any] = timed,
) -> list[dict[str, Any]]:
    """Return rounds until `wanted` of them were quiet, at most so many.

    `prepare` is called before each run, outside of the time. Who fails is in `failed`, and takes part no longer.
    """
    rounds: list[dict[str, Any]] = []
    quiet = 0
    while quiet < wanted and len(rounds) < most and commands:
        runs: dict[str, Any] = {}
        for name in rotated(list(commands), len(rounds)):
            command = commands[name]
            prepare()
            try:
                runs[name] = run(command).as_dict()
            except RunError as error:
                failed[name] = str(error)
                del commands[name]
                log(f"  {name} failed: {error}")
            finally:
                discard(command.output)
        reasons = {name: reason for name, each in runs.items() if (reason := noise(each))}
        rounds.append({"noisy": reasons, "runs": runs})
        quiet += not reasons
        said = ", ".join(f"{name} {each['wall']:.2f} s" for name, each in sorted(runs.items()))
        noisy = "".join(f" NOISY ({why})" for why in list(reasons.values())[:1])
        log(f"  round {len(rounds)}: {said}{noisy}")
        if reasons:
            time.sleep(1)  # what disturbs may be over then
    return rounds


def attempts(wanted: int, scale: str) -> int:
    """Return how many rounds may be run for so many quiet ones. Tests do not wait for quiet."""
    return wanted if scale == "micro" else 2 * wanted + 1


def rotated(names: Sequence[str], by: int) -> list[str]:
    """Return the names, beginning with another one each time."""
    at = by % len(names)
    return [*names[at:], *names[:at]]


def preparation(files: Mapping[str, Sequence[Path]], *, cold: bool) -> Prepare:
    """Return what is done before each run: nothing left to write back, and the inputs in the page cache or not."""
    every = [path for each in files.values() for path in each]

    def prepare() -> None:
        os.sync()
        if cold:
            evict(every)
        elif cached_share(every) < 1:  # outputs push inputs out where memory is short
            warm(every)

    return prepare


def cache_state(files: Mapping[str, Sequence[Path]]) -> dict[str, float]:
    """Return which share of each set's files is in the page cache."""
    return {name: round(cached_share(each), 4) for name, each in files.items()}


def discard(path: Path) -> None:
    """Delete an output."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
