"""docs/reference/command-line.md, from the commands themselves: what `--help` says, as one page."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby
from typing import Any

import typer

from ema_cli.cli.app import app

_HEAD = """\
# Command line

<!-- Made by `make docs` from the commands themselves; do not edit. -->

`ema-cli COMMAND --help` shows the same in a terminal. `-h` is short for `--help`.
"""


def commands() -> dict[str, Any]:
    """Return the commands by name."""
    group = typer.main.get_command(app)
    context = group.make_context("ema-cli", [], resilient_parsing=True)
    return {name: group.get_command(context, name) for name in group.list_commands(context)}


def page() -> str:
    """Return the whole page."""
    group: Any = typer.main.get_command(app)
    parts = [_HEAD, _prose(group.help), _epilog(group.epilog)]
    for name, command in commands().items():
        usage = " ".join(["ema-cli", name, *(_argument(p) for p in command.params if not p.opts[0].startswith("-"))])
        parts += [f"## {name}", _prose(command.help), f"```text\n{usage} [OPTIONS]\n```", _tables(command.params)]
        parts.append(_epilog(command.epilog))
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def _argument(parameter: Any) -> str:
    metavar = (parameter.metavar or parameter.name.upper()).strip("{}[]")
    return metavar if parameter.required else f"[{metavar}]"


def _tables(parameters: Iterable[Any]) -> str:
    """Return a table for each panel of the help, in the order in which the panels first occur."""
    shown = [parameter for parameter in parameters if not getattr(parameter, "hidden", False)]
    panels = list(dict.fromkeys(_panel(parameter) for parameter in shown))
    ordered = sorted(shown, key=lambda parameter: panels.index(_panel(parameter)))
    return "\n\n".join(
        f"| {panel} | |\n|---|---|\n" + "\n".join(_row(parameter) for parameter in group)
        for panel, group in groupby(ordered, _panel)
    )


def _panel(parameter: Any) -> str:
    is_argument = not parameter.opts[0].startswith("-")
    return getattr(parameter, "rich_help_panel", None) or ("Arguments" if is_argument else "Options")


def _row(parameter: Any) -> str:
    if not parameter.opts[0].startswith("-"):
        names = f"`{_argument(parameter)}`"
    else:
        value = f" {parameter.metavar}" if parameter.metavar and not parameter.is_flag else ""
        names = ", ".join(f"`{name}{value}`" for name in [*parameter.opts, *parameter.secondary_opts])
    names, meaning = names.replace("|", r"\|"), _prose(parameter.help).replace("|", r"\|")
    return f"| {names} | {meaning} |"


def _prose(text: str | None) -> str:
    """Return help as Markdown: options as code, and nothing taken for markup."""
    escaped = re.sub(r"([*_<>])", r"\\\1", " ".join((text or "").split()))
    return re.sub(r"(?<![\w-])(--?[a-z][\w-]*)", lambda match: f"`{match[1]}`", escaped.replace(r"\_", "_"))


def _epilog(text: str | None) -> str:
    """Return the end of a help: its paragraphs as prose, its indented lines as commands."""
    parts = []
    for paragraph in (text or "").split("\n\n"):
        lines = paragraph.splitlines()
        if lines and all(line.startswith("  ") for line in lines):
            parts.append("```text\n" + "\n".join(line[2:] for line in lines) + "\n```")
        else:
            parts.append(_prose(paragraph))
    return "\n\n".join(parts)
