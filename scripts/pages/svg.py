"""Small line and bar charts as SVG text: equal data gives equal bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

# Okabe and Ito's colours, which stay apart for the colour-blind.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

_WIDTH, _HEIGHT = 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 40, 48

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Chart:
    """What is drawn: series of (x, y) by name, as lines with dots or as bars beside each other.

    `x_ticks` and `y_ticks` are labelled; the first and the last of each are the ends of the axes.
    """

    title: str
    x_label: str
    y_label: str
    series: Mapping[str, Points]
    x_ticks: Sequence[float]
    y_ticks: Sequence[float]
    log: bool = False
    bars: bool = False
    dots: bool = True

    def x(self, value: float) -> float:
        """Return where a value lies on the horizontal axis, in pixels."""
        low, high = self.x_ticks[0], self.x_ticks[-1]
        share = math.log(value / low) / math.log(high / low) if self.log else (value - low) / (high - low)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        """Return where a value lies on the vertical axis, in pixels."""
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    def svg(self) -> str:
        """Return the chart as the text of an SVG file."""
        size = f'width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" font-family="sans-serif" font-size="12">',
            f"<title>{escape(self.title)}</title>",
            '<rect width="100%" height="100%" fill="#ffffff"/>',
            *self._axes(),
        ]
        for number, (name, points) in enumerate(self.series.items()):
            parts += self._bars(number, points) if self.bars else self._line(number, points)
            parts += self._legend(number, name)
        return "\n".join([*parts, "</svg>"]) + "\n"

    def _axes(self) -> list[str]:
        bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
        parts = [f'<text x="{_LEFT}" y="18" font-size="14" font-weight="bold">{escape(self.title)}</text>']
        for tick in self.y_ticks:
            y = self.y(tick)
            parts.append(f'<path d="M{_LEFT} {y:.1f}H{right}" stroke="#dddddd"/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
        for tick in self.x_ticks:
            x = self.x(tick)
            parts.append(f'<path d="M{x:.1f} {bottom}v5" stroke="#333333"/>')
            parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>')
        middle = (_TOP + bottom) / 2
        turn = f'transform="rotate(-90 16 {middle:.1f})"'
        parts += [
            f'<path d="M{_LEFT} {bottom}H{right}" stroke="#333333"/>',
            f'<text x="{(_LEFT + right) / 2:.1f}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(self.x_label)}</text>',
            f'<text x="16" y="{middle:.1f}" text-anchor="middle" {turn}>{escape(self.y_label)}</text>',
        ]
        return parts

    def _line(self, number: int, points: Points) -> list[str]:
        colour = COLOURS[number]
        path = "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in points)
        parts = [f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>']
        if self.dots:
            parts += [f'<circle cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="3" fill="{colour}"/>' for x, y in points]
        return parts

    def _bars(self, number: int, points: Points) -> list[str]:
        bottom, width = self.y(self.y_ticks[0]), 8
        shift = (number - len(self.series) / 2) * width
        return [
            f'<rect x="{self.x(x) + shift:.1f}" y="{self.y(y):.1f}" width="{width}" '
            f'height="{bottom - self.y(y):.1f}" fill="{COLOURS[number]}"/>'
            for x, y in points
        ]

    def _legend(self, number: int, name: str) -> list[str]:
        x = _LEFT + 4 + number * (_WIDTH - _LEFT - _RIGHT) / max(3, len(self.series))
        return [
            f'<rect x="{x:.1f}" y="26" width="12" height="4" fill="{COLOURS[number]}"/>',
            f'<text x="{x + 17:.1f}" y="32">{escape(name)}</text>',
        ]
