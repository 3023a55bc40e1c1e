"""What must be equal between checkpoints and only their tensors tell: twins of one clock, the scales of an adapter."""

from __future__ import annotations

from collections.abc import Sequence

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import RunError
from ema_cli.planning.plan import Plan
from ema_cli.runs.tensor_rules import is_adapter

_BLOCK_ELEMENTS = 1 << 17


def check_twins(plans: Sequence[Plan]) -> None:
    """Check that checkpoints with one clock are one state, saved twice."""
    pairs = {(id(kept), id(other)): (kept, other) for plan in plans for kept, other in plan.twins}
    for kept, other in pairs.values():
        different = compare_tensors(kept, other)
        if different is not None:
            raise RunError(
                f"has the same clock as {kept.name}, but '{different}' differs",
                subject=other.path,
                hint="these are two runs, or two branches of one: name the checkpoints of one",
            )


def check_alphas(checkpoints: Sequence[Checkpoint]) -> None:
    """Check that the scales of a LoRA, which some trainers store as tensors, are those of one adapter."""
    newest = checkpoints[-1]
    specs = newest.tensors.specs
    for name in specs if is_adapter(specs) else ():
        if name.endswith(".alpha") and specs[name].count == 1:
            holders = [each for each in checkpoints if name in each.tensors.specs]
            if len({_read_bytes(each, name) for each in holders}) > 1:
                raise RunError(
                    f"'{name}' is not the same in all checkpoints",
                    subject=newest.path,
                    hint="these are adapters of different scales; average those of one",
                )


def compare_tensors(one: Checkpoint, other: Checkpoint) -> str | None:
    """Return the name of the first tensor whose bytes differ, None if all are equal."""
    if one.tensors.specs != other.tensors.specs:
        return next(iter(one.tensors.specs.keys() ^ other.tensors.specs.keys()), "") or next(
            name for name, spec in one.tensors.specs.items() if other.tensors.specs[name] != spec
        )
    for name, spec in one.tensors.specs.items():
        step = _BLOCK_ELEMENTS * spec.dtype.itemsize
        for start in range(0, spec.nbytes, step):
            size = min(step, spec.nbytes - start)
            mine, theirs = bytearray(size), bytearray(size)
            one.tensors.read_into(name, start, memoryview(mine))
            other.tensors.read_into(name, start, memoryview(theirs))
            if mine != theirs:
                return name
    return None


def _read_bytes(checkpoint: Checkpoint, name: str) -> bytes:
    stored = bytearray(checkpoint.tensors.specs[name].nbytes)
    checkpoint.tensors.read_into(name, 0, memoryview(stored))
    return bytes(stored)
