"""Facts in words and numbers for people: sizes, sentences, columns. No rich."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ema_cli.errors import printable
from ema_cli.law.recipe import law_from_dict
from ema_cli.text import _number, plural, relative, size, some

_MOST_PROBLEMS = 20
_FAR = 0.05  # relative error of a profile above which it is refused
UNIT_NAMES = {"ba": "batch", "ep": "epoch", "sp": "sample", "tok": "token"}


def headline(facts: Mapping[str, Any]) -> str:
    """Return what a run, or one checkpoint, is."""
    checkpoints = facts["checkpoints"]
    trainers = sorted({each["trainer"] for each in checkpoints if each["trainer"]})
    total = size(sum(each["bytes"] for each in checkpoints))
    if len(checkpoints) == 1:
        only = checkpoints[0]
        clocks = ", ".join(f"{clock['value']:.10g}{unit} ({clock['from']})" for unit, clock in only["clocks"].items())
        return ", ".join(filter(None, (f"{printable(facts['path'])}: {only['format']}", *trainers, clocks, total)))
    by = f" of {', '.join(trainers)}" if trainers else ""
    return f"{printable(facts['path'])}: {plural(len(checkpoints), 'checkpoint')}{by}, {total}"


def tensors_line(totals: Mapping[str, int]) -> str:
    """Return how many tensors there are, of which kinds."""
    integers = totals["count"] - totals["averaged"] - totals["packed"]
    counts = {"floating": totals["averaged"], "integer": integers, "of few bits": totals["packed"]}
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count or kind == "floating")
    kinds = "all floating" if totals["averaged"] == totals["count"] else kinds
    return (
        f"{plural(totals['count'], 'tensor')} ({kinds}), {totals['parameters']:,} parameters, {size(totals['bytes'])}"
    )


def law(plan: Mapping[str, Any]) -> str:
    """Return the half-life of a plan, its smoothing, or its profile."""
    return law_from_dict(plan).words().value


def law_line(plans: Sequence[Mapping[str, Any]]) -> str:
    """Return the law of all plans: they differ in the half-life."""
    name = law_from_dict(plans[0]).words().noun if len(plans) == 1 else "half-lives"
    intervals = dict.fromkeys(plan["update_interval"] for plan in plans)
    correction = ", bias correction" if plans[0]["bias_correction"] else ""
    return f"With {name} {', '.join(map(law, plans))}, update interval {' or '.join(intervals)}{correction}:"


def plan_line(plan: Mapping[str, Any]) -> str:
    """Return in one sentence what a plan comes to."""
    entries, skipped = len(plan["entries"]), len(plan["skipped"])
    if plan["approximation"]:
        return f"{plural(entries, 'stored average')} combined: {_error(plan)} from {law(plan)}"
    age = plan["mean_age"]
    left_out = f", {skipped} skipped" if skipped else ""
    return (
        f"{plural(entries, 'checkpoint')} averaged{left_out}: {plan['effective_checkpoints']:.1f} effective, "
        f"mean age {age['value']:.4g}{age['unit']}"
    )


def plan_lines(plans: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what each plan comes to; of several on one short line each, warnings included."""
    if len(plans) == 1:
        return [plan_line(plans[0])]
    width = max(len(law(plan)) for plan in plans)
    lines = []
    for plan in plans:
        if plan["approximation"]:
            lines.append(f"{law(plan):>{width}}: {_error(plan)}, from {plural(len(plan['entries']), 'stored average')}")
            continue
        age, heaviest = plan["mean_age"], max(plan["entries"], key=lambda each: each["weight"])
        lines.append(
            f"{law(plan):>{width}}: {plan['effective_checkpoints']:.1f} effective of {len(plan['entries'])}, "
            f"mean age {age['value']:.4g}{age['unit']}"
        )
        if plan["warnings"]:
            lines[-1] += f"; warning: {heaviest['name']} holds {heaviest['weight']:.1%}"
    return lines


def _error(plan: Mapping[str, Any]) -> str:
    return f"{plan['approximation']['relative_error']:.2%} off"


def reach_lines(approximation: Mapping[str, Any]) -> list[str]:
    """Return which half-lives the stored averages make, and how exactly."""
    lines = []
    for each in approximation["reach"]:
        ranges = ", ".join(low if low == high else f"{low} to {high}" for low, high in each["half_lives"])
        lines.append(f"Within {each['within']:.0%}: {ranges or 'no half-life'}")
    return lines


