"""What is worth saying about plans."""

from __future__ import annotations

from collections.abc import Sequence

from ema_cli.planning.plan import Plan
from ema_cli.runs.warnings import _grouped


def twin_warnings(plans: Sequence[Plan]) -> list[str]:
    """Return what a dry run leaves open: whether checkpoints with one clock have equal tensors."""
    text = "shares its clock with another checkpoint; averaging compares their tensors"
    twins = dict.fromkeys(other.name for plan in plans for _, other in plan.twins)
    return [f"{names}: {text}" for text, names in _grouped([(text, name) for name in twins])]


def non_finite_warnings(names: Sequence[str]) -> list[str]:
    """Return which tensors hold what is no number, and was let through."""
    return [f"'{name}' holds NaN or infinity" for name in names]
