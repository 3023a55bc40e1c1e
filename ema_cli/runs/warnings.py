"""What is said of a run and of its tensors.

A warning says that the average may not be what its user wants: something may be missing from it or not belong in it,
or two things contradict each other: files, their names, or an option and what the files record. A note says what was
decided where nothing is wrong. `--strict` is for no warning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from ema_cli.checkpoint import Checkpoint, TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.formats.mark import EXACT_LORA
from ema_cli.formats.trainers.adapters import BASE
from ema_cli.runs.beside import kind_of
from ema_cli.runs.passed_over import PassedOver
from ema_cli.runs.run import Run
from ema_cli.runs.tensor_rules import (
    ADAPTER_NOTE,
    copied_names,
    inner_averages_warnings,
    refusals,
    tensor_notes,
)
from ema_cli.runs.ties import tie_notes

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Remarks:
    """What is said of a run."""

    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, run: Run, checkpoints: Sequence[Checkpoint]) -> Remarks:
        """Return what is said of a run, and of those of its checkpoints that are read."""
        return cls(tuple(run_warnings(run, checkpoints)), tuple(run_notes(run, checkpoints)))

    def of_products(self) -> Remarks:
        """Return what is said where the products of an adapter's A and B are averaged, and not these."""
        return replace(self, notes=tuple(note for note in self.notes if not note.endswith(ADAPTER_NOTE)))


def run_warnings(run: Run, checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Return the warnings about a run: of files that are passed over, of clocks, and of what is in its checkpoints."""
    warnings = [*_passed_over_lines([passed for passed in run.passed_over if passed.warn]), *run.warnings]
    # A single average of our own is shown with its recipe: no warning needed.
    is_shown = len(checkpoints) == 1 and checkpoints[0].mark is not None
    averaged = [
        (f"averaged already: {checkpoint.averaged} (--weights raw or ema)", checkpoint.name)
        for checkpoint in checkpoints
        if checkpoint.averaged and not is_shown
    ]
    one_set = [checkpoint for checkpoint in checkpoints if not checkpoint.holds_both]  # else the same set is in both
    pairs = [
        *averaged,
        *((warning, checkpoint.name) for checkpoint in checkpoints for warning in checkpoint.warnings),
        *_of_specs(one_set, inner_averages_warnings),
        *_base_warnings(checkpoints),
    ]
    return warnings + _lines(pairs)


def run_notes(run: Run, checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Return what is worth saying of a run and of what is in its checkpoints, where nothing is wrong."""
    of_checkpoints = [(note, checkpoint.name) for checkpoint in checkpoints for note in checkpoint.notes]
    plain = [checkpoint for checkpoint in checkpoints if EXACT_LORA not in (checkpoint.mark or {})]
    pairs = [*of_checkpoints, *_of_specs(plain, tensor_notes), *tie_notes(checkpoints)]
    return [*_passed_over_lines([passed for passed in run.passed_over if passed.note]), *run.notes, *_lines(pairs)]


def _passed_over_lines(passed_over: Sequence[PassedOver]) -> list[str]:
    kinds = passed_over_kinds(passed_over)
    return [f"{and_more(names)} {'is' if len(names) == 1 else 'are'} passed over: {reason}" for reason, names in kinds]


def lines_of(found: Sequence[tuple[str, Checkpoint]]) -> list[str]:
    """Return what was found in checkpoints, each text once with their names."""
    return _lines([(text, checkpoint.name) for text, checkpoint in found])


def _of_specs(
    checkpoints: Sequence[Checkpoint], function: Callable[[Mapping[str, TensorSpec]], Sequence[str]]
) -> list[tuple[str, str]]:
    """Return what `function` says of the tensors of each checkpoint, with its name."""
    texts = zip(checkpoints, by_specs(checkpoints, function), strict=True)
    return [(text, checkpoint.name) for checkpoint, said in texts for text in said]


def _lines(pairs: Sequence[tuple[str, str]]) -> list[str]:
    return [f"{names}: {text}" for text, names in grouped(pairs)]


def _base_warnings(checkpoints: Sequence[Checkpoint]) -> list[tuple[str, str]]:
    """Return a warning for each adapter that names another place for the model that it adapts than the newest does."""
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
    """Return the reasons, each with the names of one kind that it is about; damage is not summed up."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for passed in passed_over:
        kinds.setdefault((passed.reason, passed.name if passed.damaged else kind_of(passed.name)), []).append(
            passed.name
        )
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
