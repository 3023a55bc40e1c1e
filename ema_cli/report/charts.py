"""Draw charts as SVG without scripts, fonts or files. The page's style gives the colours, by class.

Each chart is drawn for a width in pixels, so that its text stays readable on a telephone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import pairwise

from ema_cli.dataclass import dataclass
from ema_cli.errors import printable

SHADES = 9  # classes of colours, from near to far; the page's style defines them
_FAR = "\u2026"
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 26, 44  # around the axes, in pixels
_MOST_TITLES = 300  # with more marks, none has a dot and a title of its own
_NICE = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Mark:
    """A value at a clock, and its title."""

    clock: float
    value: float
    title: str


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a heat map: a name and its values; None where a value is missing."""

    name: str
    values: Sequence[float | None]


def text(value: object) -> str:
    """Return a value from an untrusted file as text of a page, with markup and control characters escaped."""
    return escape(printable(value), quote=True)


def percent(share: float) -> str:
    """Return a share for an axis."""
    return f"{share * 100:.6g}%"


def amount(number: float) -> str:
    """Return a number of batches, samples or tokens for an axis: `2.5M` for 2,500,000."""
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(number) >= limit:
            return f"{number / (1e3 if letter == 'k' else limit):.5g}{letter}"
    return f"{number:.6g}"


def ticks(low: float, high: float, most: int) -> list[float]:
    """Return round numbers from `low` to `high`, at most `most` + 1: ticks(0, 10, 5) is [0, 2, 4, 6, 8, 10]."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * nice for nice in _NICE if power * nice >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


class Plane:
    """Axes with clocks from left to right and values from bottom to top."""

    def __init__(self, width: int, height: int, clocks: Sequence[float], values: Sequence[float], unit: str) -> None:
        self.width, self.height, self.unit = width, height, unit
        first, last = min(clocks), max(clocks)
        pad = (last - first) * 0.015 or abs(first) * 0.05 or 1.0
        self.first, self.last = first - pad, last + pad
        low, high = min(0.0, *values), max(0.0, *values)
        self.low, self.high = low * 1.06, high * 1.06 or 1.0
        self.parts: list[str] = []

    def x(self, clock: float) -> float:
        """Return the horizontal place of a clock, in pixels from the left."""
        return LEFT + (clock - self.first) / (self.last - self.first) * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Return the vertical place of a value, in pixels from the top."""
        return self.height - BOTTOM - (value - self.low) / (self.high - self.low) * (self.height - TOP - BOTTOM)

    def frame(self, title: str) -> None:
        """Draw both axes, with their units."""
        bottom, right = self.height - BOTTOM, self.width - RIGHT
        for value in ticks(self.low, self.high, 5):
            y = px(self.y(value))
            self.parts.append(f'<path class="grid" d="M{LEFT} {y}H{right}"/>')
            self.parts.append(f'<text class="end" x="{LEFT - 7}" y="{px(self.y(value) + 4)}">{percent(value)}</text>')
        for clock in ticks(self.first, self.last, 8 if self.width > 600 else 4):
            x = px(self.x(clock))
            self.parts.append(f'<path class="axis" d="M{x} {bottom}v5"/>')
            self.parts.append(f'<text class="mid" x="{x}" y="{bottom + 19}">{amount(clock)}</text>')
        self.parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{right}"/>')
        middle = px((LEFT + right) / 2)
        self.parts.append(
            f'<text class="mid name" x="{middle}" y="{self.height - 6}">training time [{self.unit}]</text>'
        )
        self.parts.append(f'<text class="name" x="4" y="13">{text(title)}</text>')

    def svg(self, label: str) -> str:
        """Return the chart."""
        return _svg(self.width, self.height, label, self.parts)


