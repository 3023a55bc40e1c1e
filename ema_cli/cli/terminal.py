"""What people see: tables, bars, progress, warnings and errors. The only module that imports rich.

Names come from files nobody vouches for: they are shown through `printable`, never as markup.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from ema_cli.cli.github import annotate, annotate_all
from ema_cli.cli.sentences import (
    UNIT_NAMES,
    checkpoint_columns,
    clash_lines,
    comparison_head,
    comparison_odd,
    distance_cells,
    headline,
    law,
    law_line,
    plan_clocks,
    plan_lines,
    plan_notes,
    plan_warnings,
    reach_lines,
    spacing_lines,
    stored_lines,
    tensors_line,
)
from ema_cli.errors import EmaError, at_terminal, printable
from ema_cli.text import size, some

_BAR_WIDTH = 24
_WIDE = 100  # columns that two bars of full width need
_SMALL_BAR_WIDTH = 8  # where several averages are side by side
_PIPE_WIDTH = 240  # wide enough that no row is folded where a program reads it
_UNLIMITED = 100_000
_NARROWEST = _BAR_WIDTH
_PLAIN_SECONDS = 30
_NOT_TOLD = ("checkpoints", "files", "version", "types", "clocks")
_COMPARISON_WORDS = "distance: |A - B|; relative: to |B|; largest: of the differences between two values"
_OPTION_WORDS = {"half_life": "half-life"}


class _Console(Console):
    """A console that leaves a closed pipe to the error boundary; rich would exit with 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console(*, stderr: bool = False) -> Console:
    """Return a console on stdout or stderr: plain in a pipe, without colour under NO_COLOR."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else _PIPE_WIDTH
    return _Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)


def error(problem: EmaError) -> None:
    """Print what is wrong, and what to do."""
    out = console(stderr=True)
    message, hint = problem.message(at_terminal), problem.advice(at_terminal)
    out.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
    if hint:
        out.print(Text.assemble(("hint:  ", "bold"), hint), soft_wrap=True)
    annotate("error", message, hint)


def warnings(messages: Sequence[str]) -> None:
    """Print what a user should know on stderr."""
    _print_warnings(console(stderr=True), messages)


def lines(texts: Sequence[str]) -> None:
    """Print for people, on stderr."""
    for each in texts:
        console(stderr=True).print(Text(printable(each)), soft_wrap=True)


def run_report(facts: Mapping[str, Any], plans: Sequence[Mapping[str, Any]], odd: Sequence[str]) -> None:
    """Print a run: totals, one row for each checkpoint with its weight in each plan, what is odd."""
    out = console()
    columns, constant = checkpoint_columns(facts["checkpoints"])
    _print_head(out, facts)
    if constant:
        out.print(Text(f"Every checkpoint: {', '.join(constant)}"), soft_wrap=True)
    out.print()
    if len(plans) > 1:
        # The room is for the weights; without a half-life, all columns are shown.
        columns = {
            UNIT_NAMES[unit]: columns[UNIT_NAMES[unit]]
            for unit in dict.fromkeys(each["mean_age"]["unit"] for each in plans)
        }
    names = [each["name"] for each in facts["checkpoints"]]
    if plans:
        _print_plans(out, names, columns, plans)
    else:
        _print_table(out, _run_table(names, columns, []))
    _print_odd(out, [*spacing_lines(facts), *clash_lines(facts), *odd], facts["passed_over"])


def checkpoint_report(facts: Mapping[str, Any], tensors: Sequence[Mapping[str, Any]], odd: Sequence[str]) -> None:
    """Print one checkpoint with its tensors."""
    out = console()
    table = _table(("tensor", "left"), ("dtype", "left"), ("shape", "left"), ("size", "right"))
    for each in tensors:
        shape = ", ".join(map(str, each["shape"]))
        table.add_row(Text(printable(each["name"])), each["dtype"], f"[{shape}]", size(each["bytes"]))
    _print_head(out, facts)
    out.print()
    _print_table(out, table)
    _print_odd(out, odd, [])


def recipe_report(recipe: Mapping[str, Any]) -> None:
    """Print how a file was averaged, as its metadata say."""
    out = console()
    out.print()
    stored = recipe.get("stored")
    told = stored if isinstance(stored, Mapping) else recipe
    asked = {name: value for name, value in told.items() if name not in _NOT_TOLD}
    words = ", ".join(f"{_OPTION_WORDS.get(name, name.replace('_', ' '))} {value}" for name, value in asked.items())
    how = "Stored by EMA.store" if stored else "Averaged by ema-cli"
    out.print(Text(printable(f"{how} {recipe.get('version', '?')}: {words}"), "bold"), soft_wrap=True)
    entries = recipe.get("checkpoints", [])
    names = [str(name) for name, _, _ in entries]
    weights = [{"name": str(name), "weight": float(weight)} for name, _, weight in entries]
    clocks = [str(clock) for _, clock, _ in entries]
    if entries:
        _print_table(out, _run_table(names, {"clock": clocks}, [{"entries": weights, "skipped": []}]))


def plan_report(plans: Sequence[Mapping[str, Any]], order: Sequence[str]) -> None:
    """Print the weight of each checkpoint, drawn, and what they come to; `order` lists all names, oldest first."""
    _print_plans(console(), order, {"clock": plan_clocks(plans, order)}, plans)


def approximations(plans: Sequence[Mapping[str, Any]]) -> None:
    """Print of each plan of stored averages the profile that was asked for and the one that is reached, drawn."""
    out = console()
    for plan in plans:
        told = plan.get("approximation")
        if told is None:
            continue
        out.print()
        out.print(Text(f"Training time in the average of {law(plan)}: asked for, and reached", "bold"), soft_wrap=True)
        bar = _BAR_WIDTH if out.width >= _WIDE else _BAR_WIDTH // 2
        _print_table(out, _profile_table(told["stretches"], plan["mean_age"]["unit"], bar))
        for text in reach_lines(told):
            out.print(Text(text), soft_wrap=True)


def _profile_table(stretches: Sequence[Mapping[str, Any]], unit: str, bar: int) -> Table:
    """Return the shares of stretches of training time, drawn side by side."""
    table = _table(("up to", "right"), ("asked", "right"), ("", "left"), ("reached", "right"), ("", "left"))
    most = max(max(each["asked"], each["reached"]) for each in stretches) or 1.0
    for each in stretches:
        cells: list[str | Text] = [f"{each['to']:.6g}{unit}"]
        for share in (each["asked"], each["reached"]):
            cells += [f"{share:.2%}", Text(_bar(share / most, bar), "cyan")]
        table.add_row(*cells)
    return table


def stored_report(stored: Mapping[str, Any] | None, plans: Sequence[Mapping[str, Any]]) -> None:
    """Print what the training stored beside its checkpoints, and what could be made of it."""
    out = console()
    found = stored_lines(stored, plans)
    if found:
        out.print()
    for text in found:
        out.print(Text(printable(text)), soft_wrap=True)
    approximations([each for each in (stored or {}).get("plans", []) if "problem" not in each])


def comparison_report(facts: Mapping[str, Any]) -> None:
    """Print how far two checkpoints are apart: by layer and as a whole, and what could not be compared."""
    out = console()
    for text in comparison_head(facts):
        out.print(Text(printable(text)), soft_wrap=True)
    out.print()
    titles = ("equal", "distance", "relative", "cosine", "largest")
    table = _table(("layer", "left"), *((title, "right") for title in titles))
    for layer in facts["layers"]:
        table.add_row(Text(printable(layer["name"])), *distance_cells(layer))
    if len(facts["layers"]) > 1:
        table.add_row("all", *distance_cells(facts["total"]), style="bold")
    _print_table(out, table)
    out.print()
    out.print(Text(_COMPARISON_WORDS), soft_wrap=True)
    _print_odd(out, comparison_odd(facts), [])
    if facts["warnings"]:
        _print_warnings(out, [some(facts["warnings"])])


@contextmanager
def progress(*, quiet: bool, doing: str = "averaging") -> Iterator[Callable[[int, int], None]]:
    """Yield a function of (bytes done, bytes in all): a bar on a terminal, elsewhere a line now and then."""
    if quiet:
        yield lambda done, total: None
    elif sys.stderr.isatty():
        # Here, as only a terminal needs it.
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (
            TextColumn(doing),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console(stderr=True), transient=True) as bar:
            task = bar.add_task(doing, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    else:
        yield _plain_progress(doing)


def _plain_progress(doing: str) -> Callable[[int, int], None]:
    began = last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PLAIN_SECONDS and done:
            last = now
            left = (total - done) * (now - began) / done
            rate = size(done / (now - began))
            lines([f"{doing}: {size(done)} of {size(total)}, {rate}/s, {left:.0f} s left"])

    return report


def _print_head(out: Console, facts: Mapping[str, Any]) -> None:
    out.print(Text(headline(facts), "bold"), soft_wrap=True)
    out.print(Text(tensors_line(facts["tensors"])), soft_wrap=True)


def _print_warnings(out: Console, messages: Sequence[str]) -> None:
    for message in messages:
        out.print(Text.assemble(("warning: ", "yellow"), printable(message)), soft_wrap=True)
        annotate("warning", message)


def _print_plans(
    out: Console, names: Sequence[str], columns: Mapping[str, Sequence[str]], plans: Sequence[Mapping[str, Any]]
) -> None:
    """Print the law, the weights of all plans side by side, as many as there is room for, and what they come to."""
    out.print(Text(law_line(plans), "bold"), soft_wrap=True)
    if len(plans) == 1:
        _print_table(out, _run_table(names, columns, plans))
    else:
        _print_side_by_side(out, names, columns, plans)
    out.print()
    for text in plan_lines(plans):
        out.print(Text(printable(text)), soft_wrap=True)
    _print_warnings(out, plan_warnings(plans))
    if len(plans) > 1:  # whose warnings are on their lines
        annotate_all({"plans": plans})
    for text in plan_notes(plans):
        out.print(Text(text), soft_wrap=True)


def _print_side_by_side(
    out: Console, names: Sequence[str], columns: Mapping[str, Sequence[str]], plans: Sequence[Mapping[str, Any]]
) -> None:
    """Print the weights of several plans in as few tables as the width allows, drawn where there is room."""
    most = max(each["weight"] for plan in plans for each in plan["entries"])
    widths = [max(len(law(plan)), len("100.0%")) for plan in plans]
    reasons = max((len(each["reason"]) for plan in plans for each in plan["skipped"]), default=0)
    ends = [min(width, _NARROWEST) for width in (max(cell_len(printable(name)) for name in names), reasons) if width]
    room = out.width - sum(ends) - sum(max(map(len, (title, *column))) for title, column in columns.items())
    gaps = len(columns) + len(ends) - 1
    halves = [-(-len(plans) // tables) for tables in range(1, len(plans) + 1)]

    def spare(number: int, gap: int) -> int:
        """Return what is left of the width beside so many weights."""
        parts = (widths[start : start + number] for start in range(0, len(plans), number))
        return room - gap * gaps - max(sum(part) + gap * len(part) for part in parts)

    number, gap = next(((number, gap) for number in halves for gap in (2, 1) if spare(number, gap) >= 0), (1, 1))
    bar = min(spare(number, 2) // number - 2, _SMALL_BAR_WIDTH)
    bar, gap = (bar, 2) if bar >= _SMALL_BAR_WIDTH // 2 else (0, gap)
    for start in range(0, len(plans), number):
        if start:
            out.print()
        _print_table(out, _run_table(names, columns, plans[start : start + number], most=most, bar=bar, gap=gap))


def _run_table(
    names: Sequence[str],
    columns: Mapping[str, Sequence[str]],
    plans: Sequence[Mapping[str, Any]],
    *,
    most: float | None = None,
    bar: int = _BAR_WIDTH,
    gap: int = 2,
) -> Table:
    """Return a table with one row for each name: the columns, then for each plan the weight, drawn.

    Where there are several plans, `most` is the weight of a full `bar`. The last column says why one is skipped.
    """
    weights = [{each["name"]: each["weight"] for each in plan["entries"]} for plan in plans]
    reasons = {each["name"]: each["reason"] for plan in plans[-1:] for each in plan["skipped"]}
    single = most is None
    full = most or max((weight for each in weights for weight in each.values()), default=0) or 1.0
    left = ("clock from", "format", "dtypes")
    sides = [(title, "left" if title in left else "right") for title in columns]
    for plan in plans:
        drawn = [("", "left")] if bar or (reasons and plan is plans[-1]) else []
        sides += [("weight" if single else law(plan), "right"), *drawn]
    table = _table(("checkpoint", "left"), *sides, gap=gap)
    for index, name in enumerate(names):
        cells: list[str | Text] = [column[index] for column in columns.values()]
        for number, each in enumerate(weights, 1):
            weight = each.get(name)
            cells.append("-" if weight is None else f"{weight:.2%}" if single else f"{weight:.1%}")
            if bar or (reasons and number == len(plans)):
                cells.append(Text(_bar((weight or 0) / full, bar), "cyan"))
        if name in reasons:
            cells[-1] = Text(printable(reasons[name]))
        skipped = plans and not any(name in each for each in weights)
        table.add_row(Text(printable(name)), *cells, style="dim" if skipped else None)
    return table


def _bar(share: float, width: int = _BAR_WIDTH) -> str:
    """Draw a share of the full width, in eighths of a character where the terminal can; below 0 nothing."""
    share = max(share, 0.0)
    if (sys.stdout.encoding or "").lower().replace("-", "") != "utf8":
        return "#" * round(share * width)
    eighths = round(share * width * 8)
    part = " \u258f\u258e\u258d\u258c\u258b\u258a\u2589"[eighths % 8].strip()
    return "\u2588" * (eighths // 8) + part


def _print_odd(out: Console, odd: Sequence[str], passed_over: Sequence[Mapping[str, str]]) -> None:
    if odd:
        out.print()
        out.print(Text("What is odd:", "bold"))
        for message in odd:
            out.print(Text(f"  {printable(message)}"), soft_wrap=True)
            annotate("warning", message)
    quiet = [each for each in passed_over if not any(each["name"] in message for message in odd)]
    if quiet:
        out.print()
        out.print(Text("Passed over:", "bold"))
        for each in quiet:
            out.print(Text(f"  {printable(each['name'])}: {printable(each['reason'])}"), soft_wrap=True)


def _table(*columns: tuple[str, str], gap: int = 2) -> Table:
    table = Table(box=None, padding=(0, 1, 0, gap - 1), pad_edge=False, header_style="dim")
    for index, (title, side) in enumerate(columns):
        justify: Any = side
        folds = index in (0, len(columns) - 1)
        table.add_column(title, justify=justify, no_wrap=not folds, overflow="fold")
    return table


def _ends(table: Table) -> tuple[Column, Column]:
    return table.columns[0], table.columns[-1]


def _print_table(out: Console, table: Table) -> None:
    """Print a table; in a narrow terminal the first and the last column are folded, the others never cut."""
    natural = Measurement.get(out, out.options.update(width=_UNLIMITED), table).maximum
    ends = [max((cell_len(str(cell)) for cell in column.cells), default=0) for column in _ends(table)]
    width = out.width
    out.width = max(width, natural - sum(max(end - _NARROWEST, 0) for end in ends))
    out.print(table)
    out.width = width
