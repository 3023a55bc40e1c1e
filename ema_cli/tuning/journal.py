"""The results as they come, on the disk: a tuning that is interrupted goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import field
from pathlib import Path
from typing import Any

from ema_cli.dataclass import dataclass
from ema_cli.errors import CheckpointError, OutputError, UsageError, option
from ema_cli.kinds import as_text
from ema_cli.storage.location import location
from ema_cli.storage.marked_folders import MarkedFolders
from ema_cli.storage.output_stream import output_errors
from ema_cli.storage.small_file import read_small_file
from ema_cli.tuning.metric import EvaluationFailed, as_metric
from ema_cli.tuning.results import Result

NAME = "tune.jsonl"
_MOST_BYTES = 16 << 20


def alone(folder: Path) -> AbstractContextManager[list[str]]:
    """Make the folder of a journal, unless it is there, and keep a second tuning out; see `MarkedFolders.held`."""
    return MarkedFolders(folder, NAME).held("another tuning writes its results here", "wait until that one ends")


@dataclass(slots=True)
class Journal:
    """One line for what is tuned, and one for each result, in a folder with what the evaluations print.

    Attributes:
        folder: the folder, which is there: see `alone`.
        results: those that were there, by name, but for what failed: it is evaluated again.
    """

    folder: Path
    results: dict[str, Result] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Return the path of the file."""
        return self.folder / NAME

    @classmethod
    def open(cls, folder: Path, what: Mapping[str, Any]) -> Journal:
        """Go on with the journal in a folder, or begin one: anew where one of another tuning has no metric yet.

        Args:
            what: what is tuned, as JSON has it: inputs, law, command, and what else decides a metric.

        Raises:
            OutputError: where the journal is of something else, or cannot be written.
        """
        journal = cls(folder)
        what = json.loads(json.dumps(what))
        if not location(journal.path).info().exists:
            journal._append(what)
            return journal
        lines = read_small_file(journal.path, _MOST_BYTES).split(b"\n")
        if lines == [b""]:  # its beginning was cut short
            journal._append(what)
            return journal
        whole = [line for line in lines[:-1] if line]  # what a power cut left has no end of line
        before, *rows = (_parsed(line, journal.path) for line in whole) if whole else [{}]
        results = [_result(row, journal.path) for row in rows]
        if before != what and before.keys() == what.keys() and all(result.failed for result in results):
            with output_errors(journal.path):  # nothing is lost: as after a command with a slip in it
                os.truncate(journal.path, 0)
            lines, results = [b""], []
            journal._append(what)
        elif before != what:
            different = [key for key in what if before.get(key) != what[key]]
            raise OutputError(
                f"is of another tuning: other {', '.join(different)}",
                subject=journal.path,
                hint=f"choose another {option('o')}, or remove {folder} to begin anew",
            )
        if lines[-1]:
            with output_errors(journal.path):
                os.truncate(journal.path, sum(len(line) + 1 for line in lines[:-1]))
        for result in results:
            journal.results.pop(result.name, None)
            if result.failed is None:
                journal.results[result.name] = result
        return journal

    def add(self, result: Result) -> None:
        """Write a result, and wait until it is on the disk.

        Raises:
            OutputError: where it cannot be written.
        """
        self._append(result.to_dict())

    def _append(self, row: Mapping[str, Any]) -> None:
        with output_errors(self.path), self.path.open("ab") as file:
            file.write(json.dumps(row).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _parsed(line: bytes, path: Path) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _no_journal(path) from error
    if not isinstance(row, dict):
        raise _no_journal(path)
    return row


def _result(row: Any, path: Path) -> Result:
    try:
        result = Result.from_dict(row)
        as_text(result.name, "name")
        for value in result.values:
            as_metric(value)
    except (KeyError, TypeError, ValueError, OverflowError, UsageError, EvaluationFailed) as error:
        raise _no_journal(path) from error
    return result


def _no_journal(path: Path) -> CheckpointError:
    return CheckpointError("is no journal of a tuning", subject=path, hint="remove it to begin anew")
