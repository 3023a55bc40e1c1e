"""The warnings about a run and about its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from ema_cli.checkpoint import Checkpoint, TensorSpec
from ema_cli.formats.trainers.adapters import BASE
from ema_cli.runs.beside import kind_of
from ema_cli.runs.run import Run
from ema_cli.runs.search import PassedOver
from ema_cli.runs.tensor_rules import copied_names, inner_averages_notes, refusals, tensor_notes
from ema_cli.runs.ties import tie_notes

_T = TypeVar("_T")


def run_warnings(run: Run, checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Return the warnings about a run: unexpectedly passed-over files, averages, inferred clocks, notes on tensors."""
    kinds = passed_over_kinds([passed for passed in run.passed_over if passed.warn])
    warnings = [
        f"{and_more(names)} {'is' if len(names) == 1 else 'are'} passed over: {reason}" for reason, names in kinds
    ]
    warnings += run.notes
    # A single average of our own is shown with its recipe: no warning needed.
    is_shown = len(checkpoints) == 1 and checkpoints[0].mark is not None
    averaged = [
        (f"averaged already: {checkpoint.averaged} (--weights raw or ema)", checkpoint.name)
        for checkpoint in checkpoints
        if checkpoint.averaged and not is_shown
    ]
    noted = [(note, checkpoint.name) for checkpoint in checkpoints for note in checkpoint.notes]
    one_set = [checkpoint for checkpoint in checkpoints if not checkpoint.holds_both]  # else the same set is in both
    for several, function in ((checkpoints, tensor_notes), (one_set, inner_averages_notes)):
        noted += [
            (note, checkpoint.name)
            for checkpoint, notes in zip(several, by_specs(several, function), strict=True)
            for note in notes
        ]
    noted += [*tie_notes(checkpoints), *_base_notes(checkpoints)]
    warnings += [f"{names}: {text}" for text, names in grouped([*averaged, *noted])]
    return warnings


def _base_notes(checkpoints: Sequence[Checkpoint]) -> list[tuple[str, str]]:
    """Return a note for each adapter that names another place for the model that it adapts than the newest does."""
    newest = checkpoints[-1].adapter.values if checkpoints else {}
    return [
        (f"its {name} is {value}, but {newest[name]} in {checkpoints[-1].name}; is it the same model?", checkpoint.name)
        for checkpoint in checkpoints
        for name, value in checkpoint.adapter.values.items()
        if name.rpartition("/")[2] == BASE and name in newest and newest[name] != value
    ]


def refusal_warnings(checkpoint: Checkpoint, patterns: Sequence[str]) -> list[str]:
    """Return the warnings about tensors that would stop an average, grouped by the reason."""
    specs = checkpoint.tensors.specs
    reasons = refusals(specs, copied_names(specs, patterns))
    pairs = [(f"{reason} (--copy)", f"'{name}'") for name, reason in reasons.items()]
    return [f"{names} cannot be averaged: {text}" for text, names in grouped(pairs)]


def passed_over_kinds(passed_over: Sequence[PassedOver]) -> list[tuple[str, list[str]]]:
    """Return the reasons, each with the names of one kind that it is about."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for passed in passed_over:
        kinds.setdefault((passed.reason, kind_of(passed.name)), []).append(passed.name)
    return [(reason, names) for (reason, _), names in kinds.items()]


def grouped(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return each text once, with its names: `step-10 and 2 more` for three."""
    names: dict[str, list[str]] = {}
    for text, name in pairs:
        names.setdefault(text, []).append(name)
    return [(text, and_more(group)) for text, group in names.items()]


def and_more(names: Sequence[str]) -> str:
    """Return the first name and the number of others: `step-10 and 2 more` for three."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def by_specs(checkpoints: Sequence[Checkpoint], function: Callable[[Mapping[str, TensorSpec]], _T]) -> list[_T]:
    """Return `function(specs)` for each checkpoint, called once for all that share their specs, as most do."""
    distinct = {id(checkpoint.tensors.specs): checkpoint.tensors.specs for checkpoint in checkpoints}
    results = {key: function(specs) for key, specs in distinct.items()}
    return [results[id(checkpoint.tensors.specs)] for checkpoint in checkpoints]
