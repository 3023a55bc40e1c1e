"""Pages of help, drawn by rich: usage, what a command does, its arguments and options in panels, examples."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from rich.align import Align
from rich.columns import Columns
from rich.console import Console
from rich.highlighter import RegexHighlighter
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from rich.theme import Theme

_THEME = Theme({"option": "bold cyan", "switch": "bold green", "types": "bold yellow", "usage": "yellow"})


class _Highlighter(RegexHighlighter):
    """Colours options, types and the word Usage."""

    highlights = (
        r"(^|\W)(?P<switch>\-\w+)(?![a-zA-Z0-9])",
        r"(^|\W)(?P<option>\-\-[\w\-]+)(?![a-zA-Z0-9])",
        r"(?P<types>\<[^\>]+\>)",
        r"(?P<usage>Usage: )",
    )


def print_page(command: Any, context: Any) -> None:
    """Print the page of a command, or of the program, which lists its commands."""
    out = Console(theme=_THEME, highlighter=_Highlighter())
    parameters = [parameter for parameter in command.get_params(context) if not parameter.hidden]
    arguments = [parameter for parameter in parameters if parameter.param_type_name == "argument"]
    options = [parameter for parameter in parameters if parameter.param_type_name == "option"]
    names = list(command.list_commands(context)) if hasattr(command, "list_commands") else []
    usage = ["[OPTIONS]", *map(_usage, arguments), *(["COMMAND [ARGS]..."] if names else [])]
    out.print(Padding(out.highlighter(f"Usage: {context.command_path} {' '.join(usage)}"), 1), style="bold")
    out.print(Padding(Align(_text(out, command.help), pad=False), (0, 1, 1, 1)))
    _print_panel(out, "Arguments", arguments)
    panels: dict[str, list[Any]] = {"Options": []}
    for option in options:
        panels.setdefault(option.rich_help_panel or "Options", []).append(option)
    for title, shown in panels.items():
        _print_panel(out, title, shown)
    if names:
        _print_commands(out, [command.get_command(context, name) for name in names])
    if command.epilog:
        out.print(Padding(Align(_text(out, command.epilog), pad=False), 1))


def _usage(argument: Any) -> str:
    return f"{{{argument.metavar}}}" if argument.required else f"[{argument.metavar}]"


def _names(parameter: Any) -> list[str]:
    """Return the long name, the short one or an argument's, and what the value is: all our arguments are paths."""
    if parameter.param_type_name == "argument":
        return ["", parameter.metavar, "<path>"]
    long = [name for name in parameter.opts if name.startswith("--")]
    short = [name for name in parameter.opts if not name.startswith("--")]
    return [",".join(long), ",".join(short), "" if parameter.is_flag else parameter.metavar]


def _text(out: Console, text: str) -> Text:
    return out.highlighter(inspect.cleandoc(text))


def _print_panel(out: Console, title: str, parameters: Sequence[Any]) -> None:
    """Print a panel of arguments or options, with a star at those that must be given."""
    table = Table(highlight=True, show_header=False, expand=True, box=None, padding=(0, 1), pad_edge=False)
    stars = any(parameter.required for parameter in parameters)
    for parameter in parameters:
        long, short, value = _names(parameter)
        texts = [_text(out, parameter.help), *([Text("[required]", "dim red")] if parameter.required else [])]
        star = [Text("*" if parameter.required else "", "red")] if stars else []
        table.add_row(
            *star, out.highlighter(long), out.highlighter(short), "", "", Text(value, "bold yellow"), Columns(texts)
        )
    if parameters:
        out.print(Panel(table, border_style="dim", title=title, title_align="left"))


def _print_commands(out: Console, commands: list[Any]) -> None:
    table = Table(show_header=False, expand=True, box=None, padding=(0, 1), pad_edge=False)
    table.add_column(style="bold cyan", no_wrap=True, width=max(len(command.name) for command in commands))
    table.add_column("Description", justify="left", no_wrap=False, ratio=10)
    for command in commands:
        table.add_row(command.name, _text(out, command.help))
    out.print(Panel(table, border_style="dim", title="Commands", title_align="left"))
