"""Errors that a user can act on: an option, a subject, a fact and a hint. Each class has an exit code.

Exit codes: 0 done, 1 unexpected, 2 usage, 3 a bad or incomplete checkpoint, 4 checkpoints that do not fit
together or are averaged already, 5 output, 6 verification, a gate or non-finite values, 130 and 143 signals.

A text names an option by `option("half_life", "50ba")`, so that a terminal shows `--half-life 50ba` and a caller from
Python `half_life='50ba'`.
"""

from __future__ import annotations

import re
import shlex
from ast import literal_eval
from collections.abc import Callable
from typing import Self

_MAX_CHARS = 2000

Spelling = Callable[[str, str], str]
"""From an option's name and its value (a Python literal, or nothing) to how a reader knows it."""


def option(name: str, value: object = None) -> str:
    """Return a mention of an option for the text of an error: `name` as in Python, and a `value` to give it.

    The place that shows the error spells it: `option("half_life", "50ba")` is `--half-life 50ba` at a terminal and
    `half_life='50ba'` in Python; `option("force", True)` is `--force` and `force=True`.
    """
    return mentioned(name, "" if value is None else repr(value))


def mentioned(name: str, value: str = "") -> str:
    """Return a mention whose spelling is still open, as `option` does: for the text of one error inside another."""
    return f"\ufff9{name}\ufffa{value}\ufffb"


_MENTION = re.compile("\ufff9([a-z_]+)\ufffa([^\ufffb]*)\ufffb")
_SHORT = {"o": "-o"}
_OTHER_IN_PYTHON = {"o": "target", "output": "target", "from": "source"}


def at_terminal(name: str, value: str = "") -> str:
    """Spell an option for the command line."""
    flag = _SHORT.get(name) or f"--{name.replace('_', '-')}"
    if value == "False":
        return flag.replace("--", "--no-")
    return f"{flag} {shlex.quote(printable(literal_eval(value)))}" if value not in ("", "True") else flag


def in_python(name: str, value: str = "") -> str:
    """Spell an option as a keyword argument of Python."""
    return f"{_OTHER_IN_PYTHON.get(name, name)}={value}"


class EmaError(Exception):
    """An error that a user can act on, as data. `str()` of it is for callers from Python.

    `message(at_terminal)` is for users of the command line.

    Attributes:
        fact: the problem, in words. May mention options, as `option` returns them.
        subject: the file, checkpoint or other thing that has the problem.
        option: the name of the option whose value is refused, as in Python: `half_life`.
        hint: the advice, for a caller from Python; None if there is none.
    """

    exit_code = 1

    def __init__(
        self, fact: str, *, subject: object = None, option: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(fact)
        self.fact = fact
        self.subject = subject
        self.option = option
        self._hint = hint

    def message(self, spelling: Spelling, *, known: object = None) -> str:
        """Return option, subject and fact in one line, with control characters escaped.

        The subject is left out if it is `known`: the reader sees it already.
        """
        parts = [spelling(self.option, "")] if self.option is not None else []
        parts += [printable(self.subject)] if self.subject is not None and str(self.subject) != str(known) else []
        return _shortened(": ".join([*parts, _spelled(self.fact, spelling)]))

    def advice(self, spelling: Spelling) -> str | None:
        """Return the hint, None if there is none."""
        return None if self._hint is None else _shortened(_spelled(self._hint, spelling))

    @property
    def hint(self) -> str | None:
        """Return the hint for a caller from Python, None if there is none."""
        return self.advice(in_python)

    def about(self, subject: object) -> Self:
        """Set the subject, if the error has none yet, and return the error."""
        if self.subject is None:
            self.subject = subject
        return self

    def __str__(self) -> str:
        return self.message(in_python)


class UsageError(EmaError):
    """An option's value, or a combination of options, that makes no sense."""

    exit_code = 2


class CheckpointError(EmaError):
    """A checkpoint that cannot be read, or must not be.

    Attributes:
        at_byte: the byte of the file, which is the subject, that cannot be read; None where it is not one byte.
    """

    exit_code = 3
    at_byte: int | None = None


class IncompleteCheckpoint(CheckpointError):
    """A checkpoint that is not whole: still being written, or cut short. A search passes over the newest of a run."""


class Unfinished(IncompleteCheckpoint):
    """A checkpoint that its trainer itself marks as unfinished. A search passes it over."""


CUT_SHORT = "it is still being written, or was cut short: wait, or bring a whole copy"
"""The hint where a file ends too early: from the file alone nobody knows why."""


class NoWeights(CheckpointError):
    """A readable file without model weights in it. A search passes it over, unless its name is a checkpoint's."""


class CutBetweenRanks(CheckpointError):
    """A file of one rank's, with its share of tensors. With the files of the other ranks it is a model."""


class Missing(CheckpointError):
    """A file or a folder that does not exist."""


class Unreadable(CheckpointError):
    """A file or folder that this process may not or cannot read, so that it may be damaged or not."""


class RunError(EmaError):
    """Checkpoints that do not fit together, or that are averaged already."""

    exit_code = 4


class NothingLeft(RunError):
    """A recipe by which no checkpoint of a run enters."""


class NoSuchWeights(RunError):
    """A checkpoint without the weights that were asked for: raw ones or averages."""


class OutputError(EmaError):
    """An output that cannot be written, or must not be."""

    exit_code = 5


class NonFiniteError(EmaError):
    """A NaN or an infinity in a checkpoint, or an overflow on the way to the output's dtype."""

    exit_code = 6


class VerificationError(EmaError):
    """An output that does not read back as intended."""

    exit_code = 6


class GateError(EmaError):
    """An average that does not meet the demands of `Gates`."""

    exit_code = 6


def _spelled(text: str, spelling: Spelling) -> str:
    """Return a text with its mentions of options spelled for the reader."""
    pieces = _MENTION.split(text)  # text, name, value, text, name, value, ... text
    shown = printable(pieces[0])
    for name, value, rest in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
        shown += spelling(name, printable(value)) + printable(rest)
    return shown


def _shortened(text: str) -> str:
    # Names and settings in files can be of any length; nobody reads a megabyte of them.
    return text if len(text) <= _MAX_CHARS else f"{text[:_MAX_CHARS]}..."


def printable(text: object) -> str:
    """Return `text` with characters escaped that could control a terminal: controls, bidi marks, surrogates.

    The commands of GitHub Actions are escaped too: lines that start with `::`, or contain `##[`.
    """
    shown = "".join(ch if ch.isprintable() else _escape(ch) for ch in str(text)).replace("##[", r"#\x23[")
    return shown.replace("::", r":\x3a", 1) if shown.lstrip().startswith("::") else shown


def _escape(ch: str) -> str:
    return ch.encode("unicode_escape", "surrogatepass").decode("ascii")
