"""The report as Markdown, in the sections of docs/benchmarks.md, from what was measured and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .commands import LABELS
from .figures import Figure, fastest, judge, ratio, short, spread, values
from .rows import BEFORE, KEYS, PEERS, START_UP

MIB = 1 << 20
_NOTES = """\
- Every run is a whole process, from its start to its end. A round runs every command once, in an order that rotates;
  outputs are deleted and the disk is synced between runs, outside of the time. Figures are medians of the rounds that
  count, least and greatest in parentheses; ratios are taken within a round.
- A round is noisy, does not count and is repeated where, in one of its runs, other processes take more than a tenth of
  the processors or use the disk.
- Memory is the proportional set size of all processes together, looked at every 10 ms in a run that is not timed; files
  that a process maps count. "Largest process" is the kernel's own peak of one, which misses nothing between two looks.
- "limit" reads the inputs with `cat`, then writes zeros of the output's size. It and ema-cli wait until the output is
  on the disk (fsync), which the peers do not.
- The naive script and the loops of fairseq and timm are written anew (scripts/benchmark/peer_loops.py). They use the
  weights of ema-cli's plan, and so does mergekit, in an environment of its own that shares torch with them.
"""


def markdown(found: Mapping[str, Any]) -> str:
    """Return the whole report."""
    rows = sorted(found["rows"].values(), key=lambda row: KEYS.index(row["key"]))
    parts = ["## Files\n", _summary(rows), head(found, rows), _NOTES, "## Targets\n", targets(found, rows)]
    parts += ["## Every set\n", *(details(row) for row in rows)]
    return "\n".join(parts)


def _summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return seconds and memory on each set: of ours, of the build before, of the fastest peer, and of the limit."""
    table = [["set", "ema-cli", "memory", LABELS[BEFORE], "fastest other way", "its memory", "limit"]]
    for row in rows:
        if row["key"] == START_UP:
            continue
        rival = fastest(row["rounds"], PEERS)
        limit = fastest(row["rounds"], ("limit", "limit x4"))
        table.append(
            [
                f"{row['key']}: {row['title']}",
                _seconds(row, "ema-cli"),
                _mebibytes(row, "ema-cli"),
                _seconds(row, BEFORE),
                f"{_seconds(row, rival)}, {LABELS[rival]}" if rival else "",
                _mebibytes(row, rival) if rival else "",
                _seconds(row, limit) if limit else "",
            ]
        )
    return "Seconds of the whole process, medians.\n\n" + as_table(table)


def _seconds(row: Mapping[str, Any], name: str) -> str:
    figure = values(row["rounds"], name, "wall")
    return f"{short(figure.median)} s" if figure else ""


def _mebibytes(row: Mapping[str, Any], name: str) -> str:
    memory = row["memory"].get(name)
    return f"{memory['together'] / MIB:.0f} MiB" if memory else ""


def head(found: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return date, command, machine, versions, and how noisy it was."""
    machine = found["machine"]
    every = [each for row in rows for each in row["rounds"]]
    noisy = sum(bool(each["noisy"]) for each in every)
    loads = [run["load"] for each in every for run in each["runs"].values()]
    load = f"{min(loads):.1f} to {max(loads):.1f}" if loads else "not measured"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"Measured {machine['date']} with `{machine['command']}`.",
        "",
        f"- Machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory'] / 2**30:.0f} GiB, "
        f"{machine['file_system']}, Linux {machine['kernel']}",
        f"- Versions: {versions}",
        f"- Load average when a run began, the benchmark's own included: {load}",
        f"- Rounds: {len(every)}, of which {noisy} were too noisy to count",
    ]
    if found["scale"] != "full":
        lines.append("- Small sets: starting up weighs more than at full size (`--full`), which the targets are for")
    return "\n".join([*lines, ""])


def targets(found: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of targets, and what came of each."""
    table = [["set", "what", "target", "measured", ""]]
    for row in rows:
        if "ema-cli" in row["failed"]:
            table.append([row["key"], row["title"], "", "failed", "MISSED"])
            continue
        for number, verdict in enumerate(judge(row)):
            met = {True: "met", False: "MISSED", None: "-"}[verdict.met]
            if found["scale"] != "full" and verdict.met is False:
                met = "not at this size"
            label = [row["key"], row["title"]] if number == 0 else ["", ""]
            table.append([*label, verdict.target, verdict.measured, met])
    return as_table(table)


def details(row: Mapping[str, Any]) -> str:
    """Return all figures of one row."""
    names = [*row["labels"]]
    measured = {name for each in row["rounds"] for name in each["runs"]}
    present = [name for name in names if name in row["memory"] or name in measured]
    nbytes = row.get("bytes_read")
    head = [
        "",
        "wall [s]",
        "CPU [s]",
        "GB/s",
        "memory [MiB]",
        "largest process",
        "x limit",
        "ema-cli takes",
        "same average",
    ]
    table = [head]
    for name in present:
        wall, cpu = (values(row["rounds"], name, what) for what in ("wall", "cpu"))
        memory = row["memory"].get(name)
        to_limit = ratio(row["rounds"], name, "limit") if name != "limit" else None
        ours = ratio(row["rounds"], "ema-cli", name) if name != "ema-cli" else None
        rate = f"{nbytes / wall.median / 1e9:.2f}" if wall and nbytes and name != "reference" else ""
        table.append(
            [
                row["labels"][name],
                spread(wall) if wall else _noisy(row, name),
                spread(cpu) if cpu else "",
                rate,
                f"{memory['together'] / MIB:.0f}" if memory else "",
                f"{memory['largest'] / MIB:.0f}" if memory else "",
                spread(to_limit) if to_limit else "",
                f"{spread(ours)} x" if ours else "",
                row["same"].get(name, ""),
            ]
        )
    # Columns that say nothing in this row are left out.
    kept = [at for at in range(len(head)) if at == 0 or any(line[at] for line in table[1:])]
    quiet = sum(not each["noisy"] for each in row["rounds"])
    lines = [f"### {row['key']}: {row['title']}", "", as_table([[line[at] for at in kept] for line in table])]
    noisy = ", the others were noisy" if quiet < len(row["rounds"]) else ""
    notes = [f"{quiet} of {len(row['rounds'])} rounds count{noisy}", *row["notes"]]
    if nbytes and "cold" not in row["title"]:
        notes += [
            f"{row['labels'][name]} read {figure.greatest / 1e9:.2f} GB from the disk: not all was in the page cache"
            for name in present
            if (figure := values(row["rounds"], name, "disk_read")) and figure.greatest > nbytes / 100
        ]
    notes += [f"{row['labels'][name]} is not there: {why}" for name, why in row["skipped"].items()]
    notes += [f"{row['labels'][name]} FAILED: {_one_line(why)}" for name, why in row["failed"].items()]
    return "\n".join([*lines, *(f"- {note}" for note in notes), ""])


def _noisy(row: Mapping[str, Any], name: str) -> str:
    """Return what a competitor took where no round counts."""
    figure = Figure.of([each["runs"][name]["wall"] for each in row["rounds"] if name in each["runs"]])
    return f"too noisy: {spread(figure)}" if figure else "not measured"


def _one_line(text: str) -> str:
    return " ".join(text.split())[-300:]


def as_table(lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table that can be read as it is, the first line its head."""
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    shown = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([shown[0], rule, *shown[1:], ""])
