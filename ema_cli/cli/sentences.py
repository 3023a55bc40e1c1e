"""Views in words and numbers for people: sentences, columns. No rich."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ema_cli.cli.stored_sentences import how_far
from ema_cli.errors import printable
from ema_cli.law.time import Unit
from ema_cli.planning.series import at_the_end, is_series
from ema_cli.runs.run import twin_advice
from ema_cli.storage.names import StorePath
from ema_cli.text import plural, size

if TYPE_CHECKING:  # each command loads what it shows
    from ema_cli.checkpoint import Checkpoint
    from ema_cli.cli.outcomes import DryRun
    from ema_cli.cli.views import RunView, TensorTotals
    from ema_cli.job import Job
    from ema_cli.planning.plan import Plan
    from ema_cli.result import PartDone, Result

UNIT_NAMES = {Unit.BATCH: "batch", Unit.EPOCH: "epoch", Unit.SAMPLE: "sample", Unit.TOKEN: "token"}


def headline(view: RunView) -> str:
    """Return what a run, or one checkpoint, is."""
    checkpoints = view.run.checkpoints
    trainers = sorted({checkpoint.trainer for checkpoint in checkpoints if checkpoint.trainer})
    total = size(sum(sizes.nbytes for sizes in view.sizes))
    if len(checkpoints) == 1:
        only = checkpoints[0]
        clocks = ", ".join(
            f"{float(clock.value):.10g}{unit} ({clock.source})" for unit, clock in sorted(only.progress.clocks.items())
        )
        return ", ".join(filter(None, (f"{printable(view.path)}: {only.format}", *trainers, clocks, total)))
    by = f" of {', '.join(trainers)}" if trainers else ""
    return f"{printable(view.path)}: {plural(len(checkpoints), 'checkpoint')}{by}, {total}"


def tensors_line(totals: TensorTotals) -> str:
    """Return how many tensors there are, of which kinds; those of a run are the ones that all checkpoints have."""
    if not totals.count:
        return "no tensor that all checkpoints have"
    integers = totals.count - totals.averaged - totals.packed
    counts = {"floating": totals.averaged, "integer": integers, "of few bits": totals.packed}
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count or kind == "floating")
    kinds = "all floating" if totals.averaged == totals.count else kinds
    parameters = plural(totals.parameters, "parameter")
    return f"{plural(totals.count, 'tensor')} ({kinds}), {parameters}, {size(totals.nbytes)}"


def law(plan: Plan) -> str:
    """Return the half-life of a plan, its smoothing, or its profile."""
    return plan.recipe.law.words().value


def plan_line(plan: Plan) -> str:
    """Return in one sentence what a plan comes to."""
    entries = len(plan.entries)
    skipped = len(plan.skipped) + sum(passed.excluded for passed in plan.run.passed_over)
    if plan.approximation:
        return f"{plural(entries, 'stored average')} combined: {how_far(plan.approximation, law(plan))}"
    left_out = f", {skipped} skipped" if skipped else ""
    if plan.between_updates and plan.recipe.update_interval is None and plan.recipe.interval is not None:
        left_out += f" ({between_updates(plan)})"
    age = f", mean age {mean_age(plan)}" if plan.entries[-1].has_clock else ""
    return f"{plural(entries, 'checkpoint')} averaged{left_out}: {plan.effective_count:.1f} effective{age}"


def between_updates(plan: Plan) -> str:
    """Return why checkpoints do not enter that lie between two updates, where nobody asked for an interval."""
    between = plural(plan.between_updates, "checkpoint")
    lie = f"{between} {'lies' if plan.between_updates == 1 else 'lie'} between"
    return f"one update per {UNIT_NAMES[plan.entries[-1].clock.unit]}: {lie}; --update-interval every folds each"


def plan_lines(plans: Sequence[Plan]) -> list[str]:
    """Return what each plan comes to; of several on one short line each, warnings included."""
    if len(plans) == 1:
        return [plan_line(plans[0])]
    if is_series(plans):
        return [f"{series_line(plans)}; of the last:", *plan_lines(at_the_end(plans))]
    width = max(len(law(plan)) for plan in plans)
    lines = []
    for plan in plans:
        if plan.approximation:
            averages = plural(len(plan.entries), "stored average")
            lines.append(f"{law(plan):>{width}}: {how_far(plan.approximation)}, from {averages}")
            continue
        lines.append(
            f"{law(plan):>{width}}: {plan.effective_count:.1f} effective of {len(plan.entries)}, "
            f"mean age {mean_age(plan)}"
        )
        heaviest = plan.advice.heaviest
        if heaviest is not None:
            lines[-1] += f"; warning: {heaviest.checkpoint.name} holds {heaviest.weight:.1%}"
    return lines


def mean_age(plan: Plan) -> str:
    """Return the mean age of a plan's checkpoints, in four digits."""
    return f"{float(plan.mean_age.value):.4g}{plan.mean_age.unit}"


