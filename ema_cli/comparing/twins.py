"""Checks that need tensor data: checkpoints with the same clock are identical, alphas of LoRA adapters agree."""

from __future__ import annotations

from collections.abc import Sequence

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import RunError
from ema_cli.planning.plan import Plan
from ema_cli.runs.members import same_clock_error
from ema_cli.runs.tensor_rules import is_adapter

_BLOCK_ELEMENTS = 1 << 17


def check_twins(plans: Sequence[Plan]) -> None:
    """Check that checkpoints with the same clock are one state, saved twice.

    Raises:
        RunError: naming a tensor that differs.
    """
    for kept, other in dict.fromkeys(pair for plan in plans for pair in plan.twins):
        different = first_different_tensor(kept, other)
        if different is not None:
            run = plans[0].run
            raise same_clock_error(run.root, run.checkpoints, kept, other, different)


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