def _how_near(plan: Mapping[str, Any]) -> str:
    if "problem" in plan:
        return str(plan["problem"])
    far = plan["approximation"]["relative_error"] > _FAR
    return _error(plan) + ("; to have it, store averages nearer to it, or more often" if far else "")


def stored_lines(stored: Mapping[str, Any] | None, plans: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what else could be averaged: what the training stored, or what it might store the next time."""
    if stored is None:
        # A heavy first checkpoint is that of a long half-life: stored averages would have it, too.
        sparse = [plan for plan in plans if plan["half_life"] and plan["from"] == "raw" and plan["newest_is_heavy"]]
        advised = dict.fromkeys(each for plan in sparse for each in plan["half_lives_to_store"])
        if not advised:
            return []
        names = ", ".join(f'"{each}"' for each in advised)
        every = ', update_interval="every"' if any(plan["update_interval"] == "every" for plan in sparse) else ""
        return [
            "Raw checkpoints alone cannot do it. Averages that are stored while the model trains can:",
            f"  ema = EMA(model, half_life=({names}){every}), then ema.store(folder) now and then; see the README",
        ]
    if "problem" in stored:
        return [f"Stored averages: {stored['problem']}"]
    first = "" if stored["first_copy"] else ", without the first copy"
    return [
        f"Stored averages: {', '.join(stored['averages'])}, at {plural(len(stored['clocks']), 'clock')} up to "
        f"{stored['clocks'][-1]}{first} (--from stored)",
        *(f"  {plan['law']}: {_how_near(plan)}" for plan in stored["plans"]),
    ]


def plan_warnings(plans: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what to know before anything else; several plans have it on their lines."""
    return list(plans[0]["warnings"]) if len(plans) == 1 else []


def plan_notes(plans: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what else to know of plans, where their warnings do not say it."""
    notes = []
    for plan in plans:
        weights = [each["weight"] for each in plan["entries"]]
        if plan["approximation"]:
            continue
        much = len(weights) > 2 and weights[0] > 2 * weights[1]
        if much and not plan["warnings"] and not plan["bias_correction"]:
            notes.append("The first stands for all the training before it; --bias-correction removes that.")
    return [*dict.fromkeys(notes), *(advice(plans) if len(plans) > 1 or not plans[0]["warnings"] else [])]


def advice(plans: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return which half-life would do."""
    enough = dict.fromkeys(plan["half_life_for_three"] for plan in plans if plan["half_life_for_three"])
    return [f"Smallest half-life with three effective checkpoints: {' or '.join(enough)}"] if enough else []


def plan_clocks(plans: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Return the clock of each name in the units of the plans, empty where it enters none."""
    clocks: dict[str, list[str]] = {}
    for plan in plans:
        for each in plan["entries"]:
            found = clocks.setdefault(each["name"], [])
            if each["clock"] not in found:
                found.append(each["clock"])
    return [" ".join(clocks.get(name, [])) for name in names]


def result_line(result: Mapping[str, Any]) -> str:
    """Return in one line what was done."""
    return (
        f"{result['tensors_averaged']} tensors averaged, {result['tensors_copied']} copied; "
        f"read {size(result['bytes_read'])} in {result['seconds']:.2f} s ({size(result['bytes_per_second'])}/s), "
        f"wrote {size(result['bytes_written'])}, peak memory {size(result['peak_memory_bytes'])}"
    )


def would_line(work: Mapping[str, Any]) -> str:
    """Return in one line what would be done."""
    files = [each["path"] for each in work["outputs"]]
    inside = f" ({len(files)} averages)" if len(files) > 1 else ""
    sizes = f"reading {size(work['bytes_to_read'])}, writing {size(work['bytes_to_write'])}"
    return f"Would write {work['path']}{inside}: {sizes}"


def room_line(work: Mapping[str, Any]) -> str:
    """Return in one line what it would take, and what there is."""
    return f"It would take some {size(work['memory_bytes'])} of memory; {size(work['bytes_free'])} are free on the disk"


def checkpoint_columns(checkpoints: Sequence[Mapping[str, Any]]) -> tuple[dict[str, list[str]], list[str]]:
    """Return the columns that tell checkpoints apart, and what is the same for every one."""
    columns: dict[str, list[str]] = {}
    for unit, word in UNIT_NAMES.items():
        values = [each["clocks"].get(unit) for each in checkpoints]
        if any(values):
            columns[word] = [f"{clock['value']:.10g}" if clock else "-" for clock in values]
    sources = [dict.fromkeys(clock["from"] for clock in each["clocks"].values()) for each in checkpoints]
    facts = {
        "clock from": [", ".join(each) or "-" for each in sources],
        "format": [each["format"] for each in checkpoints],
        "size": [size(each["bytes"]) for each in checkpoints],
        "dtypes": [" ".join(each["dtypes"]) for each in checkpoints],
    }
    constant = []
    for title, column in facts.items():
        if len(set(column)) > 1:
            columns[title] = column
        else:
            constant.append(f"clock from {column[0]}" if title == "clock from" else column[0])
    return columns, constant


def spacing_lines(facts: Mapping[str, Any]) -> list[str]:
    """Return what is irregular in the distances between checkpoints."""
    spacing = facts["spacing"]
    if spacing is None or spacing["regular"]:
        return []
    found = [f"irregular spacing, usually {spacing['usual']}"]
    found += [f"gap of {gap['length']} between {gap['after']} and {gap['before']}" for gap in spacing["gaps"]]
    return found


def clash_lines(facts: Mapping[str, Any]) -> list[str]:
    """Return which checkpoints have one clock, and how models differ."""
    found = [f"same clock: {', '.join(group)}" for group in facts["same_clock"]]
    return [*found, *(f"different models: {text}" for text in facts["differences"])]


def comparison_head(facts: Mapping[str, Any]) -> list[str]:
    """Return what is compared with what."""
    lines = []
    for side in "ab":
        each = facts[side]
        parts = (each["format"], plural(each["tensors"], "tensor"), size(each["bytes"]))
        lines.append(f"{side.upper()}: {each['path']}: {', '.join(parts)}")
    total = facts["total"]
    return [*lines, f"{plural(total['tensors'], 'tensor')} compared, {total['equal']:,} equal to the byte"]


def distance_cells(part: Mapping[str, Any]) -> list[str]:
    """Return a row of a comparison: how many tensors are equal, distance, relative, cosine, largest difference."""
    equal = f"{part['equal']} of {part['tensors']}"
    if any(part["non_finite"].values()):
        return [equal, "nan", "nan", "nan", "nan"]
    return [
        equal,
        _number(part["distance"], "{:.4g}"),
        relative(part["relative_distance"]),
        _number(part["cosine"], "{:.6f}"),
        _number(part["largest_difference"], "{:.3g}"),
    ]


def comparison_odd(facts: Mapping[str, Any]) -> list[str]:
    """Return what could not be compared, the first few of each kind."""
    found = [
        f"only in {side}: {some([repr(each) for each in facts[key]])}"
        for side, key in (("A", "only_in_a"), ("B", "only_in_b"))
        if facts[key]
    ]
    if facts["different"]:
        told = [f"'{each['name']}' is {each['a']} in A, {each['b']} in B" for each in facts["different"]]
        found.append(f"not comparable: {some(told)}")
    notes = dict.fromkeys((side, note) for side in "ab" for note in facts[side]["notes"])
    return [*found, *(f"{side.upper()}: {note}" for side, note in notes)]


def verified_line(facts: Mapping[str, Any]) -> str:
    """Return whether an average holds, in one line."""
    if not facts["ok"]:
        return f"{printable(facts['path'])}: does not hold: {plural(len(facts['problems']), 'problem')}"
    parts = (plural(facts["files"], "file"), plural(facts["tensors"], "tensor"), size(facts["bytes"]))
    return f"{printable(facts['path'])}: verified: {', '.join(parts)}{_against(facts['against'])}"


def _against(facts: Mapping[str, Any] | None) -> str:
    if facts is None:
        return ""
    most = facts["most_elements"]
    what = f"the first {most:,} elements of each tensor are those" if most else "all bytes are those"
    return f"; {what} of {plural(facts['checkpoints'], 'checkpoint')} averaged anew"


def problem_lines(facts: Mapping[str, Any]) -> list[str]:
    """Return what does not hold of an average, the first of it."""
    found = facts["problems"]
    rest = [f"and {len(found) - _MOST_PROBLEMS:,} more"] if len(found) > _MOST_PROBLEMS else []
    return [*found[:_MOST_PROBLEMS], *rest]


def problem_count(facts: Sequence[Mapping[str, Any]]) -> int:
    """Return how many problems several averages have."""
    return sum(len(each["problems"]) for each in facts)


def not_verified(facts: Sequence[Mapping[str, Any]]) -> str:
    """Return in one sentence which averages do not hold; of a single problem, what it is."""
    wrong, count = [each for each in facts if not each["ok"]], problem_count(facts)
    if count == 1:
        return str(wrong[0]["problems"][0])
    return f"{some([each['path'] for each in wrong])}: {'does' if len(wrong) == 1 else 'do'} not hold: {count} problems"
