"""The chart: how long each takes, as a multiple of the limit of the same round."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .figures import fastest, ratio
from .rows import KEYS

# Okabe and Ito's colours, which stay apart for the colour-blind, and in grey.
_COLOURS = {
    "ema-cli": "#0072B2",
    "before": "#009E73",
    "naive": "#E69F00",
    "fairseq": "#56B4E9",
    "timm": "#CC79A7",
    "mergekit": "#999999",
}
_SETS = "ABCDEF"
_MOST = 30  # times the limit; a longer bar is cut, and its figure says so
_BAR = 0.2  # inches


def bars(row: Mapping[str, Any]) -> tuple[str | None, dict[str, tuple[float, float, float]]]:
    """Return who is the limit of a row, and for all others median, least and greatest multiple of it."""
    limit = fastest(row["rounds"], ["limit", "limit x4"])
    found = {}
    for name in _COLOURS:
        figure = ratio(row["rounds"], name, limit) if limit else None
        if figure:
            found[name] = figure.median, figure.least, figure.greatest
    return limit, found


def draw(found: Mapping[str, Any], path: Path) -> bool:
    """Draw the sets that were measured against a limit, and return whether there are any."""
    rows = [found["rows"][key] for key in KEYS if key[0] in _SETS and key in found["rows"]]
    shown = [(row, *bars(row)) for row in rows]
    shown = [(row, limit, each) for row, limit, each in shown if each]
    if not shown:
        return False
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    lines = sum(max(2, len(each)) + 0.6 for _, _, each in shown)
    figure, axes = plt.subplots(figsize=(9, 1.2 + _BAR * lines), dpi=150, layout="constrained")
    medians = [median for _, _, each in shown for median, _, _ in each.values()]
    end = min(_MOST, max(1.5, 1.08 * max(medians)))
    at, ticks, labels, seen = 0.0, [], [], set()
    for row, limit, each in shown:
        room = max(2, len(each))  # the label has two lines
        middle = at + (room - 1) / 2
        first = middle - (len(each) - 1) / 2
        for number, (name, (median, least, greatest)) in enumerate(each.items()):
            y = first + number
            label = None if name in seen else row["labels"][name]
            seen.add(name)
            axes.barh(y, min(median, end), height=0.84, color=_COLOURS[name], label=label)
            if least < greatest:
                axes.plot([min(least, end), min(greatest, end)], [y, y], color="black", linewidth=0.7)
            text = f"{median:.2f}" if median < 10 else f"{median:.0f}"
            axes.annotate(
                text if median <= end else f"{text}, cut here",
                (min(max(median, greatest), end), y),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                fontweight="bold" if name == "ema-cli" else "normal",
            )
        ticks.append(middle)
        labels.append(_label(row, limit))
        at += room + 0.6
    axes.axvline(1, color="black", linewidth=1, linestyle=(0, (4, 2)), label="the limit")
    axes.set_xlim(0, end * 1.08)
    axes.set_ylim(at - 0.8, -0.8)
    axes.set_yticks(ticks, labels=labels, fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel("time, as a multiple of the limit: reading the inputs and writing the output's size", fontsize=9)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, fontsize=8, ncols=6, loc="outside upper center")
    figure.savefig(path)
    plt.close(figure)
    return True


def _label(row: Mapping[str, Any], limit: str | None) -> str:
    what, _, rest = row["title"].partition(", ")
    form = rest.partition(", ")[2]
    if row["key"].endswith("cold"):
        form = f"cold; limit: cat {'four at a time' if limit == 'limit x4' else 'file after file'}"
    return f"{row['key'].split()[0]}: {what}\n{form}"
