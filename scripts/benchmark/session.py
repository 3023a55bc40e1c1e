"""One sitting: make a set, measure its rows, delete it, and keep what was found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import datasets, following, startup
from .commands import BANDWIDTH, ENGINE, LABELS, LATENCY, Commands, Inputs, ema_cli, half_lives
from .datasets import Data
from .measure import timed, timed_inside
from .rounds import attempts, cache_state, discard, log, measure, preparation, rehearse
from .rows import BEFORE, OTHER_HALF_LIVES, PEERS, ROWS, START_UP, Row, memory_limit


@dataclass
class Session:
    """Where data lies, how often to measure, and who takes part."""

    scale: str
    folder: Path  # for data and outputs
    rounds: int
    peers: tuple[str, ...] | None  # None: as each row says
    mergekit: Path | None
    before: Path | None = None
    keep: bool = False
    threads: int | None = None
    sets: dict[str, Data] = field(init=False)

    def __post_init__(self) -> None:
        self.folder = self.folder.resolve() / self.scale
        self.work = self.folder / "work"
        self.sets = datasets.sets_at(self.scale)

    def measure(self, keys: Sequence[str], save: Callable[[dict[str, Any]], None]) -> None:
        """Measure these rows, and hand over each as soon as it is there."""
        rows = [row for row in ROWS if row.key in keys]
        shutil.rmtree(self.work, ignore_errors=True)  # what a run that was killed left there
        self.work.mkdir(parents=True)
        try:
            for number, row in enumerate(rows):
                log(f"{row.key}: {self.sets[row.data].describe()}")
                save(self._row(row))
                later = {name for each in rows[number + 1 :] for name in (each.data, each.reference)}
                self._remove({row.data, row.reference} - later)
            if START_UP in keys:
                log(f"{START_UP}: help and inspect")
                save(startup.measure_startup(self.work, self.scale))
        finally:
            shutil.rmtree(self.work, ignore_errors=True)
            self._remove({name for row in rows for name in (row.data, row.reference)})

    def _remove(self, names: set[str | None]) -> None:
        for name in names:
            if name is not None and not self.keep:
                datasets.remove(self.sets[name], self.folder)

    def _row(self, row: Row) -> dict[str, Any]:
        data = self.sets[row.data]
        facts: dict[str, Any] = {
            "key": row.key,
            "title": data.describe() + _title(row),
            "names": len(data.model.tensors),
            "targets": [],
            "memory_limit": memory_limit(len(data.model.tensors)),
            "rounds": [],
            "memory": {},
            "failed": {},
            "same": {},
            "skipped": {},
            "notes": [],
            "labels": {**LABELS, "reference": _reference_label(row)},
        }
        try:
            self._fill(row, facts)
        except (OSError, RuntimeError) as error:
            facts["failed"]["ema-cli"] = str(error)
            log(f"  not measured: {error}")
        return facts

    def _fill(self, row: Row, facts: dict[str, Any]) -> None:
        data = self.sets[row.data]
        inputs = self._inputs(data)
        reference = self._inputs(self.sets[row.reference]) if row.reference else None
        targets = [(target.of, target.against, target.at_most, target.words) for target in row.targets]
        facts["targets"] = [dict(zip(("of", "against", "at_most", "words"), each, strict=True)) for each in targets]
        commands = Commands(self.work, self.mergekit, self.before, self.threads)
        laws = half_lives(row, inputs.data)
        if row.kind == "watch":
            inputs = following.watched(inputs, laws, self.work)
        facts["bytes_read"], facts["bytes_written"] = inputs.bytes_to_read, inputs.bytes_to_write
        built = commands.build(row, inputs, reference, self._peers(row))
        facts["skipped"] = dict(row.without) | commands.skipped
        files = {row.data: inputs.files}
        if reference is not None:
            files[row.reference or ""] = reference.files
        prepare = following.prepared(row.kind, self.work, preparation(files, cold=row.cold))
        same = {*PEERS, *([BEFORE] if len(laws) == 1 else [])}
        if (
            reference is not None
            and row.kind != "tune"
            and (reference.data.model, reference.data.count) == (data.model, data.count)
        ):
            same.add("reference")
        comparable = [name for name in built if name in same]
        outputs = len(laws) + bool(comparable)
        datasets.need_room(self.work, inputs.bytes_to_write * outputs, f"what is written for {row.key}")
        facts |= rehearse(built, comparable, prepare, laws[-1:] if row.kind == "tune" else laws)
        if row.kind == "latency":
            facts["memory_limit"] = None  # the shim's memory is not ours
        if row.kind == "engines":
            facts["memory_limit"] = None  # nor that of Dask
            facts["notes"].append("time and CPU are those behind the start of the cluster")
        if built:
            read = facts["memory"]["ema-cli"]["read"] / inputs.bytes_to_read
            facts["notes"].append(f"ema-cli read {read:.3f} x the bytes of the tensors, its own code included")
            self._note_cache(facts, files, cold=row.cold)
            rounds = min(self.rounds, row.rounds or self.rounds)
            run = timed_inside if row.kind == "engines" else timed
            facts["rounds"] = measure(built, rounds, prepare, facts["failed"], attempts(rounds, self.scale), run)
        discard(self.work / "mergekit-models")
        following.clear(self.work)

    def _note_cache(self, facts: dict[str, Any], files: dict[str, Sequence[Path]], *, cold: bool) -> None:
        if cold:
            preparation(files, cold=True)()
        for name, share in cache_state(files).items():
            if cold or share < 1:
                facts["notes"].append(f"before a run, {share:.1%} of {name} was in the page cache")

    def _peers(self, row: Row) -> tuple[str, ...]:
        if self.peers is None:
            return row.peers if self.scale == "full" else row.few
        return tuple(name for name in row.peers if name in self.peers)

    def _inputs(self, data: Data) -> Inputs:
        """Make a set and ask ema-cli for its plan, which all others follow."""
        run = datasets.make(data, self.folder)
        output = self.work / "planned.safetensors"
        options = ["--half-life", data.half_life, "-o", str(output), "--dry-run", "--json"]
        if data.format == "stored":
            options += ["--from", "stored"]
        done = subprocess.run([*ema_cli(), "average", str(run), *options], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"ema-cli cannot plan set {data.name}: {(done.stdout + done.stderr).strip()[-500:]}")
        plan = json.loads(done.stdout)
        weights = {run / each["name"]: each["weight"] for each in plan["plans"][0]["entries"]}
        chosen = {path: weights[path] for path in datasets.checkpoints(data, run) if weights.get(path)}
        would = plan["would_write"]
        files = datasets.input_files(list(chosen))
        return Inputs(data, run, files, chosen, would["bytes_to_read"], would["bytes_to_write"])


def _title(row: Row) -> str:
    if row.kind == "half-lives":
        return f", {len(OTHER_HALF_LIVES) + 1} half-lives in one pass"
    if row.kind == "tune":
        return f", tune over {len(OTHER_HALF_LIVES) + 1} half-lives, with an evaluation that takes no time"
    if row.kind == "watch":
        return ", one of them folded into two averages that are watched, and both written"
    if row.kind == "latency":
        return f", {LATENCY * 1e3:.0f} ms a read at {BANDWIDTH / 1e6:.0f} MB/s"
    if row.kind == "engines":
        return f", on {ENGINE}"
    if row.kind == "like-input":
        return ", written over the newest"
    return ", numpy alone" if row.kind == "numpy" else ", cold" if row.cold else ""


def _reference_label(row: Row) -> str:
    if row.kind == "half-lives":
        return "ema-cli, one half-life"
    if row.kind == "latency":
        return "ema-cli, no latency"
    if row.kind == "engines":
        return "ema-cli, two threads"
    if row.kind == "tune":
        return "ema-cli, the averages in one pass"
    return f"ema-cli on {'half of it' if row.reference and 'half' in row.reference else row.reference}"


def find_mergekit(folder: Path) -> Path | None:
    """Return the environment in which `make bench` installs mergekit, if it is there."""
    return folder if os.access(folder / "bin" / "mergekit-yaml", os.X_OK) else None


def read_or_exit(path: Path) -> dict[str, Any]:
    """Return what an earlier sitting stored."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {path}: {error}")
    if found.get("schema_version") != 1:
        sys.exit(f"error: {path} is not what --json writes")
    return found
