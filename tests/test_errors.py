"""Errors: what is shown of names that nobody vouches for, and the exit code of each class."""

from __future__ import annotations

import pytest

from ema_cli import errors
from ema_cli.errors import EmaError, printable

CODES = {
    "UsageError": 2, "CheckpointError": 3, "IncompleteCheckpoint": 3, "NoWeights": 3, "RunError": 4, "OutputError": 5,
    "NonFiniteError": 6, "VerificationError": 6, "GateError": 6,
}  # fmt: skip


def test_each_class_has_its_exit_code():
    """The codes are those of the documentation; every class is one of them."""
    found = {name: each.exit_code for name, each in vars(errors).items() if isinstance(each, type)}
    assert found == {"EmaError": 1, **CODES}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", r"\x1b[31mred"),
        ("two\nlines\r", r"two\nlines\r"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\udcff", r"\udcff"),
        ("層 é [red]", "層 é [red]"),
    ],
)
def test_what_could_steer_a_terminal_is_escaped(text: str, shown: str):
    """Controls, newlines, bidi marks and surrogates come escaped, letters and brackets as they are."""
    assert (printable(text), str(EmaError(text)), EmaError("x", hint=text).hint) == (shown, shown, shown)


def test_a_message_has_an_end():
    """A name of a megabyte does not fill the terminal."""
    message = str(EmaError("a" * 1_000_000))
    assert len(message) < 2100
    assert message.endswith("a...")
