"""The page of a report: one HTML file that loads nothing, runs nothing, and works without a network.

Names come from untrusted files: all of them pass through `text`. Equal reports have equal bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction

from ema_cli.law.recipe import law_from_dict
from ema_cli.law.time import Time
from ema_cli.manifest.manifest import recorded_age, shown_clock
from ema_cli.manifest.types import InputRow, Manifest
from ema_cli.report import charts
from ema_cli.report.charts import Mark, Row, text
from ema_cli.report.distances import Distances
from ema_cli.report.style import STYLE
from ema_cli.report.tables import (
    checkpoints_table,
    files_table,
    layers_table,
    nearest,
    pairs,
    relative_distance,
    tensors_table,
)
from ema_cli.report.tuning import tuning_section
from ema_cli.runs.spacing import measure_spacing
from ema_cli.text import plural, size, some

_WIDE, _NARROW = 1040, 350  # of charts, in pixels
_COLUMNS = {_WIDE: 150, _NARROW: 56}  # the most cells that a reader can distinguish in a row of a heat map
_RECIPE_WORDS = {
    "half_life": "half-life", "sigma_rel": "width of the profile", "window": "window before the newest",
    "update_interval": "update interval",
    "bias_correction": "bias correction", "from": "averaged from", "epoch_length": "epoch length",
    "spacing": "spacing given", "name_clock": "clock in the names", "clock_key": "clock in the files",
    "keep_prefix": "prefixes kept", "masters": "the optimizer's float32 weights", "max_shard_size": "largest shard",
    "ignore_clocks": "recorded clocks ignored", "exclude": "left out by name", "skip_damaged": "damaged ones skipped",
    "allow_non_finite": "NaN allowed", "allow_approximate": "approximation allowed", "last": "newest only",
}  # fmt: skip
_NOT_SHOWN = ("law", "folder")
_MOST_CHARS = 12  # of a name in a chart: its end, where a number is
_ENDING = re.compile(r"(?<=.)\.[A-Za-z]\w*$")  # as .safetensors, which all share, and is as long


def make_page(name: str, manifest: Manifest, distances: Distances | None) -> str:
    """Return the page about the average called `name`."""
    title = f"{name}: {_description(manifest)}"
    sections = [
        _head(name, manifest),
        _warnings(manifest["warnings"]),
        _tiles(manifest, distances),
        _weights(manifest),
        _distances(manifest, distances),
        tuning_section(manifest["tune"], [(_side(width), width) for width in (_WIDE, _NARROW)])
        if "tune" in manifest
        else "",
        _recipe(manifest),
        checkpoints_table(manifest["inputs"], distances),
        tensors_table(manifest["tensors"]),
        files_table(manifest["outputs"]),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        # Second defence: even if a name got through as markup, it could load and run nothing.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(filter(None, sections))
        + f"\n<footer>Made by ema-cli {text(manifest['tool']['version'])} from the manifest of the average. "
        "This page is one file: it loads nothing and runs nothing.</footer>\n</main>\n</body>\n</html>\n"
    )


def _head(name: str, manifest: Manifest) -> str:
    return f'<h1>{text(name)}</h1>\n<p class="lead">{text(_description(manifest))}</p>'


def _description(manifest: Manifest) -> str:
    count, law = len(manifest["inputs"]), law_from_dict(manifest["recipe"]).words().short
    if manifest["approximation"]:
        return f"{plural(count, 'stored average')} combined to an average of {law}"
    return f"{plural(count, 'checkpoint')} averaged with {law}"


def _warnings(warnings: Sequence[str]) -> str:
    rows = "".join(f"<li>{text(warning)}</li>" for warning in warnings)
    return f'<div class="warn" role="note"><strong>Know before use</strong><ul>{rows}</ul></div>' if rows else ""


def _tiles(manifest: Manifest, distances: Distances | None) -> str:
    inputs, tensors = manifest["inputs"], manifest["tensors"]
    entered = sum(row["weight"] != 0 for row in inputs)
    tiles = [
        (
            "stored averages" if manifest["approximation"] else "checkpoints",
            f"{entered:,}" + _of_total(len(inputs), entered),
        )
    ]
    if manifest["approximation"]:
        tiles.append(("off the profile asked for", f"{float(manifest['approximation']['relative_error']):.2%}"))
    else:
        tiles.append(("effective number", f"{float(manifest['effective_checkpoints']):.1f}"))
        age = recorded_age(manifest)
        tiles += [("mean age", text(_short(age)))] if age is not None else []
    times = _times(inputs)
    spacing = measure_spacing([time.value for time in times])
    if spacing is not None:
        gaps = f", {plural(len(spacing.gaps), 'gap')}" if spacing.gaps else ""
        irregular = "" if spacing.regular else f"<small> usually{gaps}</small>"
        tiles.append(("between checkpoints", f"{text(_short(Time(spacing.usual, times[0].unit)))}{irregular}"))
    averaged = sum(tensor["averaged"] for tensor in tensors)
    tiles.append(("tensors averaged", f"{averaged:,}" + _of_total(len(tensors), averaged)))
    tiles.append(("size", text(size(sum(row["bytes"] for row in manifest["outputs"])))))
    if distances is not None:
        last = f"distance from {_clock(inputs[distances.inputs[-1]])}"
        tiles.append((last, text(relative_distance(distances.total[-1]))))
    shown = "".join(f"<div><dt>{text(word)}</dt><dd>{value}</dd></div>" for word, value in tiles)
    return f'<dl class="tiles">{shown}</dl>'


def _of_total(total: int, some_of_them: int) -> str:
    return f"<small> of {total:,}</small>" if total != some_of_them else ""


def _weights(manifest: Manifest) -> str:
    inputs = manifest["inputs"]
    times = _times(inputs)
    if len(times) < 2:  # one stem says nothing
        return ""
    clocks = [float(time.value) for time in times]
    marks = [
        Mark(clock, row["weight"], f"{row['name']}, {row['clock']}: {row['weight']:.2%}")
        for clock, row in zip(clocks, inputs, strict=True)
    ]
    spacing = measure_spacing([time.value for time in times])
    gaps = [] if spacing is None else [(times[gap.older], times[gap.newer]) for gap in spacing.gaps]
    unit = times[0].unit
    mean = None
    if manifest["approximation"] is None and len(clocks) > 1:
        age = recorded_age(manifest)
        mean = None if age is None else (clocks[-1] - float(age.value), f"mean age {_short(age)}")
    shaded = [(float(older.value), float(newer.value)) for older, newer in gaps]
    drawn = {
        width: charts.weights_chart(marks, unit.plural, width, gaps=shaded, mean=mean) for width in (_WIDE, _NARROW)
    }
    legend = [("dot", "weight of a checkpoint, at the clock it was saved")]
    if any(row["weight"] < 0 for row in inputs):
        legend.append(("dot minus", "negative weight"))
    if mean is not None:
        legend.append(("dash", "mean age, back from the newest"))
    if gaps:
        legend.append(("dot gap", "a gap: no checkpoint for half as long again as usual, or longer"))
    rows = "".join(f'<li><i class="{kind}"></i>{words}</li>' for kind, words in legend)
    about = ""
    if spacing is not None:
        listed = some(
            [f"{_short(Time(newer.value - older.value, unit))} from {_short(older)}" for older, newer in gaps]
        )
        usually = "" if spacing.regular else "usually "
        about = f"Checkpoints are {usually}{_short(Time(spacing.usual, unit))} apart"
        about += f"; gaps: {listed}." if gaps else "."
    return (
        f'<section>\n<h2>Weights over training time</h2>\n<p class="soft">{text(about)}</p>\n'
        f'<figure>{_both_widths(drawn)}<ul class="legend">{rows}</ul></figure>\n</section>'
    )


def _distances(manifest: Manifest, distances: Distances | None) -> str:
    head = "<section>\n<h2>Distance from the checkpoints</h2>\n"
    if distances is None:
        return (
            f'{head}<p class="soft">Not measured. With <code>--against ckpts/</code>, the folder that holds the '
            "checkpoints, this page shows how far the average is from each of them, by layer.</p>\n</section>"
        )
    inputs = [manifest["inputs"][number] for number in distances.inputs]
    about = [
        "The norm of the difference between the average and a checkpoint, relative to the norm of the checkpoint: "
        f"0% is the same weights. {plural(len(inputs), 'checkpoint')} measured"
    ]
    if distances.missing:
        about.append(f"not there: {some(list(distances.missing))}")
    if distances.left_out:
        about.append(f"{plural(distances.left_out, 'tensor')} without comparable numbers left out")
    parts = [f'{head}<p class="soft">{text("; ".join(about))}.</p>']
    parts += [_distance_chart(inputs, distances)] if shown_clock(inputs[-1]) else []
    return "\n".join([*parts, _heat_map(inputs, distances), layers_table(inputs, distances), "</section>"])


def _distance_chart(inputs: Sequence[InputRow], distances: Distances) -> str:
    times = _times(inputs)
    marks, labels = [], {}
    for at, distance in enumerate(distances.total):
        if distance.relative is not None and math.isfinite(distance.relative):
            labels[at] = f"{_clock(inputs[at])}, {relative_distance(distance)}"
            marks.append(Mark(float(times[at].value), distance.relative, f"{inputs[at]['name']}, {labels[at]}"))
    if len(marks) < 2:
        return ""
    least = nearest(distances.total)
    note = list(labels).index(least), f"nearest: {labels[least]}"
    drawn = {width: charts.distance_chart(marks, times[0].unit.plural, width, note) for width in (_WIDE, _NARROW)}
    return f"<figure>{_both_widths(drawn)}</figure>"


def _heat_map(inputs: Sequence[InputRow], distances: Distances) -> str:
    rows = {"all layers": distances.total, **distances.layers}
    values = {name: [distance.relative for distance in row] for name, row in rows.items()}
    numbers = [value for row in values.values() for value in row if value is not None and math.isfinite(value)]
    edges = charts.shade_edges(numbers)
    drawn, notes = {}, ""
    for width, most in _COLUMNS.items():
        shown = _spread(len(inputs), most)
        table = [Row(name, [row[at] for at in shown]) for name, row in values.items()]
        drawn[width] = charts.heat_map(
            table,
            [_clock(inputs[at]) for at in shown],
            edges,
            width,
            "Distance of the average from each checkpoint, by layer",
            axis=f"checkpoint, by its {'clock' if shown_clock(inputs[-1]) else 'name'}",
        )
        note = f"; {len(shown)} of {len(inputs)} are shown, evenly chosen" if len(shown) < len(inputs) else ""
        notes += f'<figcaption class="{_side(width)}">A row is a layer, a column a checkpoint{note}.</figcaption>'
    scale = "".join(
        f'<li><i class="{charts.shade_name(number, len(edges) + 1)}"></i>{words}</li>'
        for number, words in enumerate(charts.shade_words(edges))
    )
    if len(numbers) < sum(map(len, values.values())):
        scale += '<li><i class="none"></i>no number</li>'
    together = '<p class="soft">There are more layers than can be told apart: they are put together.</p>\n'
    return (
        f"<h3>By layer</h3>\n{together if distances.together else ''}"
        f'<ul class="legend scale" aria-label="Relative distance">{scale}</ul>\n'
        f"<figure>{_both_widths(drawn)}{notes}</figure>"
    )


def _recipe(manifest: Manifest) -> str:
    settings = [
        (_RECIPE_WORDS.get(name, name.replace("_", " ")), _value(value))
        for name, value in sorted(manifest["recipe"].items())
        if name not in _NOT_SHOWN and value not in (None, False, [], {}) and (name, value) != ("from", "raw")
    ]
    libraries = ", ".join(f"{name} {version}" for name, version in sorted(manifest["libraries"].items()))
    settings += [("made by", f"ema-cli {manifest['tool']['version']}, with {libraries}")]
    fingerprint = f"Fingerprint of an input: {manifest['fingerprint']['what']}."
    return (
        f'<section>\n<h2>How it was made</h2>\n{pairs(settings)}\n<p class="soft">{text(fingerprint)}</p>\n</section>'
    )


def _value(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "yes" if value is True else str(float(value)) if isinstance(value, Fraction) else str(value)


def _both_widths(drawn: Mapping[int, str]) -> str:
    """Return a chart for wide screens and one for narrow ones; the page shows one of them."""
    return "".join(f'<div class="{_side(width)}">{chart}</div>' for width, chart in drawn.items())


def _side(width: int) -> str:
    return "wide" if width == _WIDE else "narrow"


def _spread(count: int, most: int) -> list[int]:
    """Return at most `most` numbers below `count`, evenly spread; `_spread(5, 3)` is [0, 2, 4]."""
    if count <= most:
        return list(range(count))
    return [number * (count - 1) // (most - 1) for number in range(most)]


def _times(inputs: Sequence[InputRow]) -> list[Time]:
    """Return the clocks of the checkpoints; none where these were only counted."""
    return [Time.parse(row["clock"]) for row in inputs] if inputs and shown_clock(inputs[-1]) else []


def _clock(checkpoint: InputRow) -> str:
    """Return the clock of a checkpoint for a chart; where it has none, its name."""
    clock, name = shown_clock(checkpoint), _ENDING.sub("", checkpoint["name"])
    shortened = name if len(name) <= _MOST_CHARS else f"...{name[-_MOST_CHARS:]}"
    return _short(Time.parse(clock), digits=7) if clock else shortened


def _short(time: Time, digits: int = 4) -> str:
    """Return a time for a chart or a tile; from a million on with the letter of the axis, as 2.5M."""
    value = float(f"{float(time.value):.{digits}g}")
    return f"{charts.amount(value) if value >= 1e6 else f'{value:.{digits}g}'}{time.unit}"
