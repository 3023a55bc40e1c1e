"""The tables of a report: checkpoints, layers, tensors, files. Long tables are folded, and cut with a note."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence

from ema_cli.comparing.distance import Distance
from ema_cli.manifest.manifest import shown_clock
from ema_cli.manifest.types import CandidateRow, InputRow, OutputRow, TensorRow, TuneRow
from ema_cli.report.charts import text
from ema_cli.report.distances import Distances
from ema_cli.text import plural, relative, size, some
from ema_cli.tuning.results import name_parts

_MOST_ROWS = 1000
_FOLDED_ROWS = 30
_SHOWN_NAMES = 12
_FINGERPRINT_CHARS = 16

Column = tuple[str, str]  # title, and class: number, bar, wide (not on a telephone)


def layers_table(inputs: Sequence[InputRow], distances: Distances) -> str:
    """Return the table of distances of each layer from the first, the nearest and the last checkpoint, folded."""
    chosen = {"first": 0, "nearest": nearest(distances.total), "last": len(inputs) - 1}
    columns = [
        ("layer", ""),
        *((f"{word}, {shown_clock(inputs[at]) or inputs[at]['name']}", "number") for word, at in chosen.items()),
    ]
    rows = []
    for name, row in {"all layers": distances.total, **distances.layers}.items():
        cosine = row[-1].cosine
        shown = (relative_distance(row[at]) for at in chosen.values())
        rows.append([text(name), *shown, "-" if cosine is None else f"{cosine:.6f}"])
    table = _table("layers", [*columns, ("cosine with the last", "number wide")], rows)
    return f"<details>\n<summary>The numbers: first, nearest and last</summary>\n{table}\n</details>"


def checkpoints_table(inputs: Sequence[InputRow], distances: Distances | None) -> str:
    """Return the table of checkpoints: clock, weight, size, fingerprint, and the distance if it was measured."""
    most = max(abs(row["weight"]) for row in inputs) or 1.0
    measured = dict(zip(distances.inputs, distances.total, strict=True)) if distances else {}
    columns = [("checkpoint", ""), ("clock", "number"), ("weight", "number"), ("", "bar wide")]
    columns += [("distance", "number")] if distances else []
    columns += [("size", "number wide"), ("fingerprint (its beginning)", "wide")]
    shown = _shown_rows(len(inputs))
    rows = []
    for number in shown:
        entry = inputs[number]
        sign = ' class="minus"' if entry["weight"] < 0 else ""
        bar = f'<span{sign} style="width:{abs(entry["weight"]) / most * 100:.1f}%"></span>'
        row = [text(entry["name"]), text(shown_clock(entry) or "-"), f"{entry['weight']:.2%}", bar]
        row += [relative_distance(measured[number]) if number in measured else "-"] if distances else []
        fingerprint = str(entry["fingerprint"] or "not read")[:_FINGERPRINT_CHARS]
        rows.append([*row, text(size(entry["bytes"])), f"<code>{text(fingerprint)}</code>"])
    table = _table("checkpoints", columns, rows)
    if len(shown) > _FOLDED_ROWS:
        table = f"<details>\n<summary>All {plural(len(shown), 'checkpoint')}</summary>\n{table}\n</details>"
    return f"<section>\n<h2>Checkpoints</h2>\n{_cut_note(len(inputs), len(shown), 'checkpoint')}{table}\n</section>"


def tensors_table(tensors: Sequence[TensorRow]) -> str:
    """Return the number of tensors of each type, averaged or copied, and the names of copied and non-finite ones."""
    numbers: Counter[tuple[str, str]] = Counter()
    sizes: Counter[tuple[str, str]] = Counter()
    for tensor in tensors:
        kind = tensor["dtype"], "averaged" if tensor["averaged"] else f"copied from the newest: {tensor['why']}"
        numbers[kind] += 1
        sizes[kind] += tensor["bytes"]
    columns = [("type", "word"), ("how", ""), ("tensors", "number"), ("size", "number")]
    rows = [[*map(text, kind), f"{numbers[kind]:,}", text(size(sizes[kind]))] for kind in sorted(numbers)]
    named = {
        "copied": [f"'{tensor['name']}'" for tensor in tensors if not tensor["averaged"]],
        "with NaN or infinity": [f"'{tensor['name']}'" for tensor in tensors if tensor["non_finite"]],
    }
    lists = pairs((word, some(names, _SHOWN_NAMES)) for word, names in named.items() if names)
    return f"<section>\n<h2>Tensors</h2>\n{_table('tensors', columns, rows)}\n{lists}</section>"


def files_table(files: Sequence[OutputRow]) -> str:
    """Return the table of the files of the output, with their checksums."""
    shown = _shown_rows(len(files))
    columns = [("file", ""), ("size", "number"), ("sha256", "")]
    rows = [
        [text(row["name"]), text(size(row["bytes"])), f"<code>{text(row['sha256'])}</code>"]
        for row in (files[at] for at in shown)
    ]
    cut = _cut_note(len(files), len(shown), "file")
    return f"<section>\n<h2>Files</h2>\n{cut}{_table('files', columns, rows)}\n</section>"


def candidates_table(tune: TuneRow) -> str:
    """Return the table of the candidates of `tune`, with the metric of each, or why it has none."""
    rows = []
    for row in tune["candidates"]:
        note = "best" if row["name"] == tune["winner"] else row.get("failed", "")
        note = note or (f"the same weights as {row['same_as']}" if "same_as" in row else "")
        metric = f"{mean_metric(row):.6g}" if row["values"] else "-"
        rows.append([text(row["name"]), text(metric), text(note)])
    setting, clock = name_parts(tune["candidates"][-1]["name"])  # the last checkpoint is the first
    title = "average" if clock is not None or setting is None else setting.noun
    return _table("candidates", [(title, "word"), ("metric", "number"), ("", "")], rows)


def mean_metric(row: CandidateRow) -> float:
    """Return the mean of a candidate's metric, which was evaluated once or several times."""
    return statistics.fmean(row["values"])


def pairs(rows: Iterable[tuple[str, str]]) -> str:
    """Return a list of pairs: a word and its value."""
    content = "".join(f"<dt>{text(word)}</dt><dd>{text(value)}</dd>" for word, value in rows)
    return f'<dl class="pairs">{content}</dl>' if content else ""


def relative_distance(distance: Distance) -> str:
    """Return a relative distance for people."""
    return relative(distance.relative)


def nearest(distances: Sequence[Distance]) -> int:
    """Return the position of the smallest distance."""

    def far(at: int) -> float:
        value = distances[at].relative
        return math.inf if value is None or math.isnan(value) else value

    return min(range(len(distances)), key=far)


def _table(name: str, columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; its cells must be HTML already."""

    def line(cells: Iterable[str], tag: str) -> str:
        kinds = (f' class="{kind}"' if kind else "" for _, kind in columns)
        return "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))

    head = line((text(title) for title, _ in columns), "th")
    body = "\n".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    inner = f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>"
    return f'<div class="scroll"><table id="{name}">\n{inner}\n</table></div>'


def _cut_note(total: int, shown: int, word: str) -> str:
    """Return a note if not all rows are shown."""
    note = f"The first and the last of {plural(total, word)} are shown; the manifest lists all of them."
    return f'<p class="soft">{text(note)}</p>\n' if shown < total else ""


def _shown_rows(count: int) -> list[int]:
    """Return the numbers below `count`; if there are too many, the first and the last."""
    if count <= _MOST_ROWS:
        return list(range(count))
    return [*range(_MOST_ROWS // 2), *range(count - _MOST_ROWS // 2, count)]
