"""Checks that need tensor data: checkpoints with the same clock are identical, alphas of LoRA adapters agree."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import RunError, option
from ema_cli.formats.trainers.names import name_clocks
from ema_cli.law.time import Time, Unit
from ema_cli.planning.plan import Plan
from ema_cli.runs.entering import is_best
from ema_cli.runs.members import same_clock_error
from ema_cli.runs.name_numbers import advise_name_clock
from ema_cli.runs.run import Run
from ema_cli.runs.spacing import measure_spacing
from ema_cli.runs.tensor_rules import is_adapter
from ema_cli.text import plural

_BLOCK_ELEMENTS = 1 << 17


def check_twins(plans: Sequence[Plan]) -> None:
    """Check that checkpoints with the same clock are one state, saved twice.

    Raises:
        RunError: naming a tensor that differs.
    """
    by_pair = {pair: plan for plan in plans for pair in plan.twins}
    for (kept, other), plan in by_pair.items():
        different = first_different_tensor(kept, other)
        if different is not None:
            run, unit = plan.run, plan.entries[-1].clock.unit
            alike = kept.tensors.specs == other.tensors.specs
            advice = advise_name_clock(run.checkpoints, unit, apart=(kept, other)) if alike else None
            advice = advice or (_count_anew(run, kept, other, unit) if alike else None)
            raise same_clock_error(run.root, run.checkpoints, kept, other, different, advice)


def check_copies(plan: Plan) -> None:
    """Check that what was passed over for want of a clock is a copy of a checkpoint of the run, not its newest state.

    A best one may be of any moment, and is none to miss.

    Raises:
        RunError: naming one that is equal to no checkpoint, unless the plan stops before the newest.
    """
    run = plan.run
    if plan.recipe.stop is not None:
        return
    for unclocked in run.uncompared:
        if not is_best(unclocked) and all(
            first_different_tensor(checkpoint, unclocked) for checkpoint in reversed(run.checkpoints)
        ):
            others = plural(len(run.checkpoints), "checkpoint")
            ignored = f"has no clock, as recorded ones are ignored ({option('ignore_clocks', True)})"
            raise RunError(
                f"{ignored if run.options.ignore_clocks else 'records no clock'}, and is equal to none of {others}: "
                "it may be the newest",
                subject=unclocked.path,
                hint=f"leave it out: {option('exclude', unclocked.name)}{_as_newest(run)}",
            )


def check_averages_move(plan: Plan) -> None:
    """Check that averages which the user asks for are not one model that stays as it is, as a frozen teacher does.

    Raises:
        RunError: where the first and the last that enter are equal.
    """
    first, last = plan.entries[0].checkpoint, plan.entries[-1].checkpoint
    if plan.run.options.read.weights != "ema" or first is last or not (first.holds_both and last.holds_both):
        return
    if first_different_tensor(first, last) is None:
        raise RunError(
            f"has the same averages as {first.name}: a model that training leaves as it is, not its average",
            subject=last.path,
            hint=f"average the weights that are trained: {option('weights', 'raw')}",
        )


def _count_anew(run: Run, kept: Checkpoint, other: Checkpoint, unit: Unit) -> str | None:
    """Return the advice for steps that begin again in each epoch, where the epochs are folders; None where not."""
    inner, outer = kept.path.parent, other.path.parent
    clocks, others = name_clocks(inner.name).clocks, name_clocks(outer.name).clocks
    if inner == outer or not clocks or clocks.keys() != others.keys():
        return None
    inside = sorted(
        checkpoint.clock(unit) or Fraction(0) for checkpoint in run.checkpoints if checkpoint.path.parent == inner
    )
    spacing = measure_spacing(inside)
    if spacing is None:
        return None
    spaced = f"{option('spacing', str(Time(spacing.usual, unit)))} {option('ignore_clocks', True)}"
    return f"they may begin again in {outer.name}; where no checkpoint is missing, count anew: {spaced}"


def _as_newest(run: Run) -> str:
    """Return how a checkpoint without a clock is made the newest of a run: by the order of the names."""
    if run.options.spacing is not None:
        how = option("spacing", str(run.options.spacing))
        how += f" {option('ignore_clocks', True)}" if run.options.ignore_clocks else ""
    else:
        unit = run.units[0]
        spacing = measure_spacing([checkpoint.clock(unit) or Fraction(0) for checkpoint in run.checkpoints])
        if spacing is None:
            return ""
        how = f"{option('ignore_clocks', True)} and {option('spacing', str(Time(spacing.usual, unit)))}"
    return f"; or let it be the newest: name all the files, with {how}"


def check_alphas(checkpoints: Sequence[Checkpoint]) -> None:
    """Check that all checkpoints of a LoRA adapter have the same scales, which some trainers store as tensors.

    Raises:
        RunError: naming a scale that differs.
    """
    newest = checkpoints[-1]
    specs = newest.tensors.specs
    for name in specs if is_adapter(specs) else ():
        if name.endswith(".alpha") and specs[name].count == 1:
            holders = [checkpoint for checkpoint in checkpoints if name in checkpoint.tensors.specs]
            if len({_read_bytes(checkpoint, name) for checkpoint in holders}) > 1:
                raise RunError(
                    f"'{name}' is not the same in all checkpoints",
                    subject=newest.path,
                    hint="these are adapters of different scales; average those of one",
                )


def first_different_tensor(one: Checkpoint, other: Checkpoint) -> str | None:
    """Return the name of the first tensor whose spec or bytes differ, None if all are equal."""
    specs, other_specs = one.tensors.specs, other.tensors.specs
    for name in dict.fromkeys((*specs, *other_specs)):
        if specs.get(name) != other_specs.get(name):
            return name
    return next((name for name in specs if not _have_equal_bytes(one, other, name)), None)


def _have_equal_bytes(one: Checkpoint, other: Checkpoint, name: str) -> bool:
    """Return whether a tensor that has one spec in both has the same bytes, block by block."""
    spec = one.tensors.specs[name]
    step = _BLOCK_ELEMENTS * spec.dtype.itemsize
    for start in range(0, spec.nbytes, step):
        size = min(step, spec.nbytes - start)
        blocks = bytearray(size), bytearray(size)
        for checkpoint, block in zip((one, other), blocks, strict=True):
            checkpoint.tensors.read_into(name, start, memoryview(block))
        if blocks[0] != blocks[1]:
            return False
    return True


def _read_bytes(checkpoint: Checkpoint, name: str) -> bytes:
    stored = bytearray(checkpoint.tensors.specs[name].nbytes)
    checkpoint.tensors.read_into(name, 0, memoryview(stored))
    return bytes(stored)
