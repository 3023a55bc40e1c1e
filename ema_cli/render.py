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

from ema_cli.errors import EmaError, printable

_BAR_WIDTH = 24
_PIPE_WIDTH = 240  # wide enough that no row is folded where a program reads it
_UNLIMITED = 100_000
_NARROWEST = _BAR_WIDTH
_PLAIN_SECONDS = 30
_OPTION_WORDS = {"half_life": "half-life"}
_UNIT_NAMES = {"ba": "batch", "ep": "epoch", "sp": "sample", "tok": "token"}


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
    out.print(Text.assemble(("error: ", "bold red"), str(problem)), soft_wrap=True)
    if problem.hint:
        out.print(Text.assemble(("hint:  ", "bold"), problem.hint), soft_wrap=True)


def warnings(messages: Sequence[str]) -> None:
    """Print what a user should know on stderr."""
    _print_warnings(console(stderr=True), messages)


def line(text: str) -> None:
    """Print for people, on stderr."""
    for each in text.split("\n"):
        console(stderr=True).print(Text(printable(each)), soft_wrap=True)


def run_report(facts: Mapping[str, Any], plan: Mapping[str, Any] | None, odd: Sequence[str]) -> None:
    """Print a run: totals, one row for each checkpoint with its weight if there is a plan, what is odd."""
    out = console()
    columns, constant = _checkpoint_columns(facts["checkpoints"])
    _print_head(out, facts)
    if constant:
        out.print(Text(f"Every checkpoint: {', '.join(constant)}"), soft_wrap=True)
    out.print()
    if plan:
        out.print(Text(_law_line(plan), "bold"), soft_wrap=True)
    _print_table(out, _run_table([each["name"] for each in facts["checkpoints"]], columns, plan))
    if plan:
        _print_plan_lines(out, plan)
    _print_odd(out, [*_spacing_lines(facts), *_clash_lines(facts), *odd], facts["passed_over"])


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
    asked = {name: value for name, value in recipe.items() if name not in ("checkpoints", "files", "version")}
    words = ", ".join(f"{_OPTION_WORDS.get(name, name.replace('_', ' '))} {value}" for name, value in asked.items())
    out.print(Text(printable(f"Averaged by ema-cli {recipe.get('version', '?')}: {words}"), "bold"), soft_wrap=True)
    entries = recipe.get("checkpoints", [])
    names = [str(name) for name, _, _ in entries]
    weights = [{"name": str(name), "weight": float(weight)} for name, _, weight in entries]
    clocks = [str(clock) for _, clock, _ in entries]
    _print_table(out, _run_table(names, {"clock": clocks}, {"entries": weights, "skipped": []}))


def plan_report(plan: Mapping[str, Any], order: Sequence[str]) -> None:
    """Print the weight of each checkpoint, drawn, and what they come to; `order` lists all names, oldest first."""
    out = console()
    out.print(Text(_law_line(plan), "bold"), soft_wrap=True)
    clocks = {each["name"]: each["clock"] for each in plan["entries"]}
    _print_table(out, _run_table(order, {"clock": [clocks.get(name, "") for name in order]}, plan))
    _print_plan_lines(out, plan)


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
        f"{plan_line(plan)}\n"
        f"{result['tensors_averaged']} tensors averaged, {result['tensors_copied']} copied; "
        f"read {size(result['bytes_read'])} in {result['seconds']:.2f} s ({size(rate)}/s), "
        f"wrote {size(result['bytes_written'])}"
    )


@contextmanager
def progress(*, quiet: bool) -> Iterator[Callable[[int, int], None]]:
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


def _print_head(out: Console, facts: Mapping[str, Any]) -> None:
    out.print(Text(_headline(facts), "bold"), soft_wrap=True)
    out.print(Text(_tensors_line(facts["tensors"])), soft_wrap=True)


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
    integers = totals["count"] - totals["averaged"] - totals["packed"]
    counts = {"floating": totals["averaged"], "integer": integers, "of few bits": totals["packed"]}
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count or kind == "floating")
    kinds = "all floating" if totals["averaged"] == totals["count"] else kinds
    return (
        f"{_plural(totals['count'], 'tensor')} ({kinds}), {totals['parameters']:,} parameters, {size(totals['bytes'])}"
    )


