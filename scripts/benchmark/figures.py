"""From rounds to figures: medians with their spread, and ratios of runs that stood in one round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Figure:
    """A median with the least and the greatest that it is made of."""

    median: float
    least: float
    greatest: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure | None:
        """Return the figure of some values; of none there is none."""
        return cls(median(values), min(values), max(values), len(values)) if values else None


def quiet(rounds: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the runs of the rounds that count."""
    return [each["runs"] for each in rounds if not each["noisy"]]


def values(rounds: Sequence[Mapping[str, Any]], name: str, what: str) -> Figure | None:
    """Return a competitor's figure, such as its `wall` time."""
    return Figure.of([runs[name][what] for runs in quiet(rounds) if name in runs])


def ratio(rounds: Sequence[Mapping[str, Any]], name: str, against: str) -> Figure | None:
    """Return how long one takes as a multiple of the other, round by round."""
    pairs = [(runs[name]["wall"], runs[against]["wall"]) for runs in quiet(rounds) if {name, against} <= runs.keys()]
    return Figure.of([ours / theirs for ours, theirs in pairs])


def fastest(rounds: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str | None:
    """Return who of these has the lowest median."""
    known = {name: figure.median for name in names if (figure := values(rounds, name, "wall"))}
    return min(known, key=lambda name: known[name]) if known else None


@dataclass(frozen=True)
class Verdict:
    """A target, and what came of it. `met` is None where nothing could be measured."""

    target: str
    measured: str
    met: bool | None


def judge(row: Mapping[str, Any]) -> list[Verdict]:
    """Return the verdict on every target of a measured row, the memory's last."""
    found = []
    for target in row["targets"]:
        name, at_most = target["of"], target["at_most"]
        words = target["words"].replace("reference", row["labels"].get("reference", "reference"))
        if name != "ema-cli":
            words = f"{row['labels'][name]}: {words}"
        rival = fastest(row["rounds"], target["against"]) if target["against"] else None
        if target["against"]:
            figure = ratio(row["rounds"], name, rival) if rival else None
            suffix = f" ({rival})" if rival and len(target["against"]) > 1 else ""
        else:
            figure, suffix = values(row["rounds"], name, "wall"), ""
        if figure is None:
            ran = {one for each in row["rounds"] for one in each["runs"]}
            is_there = name in ran and (not target["against"] or ran & set(target["against"]))
            found.append(Verdict(words, "too noisy" if is_there else "not measured", None))
        else:
            unit = " s" if not target["against"] else ""
            found.append(Verdict(words, spread(figure, unit=unit) + suffix, figure.median <= at_most))
    taken = row["memory"].get("ema-cli")
    if row["memory_limit"] and taken:
        mib = 1 << 20
        words, told = f"<= {row['memory_limit'] / mib:.0f} MiB", f"{taken['together'] / mib:.0f} MiB"
        found.append(Verdict(words, told, taken["together"] <= row["memory_limit"]))
    return found


def spread(figure: Figure, unit: str = "") -> str:
    """Return a median with its spread: `1.05 (1.01-1.12)`."""
    few = f"{short(figure.least)}-{short(figure.greatest)}"
    return f"{short(figure.median)}{unit} ({few})" if figure.count > 1 else f"{short(figure.median)}{unit}"


def short(value: float) -> str:
    """Return a number with three digits that say something."""
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"
