"""How a half-life was chosen, as a section of a report: the metric of each candidate, against its half-life."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ema_cli.dataclass import dataclass
from ema_cli.law.time import Time
from ema_cli.manifest.types import CandidateRow, TuneRow
from ema_cli.report import charts
from ema_cli.report.charts import BOTTOM, LEFT, RIGHT, TOP, Mark, Plane, dot, px, text
from ema_cli.report.tables import candidates_table, mean_metric
from ema_cli.text import plural
from ema_cli.tuning.results import LAST, name_parts
from ema_cli.tuning.settings import Setting

_ROOM = 0.08  # above and below the values, as a share of their range
_LINE_HEIGHT, _HALF_WIDTH = 13, 3.8  # of labels, and of a letter of them, in pixels


def tuning_section(tune: TuneRow, widths: Sequence[tuple[str, int]]) -> str:
    """Return a section with a chart for each width, a table, and the command.

    Args:
        tune: what the manifest says.
        widths: for each chart its class on the page, and its width in pixels.
    """
    able = [row for row in tune["candidates"] if row["values"]]
    settings = {row["name"]: name_parts(row["name"])[0] for row in able}
    averages = [row for row in able if (own := settings[row["name"]]) is not None and math.isfinite(own.number)]
    wanted = "more" if tune["maximize"] else "less"
    metric = tune["metric"] or "the last number printed"
    by = tune["command"] or "a function"
    about = f"{plural(len(able), 'candidate')} evaluated by {by}: {metric}, {wanted} is better."
    drawn = ""
    if averages:
        last = next((mean_metric(row) for row in able if row["name"] == LAST), None)
        charts_drawn = (f'<div class="{kind}">{_chart(tune, averages, last, width)}</div>' for kind, width in widths)
        drawn = f"<figure>{''.join(charts_drawn)}</figure>"
    return (
        f'<section>\n<h2>How the half-life was chosen</h2>\n<p class="soft">{text(about)} '
        f"Nothing of this can be checked from the checkpoints.</p>\n{drawn}\n{candidates_table(tune)}\n</section>"
    )


@dataclass(frozen=True, slots=True)
class _Axis:
    """What candidates differ in, its unit, and where on the axis each lies."""

    what: str
    unit: str
    places: Sequence[float]
    is_linear: bool


class _MetricPlane(Plane):
    """Axes with clocks or factors, or half-lives on a logarithmic scale, and a metric, which need not begin at 0."""

    def __init__(self, width: int, values: Sequence[float], axis: _Axis) -> None:
        super().__init__(width, 280 if width > 600 else 230, axis.places, values, axis.unit)
        room = (max(values) - min(values)) * _ROOM or abs(values[0]) * _ROOM or 1.0
        self.low, self.high = min(values) - room, max(values) + room
        self._axis = axis

    def frame(self, title: str) -> None:
        """Draw both axes, with their units."""
        bottom, right = self.height - BOTTOM, self.width - RIGHT
        for value in charts.ticks(self.low, self.high, 5):
            y = self.y(value)
            self.parts.append(f'<path class="grid" d="M{LEFT} {px(y)}H{right}"/>')
            self.parts.append(f'<text class="end" x="{LEFT - 7}" y="{px(y + 4)}">{value:.5g}</text>')
        for place, shown in self._ticks():
            x = px(self.x(place))
            self.parts.append(f'<path class="axis" d="M{x} {bottom}v5"/>')
            self.parts.append(f'<text class="mid" x="{x}" y="{bottom + 19}">{charts.amount(shown)}</text>')
        self.parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{right}"/>')
        middle, what = px((LEFT + right) / 2), "training time" if self._axis.what == "clock" else self._axis.what
        self.parts.append(f'<text class="mid name" x="{middle}" y="{self.height - 6}">{what} [{self.unit}]</text>')
        self.parts.append(f'<text class="name" x="4" y="13">{text(title)}</text>')

    def _ticks(self) -> Iterator[tuple[float, float]]:
        """Yield places on the axis, each with the number that is written there."""
        if self._axis.is_linear:
            yield from ((clock, clock) for clock in charts.ticks(self.first, self.last, 8 if self.width > 600 else 4))
            return
        for half_life in _round_half_lives(10**self.first, 10**self.last):
            yield math.log10(half_life), half_life


def _chart(tune: TuneRow, averages: Sequence[CandidateRow], last: float | None, width: int) -> str:
    names = [name_parts(row["name"]) for row in averages]
    over_clocks = any(clock is not None for _, clock in names)
    axis = _axis(names)
    places = axis.places
    values = [mean_metric(row) for row in averages]
    known = [*values, *([] if last is None else [last])]
    plane = _MetricPlane(width, known, axis)
    plane.frame(tune["metric"] or "metric")
    ends: list[tuple[float, float, str]] = []  # of lines: where each ends, and what it is
    if last is not None:
        right, y = plane.width - RIGHT, plane.y(last)
        plane.parts.append(f'<path class="mean" d="M{LEFT} {px(y)}H{right}"/>')
        ends.append((right, y, "last checkpoint"))
    lines: dict[str, list[tuple[float, float]]] = {}  # of a series one for each setting, else one
    for (setting, _), place, value in zip(names, places, values, strict=True):
        line = setting.name if over_clocks and setting is not None else ""
        lines.setdefault(line, []).append((plane.x(place), plane.y(value)))
    for points in lines.values():
        plane.parts.append(f'<path class="line" d="M{"L".join(f"{px(x)} {px(y)}" for x, y in sorted(points))}"/>')
    ends += [(*max(points), line) for line, points in lines.items() if over_clocks]
    below = math.inf  # labels stand one above the other, in the order of the lines
    for x, y, line in sorted(ends, key=lambda end: -end[1]):
        below = min(y - 5, below - _LINE_HEIGHT)
        plane.parts.append(f'<text class="end name" x="{px(x)}" y="{px(below)}">{text(line)}</text>')
    best: list[str] = []  # drawn over all dots
    for row, place, value in zip(averages, places, values, strict=True):
        plane.parts.append(dot(plane, Mark(place, value, f"{row['name']}: {value:.6g}"), 3.0))
        if row["name"] == tune["winner"]:
            x, y = plane.x(place), plane.y(value)
            above, half = y - 12 if y - 12 > TOP else y + 20, len(row["name"]) * _HALF_WIDTH
            middle = min(max(x, LEFT + half), plane.width - RIGHT - half)
            best = [
                f'<circle class="noted" cx="{px(x)}" cy="{px(y)}" r="4.5"/>',
                f'<text class="mid note" x="{px(middle)}" y="{px(above)}">{text(row["name"])}</text>',
            ]
    plane.parts += best
    return plane.svg(f"Metric of each candidate against its {axis.what}")


def _axis(names: Sequence[tuple[Setting | None, Time | None]]) -> _Axis:
    """Return the axis over clocks, where there are some, or over settings."""
    clocks = [clock for _, clock in names if clock is not None]
    if clocks:
        values = [float(clock.value) for clock in clocks]
        return _Axis("clock", clocks[0].unit.plural, values, is_linear=True)
    settings = [setting for setting, _ in names if setting is not None]
    values = [float(setting.number) for setting in settings]
    if not settings[0].unit:
        return _Axis("factor", settings[0].units, values, is_linear=True)
    places = [math.log10(value) if value > 0 else 0.0 for value in values]
    return _Axis(settings[0].noun, settings[0].units, places, is_linear=False)


def _round_half_lives(low: float, high: float) -> list[float]:
    """Return round numbers from `low` to `high`, fewer where they span many powers of ten."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for mantissas in ((1, 2, 5), (1, 3), (1,)):
        every = [mantissa * 10.0**power for power in powers for mantissa in mantissas]
        shown = [number for number in every if low <= number <= high]
        if len(shown) <= 8:
            break
    return shown