def series_line(plans: Sequence[Plan]) -> str:
    """Return how many averages a series has, and at which clocks."""
    ends = dict.fromkeys(str(plan.entries[-1].clock) for plan in plans)
    first, *_, last = ends
    return f"A series of {len(plans)} averages, at {len(ends)} clocks from {first} to {last}"


def plan_warnings(plans: Sequence[Plan]) -> list[str]:
    """Return what to know before anything else; several plans have it on their lines."""
    return list(plans[0].advice.warnings) if len(plans) == 1 else []


def all_warnings(plans: Sequence[Plan]) -> list[str]:
    """Return the warnings of all plans; of a series those of the last, as the first can hold one checkpoint only."""
    return [message for plan in at_the_end(plans) for message in plan.advice.warnings]


def plan_notes(plans: Sequence[Plan]) -> list[str]:
    """Return what else to know of plans, where their warnings do not say it."""
    notes, plans = [], at_the_end(plans)
    for plan in plans:
        if plan.approximation or not plan.recipe.law.corrects_bias:
            continue
        much = len(plan.weights) > 2 and plan.weights[0] > 2 * plan.weights[1]
        if much and not plan.advice.warnings and not plan.recipe.bias_correction:
            notes.append("The first stands for all the training before it; --bias-correction removes that.")
    return [*dict.fromkeys(notes), *(advice(plans) if len(plans) > 1 or not plans[0].advice.warnings else [])]


def advice(plans: Sequence[Plan]) -> list[str]:
    """Return which half-life would do."""
    enough = dict.fromkeys(
        str(plan.advice.half_life_for_three)
        for plan in at_the_end(plans)
        if plan.advice.half_life_for_three is not None
    )
    return [f"Smallest half-life with three effective checkpoints: {' or '.join(enough)}"] if enough else []


def plan_clocks(plans: Sequence[Plan], names: Sequence[str]) -> list[str]:
    """Return the clock of each name in the units of the plans, empty where it enters none."""
    clocks: dict[str, dict[str, None]] = {}
    for plan in plans:
        for entry in plan.entries:
            clocks.setdefault(entry.checkpoint.name, {})[str(entry.clock)] = None
    return [" ".join(clocks.get(name, ())) for name in names]


def result_line(result: Result) -> str:
    """Return in one line what was done."""
    return (
        f"{plural(result.tensors_averaged, 'tensor')} averaged, {result.tensors_copied} copied; "
        f"read {size(result.bytes_read)} in {result.seconds:.2f} s ({size(result.bytes_per_second)}/s), "
        f"wrote {size(result.bytes_written)}, peak memory {size(result.peak_memory)}"
    )


def part_line(result: Result, part: PartDone) -> str:
    """Return in one line that a part is made, and what the whole waits for."""
    rest = (
        f"{plural(part.waiting, 'task')} of other parts to come"
        if part.waiting
        else "another one publishes, or has done so"
    )
    return (
        f"part {part.part} made: read {size(result.bytes_read)} in {result.seconds:.2f} s, "
        f"peak memory {size(result.peak_memory)}; {rest}"
    )


