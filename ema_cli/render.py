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
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from ema_cli.errors import EmaError, printable

_BAR_WIDTH = 24
_PIPE_WIDTH = 240  # wide enough that no row is folded where a program reads it
_UNLIMITED = 100_000
_NARROWEST_NAME = 24
_PLAIN_SECONDS = 30
_UNIT_NAMES = {"ba": "batch", "ep": "epoch", "sp": "sample", "tok": "token"}


def console(*, stderr: bool = False) -> Console:
    """Return a console on stdout or stderr: plain in a pipe, without colour under NO_COLOR."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else _PIPE_WIDTH
    return Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)


def error(problem: EmaError) -> None:
    """Print what is wrong, and what to do."""
    out = console(stderr=True)
    out.print(Text("error: ", "bold red") + Text(str(problem)), soft_wrap=True)
    if problem.hint:
        out.print(Text("hint:  ", "bold") + Text(problem.hint), soft_wrap=True)


def warnings(messages: Sequence[str]) -> None:
    """Print what a user should know on stderr."""
    out = console(stderr=True)
    for message in messages:
        out.print(Text("warning: ", "yellow") + Text(printable(message)), soft_wrap=True)


def line(text: str) -> None:
    """Print a line for people, on stderr."""
    console(stderr=True).print(Text(printable(text)), soft_wrap=True)


def run_report(facts: Mapping[str, Any], odd: Sequence[str]) -> None:
    """Print a run: totals, one row for each checkpoint, what is odd."""
    out = console()
    checkpoints = facts["checkpoints"]
    out.print(Text(_headline(facts), "bold"), soft_wrap=True)
    out.print(Text(_tensors_line(facts["tensors"])), soft_wrap=True)
    out.print()
    _print_table(out, _checkpoint_table(checkpoints))
    _print_odd(out, [*_spacing_lines(facts), *_clash_lines(facts), *odd], facts["passed_over"])


def checkpoint_report(facts: Mapping[str, Any], tensors: Sequence[Mapping[str, Any]], odd: Sequence[str]) -> None:
    """Print one checkpoint with its tensors."""
    out = console()
    table = _table(("tensor", "left"), ("dtype", "left"), ("shape", "left"), ("size", "right"))
    for each in tensors:
        shape = ", ".join(map(str, each["shape"]))
        table.add_row(Text(printable(each["name"])), each["dtype"], f"[{shape}]", size(each["bytes"]))
    out.print(Text(_headline(facts), "bold"), soft_wrap=True)
    out.print(Text(_tensors_line(facts["tensors"])), soft_wrap=True)
    out.print()
    _print_table(out, table)
    _print_odd(out, odd, [])


def recipe_report(recipe: Mapping[str, Any]) -> None:
    """Print how a file was averaged, as its metadata say."""
    out = console()
    out.print()
    asked = {name: value for name, value in recipe.items() if name not in ("checkpoints", "files", "version")}
    words = ", ".join(f"{name.replace('_', '-')} {value}" for name, value in asked.items())
    out.print(Text(printable(f"Averaged by ema-cli {recipe.get('version', '?')}: {words}"), "bold"), soft_wrap=True)
    entries = [each for each in recipe.get("checkpoints", []) if isinstance(each, list) and len(each) == 3]
    rows = [{"name": name, "clock": clock, "weight": weight} for name, clock, weight in entries]
    _print_table(out, _weight_table([row for row in rows if isinstance(row["weight"], float | int)], []))


def plan_report(facts: Mapping[str, Any], order: Sequence[str]) -> None:
    """Print the weight of each checkpoint, drawn, and what they come to; `order` lists all names, oldest first."""
    out = console()
    law = f"half-life {facts['half_life']}" if facts["half_life"] else f"smoothing {facts['smoothing']:g}"
    correction = ", bias correction" if facts["bias_correction"] else ""
    out.print()
    out.print(Text(f"With {law}, update interval {facts['update_interval']}{correction}:", "bold"))
    out.print()
    place = {name: index for index, name in enumerate(order)}
    _print_table(out, _weight_table(facts["entries"], facts["skipped"], place))
    out.print()
    out.print(Text(plan_line(facts)), soft_wrap=True)
    if facts["half_life_for_three"]:
        out.print(Text(f"Smallest half-life with three effective checkpoints: {facts['half_life_for_three']}"))
    for message in facts["warnings"]:
        out.print(Text("warning: ", "yellow") + Text(printable(message)), soft_wrap=True)


def plan_line(facts: Mapping[str, Any]) -> str:
    """Return in one sentence what a plan comes to."""
    entries, skipped = len(facts["entries"]), len(facts["skipped"])
    age = facts["mean_age"]
    left_out = f", {skipped} skipped" if skipped else ""
    return (
        f"{_plural(entries, 'checkpoint')} averaged{left_out}: {facts['effective_checkpoints']:.1f} effective, "
        f"mean age {age['value']:.4g}{age['unit']}"
    )


def result_line(plan: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """Return in two lines what was done."""
    rate = result["bytes_read"] / max(result["seconds"], 1e-3)
    return (
        f"{plan_line(plan)}; {result['tensors_averaged']} tensors averaged, {result['tensors_copied']} copied; "
        f"read {size(result['bytes_read'])} in {result['seconds']:.2f} s ({size(rate)}/s), "
        f"wrote {size(result['bytes_written'])}"
    )


@contextmanager
def progress(*, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of (bytes done, bytes in all): a bar on a terminal, elsewhere a line now and then."""
    if quiet:
        yield lambda done, total: None
    elif sys.stderr.isatty():
        columns = (
            TextColumn("averaging"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console(stderr=True), transient=True) as bar:
            task = bar.add_task("averaging", total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    else:
        yield _plain_progress()


def _plain_progress() -> Callable[[int, int], None]:
    began = last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PLAIN_SECONDS and done:
            last = now
            left = (total - done) * (now - began) / done
            rate = size(done / (now - began))
            line(f"averaging: {size(done)} of {size(total)}, {rate}/s, {left:.0f} s left")

    return report


def size(nbytes: float) -> str:
    """Return a number of bytes for people, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(nbytes) < 999.5:
            return f"{nbytes:.3g} {unit}" if unit != "B" else f"{nbytes:.0f} B"
        nbytes /= 1000
    return f"{nbytes:.4g} TB"


def _headline(facts: Mapping[str, Any]) -> str:
    checkpoints = facts["checkpoints"]
    trainers = sorted({each["trainer"] for each in checkpoints if each["trainer"]})
    total = size(sum(each["bytes"] for each in checkpoints))
    if len(checkpoints) == 1:
        only = checkpoints[0]
        clocks = ", ".join(f"{clock['value']:.10g}{unit} ({clock['from']})" for unit, clock in only["clocks"].items())
        return ", ".join(filter(None, (f"{printable(facts['path'])}: {only['format']}", *trainers, clocks, total)))
    by = f" of {', '.join(trainers)}" if trainers else ""
    return f"{printable(facts['path'])}: {_plural(len(checkpoints), 'checkpoint')}{by}, {total}"


def _tensors_line(totals: Mapping[str, int]) -> str:
    copied = totals["count"] - totals["averaged"]
    return (
        f"{_plural(totals['count'], 'tensor')}: {totals['averaged']} averaged, {copied} copied; "
        f"{totals['parameters']:,} parameters, {size(totals['bytes'])}"
    )


def _checkpoint_table(checkpoints: Sequence[Mapping[str, Any]]) -> Table:
    units = [unit for unit in _UNIT_NAMES if any(unit in each["clocks"] for each in checkpoints)]
    table = _table(
        ("checkpoint", "left"),
        *((_UNIT_NAMES[unit], "right") for unit in units),
        ("clock from", "left"),
        ("format", "left"),
        ("size", "right"),
        ("dtypes", "left"),
    )
    for each in checkpoints:
        clocks = each["clocks"]
        sources = list(dict.fromkeys(clocks[unit]["from"] for unit in units if unit in clocks))
        table.add_row(
            Text(printable(each["name"])),
            *(f"{clocks[unit]['value']:.10g}" if unit in clocks else "-" for unit in units),
            ", ".join(sources) or "-",
            each["format"],
            size(each["bytes"]),
            " ".join(each["dtypes"]),
        )
    return table


def _weight_table(
    entries: Sequence[Mapping[str, Any]],
    skipped: Sequence[Mapping[str, Any]],
    place: Mapping[str, int] | None = None,
) -> Table:
    table = _table(("checkpoint", "left"), ("clock", "right"), ("weight", "right"), ("", "left"))
    heaviest = max((each["weight"] for each in entries), default=1.0) or 1.0
    rows = [*entries, *skipped]
    if place is not None:
        rows.sort(key=lambda each: place[each["name"]])
    for each in rows:
        name = Text(printable(each["name"]))
        if "weight" in each:
            weight = each["weight"]
            table.add_row(name, each["clock"], f"{weight:.2%}", Text(_bar(weight / heaviest), "cyan"))
        else:
            table.add_row(Text(printable(each["name"]), "dim"), "", "-", Text(printable(each["reason"]), "dim"))
    return table


def _bar(share: float) -> str:
    """Draw a share of the full width, in eighths of a character where the terminal can."""
    if (sys.stdout.encoding or "").lower().replace("-", "") != "utf8":
        return "#" * max(round(share * _BAR_WIDTH), share > 0)
    eighths = max(round(share * _BAR_WIDTH * 8), share > 0)
    part = " \u258f\u258e\u258d\u258c\u258b\u258a\u2589"[eighths % 8].strip()
    return "\u2588" * (eighths // 8) + part


def _spacing_lines(facts: Mapping[str, Any]) -> list[str]:
    spacing = facts["spacing"]
    if spacing is None or spacing["regular"]:
        return []
    found = [f"irregular spacing, usually {spacing['usual']}"]
    found += [f"gap of {gap['length']} between {gap['after']} and {gap['before']}" for gap in spacing["gaps"]]
    return found


def _clash_lines(facts: Mapping[str, Any]) -> list[str]:
    found = [f"one clock: {', '.join(group)}" for group in facts["same_clock"]]
    return [*found, *(f"different models: {text}" for text in facts["differences"])]


def _print_odd(out: Console, odd: Sequence[str], passed_over: Sequence[Mapping[str, str]]) -> None:
    if odd:
        out.print()
        out.print(Text("What is odd:", "bold"))
        for message in odd:
            out.print(Text(f"  {printable(message)}"), soft_wrap=True)
    quiet = [each for each in passed_over if not any(each["name"] in message for message in odd)]
    if quiet:
        out.print()
        out.print(Text("Passed over:", "bold"))
        for each in quiet:
            out.print(Text(f"  {printable(each['name'])}: {printable(each['reason'])}"), soft_wrap=True)


def _table(*columns: tuple[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for index, (title, side) in enumerate(columns):
        justify: Any = side
        table.add_column(title, justify=justify, no_wrap=index > 0, overflow="fold")
    return table


def _print_table(out: Console, table: Table) -> None:
    """Print a table; where the terminal is too narrow, fold the first column, and never cut the others."""
    natural = Measurement.get(out, out.options.update(width=_UNLIMITED), table).maximum
    first = max((cell_len(str(cell)) for cell in table.columns[0].cells), default=0)
    width = out.width
    out.width = max(width, natural - max(first - _NARROWEST_NAME, 0))
    out.print(table)
    out.width = width


def _plural(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"
