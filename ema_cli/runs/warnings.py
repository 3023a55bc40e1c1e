"""The warnings about a run and about its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from ema_cli.checkpoint import Checkpoint, TensorSpec
from ema_cli.runs.run import Run
from ema_cli.runs.tensor_rules import copied_names, refusals, tensor_notes

_T = TypeVar("_T")


def run_warnings(run: Run, checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Return the warnings about a run: unexpectedly passed-over files, averages, inferred clocks, notes on tensors."""
    warnings = [f"{passed.name} is passed over: {passed.reason}" for passed in run.passed_over if passed.warn]
    warnings += run.notes
    # A single average of our own is shown with its recipe: no warning needed.
    is_shown = len(checkpoints) == 1 and checkpoints[0].mark is not None
    averaged = [
        (f"averaged already: {checkpoint.averaged} (--weights raw or ema)", checkpoint.name)
        for checkpoint in checkpoints
        if checkpoint.averaged and not is_shown
    ]
    noted = [(note, checkpoint.name) for checkpoint in checkpoints for note in checkpoint.notes]
    noted += [
        (note, checkpoint.name)
        for checkpoint, notes in zip(checkpoints, by_specs(checkpoints, tensor_notes), strict=True)
        for note in notes
    ]
    warnings += [f"{names}: {text}" for text, names in grouped([*averaged, *noted])]
    return warnings


def refusal_warnings(checkpoint: Checkpoint, patterns: Sequence[str]) -> list[str]:
    """Return the warnings about tensors that would stop an average, grouped by the reason."""
    specs = checkpoint.tensors.specs
    reasons = refusals(specs, copied_names(specs, patterns))
    pairs = [(f"{reason} (--copy)", f"'{name}'") for name, reason in reasons.items()]
    return [f"{names} cannot be averaged: {text}" for text, names in grouped(pairs)]


def grouped(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return each text once, with its names: `step-10 and 2 more` for three."""
    names: dict[str, list[str]] = {}
    for text, name in pairs:
        names.setdefault(text, []).append(name)
    return [
        (text, group[0] if len(group) == 1 else f"{group[0]} and {len(group) - 1} more")
        for text, group in names.items()
    ]


def by_specs(checkpoints: Sequence[Checkpoint], function: Callable[[Mapping[str, TensorSpec]], _T]) -> list[_T]:
    """Return `function(specs)` for each checkpoint, called once for all that share their specs, as most do."""
    distinct = {id(checkpoint.tensors.specs): checkpoint.tensors.specs for checkpoint in checkpoints}
    results = {key: function(specs) for key, specs in distinct.items()}
    return [results[id(checkpoint.tensors.specs)] for checkpoint in checkpoints]
