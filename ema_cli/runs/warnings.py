"""What a run should be warned of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from ema_cli.checkpoint import Checkpoint, TensorSpec
from ema_cli.runs.run import Run
from ema_cli.runs.tensor_rules import copied_names, refusals, tensor_notes

_T = TypeVar("_T")


def run_warnings(run: Run, checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Return what is odd: what was passed over against expectation, averages, inferred clocks."""
    found = [f"{each.name} is passed over: {each.reason}" for each in run.passed_over if each.warn]
    found += run.notes
    # One file of our own is shown with its recipe: nothing odd about that.
    told = len(checkpoints) == 1 and checkpoints[0].mark is not None
    averaged = [
        (f"averaged already: {checkpoint.averaged} (--weights raw or ema)", checkpoint.name)
        for checkpoint in checkpoints
        if checkpoint.averaged and not told
    ]
    noted = [(note, checkpoint.name) for checkpoint in checkpoints for note in checkpoint.notes]
    noted += [
        (note, checkpoint.name)
        for checkpoint, notes in zip(checkpoints, by_specs(checkpoints, tensor_notes), strict=True)
        for note in notes
    ]
    found += [f"{names}: {text}" for text, names in grouped([*averaged, *noted])]
    return found


def refusal_warnings(checkpoint: Checkpoint, patterns: Sequence[str]) -> list[str]:
    """Return which tensors would stop an average, by the reason."""
    specs = checkpoint.tensors.specs
    found = refusals(specs, copied_names(specs, patterns))
    pairs = [(f"{reason} (--copy)", f"'{name}'") for name, reason in found.items()]
    return [f"{names} cannot be averaged: {text}" for text, names in grouped(pairs)]


def grouped(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return each text once, with the names it is about."""
    names: dict[str, list[str]] = {}
    for text, name in pairs:
        names.setdefault(text, []).append(name)
    return [
        (text, group[0] if len(group) == 1 else f"{group[0]} and {len(group) - 1} more")
        for text, group in names.items()
    ]


def by_specs(checkpoints: Sequence[Checkpoint], function: Callable[[Mapping[str, TensorSpec]], _T]) -> list[_T]:
    """Return `function` of each checkpoint's specs, called once for those that share theirs, as most do."""
    distinct = {id(checkpoint.tensors.specs): checkpoint.tensors.specs for checkpoint in checkpoints}
    found = {key: function(specs) for key, specs in distinct.items()}
    return [found[id(checkpoint.tensors.specs)] for checkpoint in checkpoints]
