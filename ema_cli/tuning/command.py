"""Run the user's evaluation: a command that gets the path of a candidate, and prints its metric."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import field
from pathlib import Path
from queue import SimpleQueue
from typing import IO

from ema_cli.dataclass import dataclass
from ema_cli.errors import UsageError, option
from ema_cli.law.time import Time
from ema_cli.tuning.metric import EvaluationFailed, read_metric
from ema_cli.tuning.results import LAST, name_parts

PLACEHOLDER = "{path}"
_ABOUT = "EMA_"  # before the name of a variable that says what is evaluated
_MOST_BYTES = 1 << 20  # of the output's end, in which the metric is looked for
_LAST_LINES, _MOST_CHARS = 3, 300  # of what a command that fails has printed


@dataclass(slots=True)
class Command:
    """A command as the evaluation of candidates. Several threads may call it.

    Attributes:
        text: the command, with `{path}` where the path of a candidate goes.
        metric: the key of its metric in the last JSON object that it prints; None for the last number on its last line.
        shell: run it by /bin/sh. Else it is split into words, and nothing is expanded.
        timeout: the most seconds that one evaluation may take.
        devices: one of these at a time is what an evaluation sees of the accelerators; none to leave them as they are.
        logs: the folder for what it prints: NAME.out and NAME.err.
        setting: the option in which candidates differ; that of the last checkpoint is `last`.
        last_clock: the clock of the last checkpoint where candidates have one each, as those of a series.

    Raises:
        UsageError: for a command that is empty, or whose program is not there.
    """

    text: str
    metric: str | None
    logs: Path
    shell: bool = False
    timeout: float | None = None
    devices: Sequence[str] = ()
    setting: str = "half_life"
    last_clock: Time | None = None
    _free: SimpleQueue[str] = field(default_factory=SimpleQueue)
    _running: set[subprocess.Popen[bytes]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: bool = False

    def __post_init__(self) -> None:
        for device in self.devices:
            self._free.put(device)
        if self.timeout is not None and not self.timeout > 0:
            raise UsageError(f"{self.timeout:g} is no number of seconds", option="timeout", hint="as 600")
        words = self._words(Path())
        if not self.shell and shutil.which(words[0]) is None:
            raise UsageError(
                f"'{words[0]}' is no program that can be run",
                option="eval",
                hint=f"for what only a shell understands, add {option('shell', True)}",
            )

    def __call__(self, path: Path, name: str) -> float:
        """Return the metric of the candidate at `path`, which is called `name`.

        Raises:
            EvaluationFailed: where the command fails, prints no metric, or takes too long.
        """
        with ExitStack() as stack:
            environment = {**_others(os.environ), "EMA_PATH": str(path), **self._about(name)}
            if self.devices:
                device = self._free.get()
                stack.callback(self._free.put, device)
                environment["CUDA_VISIBLE_DEVICES"] = device
            out, err = (stack.enter_context((self.logs / f"{name}.{end}").open("ab+")) for end in ("out", "err"))
            began = out.tell(), err.tell()
            code = self._run(self._words(path), environment, out, err)
            printed, complaints = (_read_from(log, begin) for log, begin in zip((out, err), began, strict=True))
        if code is None:
            raise EvaluationFailed(f"it took longer than {self.timeout:g} s")
        if code != 0:
            how = f"it ended with exit code {code}" if code > 0 else f"it was ended by {_signal_name(-code)}"
            raise EvaluationFailed(f"{how}{_last_lines(complaints or printed)}")
        return read_metric(printed, self.metric)

    def stop(self) -> None:
        """End what runs, and let nothing more begin."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                _end(process)

    def _about(self, name: str) -> dict[str, str]:
        """Return what the environment of an evaluation says of a candidate: the same names for the last checkpoint."""
        setting, clock = name_parts(name)
        clock = self.last_clock if setting is None else clock
        own = {f"{_ABOUT}{self.setting.upper()}": LAST if setting is None else setting.text}
        return own if clock is None else {**own, f"{_ABOUT}CLOCK": str(clock)}

    def _words(self, path: Path) -> list[str]:
        if self.shell:
            return ["/bin/sh", "-c", self.text.replace(PLACEHOLDER, shlex.quote(str(path)))]
        try:
            words = shlex.split(self.text)
        except ValueError as error:
            raise UsageError(f"'{self.text}' cannot be split into words: {error}", option="eval") from error
        if not words:
            raise UsageError("no command", option="eval", hint=f"as {option('eval', f'python eval.py {PLACEHOLDER}')}")
        return [word.replace(PLACEHOLDER, str(path)) for word in words]

    def _run(self, words: Sequence[str], environment: dict[str, str], out: IO[bytes], err: IO[bytes]) -> int | None:
        """Run to the end; return the exit code, None where the time was up."""
        with self._lock:
            if self._stopped:
                raise EvaluationFailed("it was not begun")
            try:
                process = subprocess.Popen(
                    words, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment, start_new_session=True
                )
            except OSError as error:
                raise EvaluationFailed(f"it cannot be run: {error.strerror}") from error
            self._running.add(process)
        try:
            return process.wait(self.timeout)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end(process)  # with all that it has started
            process.wait()
            with self._lock:
                self._running.discard(process)


def _others(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what an environment holds but for what may have been said of another candidate."""
    own = {f"{_ABOUT}{name}" for name in ("HALF_LIFE", "WINDOW", "EXTRAPOLATE", "CLOCK")}
    return {name: value for name, value in environment.items() if name not in own}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # one of those for real time, most of which have no name
        return f"signal {number}"


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _read_from(log: IO[bytes], begin: int) -> str:
    end = log.seek(0, os.SEEK_END)
    log.seek(max(begin, end - _MOST_BYTES))
    return log.read().decode(errors="replace")


def _last_lines(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()][-_LAST_LINES:]
    return f": {' | '.join(lines)[-_MOST_CHARS:]}" if lines else ""
