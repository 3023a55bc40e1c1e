"""Tables of runs and plans, with bars; drawn by rich, as wide as the terminal and never cut."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.style import StyleType
from rich.table import Column, Table
from rich.text import Text

from ema_cli.checkpoint import Checkpoint
from ema_cli.cli.comparison_sentences import distance_cells
from ema_cli.cli.rich_console import shown
from ema_cli.cli.sentences import law, mean_age
from ema_cli.cli.tune_sentences import result_note
from ema_cli.dataclass import dataclass
from ema_cli.errors import printable
from ema_cli.planning.plan import Approximation, Plan
from ema_cli.text import size

if TYPE_CHECKING:  # it loads numpy: not for `inspect`
    from ema_cli.comparing.comparison import Comparison
    from ema_cli.tuning.tune import Tuned

Side = Literal["left", "right"]

BAR_WIDTH = 24
_MOST_AVERAGES = 40  # of a series, in a table
_WIDE = 100  # columns that two bars of full width need
_SMALL_BAR_WIDTH = 8  # where several averages are side by side
_UNLIMITED = 100_000
_NARROWEST = BAR_WIDTH
_LEFT = ("clock from", "format", "dtypes")


class _Table(Table):
    """A table whose every cell passes `shown`."""

    def add_row(self, *cells: RenderableType | None, style: StyleType | None = None, end_section: bool = False) -> None:
        """Add a row; a cell that is a text may be from a file."""
        texts = [shown(cell) if isinstance(cell, str) else cell for cell in cells]
        super().add_row(*texts, style=style, end_section=end_section)


@dataclass(frozen=True, slots=True)
class Weights:
    """The weight of each checkpoint in one average, by name, and why others are skipped."""

    title: str
    weights: Mapping[str, float]
    skipped: Mapping[str, str]

    @classmethod
    def of(cls, plan: Plan) -> Weights:
        """Return those of a plan."""
        weights = {entry.checkpoint.name: entry.weight for entry in plan.entries}
        return cls(law(plan), weights, {skipped.checkpoint.name: skipped.reason for skipped in plan.skipped})


def print_weights(
    out: Console, names: Sequence[str], columns: Mapping[str, Sequence[str]], averages: Sequence[Weights]
) -> None:
    """Print one row for each name: the columns, then its weight in each average, drawn.

    Several averages come side by side, in as few tables as the width allows, drawn where there is room.
    """
    if len(averages) < 2:
        print_table(out, _run_table(names, columns, averages))
        return
    most = max(weight for average in averages for weight in average.weights.values())
    number, gap, bar = _fit(out.width, names, columns, averages)
    for start in range(0, len(averages), number):
        if start:
            out.print()
        part = averages[start : start + number]
        print_table(out, _run_table(names, columns, part, most=most, bar=bar, gap=gap))


def _fit(
    width: int, names: Sequence[str], columns: Mapping[str, Sequence[str]], averages: Sequence[Weights]
) -> tuple[int, int, int]:
    """Return how many averages fit side by side, the gap between columns, and the width of a bar."""
    widths = [max(len(average.title), len("100.0%")) for average in averages]
    reasons = max((len(reason) for average in averages for reason in average.skipped.values()), default=0)
    ends = [min(end, _NARROWEST) for end in (max(cell_len(printable(name)) for name in names), reasons) if end]
    room = width - sum(ends) - sum(max(map(len, (title, *column))) for title, column in columns.items())
    gaps = len(columns) + len(ends) - 1
    halves = [-(-len(averages) // tables) for tables in range(1, len(averages) + 1)]

    def spare(number: int, gap: int) -> int:
        """Return what is left of the width with so many weights side by side."""
        parts = (widths[start : start + number] for start in range(0, len(averages), number))
        return room - gap * gaps - max(sum(part) + gap * len(part) for part in parts)

    number, gap = next(((number, gap) for number in halves for gap in (2, 1) if spare(number, gap) >= 0), (1, 1))
    bar = min(spare(number, 2) // number - 2, _SMALL_BAR_WIDTH)
    return (number, 2, bar) if bar >= _SMALL_BAR_WIDTH // 2 else (number, gap, 0)


def _run_table(
    names: Sequence[str],
    columns: Mapping[str, Sequence[str]],
    averages: Sequence[Weights],
    *,
    most: float | None = None,
    bar: int = BAR_WIDTH,
    gap: int = 2,
) -> Table:
    """Return a table with one row for each name: the columns, then for each average the weight, drawn.

    Where there are several averages, `most` is the weight of a full `bar`. The last column says why one is skipped.
    """
    reasons: Mapping[str, str] = averages[-1].skipped if averages else {}
    single = most is None
    full = most or max((weight for average in averages for weight in average.weights.values()), default=0) or 1.0
    sides: list[tuple[str, Side]] = [(title, "left" if title in _LEFT else "right") for title in columns]
    for number, average in enumerate(averages, 1):
        sides.append(("weight" if single else average.title, "right"))
        if bar or (reasons and number == len(averages)):
            sides.append(("", "left"))
    table = _table(("checkpoint", "left"), *sides, gap=gap)
    for index, name in enumerate(names):
        cells: list[str | Text] = [column[index] for column in columns.values()]
        for number, average in enumerate(averages, 1):
            weight = average.weights.get(name)
            cells.append("-" if weight is None else f"{weight:.2%}" if single else f"{weight:.1%}")
            if bar or (reasons and number == len(averages)):
                cells.append(shown(draw_bar((weight or 0) / full, bar), "cyan"))
        if name in reasons:
            cells[-1] = shown(reasons[name])
        skipped = averages and not any(name in average.weights for average in averages)
        table.add_row(shown(name), *cells, style="dim" if skipped else None)
    return table


def print_series(out: Console, plans: Sequence[Plan]) -> None:
    """Print one row for each average of a series: what enters, and how old it is, drawn; of very many, both ends."""
    most = max(float(plan.mean_age.value) for plan in plans) or 1.0
    titles = ("clock", plans[0].recipe.law.words().noun, "checkpoints", "effective", "mean age")
    table = _table(*((title, "right") for title in titles), ("", "left"))
    left_out = len(plans) - _MOST_AVERAGES
    half = _MOST_AVERAGES // 2
    for number, plan in enumerate(plans):
        if left_out > 0 and number == half:
            table.add_row("...", f"{left_out} more", "", "", "", "")
        if left_out > 0 and half <= number < half + left_out:
            continue
        enters, effective = str(len(plan.read)), f"{plan.effective_count:.1f}"
        bar = shown(draw_bar(float(plan.mean_age.value) / most), "cyan")
        table.add_row(str(plan.entries[-1].clock), law(plan), enters, effective, mean_age(plan), bar)
    print_table(out, table)


def print_tensors(out: Console, checkpoint: Checkpoint) -> None:
    """Print the tensors of a checkpoint."""
    table = _table(("tensor", "left"), ("dtype", "left"), ("shape", "left"), ("size", "right"))
    for name, spec in checkpoint.tensors.specs.items():
        table.add_row(shown(name), spec.dtype.name, f"[{', '.join(map(str, spec.shape))}]", size(spec.nbytes))
    print_table(out, table)


def print_profile(out: Console, approximation: Approximation, unit: str) -> None:
    """Print the shares of stretches of training time, wanted and reached, drawn side by side."""
    bar = BAR_WIDTH if out.width >= _WIDE else BAR_WIDTH // 2
    table = _table(("up to", "right"), ("asked", "right"), ("", "left"), ("reached", "right"), ("", "left"))
    pairs = list(zip(approximation.asked, approximation.reached, strict=True))
    most = max(max(pair) for pair in pairs) or 1.0
    for (_, end), pair in zip(approximation.stretches, pairs, strict=True):
        cells: list[str | Text] = [f"{end:.6g}{unit}"]
        for share in pair:
            cells += [f"{share:.2%}", shown(draw_bar(share / most, bar), "cyan")]
        table.add_row(*cells)
    print_table(out, table)


def print_results(out: Console, tuned: Tuned) -> None:
    """Print the metric of each candidate, drawn: the better, the longer; and what else is to know of it."""
    means = sorted((result.mean for result in tuned.results if result.values), reverse=not tuned.maximize)
    worst, best = (means[0], means[-1]) if means else (0.0, 0.0)
    repeated = any(result.spread for result in tuned.results)
    of_series = any(result.clock is not None for result in tuned.results)
    setting = next(result.setting for result in reversed(tuned.results))
    table = _table(
        ("average" if of_series or setting is None else setting.noun, "right"),
        ("metric", "right"),
        *((("spread", "right"),) if repeated else ()),
        ("", "left"),
        ("", "left"),
    )
    for result in tuned.results:
        share = (result.mean - worst) / (best - worst) if result.values and best != worst else 0.0
        metric = f"{result.mean:.6g}" if result.values else "-"
        spread = [f"{result.spread:.2g}"] if repeated else []
        style = "bold" if result is tuned.best else "dim" if not result.values else None
        table.add_row(
            result.name, metric, *spread, shown(draw_bar(share), "cyan"), result_note(result, tuned.best), style=style
        )
    print_table(out, table)


def print_distances(out: Console, comparison: Comparison) -> None:
    """Print how far two checkpoints are apart, by layer and as a whole."""
    titles: tuple[str, ...] = ("equal", "distance", "relative", "cosine", "largest")
    table = _table(("layer", "left"), *((title, "right") for title in titles))
    for layer, part in comparison.layers.items():
        table.add_row(shown(layer), *distance_cells(part))
    if len(comparison.layers) > 1:
        table.add_row("all", *distance_cells(comparison.total), style="bold")
    print_table(out, table)


def draw_bar(share: float, width: int = BAR_WIDTH) -> str:
    """Draw a share of the full width, in eighths of a character where the terminal can; below 0 nothing."""
    share = max(share, 0.0)
    if (sys.stdout.encoding or "").lower().replace("-", "") != "utf8":
        return "#" * round(share * width)
    eighths = round(share * width * 8)
    part = " \u258f\u258e\u258d\u258c\u258b\u258a\u2589"[eighths % 8].strip()
    return "\u2588" * (eighths // 8) + part


def print_table(out: Console, table: Table) -> None:
    """Print a table; in a narrow terminal the first and the last column are folded, the others never cut."""
    natural = Measurement.get(out, out.options.update(width=_UNLIMITED), table).maximum
    ends = [max((cell_len(str(cell)) for cell in column.cells), default=0) for column in _ends(table)]
    width = out.width
    out.width = max(width, natural - sum(max(end - _NARROWEST, 0) for end in ends))
    if out.is_terminal:
        out.print(table)
    else:  # without the blanks after the last column, for who compares or pastes lines
        with out.capture() as printed:
            out.print(table)
        out.out(*(line.rstrip() for line in printed.get().splitlines()), sep="\n", highlight=False)
    out.width = width


def _table(*columns: tuple[str, Side], gap: int = 2) -> Table:
    table = _Table(box=None, padding=(0, 1, 0, gap - 1), pad_edge=False, header_style="dim")
    for index, (title, side) in enumerate(columns):
        folds = index in (0, len(columns) - 1)
        table.add_column(shown(title), justify=side, no_wrap=not folds, overflow="fold")
    return table


def _ends(table: Table) -> tuple[Column, Column]:
    return table.columns[0], table.columns[-1]
