"""What people read of a run, a plan and a comparison: sentences and tables on stdout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from ema_cli.checkpoint import Checkpoint
from ema_cli.cli import comparison_sentences, sentences, stored_sentences
from ema_cli.cli.github import annotate, annotate_warnings
from ema_cli.cli.rich_console import console, shown
from ema_cli.cli.tables import Weights, print_distances, print_profile, print_series, print_tensors, print_weights
from ema_cli.cli.views import Inspection, RunView, StoredView
from ema_cli.errors import EmaError
from ema_cli.law.wording import recipes_line
from ema_cli.planning.plan import Plan
from ema_cli.planning.series import is_series
from ema_cli.runs.passed_over import PassedOver
from ema_cli.runs.warnings import Remarks, and_more, passed_over_kinds
from ema_cli.text import some

if TYPE_CHECKING:  # it loads numpy: not for `inspect`
    from ema_cli.comparing.comparison import Comparison

_NO_OPTION = ("checkpoints", "files", "like_input", "version", "types", "clocks")  # of what a mark holds
_MOST_ENTRIES = 500  # of a mark, which anybody can have written
_OPTION_WORDS = {"half_life": "half-life"}
_LAWS = frozenset(("half_life", "smoothing", "profile"))  # one is in each mark, but where the weights were given
_COMPARISON_WORDS = "distance: |A - B|; relative: to |B|; largest: of the differences between two values"


def print_inspection(inspection: Inspection) -> None:
    """Print a run, or its only checkpoint, and what could be averaged of it."""
    out = console()
    view, plans, single = inspection.view, inspection.plans, inspection.single
    if single is None:
        _print_run(out, view, plans, inspection.remarks)
    else:
        _print_checkpoint(out, view, single, inspection.remarks)
        if single.mark:
            _print_mark(out, single.mark)
        if plans:
            out.print()
            print_plans(plans, [single.name])
    _print_approximations(out, plans)
    if inspection.stored or plans:
        _print_stored(out, inspection.stored, plans)


def print_plans(plans: Sequence[Plan], names: Sequence[str]) -> None:
    """Print the weight of each checkpoint, drawn, and what they come to; `names` are of all, oldest first."""
    have_clocks = any(entry.has_clock for plan in plans for entry in plan.entries)
    _print_plans(console(), names, {"clock": sentences.plan_clocks(plans, names)} if have_clocks else {}, plans)


def print_comparison(comparison: Comparison) -> None:
    """Print how far two checkpoints are apart: by layer and as a whole, and what could not be compared."""
    out = console()
    for text in comparison_sentences.head(comparison):
        out.print(shown(text), soft_wrap=True)
    out.print()
    print_distances(out, comparison)
    out.print()
    out.print(shown(_COMPARISON_WORDS), soft_wrap=True)
    _print_remarks(out, comparison_sentences.warnings(comparison), comparison_sentences.notes(comparison))
    if comparison.warnings:
        _print_warnings(out, [some(comparison.warnings)])


def _print_run(out: Console, view: RunView, plans: Sequence[Plan], remarks: Remarks) -> None:
    """Print totals, one row for each checkpoint with its weight in each plan, and what is irregular."""
    columns, constant = sentences.checkpoint_columns(view)
    _print_head(out, view)
    if constant:
        out.print(shown(f"Every checkpoint: {', '.join(constant)}"), soft_wrap=True)
    out.print()
    if len(plans) > 1:
        # The room is for the weights; without a half-life, all columns are shown.
        units = dict.fromkeys(sentences.UNIT_NAMES[plan.mean_age.unit] for plan in plans)
        columns = {unit: columns[unit] for unit in units if unit in columns}
    names = [checkpoint.name for checkpoint in view.run.checkpoints]
    if plans:
        _print_plans(out, names, columns, plans)
    else:
        print_weights(out, names, columns, [])
    warnings, notes = sentences.clash_lines(view), sentences.spacing_lines(view)
    _print_remarks(out, [*warnings, *remarks.warnings], [*notes, *remarks.notes])
    _print_passed_over(out, view.run.passed_over)


def _print_checkpoint(out: Console, view: RunView, checkpoint: Checkpoint, remarks: Remarks) -> None:
    _print_head(out, view)
    out.print()
    print_tensors(out, checkpoint)
    _print_remarks(out, remarks.warnings, remarks.notes)


def _print_mark(out: Console, mark: Mapping[str, object]) -> None:
    """Print how a file was averaged, as its metadata say."""
    out.print()
    stored = mark.get("stored")
    options = stored if isinstance(stored, Mapping) else mark
    facts = [
        f"{_OPTION_WORDS.get(name, name.replace('_', ' '))}{'' if str(value) == 'True' else f' {value}'}"
        for name, value in options.items()
        if name not in _NO_OPTION
    ]
    words = ", ".join(facts if not _LAWS.isdisjoint(options) else ["given coefficients", *facts])
    how = "Stored by EMA.store" if stored else "Averaged by ema-cli"
    out.print(shown(f"{how} {mark.get('version', '?')}: {words}", "bold"), soft_wrap=True)
    entries = mark.get("checkpoints")
    if isinstance(entries, Sequence) and entries:
        newest = entries[-_MOST_ENTRIES:]
        names = [str(name) for name, _, _ in newest]
        weights = {str(name): float(weight) for name, _, weight in newest}
        clocks = {"clock": [str(clock) for _, clock, _ in newest]}
        print_weights(out, names, clocks, [Weights("", weights, {})])
        if len(newest) < len(entries):
            out.print(shown(f"and {len(entries) - len(newest):,} older"), soft_wrap=True)


def _print_approximations(out: Console, plans: Sequence[Plan]) -> None:
    """Print of each plan of stored averages the profile of its recipe and the one that is reached, drawn."""
    for plan in plans:
        approximation = plan.approximation
        if approximation is None:
            continue
        out.print()
        title = f"Training time in the average of {sentences.law(plan)}: asked for, and reached"
        out.print(shown(title, "bold"), soft_wrap=True)
        print_profile(out, approximation, str(plan.mean_age.unit))
        for text in stored_sentences.reach_lines(approximation):
            out.print(shown(text), soft_wrap=True)


def _print_stored(out: Console, stored: StoredView | None, plans: Sequence[Plan]) -> None:
    """Print what the training stored besides its checkpoints, and what could be made of it."""
    lines = stored_sentences.stored_lines(stored, plans)
    if lines:
        out.print()
    for text in lines:
        out.print(shown(text), soft_wrap=True)
    if stored is not None:
        _print_approximations(out, [plan for _, plan in stored.plans if not isinstance(plan, EmaError)])


def _print_head(out: Console, view: RunView) -> None:
    out.print(shown(sentences.headline(view), "bold"), soft_wrap=True)
    several = len(view.run.checkpoints) > 1 and view.tensors.count
    compared = "; their values are not compared" if several else ""  # headers alone are read
    out.print(shown(sentences.tensors_line(view.tensors) + compared), soft_wrap=True)


def _print_plans(
    out: Console, names: Sequence[str], columns: Mapping[str, Sequence[str]], plans: Sequence[Plan]
) -> None:
    """Print the law, the weights of all plans side by side, as many as there is room for, and what they come to."""
    out.print(shown(recipes_line([plan.recipe for plan in plans]), "bold"), soft_wrap=True)
    if is_series(plans):
        print_series(out, plans)
    else:
        print_weights(out, names, columns, list(map(Weights.of, plans)))
    out.print()
    for text in sentences.plan_lines(plans):
        out.print(shown(text), soft_wrap=True)
    _print_warnings(out, sentences.plan_warnings(plans))
    if len(plans) > 1:  # their warnings are on their lines
        annotate_warnings(sentences.all_warnings(plans))
    for text in sentences.plan_notes(plans):
        out.print(shown(text), soft_wrap=True)


def _print_warnings(out: Console, messages: Sequence[str]) -> None:
    for message in messages:
        out.print(shown("warning: ", "yellow").append_text(shown(message)), soft_wrap=True)
        annotate("warning", message)


def _print_remarks(out: Console, warnings: Sequence[str], notes: Sequence[str]) -> None:
    """Print what wants a look, and what else is worth saying."""
    _print_list(out, "What is odd:", warnings)
    for warning in warnings:
        annotate("warning", warning)
    _print_list(out, "Worth knowing:", notes)


def _print_passed_over(out: Console, passed_over: Sequence[PassedOver]) -> None:
    """Print the files that were passed over, all but those of which a warning or a note says it."""
    quiet = passed_over_kinds([passed for passed in passed_over if not (passed.warn or passed.note)])
    _print_list(out, "Passed over:", [f"{and_more(names)}: {reason}" for reason, names in quiet])


def _print_list(out: Console, title: str, lines: Sequence[str]) -> None:
    if lines:
        out.print()
        out.print(shown(title, "bold"))
    for line in lines:
        out.print(shown(f"  {line}"), soft_wrap=True)
