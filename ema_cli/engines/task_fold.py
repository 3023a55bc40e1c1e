"""Fold the range of a task into the files of its outputs, for a worker, a part, and whoever compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ema_cli.dataclass import dataclass
from ema_cli.dtypes import DType
from ema_cli.engines.records import BlockSum
from ema_cli.engines.task_checksums import TaskChecksums
from ema_cli.engines.work import Work
from ema_cli.folding.fold import Average, Folded, fold
from ema_cli.folding.sample import Parts
from ema_cli.folding.sink import Sink
from ema_cli.system.progress import ProgressCallback
from ema_cli.writing.outputs import Output


@dataclass(frozen=True, slots=True)
class TaskFolded:
    """What the fold of a task has done, and the checksums of what it read; none where nobody wants them."""

    folded: Folded
    checksums: list[BlockSum]


def fold_task(
    work: Work,
    outputs: Sequence[Output],
    sinks: Sequence[Sink],
    parts: Parts | None,
    check: Callable[[], None] | None,
    progress: ProgressCallback,
) -> TaskFolded:
    """Fold the range of a task into a sink for each average.

    Args:
        work: the averaging.
        outputs: its outputs, with the files of the task alone.
        sinks: take the bytes.
        parts: the elements of a stretch; None for all.
        check: called before each block; may raise.
        progress: called now and then.
    """
    targets: Mapping[str, DType] = outputs[0].dtypes
    if parts is not None:
        targets = {name: dtype for name, dtype in targets.items() if name in parts.parts}
    checksums = None
    if work.checksum:
        everything = work.outputs[0].dtypes
        checksums = TaskChecksums(work.checkpoints, everything, work.copied, targets, parts)
    folded = fold(
        work.checkpoints,
        [Average(weights, sink) for weights, sink in zip(work.weights, sinks, strict=True)],
        targets,
        copied=work.copied,
        allow_non_finite=work.allow_non_finite,
        sample=parts,
        sizes=work.sizes,
        checksums=checksums.checksums if checksums is not None else None,
        check=check,
        progress=progress,
    )
    done = TaskFolded(folded, checksums.sums() if checksums is not None else [])
    for file in {file.path: file for checkpoint in work.checkpoints for file in checkpoint.files}.values():
        file.check_unchanged()
    return done


def with_functions(work: Work, output: Output, number: int) -> Output:
    """Return an output with what says where in its files averaged tensors go, which does not travel."""
    likeness = output.likeness
    if likeness is None:
        return output
    from ema_cli.formats.copies.stored import StoredPiece, stored_pieces  # which most averages do not need

    tensors = work.checkpoints[work.newest[number]].tensors
    filled, pieces = set[object](), dict[str, list[StoredPiece]]()
    for name in likeness.pieces:  # of tied tensors, a place is the first one's
        pieces[name] = [piece for piece in stored_pieces(tensors, name) if piece.place not in filled]
        filled.update(piece.place for piece in pieces[name])
    return replace(output, likeness=replace(likeness, pieces=pieces))