def would_line(dry: DryRun) -> str:
    """Return in one line what would be done."""
    job = dry.job
    inside = f" ({len(job.outputs)} averages)" if len(job.outputs) > 1 else ""
    sizes = f"reading {size(dry.bytes_to_read)}, writing {size(job.bytes_to_write)}"
    return f"Would write {job.target.path.as_posix()}{inside}: {sizes}"


def pass_lines(work: DryRun) -> list[str]:
    """Return in how many passes the averages are made, where it is more than one."""
    count = len(work.passes)
    if count == 1:
        return []
    most = max(len(each.job.plans) for each in work.passes)
    return [
        f"{len(work.job.plans)} averages in {count} passes, at most {most} in each: more do not fit into the memory "
        f"(--max-memory) or among the open files; {size(work.bytes_to_read)} are read in all"
    ]


def room_line(dry: DryRun) -> str:
    """Return in one line what it would take, and what there is."""
    sent = "the tensors go to the store as they are made, and on no disk"
    free = sent if dry.bytes_free is None else free_words(dry.job)
    return f"It would take up to {size(dry.memory)} of memory; {free}"


def free_words(job: Job) -> str:
    """Return how much room there is where outputs are made."""
    free = f"{size(job.bytes_free)} are free"
    if not isinstance(job.target.path, StorePath):
        return f"{free} on the disk"
    from ema_cli.storage.staging.in_store import temporary_folder  # which only those need who write to a store

    return f"{free} in {printable(temporary_folder())}, where it is made first"


def checkpoint_columns(view: RunView) -> tuple[dict[str, list[str]], list[str]]:
    """Return the columns in which checkpoints differ, and what is the same for every one."""
    checkpoints = view.run.checkpoints
    columns: dict[str, list[str]] = {}
    for unit, word in UNIT_NAMES.items():
        values = [checkpoint.clock(unit) for checkpoint in checkpoints]
        if any(value is not None for value in values):
            columns[word] = ["-" if value is None else f"{float(value):.10g}" for value in values]
    differ = {word for word, column in columns.items() if len(set(column)) > 1}
    same = [word for word in columns if differ and word not in differ]  # they tell no checkpoint from another
    constant = [f"{word} {columns.pop(word)[0]}" for word in same]
    facts = {
        "clock from": [_sources(checkpoint) for checkpoint in checkpoints],
        "format": [checkpoint.format for checkpoint in checkpoints],
        "size": [size(sizes.nbytes) for sizes in view.sizes],
        "dtypes": [" ".join(sizes.dtypes) for sizes in view.sizes],
    }
    for title, column in facts.items():
        if len(set(column)) > 1:
            columns[title] = column
        else:
            constant.append(_constant_clock(column[0]) if title == "clock from" else column[0])
    return columns, constant


def _constant_clock(source: str) -> str:
    return "no clock" if source == "-" else f"clock from {source}"


def _sources(checkpoint: Checkpoint) -> str:
    clocks = sorted(checkpoint.progress.clocks.items())
    return ", ".join(dict.fromkeys(clock.source for _, clock in clocks)) or "-"


def spacing_lines(view: RunView) -> list[str]:
    """Return what is irregular in the distances between checkpoints."""
    spacing = view.spacing
    if spacing is None or spacing.regular:
        return []
    gaps = [f"gap of {gap.length} between {gap.after} and {gap.before}" for gap in spacing.gaps]
    return [f"irregular spacing, usually {spacing.usual}", *gaps]


def clash_lines(view: RunView) -> list[str]:
    """Return which checkpoints have one clock, unless a warning of the run says so, and how models differ."""
    advised = twin_advice(view.run)
    said = [] if advised is None else [checkpoint.name for checkpoint in advised[0]]
    same = [f"same clock: {', '.join(group)}" for group in view.same_clock if [*group] != said]
    return [*same, *(f"different models: {text}" for text in view.differences)]
