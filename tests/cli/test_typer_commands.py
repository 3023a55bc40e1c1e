"""Commands made from dataclasses: words become values by the type of their field, and commands are made when called."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from ema_cli.cli.app import app
from ema_cli.cli.average_options import AverageOptions
from ema_cli.cli.command_line import COMMANDS, CompareOptions
from ema_cli.cli.typer_commands import Call, Invocation
from ema_cli.errors import UsageError


def call(*words: str) -> Call:
    """Return what a command line calls."""
    understood = app(list(words), prog_name="ema-cli", standalone_mode=False, obj=Invocation())
    assert isinstance(understood, Call)
    return understood


def test_words_become_values_by_the_type_of_their_field():
    """Numbers, paths, flags, and options that may be repeated; what is not given has its default."""
    understood = call(
        "average", "a", "b", "--half-life", "2ba", "--half-life", "3ba", "--last", "7", "-o", "x.pt", "-f"
    )
    options = understood.options
    assert isinstance(options, AverageOptions)
    assert (understood.command, options.run.paths) == ("average", (Path("a"), Path("b")))
    assert (options.run.law.half_life, options.run.law.last) == (("2ba", "3ba"), 7)
    assert (options.output, options.force, options.dry_run, options.gates.max_share) == (
        Path("x.pt"),
        True,
        False,
        None,
    )


def test_arguments_that_must_be_given_are_paths():
    """Two checkpoints, in their order."""
    options = call("compare", "a", "b").options
    assert isinstance(options, CompareOptions)
    assert (options.a, options.b) == (Path("a"), Path("b"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["average", "a", "--last", "x"], "Invalid value for '--last': 'x' is not a valid int."),
        (["average", "a", "--smoothing", "x"], "Invalid value for '--smoothing': 'x' is not a valid float."),
        (["compare", "a"], "B is missing: what it is compared with"),
    ],
)
def test_a_word_that_is_no_value_is_an_error_of_ours(words: list[str], message: str):
    """In our words, whatever typer would say, with the page of help that lists what there is."""
    with pytest.raises(UsageError) as raised:
        call(*words)
    assert str(raised.value) == message
    assert (raised.value.hint or "").startswith(f"see ema-cli {words[0]} ")


def test_a_command_is_made_when_it_is_called():
    """The tree has all commands by name, and makes the others when they are looked at."""
    group = typer.main.get_command(app)
    assert list(group.commands) == list(COMMANDS)  # type: ignore[attr-defined]
    assert group.commands["verify"].name == "verify"  # type: ignore[attr-defined]
