"""How the options of a command are spelled in its errors: most are raised by what several commands share."""

from __future__ import annotations

from functools import cache

from ema_cli.cli.command_line import COMMANDS
from ema_cli.errors import Spelling, at_terminal


def spelling_of(command: str | None) -> Spelling:
    """Return how the reader of a command's error knows options: one that another command has, with that one's name."""
    if command is None:
        return at_terminal

    def has(name: str) -> bool:
        having = _commands_with(name)
        return command in having or not having

    def spell(name: str, value: str) -> str:
        spelled = at_terminal(name, value)
        return spelled if has(name) else f"ema-cli {_commands_with(name)[0]} {spelled}"

    return Spelling(spell, has)


@cache
def _commands_with(name: str) -> tuple[str, ...]:
    """Return the commands that have an option; none for what is an option in Python alone."""
    spelled = {at_terminal(name), at_terminal(name, "False")}
    return tuple(command for command in COMMANDS if spelled & _flags(command))


@cache
def _flags(command: str) -> frozenset[str]:
    """Return the options of a command as they are typed."""
    from ema_cli.cli.typer_commands import make_command  # which imports what shows an error

    parameters = make_command(command).params
    return frozenset(["--help", *(flag for each in parameters for flag in (*each.opts, *each.secondary_opts))])
