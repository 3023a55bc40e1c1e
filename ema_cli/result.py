"""What one averaging did, for those who asked for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ema_cli.dataclass import dataclass
from ema_cli.manifest.types import Manifest
from ema_cli.planning.advice import non_finite_warnings
from ema_cli.text import plural, size
from ema_cli.writing.outputs import Output
from ema_cli.writing.target import Target

if TYPE_CHECKING:  # which few averages need
    from ema_cli.engines.part import Part
    from ema_cli.engines.sharing import WorkerShare


@dataclass(frozen=True, slots=True)
class PartDone:
    """A part of an average that is made.

    Attributes:
        part: which, and of how many.
        published: whether it was the last, and all is published.
        waiting: how many tasks of other parts are not done; none where another part is just publishing.
        others: in words, parts that were begun there, and make no whole with this one.
    """

    part: Part
    published: bool
    waiting: int
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """What was done.

    Attributes:
        tensors_averaged, tensors_copied: how many of each output.
        bytes_read, bytes_written: the latter of tensors and side files.
        peak_memory: of the process, in bytes.
        kernel: what did the arithmetic, for people; it does not show in the output.
        non_finite: names of the tensors with NaN or infinity that was let through.
        notes: what is worth knowing of the checkpoints, as their tensors show it, and no reason to warn.
        signed: whether each output has a signature.
        workers: what each worker did, where an engine was asked.
        part: which part this was, where it was one; then all but it may not be published yet.
        manifests: that of each output, its tensors left out.
        differing: what ranks have different values of, in words, as a comparison of all bytes showed.
    """

    target: Target
    outputs: Sequence[Output]
    tensors_averaged: int
    tensors_copied: int
    bytes_read: int
    bytes_written: int
    seconds: float
    peak_memory: int
    kernel: str
    non_finite: tuple[str, ...]
    manifests: Sequence[Manifest] = ()
    notes: tuple[str, ...] = ()
    signed: bool = False
    workers: tuple[WorkerShare, ...] = ()
    part: PartDone | None = None
    differing: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Return the result in one line: what was written, of how much, how fast."""
        return (
            f"<Result {self.target.path}: {plural(len(self.outputs), 'average')}, "
            f"read {size(self.bytes_read)} in {self.seconds:.2f} s, wrote {size(self.bytes_written)}>"
        )

    @property
    def bytes_per_second(self) -> int:
        """Return how fast the checkpoints were read."""
        return round(self.bytes_read / max(self.seconds, 1e-3))

    @property
    def warnings(self) -> list[str]:
        """Return what the averages should be warned of."""
        others = () if self.part is None else self.part.others
        return [*others, *self.differing, *non_finite_warnings(self.non_finite)]