def weights_chart(
    marks: Sequence[Mark], unit: str, width: int, *, gaps: Sequence[tuple[float, float]], mean: tuple[float, str] | None
) -> str:
    """Draw the weight of each checkpoint as a stem at its clock.

    Args:
        marks: the weights.
        unit: the unit of the clocks, in words.
        width: of the chart, in pixels.
        gaps: the clocks at both ends of each gap in the run, which is shaded.
        mean: the clock of the mean age, and a text for it.
    """
    plane = Plane(
        width, 300 if width > 600 else 240, [mark.clock for mark in marks], [mark.value for mark in marks], unit
    )
    bottom = plane.height - BOTTOM
    for begin, end in gaps:
        left = plane.x(begin)
        plane.parts.append(f'<path class="gap" d="M{px(left)} {TOP}H{px(plane.x(end))}V{bottom}H{px(left)}z"/>')
    plane.frame("weight in the average")
    if mean is not None:
        x = plane.x(mean[0])
        side, at = ("end", x - 5) if x > width / 2 else ("", x + 5)
        plane.parts.append(f'<path class="mean" d="M{px(x)} {TOP}V{bottom}"/>')
        plane.parts.append(f'<text class="{side} name" x="{px(at)}" y="{TOP + 10}">{text(mean[1])}</text>')
    zero = px(plane.y(0))
    distance = min(
        (plane.x(newer.clock) - plane.x(older.clock) for older, newer in pairwise(marks) if newer.clock > older.clock),
        default=99.0,
    )
    thick, radius = max(min(distance * 0.4, 3.0), 0.6), min(distance * 0.42, 4.0)
    for sign in ("weight", "minus"):
        chosen = [mark for mark in marks if (mark.value < 0) == (sign == "minus")]
        stems = "".join(f"M{px(plane.x(mark.clock))} {zero}V{px(plane.y(mark.value))}" for mark in chosen)
        if stems:
            plane.parts.append(f'<path class="{sign}" style="stroke-width:{px(thick)}" d="{stems}"/>')
    plane.parts += [dot(plane, mark, radius) for mark in marks if len(marks) <= _MOST_TITLES]
    return plane.svg("Weight of each checkpoint over training time")


def dot(plane: Plane, mark: Mark, radius: float) -> str:
    """Draw a mark as a dot with its title."""
    kind = "zero" if mark.value == 0 else "minus" if mark.value < 0 else "weight"
    x, y = px(plane.x(mark.clock)), px(plane.y(mark.value))
    return (
        f'<circle class="{kind}" cx="{x}" cy="{y}" r="{px(max(radius, 1))}"><title>{text(mark.title)}</title></circle>'
    )


def distance_chart(marks: Sequence[Mark], unit: str, width: int, note: tuple[int, str]) -> str:
    """Draw the distance from each checkpoint at its clock.

    A line joins the values, unless several have the same clock, as stored averages may.

    Args:
        marks: the distances.
        unit: the unit of the clocks, in words.
        width: of the chart, in pixels.
        note: the position of one mark, and a text for it.
    """
    height = 280 if width > 600 else 230
    plane = Plane(width, height, [mark.clock for mark in marks], [mark.value for mark in marks], unit)
    plane.frame("distance, relative to the checkpoint")
    points = [(plane.x(mark.clock), plane.y(mark.value)) for mark in marks]
    if all(older.clock < newer.clock for older, newer in pairwise(marks)):
        line = "L".join(f"{px(x)} {px(y)}" for x, y in points)
        plane.parts.append(f'<path class="line" d="M{line}"/>')
    radius = min((width - LEFT - RIGHT) / len(marks) * 0.3, 3.0)
    plane.parts += [dot(plane, mark, radius) for mark in marks if len(marks) <= _MOST_TITLES]
    # The text of the note stands above the line, however it runs; a second line leads from it to its point.
    (x, y), half = points[note[0]], len(note[1]) * 3.5 + 4
    middle = min(max(x, LEFT + half), width - half)
    across = [middle + step * half / 8 for step in range(-8, 9)]
    top = max(min(_height_at(points, x_at) for x_at in across) - 12, TOP + 12)
    if y - top > 24:
        plane.parts.append(f'<path class="lead-line" d="M{px(x)} {px(y - 6)}V{px(top + 5)}"/>')
    plane.parts.append(f'<circle class="noted" cx="{px(x)}" cy="{px(y)}" r="4.5"/>')
    plane.parts.append(f'<text class="mid note" x="{px(middle)}" y="{px(top)}">{text(note[1])}</text>')
    return plane.svg("Distance of the average from each checkpoint over training time")


def _height_at(points: Sequence[tuple[float, float]], x: float) -> float:
    """Return the height of a line through the points at `x`; beyond its ends, the height of the nearer end."""
    for (left, start), (right, end) in pairwise(points):
        if left <= x <= right:
            return start + (end - start) * (x - left) / ((right - left) or 1.0)
    return points[0][1] if x < points[0][0] else points[-1][1]


