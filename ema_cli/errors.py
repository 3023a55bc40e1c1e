"""Errors a user can act on: subject, fact, next step. Each class knows its exit code.

Exit codes: 0 done, 1 unexpected, 2 usage, 3 a bad or incomplete checkpoint, 4 checkpoints that do not fit
together or are averaged already, 5 output, 6 verification, a gate or non-finite values, 130 and 143 signals.
"""

from __future__ import annotations

_MAX_CHARS = 2000


class EmaError(Exception):
    """Say what is wrong in one line, and in `hint` what to do about it."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(_shortened(printable(message)))
        self.hint = hint if hint is None else _shortened(printable(hint))


class UsageError(EmaError):
    """An option's value, or a combination of options, that makes no sense."""

    exit_code = 2


class CheckpointError(EmaError):
    """A checkpoint that cannot be read, or must not be."""

    exit_code = 3


class IncompleteCheckpoint(CheckpointError):
    """A checkpoint that somebody is still writing, or whose writer died. A directory search passes it over."""


class NoWeights(CheckpointError):
    """A readable file without model weights in it. A directory search passes it over."""


class RunError(EmaError):
    """Checkpoints that do not fit together, or that are averaged already."""

    exit_code = 4


class OutputError(EmaError):
    """The output cannot be written, or must not be."""

    exit_code = 5


class NonFiniteError(EmaError):
    """A NaN or an infinity in a checkpoint, or an overflow on the way to the output's dtype."""

    exit_code = 6


class VerificationError(EmaError):
    """An output that does not read back as it was meant."""

    exit_code = 6


class GateError(EmaError):
    """An average that is not what was demanded of it (--min-count, --max-share, --strict, --expect-keys)."""

    exit_code = 6


def _shortened(text: str) -> str:
    # Names and settings in files can be of any length; nobody reads a megabyte of them.
    return text if len(text) <= _MAX_CHARS else f"{text[:_MAX_CHARS]}..."


def printable(text: object) -> str:
    """Return `text` with what could steer a terminal escaped: controls, bidi marks, surrogates.

    And what could steer a job of GitHub Actions, which takes commands from lines that start with `::`, or hold `##[`.
    """
    shown = "".join(ch if ch.isprintable() else _escape(ch) for ch in str(text)).replace("##[", r"#\x23[")
    return shown.replace("::", r":\x3a", 1) if shown.lstrip().startswith("::") else shown


def _escape(ch: str) -> str:
    return ch.encode("unicode_escape", "surrogatepass").decode("ascii")
