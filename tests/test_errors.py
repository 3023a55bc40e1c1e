"""Errors: what is shown of names that nobody vouches for, and the exit code of each class."""

from __future__ import annotations

from pathlib import Path

import pytest

from ema_cli import errors
from ema_cli.errors import EmaError, UsageError, at_terminal, mentioned, option, printable

CODES = {
    "Unreadable": 3, "Missing": 3, "Unfinished": 3, "NoSuchWeights": 4,
    "UsageError": 2, "CheckpointError": 3, "IncompleteCheckpoint": 3, "NoWeights": 3,
    "CutBetweenRanks": 3, "RunError": 4, "NothingLeft": 4, "OutputError": 5,
    "NonFiniteError": 6, "VerificationError": 6, "GateError": 6,
}  # fmt: skip


def test_each_class_has_its_exit_code():
    """The codes are those of the documentation; every class is one of them."""
    found = {
        name: each.exit_code
        for name, each in vars(errors).items()
        if isinstance(each, type) and issubclass(each, EmaError)
    }
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
def test_characters_that_could_steer_a_terminal_are_escaped(text: str, shown: str):
    """Controls, newlines, bidi marks and surrogates come escaped, letters and brackets as they are."""
    assert (printable(text), str(EmaError(text)), EmaError("x", hint=text).hint) == (shown, shown, shown)


def test_a_message_has_an_end():
    """A name of a megabyte does not fill the terminal."""
    message = str(EmaError("a" * 1_000_000))
    assert len(message) < 2100
    assert message.endswith("a...")


def test_an_option_is_spelled_as_its_reader_knows_it():
    """At a terminal --half-life 50ba, in Python half_life='50ba'; a flag, and one that is turned off, likewise."""
    error = UsageError(
        f"goes with {option('half_life', '50ba')}", option="sigma_rel", hint=f"{option('force', True)} or not"
    )
    assert error.message(at_terminal) == "--sigma-rel: goes with --half-life 50ba"
    assert str(error) == "sigma_rel=: goes with half_life='50ba'"
    assert (error.advice(at_terminal), error.hint) == ("--force or not", "force=True or not")
    assert EmaError(option("manifest", False)).message(at_terminal) == "--no-manifest"
    assert str(EmaError(option("manifest", False))) == "manifest=False"


def test_a_subject_that_the_reader_has_before_the_eyes_is_left_out():
    """So nobody has to strip a path from a message; another subject stays."""
    error = EmaError("is cut short", subject="a/b.pt")
    assert error.message(at_terminal) == "a/b.pt: is cut short"
    assert error.message(at_terminal, known="a/b.pt") == "is cut short"
    assert error.message(at_terminal, known="a") == "a/b.pt: is cut short"


def test_a_subject_once_known_is_kept():
    """`about` names the subject of an error that has none, and leaves one that has."""
    assert str(EmaError("is cut short").about("a").about("b")) == "a: is cut short"


def test_a_value_is_quoted_for_a_shell_where_it_must_be():
    """What a terminal shows can be copied: a pattern is quoted, a time is not."""
    assert EmaError(option("copy", "*_extra_state*")).message(at_terminal) == "--copy '*_extra_state*'"
    assert EmaError(option("half_life", "50ba")).message(at_terminal) == "--half-life 50ba"


def test_a_value_that_a_file_names_is_shown_escaped():
    """What a manifest says of an option may be anything: its spelling at a terminal steers nothing either."""
    value = "\x1b[31m\x07\x9b\u202e\nx##[y"
    error = UsageError(f"{option('component', value)} is none", hint=option("component", value))
    for text in (error.message(at_terminal), error.advice(at_terminal), at_terminal("component", repr(value))):
        assert text is not None
        assert text.isprintable()
        assert "##[" not in text


def test_an_error_inside_another_is_spelled_by_whoever_shows_it():
    """The text of the inner one keeps its mentions of options until somebody reads it."""
    inner = EmaError("holds two models", hint=f"say which: {option('key', 'model')}")
    outer = EmaError(f"no checkpoint: {inner.message(mentioned)}", hint=inner.advice(mentioned))
    assert outer.advice(at_terminal) == "say which: --key model"
    assert outer.hint == "say which: key='model'"


def test_no_error_takes_over_the_hint_of_another_as_python_spells_it():
    """`error.hint` is for callers from Python: in the hint of another error a terminal would show `anonymous=True`."""
    package = Path(errors.__file__).parent
    taken = [path.name for path in package.rglob("*.py") if "hint=error.hint" in path.read_text("utf-8")]
    assert taken == []