def _law_line(plan: Mapping[str, Any]) -> str:
    law = f"half-life {plan['half_life']}" if plan["half_life"] else f"smoothing {plan['smoothing']:g}"
    correction = ", bias correction" if plan["bias_correction"] else ""
    return f"With {law}, update interval {plan['update_interval']}{correction}:"


def _print_plan_lines(out: Console, plan: Mapping[str, Any]) -> None:
    out.print()
    out.print(Text(plan_line(plan)), soft_wrap=True)
    if plan["warnings"]:
        return _print_warnings(out, plan["warnings"])
    weights = [each["weight"] for each in plan["entries"]]
    if len(weights) > 2 and weights[0] > 2 * weights[1] and not plan["bias_correction"]:
        out.print(
            Text("The first stands for all the training before it; --bias-correction removes that."), soft_wrap=True
        )
    if plan["half_life_for_three"]:
        out.print(Text(f"Smallest half-life with three effective checkpoints: {plan['half_life_for_three']}"))
    return None


def _print_warnings(out: Console, messages: Sequence[str]) -> None:
    for message in messages:
        out.print(Text.assemble(("warning: ", "yellow"), printable(message)), soft_wrap=True)


def _checkpoint_columns(checkpoints: Sequence[Mapping[str, Any]]) -> tuple[dict[str, list[str]], list[str]]:
    """Return the columns that tell checkpoints apart, and what is the same for every one."""
    columns: dict[str, list[str]] = {}
    for unit, word in _UNIT_NAMES.items():
        values = [each["clocks"].get(unit) for each in checkpoints]
        if any(values):
            columns[word] = [f"{clock['value']:.10g}" if clock else "-" for clock in values]
    sources = [dict.fromkeys(clock["from"] for clock in each["clocks"].values()) for each in checkpoints]
    facts = {
        "clock from": [", ".join(each) or "-" for each in sources],
        "format": [each["format"] for each in checkpoints],
        "size": [size(each["bytes"]) for each in checkpoints],
        "dtypes": [" ".join(each["dtypes"]) for each in checkpoints],
    }
    constant = []
    for title, column in facts.items():
        if len(set(column)) > 1:
            columns[title] = column
        else:
            constant.append(f"clock from {column[0]}" if title == "clock from" else column[0])
    return columns, constant


def _run_table(names: Sequence[str], columns: Mapping[str, Sequence[str]], plan: Mapping[str, Any] | None) -> Table:
    """Return a table with one row for each name: the columns, then weight and bar or why it is skipped."""
    weights = {each["name"]: each["weight"] for each in plan["entries"]} if plan else {}
    reasons = {each["name"]: each["reason"] for each in plan["skipped"]} if plan else {}
    left = ("clock from", "format", "dtypes")
    sides = [(title, "left" if title in left else "right") for title in columns]
    drawn = [("weight", "right"), ("", "left")] if plan else []
    table = _table(("checkpoint", "left"), *sides, *drawn)
    heaviest = max(weights.values(), default=1.0) or 1.0
    for index, name in enumerate(names):
        cells = [column[index] for column in columns.values()]
        if name in weights:
            cells.append(f"{weights[name]:.2%}")
            table.add_row(Text(printable(name)), *cells, Text(_bar(weights[name] / heaviest), "cyan"))
        elif plan:
            table.add_row(Text(printable(name)), *cells, "-", Text(printable(reasons[name])), style="dim")
        else:
            table.add_row(Text(printable(name)), *cells)
    return table


def _bar(share: float) -> str:
    """Draw a share of the full width, in eighths of a character where the terminal can."""
    if (sys.stdout.encoding or "").lower().replace("-", "") != "utf8":
        return "#" * round(share * _BAR_WIDTH)
    eighths = round(share * _BAR_WIDTH * 8)
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
    found = [f"same clock: {', '.join(group)}" for group in facts["same_clock"]]
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


def _plural(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"
