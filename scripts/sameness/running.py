"""Run every case with one program, and keep what came of it: exit codes, texts, and the sums of all files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from .cases import Case, Step, prepare
from .programs import Runner
from .sums import sum_inputs
from .texts import normalised

INPUTS = "in"  # what the inputs are called in each folder
Results = list[list[dict[str, Any]]]


def run_all(cases: list[Case], inputs: Path, program: Path, *, keep: Path | None, jobs: int, apart: bool) -> Results:
    """Run the cases, and return what came of each; the inputs stay as they are."""
    inputs, program = inputs.resolve(), program.absolute()
    if not program.is_file():
        raise SystemExit(f"{program}: no such program")
    if keep is not None and keep.exists():
        raise SystemExit(f"{keep}: exists already")
    before = sum_inputs(inputs)
    with tempfile.TemporaryDirectory(prefix="same-results-") as temporary:
        scratch = Path(temporary).resolve()
        folders = keep.absolute() if keep else scratch
        runners = [Runner(program, scratch, apart=apart) for _ in range(jobs)]
        done = run_cases(cases, folders, inputs, runners, clear=keep is None)
        for each in runners:
            each.close()
    if sum_inputs(inputs) != before:
        raise SystemExit(f"{inputs}: the program has changed the inputs; nothing is kept")
    return done


def write_results(out: Path, cases: list[Case], done: Results, inputs: Path, *, whole: bool) -> None:
    """Write what came of the cases, and whether these are all that there are."""
    told = {case.name: steps for case, steps in zip(cases, done, strict=True)}
    out.write_text(json.dumps({"inputs": sum_inputs(inputs), "whole": whole, "cases": told}, indent=1) + "\n")


def run_cases(cases: list[Case], folders: Path, inputs: Path, runners: list[Runner], *, clear: bool) -> Results:
    """Run the cases, each in a new folder, as many at once as there are runners; `clear` the folders then."""
    free: SimpleQueue[Runner] = SimpleQueue()
    for each in runners:
        free.put(each)

    def run(numbered: tuple[int, Case]) -> list[dict[str, Any]]:
        number, case = numbered
        folder = folders / f"{number:03}-{case.group}"
        folder.mkdir(parents=True)
        runner = free.get()
        try:
            return run_case(case, folder, inputs, runner)
        finally:
            free.put(runner)
            if clear:
                shutil.rmtree(folder)

    with ThreadPoolExecutor(len(runners)) as pool:
        return list(pool.map(run, enumerate(cases)))


def run_case(case: Case, folder: Path, inputs: Path, runner: Runner) -> list[dict[str, Any]]:
    """Run the lines of a case in a folder, and return what each did there."""
    (folder / INPUTS).symlink_to(inputs)
    told: list[dict[str, Any]] = []
    before = sum_files(folder)
    for step in case.steps:
        result: dict[str, Any] = {"line": step.line}
        if step.is_program:
            result |= run_program(step, folder, inputs, runner)
        else:
            try:
                prepare(step, folder)
            except (OSError, ValueError, IndexError) as error:  # the line before it has not written what it did
                result["problem"] = str(error).replace(str(folder), "WORK")
        after = sum_files(folder)
        changed = {name: each for name, each in after.items() if before.get(name) != each}
        result["files"] = changed | dict.fromkeys(sorted(before.keys() - after.keys()), "removed")
        told.append(result)
        before = after
    return told


def run_program(step: Step, folder: Path, inputs: Path, runner: Runner) -> dict[str, Any]:
    """Run one command line, and return its exit code and its texts with their sums."""
    done = runner.run(step.words[1:], folder, step.variables)
    texts = {
        name: normalised(content.decode(errors="backslashreplace"), {folder: "WORK", inputs: "INPUTS"})
        for name, content in (("stdout", done.stdout), ("stderr", done.stderr))
    }
    sums = {f"{name}_sha256": hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    return {"exit": done.exit, **texts, **sums}


def sum_files(folder: Path) -> dict[str, str]:
    """Return mode, size and sha256 of each file in a folder, and what else is there, but for the inputs."""
    found: dict[str, str] = {}
    for where, folders, names in os.walk(folder):
        if Path(where) == folder:
            folders.remove(INPUTS)
        for name in sorted([*folders, *names]):
            path = Path(where) / name
            mode = f"{path.lstat().st_mode & 0o777:03o}"
            if path.is_symlink():
                what = f"link to {path.readlink()}"
            elif path.is_dir():
                what = f"folder {mode}"
            elif path.is_file():
                content = path.read_bytes()
                what = f"{mode} {len(content)} {hashlib.sha256(content).hexdigest()}"
            else:
                what = "neither file nor folder"
            found[path.relative_to(folder).as_posix()] = what
    return dict(sorted(found.items()))


def summed_up(done: Results) -> str:
    """Return in words how much there is."""
    steps = [step for steps in done for step in steps if "exit" in step]
    codes = Counter(str(step["exit"]) for step in steps)
    files = sum(len(step["files"]) for step in steps)
    by_code = ", ".join(f"{code}: {count}" for code, count in sorted(codes.items()))
    return f"{len(done)} cases, {len(steps)} commands (by exit code: {by_code}), {files} files written"
