"""What the ranks have of one tensor: which boxes, which of them several ranks have, and whether these may differ."""

from __future__ import annotations

from array import array
from collections.abc import Container, Iterator
from dataclasses import field
from itertools import groupby
from math import prod

from ema_cli.checkpoint import TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.errors import OTHER_SAVES, option
from ema_cli.formats.boxes import Box
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.pieces.copies import CopyCheck
from ema_cli.formats.pieces.tensors import boxes_in
from ema_cli.formats.trainers.names import BATCH_STATISTICS


@dataclass(slots=True)
class Stored:
    """A tensor as far as it is known.

    Attributes:
        spec: dtype and shape of the whole.
        is_cut: whether ranks say of it that they share it: then it is a parameter.
        numbers: for each box that of its file, its first byte there, its offsets and its lengths.
    """

    spec: TensorSpec
    is_cut: bool
    numbers: array[int] = field(default_factory=lambda: array("q"))

    def boxes(self) -> Iterator[tuple[int, int, Box]]:
        """Yield the boxes, each with the number of its file and its first byte there."""
        return boxes_in(self.numbers, self.spec.shape)

    def repeated(self) -> Iterator[tuple[int, list[tuple[int, int, Box]]]]:
        """Yield each box with all ranks that have it, in the order of their files; before it, its size in bytes."""
        boxes = sorted(self.boxes(), key=lambda placed: (placed[2].offsets, placed[2].shape, placed[0]))
        for (_, shape), alike in groupby(boxes, key=lambda placed: (placed[2].offsets, placed[2].shape)):
            yield self.spec.dtype.nbytes(prod(shape)), list(alike)

    def once(self, copies: CopyCheck) -> tuple[list[tuple[int, int, Box]], int | None]:
        """Return each box once, from the first rank that has it, and the number of a file in which one differs."""
        kept: list[tuple[int, int, Box]] = []
        different = None
        for size, (first, *others) in self.repeated():
            kept.append(first)
            for other in others:
                if different is None and not copies.alike(size, first[:2], other[:2]):
                    different = other[0]
        return kept, different

    def is_refused(self, name: str, cutting: Container[str], options: ReadOptions) -> bool:
        """Return whether ranks must not differ in it, as in a parameter, or in what may be one.

        Where a module has parameters that are cut, what it has whole is no parameter, but a buffer.

        Args:
            name: its name.
            cutting: the modules that have parameters that are cut.
            options: which tensors the user wants copied.
        """
        if self.is_cut:
            return True
        around, _, last = name.rpartition(".")
        is_buffer = not self.spec.dtype.averaged or last in BATCH_STATISTICS or around in cutting
        return not is_buffer and not options.copies(name)

    def hint(self, name: str) -> str:
        """Say what to do where ranks differ in it, and must not."""
        if self.is_cut:
            return OTHER_SAVES
        return f"where it is a buffer that each rank counts for itself, copy it from the first: {option('copy', name)}"