def heat_map(
    rows: Sequence[Row], columns: Sequence[str], edges: Sequence[float], width: int, label: str, *, axis: str
) -> str:
    """Draw a heat map: a cell for each value. Cells of one shade are one path, which keeps thousands of them small.

    Args:
        rows: the values by layer; the first row, of all layers, stands apart.
        columns: the clocks of the checkpoints, or their names.
        edges: the values at which one shade ends and the next begins.
        width: of the chart, in pixels.
        label: a description for readers who do not see the chart.
        axis: what the columns are, in words.
    """
    top = gap = 6.0
    longest = max(len(printable(row.name)) for row in rows)
    room = min(longest, 30 if width > 600 else 14)
    left = room * 6.8 + 14
    across = (width - left - RIGHT) / len(columns)
    down = min(max(900 / len(rows), 10.0), 20.0)
    bottom = top + gap + down * len(rows)
    inner = 0.6 if across >= 5 and down >= 8 else 0.0
    shades: dict[str, list[str]] = {}
    parts = []
    for number, row in enumerate(rows):
        y = top + number * down + (gap if number else 0)
        if down >= 13 or number % 2 == 0:
            parts.append(_row_name(row.name, room, left - 7, y + down / 2 + 4, first=number == 0))
        for column, value in enumerate(row.values):
            right, below, back = px(across - inner), px(down - inner), px(inner - across)
            cell = f"M{px(left + column * across)} {px(y)}h{right}v{below}h{back}z"
            shades.setdefault(shade(value, edges), []).append(cell)
    parts += [f'<path class="{name}" d="{"".join(cells)}"/>' for name, cells in sorted(shades.items())]
    shown = ticks(0, len(columns) - 1, 6 if width > 600 else 2) if len(columns) > 1 else [0]
    for column in dict.fromkeys(round(tick) for tick in shown):
        x = left + (column + 0.5) * across
        parts.append(f'<path class="axis" d="M{px(x)} {px(bottom)}v5"/>')
        parts.append(f'<text class="mid" x="{px(x)}" y="{px(bottom + 19)}">{text(columns[column])}</text>')
    middle = px(left + (width - left - RIGHT) / 2)
    parts.append(f'<text class="mid name" x="{middle}" y="{px(bottom + 38)}">{text(axis)}</text>')
    return _svg(width, math.ceil(bottom + 44), label, parts)


def _row_name(name: str, room: int, x: float, y: float, *, first: bool) -> str:
    """Draw the name of a row; of a long name the end, in which layers differ."""
    shown = printable(name)
    title = f"<title>{text(name)}</title>" if len(shown) > room else ""
    shown = f"{_FAR}{shown[len(shown) - room + 1 :]}" if title else shown
    return f'<text class="end{" name" if first else ""}" x="{px(x)}" y="{px(y)}">{title}{escape(shown)}</text>'


def shade_edges(values: Sequence[float]) -> list[float]:
    """Return the values at which one shade ends and the next begins: round numbers, at most `SHADES` - 1.

    Values within a factor of four get equal steps; others get steps of 1, 2, 5, or coarser, in each power of ten.
    """
    positive = sorted(value for value in values if 0 < value < math.inf)
    if not positive or positive[0] == positive[-1]:
        return []
    if positive[0] * 4 >= positive[-1]:
        return ticks(positive[0], positive[-1], SHADES - 2)
    low, high = math.floor(math.log10(positive[0])), math.ceil(math.log10(positive[-1]))
    for mantissas in ((1, 2, 5), (1, 3), (1,)):
        every = [mantissa * 10.0**power for power in range(low, high + 1) for mantissa in mantissas]
        edges = [edge for edge in every if positive[0] < edge < positive[-1]]
        if len(edges) < SHADES + 2:
            break
    return edges[1 - SHADES :]  # the farthest edges: all smaller distances share the lightest shade


def shade_words(edges: Sequence[float]) -> list[str]:
    """Return the range of values of each shade, in words."""
    if not edges:
        return ["all"]
    between = (f"{_number(low)}\u2013{percent(high)}" for low, high in pairwise(edges))
    return [f"< {percent(edges[0])}", *between, f"\u2265 {percent(edges[-1])}"]


def _number(share: float) -> str:
    return percent(share).removesuffix("%")


def shade(value: float | None, edges: Sequence[float]) -> str:
    """Return the class of a value: below the first edge the lightest shade, `none` if it is missing or not finite."""
    if value is None or not math.isfinite(value):
        return "none"
    return shade_name(sum(value >= edge for edge in edges), len(edges) + 1)


def shade_name(number: int, count: int) -> str:
    """Return the class of shade `number` of `count`, spread over all: of two shades `s0` and `s8`."""
    return f"s{round(number * (SHADES - 1) / max(count - 1, 1))}"


def _svg(width: int, height: int, label: str, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{text(label)}">{"".join(parts)}</svg>'


def px(number: float) -> str:
    """Return a coordinate, to a tenth of a pixel."""
    return f"{number:.1f}".removesuffix(".0")
