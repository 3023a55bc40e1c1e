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


class Spelling:
    """How a reader knows options: from the name of one, and a value (a Python literal, or nothing), to a text."""

    def __init__(self, spell: Callable[[str, str], str], has: Callable[[str], bool] = lambda _name: True) -> None:
        """Take what spells an option, and what tells whether the reader has one."""
        self._spell = spell
        self.has = has

    def __call__(self, name: str, value: str = "") -> str:
        """Return an option as the reader knows it."""
        return self._spell(name, value)

    def knows_all(self, text: str) -> bool:
        """Return whether the reader has each option that a text mentions; of several in a list one is enough."""
        return all(any(map(self.has, names.split("|"))) for names, _ in _MENTION.findall(text))


mentioned = Spelling(lambda name, value: f"\ufff9{name}\ufffa{value}\ufffb")
"""Mentions whose spelling is still open: for the text of one error inside another."""


def option(name: str, value: object = None) -> str:
    """Return a mention of an option for the text of an error: `name` as in Python, and a `value` to give it.

    The place that shows the error spells it: `option("half_life", "50ba")` is `--half-life 50ba` at a terminal and
    `half_life='50ba'` in Python; `option("force", True)` is `--force` and `force=True`.
    """
    return mentioned(name, "" if value is None else repr(value))


def all_options(*names: str) -> str:
    """Return a mention of several options for a text: those of them that the reader has are listed, "a, b and c"."""
    return mentioned("|".join(names))


_MENTION = re.compile("\ufff9([a-z_|]+)\ufffa([^\ufffb]*)\ufffb")
_OR = re.compile("(?:, |; )or (?![^\ufff9]*\ufffb)")  # between two ways out of a hint, not in a value
_SHORT = {"o": "-o"}
_OTHER_IN_PYTHON = {"o": "target", "output": "target", "from": "source"}


def _at_terminal(name: str, value: str) -> str:
    flag = _SHORT.get(name) or f"--{name.replace('_', '-')}"
    if value == "False":
        return flag.replace("--", "--no-")
    return f"{flag} {shlex.quote(printable(literal_eval(value)))}" if value not in ("", "True") else flag


at_terminal = Spelling(_at_terminal)
"""Options of the command line, whatever command has them."""
in_python = Spelling(lambda name, value: f"{_OTHER_IN_PYTHON.get(name, name)}={value}")
"""Keyword arguments of Python."""


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
        parts = []
        if self.option is not None:  # one that the reader lacks is a field of a file, as of a manifest
            parts = [spelling(self.option) if spelling.has(self.option) else self.option]
        parts += [printable(self.subject)] if self.subject is not None and str(self.subject) != str(known) else []
        return _shortened(": ".join([*parts, _spelled(self.fact, spelling)]))

    def advice(self, spelling: Spelling) -> str | None:
        """Return the hint, None if there is none. Of several ways out it has those for which the reader has options."""
        if self._hint is None:
            return None
        ways = [way for way in _OR.split(self._hint) if spelling.knows_all(way)]
        hint = self._hint if not ways or spelling.knows_all(self._hint) else ", or ".join(ways)
        return _shortened(_spelled(hint, spelling))

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

OTHER_SAVES = "the files are of different saves, or one is damaged: bring whole copies of all of them"
"""The hint where the files of one checkpoint do not fit each other."""


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
    for names, value, rest in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
        several = [names] if spelling is mentioned else names.split("|")
        known = [name for name in several if spelling.has(name)] or several
        *others, last = [spelling(name, printable(value)) for name in known]
        shown += f"{', '.join(others)} and {last}" if others else last
        shown += printable(rest)
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
