"""Rounds: every competitor once, in an order that rotates; a noisy round is repeated, and does not count."""

from __future__ import annotations

import os
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
    commands: dict[str, Command], comparable: Sequence[str], prepare: Prepare, outputs: int = 1
) -> dict[str, Any]:
    """Run every competitor once, untimed: for its memory, for its output, and to have its code in the page cache.

    Who fails is taken out of `commands`. The first of the commands is ours, with whose output others are compared;
    it has to write so many outputs.
    """
    memory: dict[str, Any] = {}
    failed: dict[str, str] = {}
    same: dict[str, str] = {}
    ours = next(iter(commands.values()))
    try:
        for name, command in list(commands.items()):
            try:
                prepare()
                memory[name] = asdict(peak_memory(command))
                if command is ours:
                    _check_outputs(command, outputs)
                elif name in comparable:
                    same[name] = compare(ours.output, command.output).as_text()
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
                if command is not ours:
                    discard(command.output)
    finally:
        discard(ours.output)
    return {"memory": memory, "failed": failed, "same": same}


def _check_outputs(command: Command, wanted: int) -> None:
    found = len(list(command.output.iterdir())) if command.output.is_dir() else int(command.output.exists())
    if found != wanted:
        raise RunError(f"{found} outputs instead of {wanted}")


def measure(
    commands: dict[str, Command],
    wanted: int,
    prepare: Prepare,
    failed: dict[str, str],
    run: Callable[[Command], Any] = timed,
) -> list[dict[str, Any]]:
    """Return rounds until `wanted` of them were quiet, or as many again were noisy.

    `prepare` is called before each run, outside of the time. Who fails is in `failed`, and takes part no longer.
    """
    rounds: list[dict[str, Any]] = []
    quiet = 0
    while quiet < wanted and len(rounds) < 2 * wanted and commands:
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

    if not cold:
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
