"""What `verify` found, in sentences for people. No rich."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ema_cli.errors import printable
from ema_cli.text import plural, size, some

if TYPE_CHECKING:
    from ema_cli.release.verify import Verified

_MOST_PROBLEMS = 20


def verified_line(verified: Verified) -> str:
    """Return whether an average holds, in one line: it claims what was compared, and names what was not."""
    path = printable(verified.published.path.as_posix())
    if verified.problems:
        return f"{path}: does not hold: {plural(len(verified.problems), 'problem')}"
    parts = (plural(verified.files, "file"), plural(verified.tensors, "tensor"), size(verified.nbytes))
    clauses = [
        f"{path}: verified: {', '.join(parts)}",
        _against(verified),
        _signature(verified),
        _overruled(verified),
        _listed("not compared", verified.not_compared),
        _listed("no part of it", verified.snapshot.no_part),
    ]
    return "; ".join(filter(None, clauses))


def _overruled(verified: Verified) -> str:
    """Return by what the clocks that the checkpoints record were overruled, if they were."""
    by = printable(", ".join(verified.overruled))
    return f"its clocks are not those that the checkpoints record ({by})" if by else ""


def _against(verified: Verified) -> str:
    against = verified.against
    if against is None:
        return ""
    if not against.tensors:  # of what `watch` has folded, where some are gone
        left, are = plural(against.checkpoints, "input"), "is" if against.checkpoints == 1 else "are"
        return f"{left} of it {are} there unchanged, and the weights are those of the law"
    if against.sample is not None:
        elements, seed = against.sample.most_elements, printable(against.sample.seed)
        what = f"up to {elements:,} elements of each tensor (--seed {seed}) and the bytes around them are those"
    else:
        what = "tensors, and all files that were copied, are those" if verified.not_compared else "all bytes are those"
    return f"{what} of {plural(against.checkpoints, 'checkpoint')} averaged anew"


def _signature(verified: Verified) -> str:
    """Return whose signature the average has, or that nobody checked it; nothing if it has none."""
    signature = verified.signature
    if signature is None:
        return ""
    if signature.by is None:
        return f"its signature {printable(signature.name)} is not checked (--signed-by)"
    rest = f", but for {' and '.join(map(printable, signature.not_covered))}" if signature.not_covered else ""
    return f"signed by {printable(signature.by)}{rest}"


def _listed(what: str, names: Sequence[str]) -> str:
    return f"{what}: {printable(some(names))}" if names else ""


def problem_lines(verified: Verified) -> list[str]:
    """Return what does not hold of an average, the first of it."""
    problems = verified.problems
    rest = [f"and {len(problems) - _MOST_PROBLEMS:,} more"] if len(problems) > _MOST_PROBLEMS else []
    return [*problems[:_MOST_PROBLEMS], *rest]


def problem_count(averages: Sequence[Verified]) -> int:
    """Return how many problems several averages have."""
    return sum(len(verified.problems) for verified in averages)


def not_verified(averages: Sequence[Verified]) -> str:
    """Return in one sentence which averages do not hold; of a single problem, what it is."""
    wrong, count = [verified for verified in averages if verified.problems], problem_count(averages)
    if count == 1:
        return wrong[0].problems[0]
    paths = some([verified.published.path.as_posix() for verified in wrong])
    return f"{paths}: {'does' if len(wrong) == 1 else 'do'} not hold: {count} problems"
