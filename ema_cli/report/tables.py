"""The tables of a report: checkpoints, layers, tensors, files. Long ones are folded, and cut with a note."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from ema_cli.comparing.distance import Distance
from ema_cli.manifest.types import InputRow, OutputRow, TensorRow
from ema_cli.report.charts import text
from ema_cli.report.distances import Distances
from ema_cli.text import plural, relative, size, some

_MOST_ROWS = 1000
_FOLDED_ROWS = 30
_SHOWN_NAMES = 12
_FINGERPRINT_CHARS = 16

Column = tuple[str, str]  # title, and class: number, bar, wide (not on a telephone)


def layers_table(inputs: Sequence[InputRow], found: Distances) -> str:
    """Return the distance of each layer from the first, the nearest and the last checkpoint, folded."""
    chosen = {"first": 0, "nearest": nearest(found.total), "last": len(inputs) - 1}
    columns = [("layer", ""), *((f"{word}, {inputs[at]['clock']}", "number") for word, at in chosen.items())]
    rows = []
    for name, distances in {"all layers": found.total, **found.layers}.items():
        cosine = distances[-1].cosine
        shown = (relative_distance(distances[at]) for at in chosen.values())
        rows.append([text(name), *shown, "-" if cosine is None else f"{cosine:.6f}"])
    table = _table("layers", [*columns, ("cosine with the last", "number wide")], rows)
    return f"<details>\n<summary>The numbers: first, nearest and last</summary>\n{table}\n</details>"


def checkpoints_table(inputs: Sequence[InputRow], found: Distances | None) -> str:
    """Return each checkpoint with its clock, its weight, and its distance where that is measured."""
    most = max(abs(row["weight"]) for row in inputs) or 1.0
    measured = dict(zip(found.inputs, found.total, strict=True)) if found else {}
    columns = [("checkpoint", ""), ("clock", "number"), ("weight", "number"), ("", "bar wide")]
    columns += [("distance", "number")] if found else []
    columns += [("size", "number wide"), ("fingerprint (its beginning)", "wide")]
    shown = _ends(len(inputs))
    rows = []
    for number in shown:
        each = inputs[number]
        sign = ' class="minus"' if each["weight"] < 0 else ""
        bar = f'<span{sign} style="width:{abs(each["weight"]) / most * 100:.1f}%"></span>'
        row = [text(each["name"]), text(each["clock"]), f"{each['weight']:.2%}", bar]
        row += [relative_distance(measured[number]) if number in measured else "-"] if found else []
        fingerprint = str(each["fingerprint"] or "not read")[:_FINGERPRINT_CHARS]
        rows.append([*row, text(size(each["bytes"])), f"<code>{text(fingerprint)}</code>"])
    table = _table("checkpoints", columns, rows)
    if len(shown) > _FOLDED_ROWS:
        table = f"<details>\n<summary>All {plural(len(shown), 'checkpoint')}</summary>\n{table}\n</details>"
    return f"<section>\n<h2>Checkpoints</h2>\n{_cut(len(inputs), len(shown), 'checkpoint')}{table}\n</section>"


def tensors_table(tensors: Sequence[TensorRow]) -> str:
    """Return how many tensors there are of each type, averaged or copied, and the names of those that stand out."""
    numbers: Counter[tuple[str, str]] = Counter()
    sizes: Counter[tuple[str, str]] = Counter()
    for tensor in tensors:
        kind = tensor["dtype"], "averaged" if tensor["averaged"] else f"copied from the newest: {tensor['why']}"
        numbers[kind] += 1
        sizes[kind] += tensor["bytes"]
    columns = [("type", "word"), ("how", ""), ("tensors", "number"), ("size", "number")]
    rows = [[*map(text, kind), f"{numbers[kind]:,}", text(size(sizes[kind]))] for kind in sorted(numbers)]
    odd = {
        "copied": [f"'{tensor['name']}'" for tensor in tensors if not tensor["averaged"]],
        "with NaN or infinity": [f"'{tensor['name']}'" for tensor in tensors if tensor["non_finite"]],
    }
    told = pairs((word, some(names, _SHOWN_NAMES)) for word, names in odd.items() if names)
    return f"<section>\n<h2>Tensors</h2>\n{_table('tensors', columns, rows)}\n{told}</section>"


def files_table(files: Sequence[OutputRow]) -> str:
    """Return each file of the output with its sum."""
    shown = _ends(len(files))
    columns = [("file", ""), ("size", "number"), ("sha256", "")]
    rows = [
        [text(each["name"]), text(size(each["bytes"])), f"<code>{text(each['sha256'])}</code>"]
        for each in (files[at] for at in shown)
    ]
    cut = _cut(len(files), len(shown), "file")
    return f"<section>\n<h2>Files</h2>\n{cut}{_table('files', columns, rows)}\n</section>"


def pairs(told: Iterable[tuple[str, str]]) -> str:
    """Return a list of words and what they are."""
    rows = "".join(f"<dt>{text(word)}</dt><dd>{text(value)}</dd>" for word, value in told)
    return f'<dl class="pairs">{rows}</dl>' if rows else ""


def relative_distance(distance: Distance) -> str:
    """Return a relative distance for people."""
    return relative(distance.relative)


def nearest(distances: Sequence[Distance]) -> int:
    """Return which distance is the smallest."""

    def far(at: int) -> float:
        value = distances[at].relative
        return math.inf if value is None or math.isnan(value) else value

    return min(range(len(distances)), key=far)


def _table(name: str, columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> str:
    """Return a table, of cells that are HTML already."""

    def line(cells: Iterable[str], tag: str) -> str:
        kinds = (f' class="{kind}"' if kind else "" for _, kind in columns)
        return "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))

    head = line((text(title) for title, _ in columns), "th")
    body = "\n".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    inner = f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>"
    return f'<div class="scroll"><table id="{name}">\n{inner}\n</table></div>'


def _cut(total: int, shown: int, word: str) -> str:
    """Return a note where not all are shown."""
    note = f"The first and the last of {plural(total, word)} are shown; the manifest lists all of them."
    return f'<p class="soft">{text(note)}</p>\n' if shown < total else ""


def _ends(count: int) -> list[int]:
    """Return the numbers below `count`; the first and the last of many."""
    if count <= _MOST_ROWS:
        return list(range(count))
    return [*range(_MOST_ROWS // 2), *range(count - _MOST_ROWS // 2, count)]
