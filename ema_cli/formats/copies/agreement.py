"""Whether the weights that an optimizer keeps in float32 are those of the model: rounded to its type, they are equal.

A few numbers of a few tensors show it: those of another save differ nearly everywhere.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ema_cli.checkpoint import Checkpoint
from ema_cli.dtypes import DTYPES
from ema_cli.errors import CheckpointError, option
from ema_cli.formats.copies.stored import NotWrittenBack, StoredPiece, copied_pieces
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.rounding import MAGNITUDE, ROUNDED, round_to, steps_apart

_WIDE = DTYPES["F32"]
_MOST_TENSORS = 16
_MOST_ELEMENTS = 1024  # of each piece
_REPEATED = 4  # times that each number stands in a sample of weights in 8 bits, or more; of those in 16 hardly twice
# How many numbers that share a scale, and how many sizes they have at most: NVFP4 and MXFP4, 8 bits in blocks of 128.
_SCALED = ((16, 8), (128, 64))
_FEWEST_BLOCKS = 4
_OTHER_SAVES = "model and optimizer are of different saves, or one is damaged: bring whole copies of both"


def check_agreement(checkpoint: Checkpoint, options: ReadOptions) -> Checkpoint:
    """Return the checkpoint, with a warning where the model's weights are not its float32 weights, rounded.

    Raises:
        CheckpointError: where they are more than one step of their type apart, which no way of rounding does, but to
            8 bits: where a training keeps its weights so, as Megatron may, they are saved widened.
    """
    specs = checkpoint.tensors.specs
    names = [name for name, spec in specs.items() if spec.dtype == _WIDE and spec.count]
    apart: list[str] = []
    coarse: list[str] = []
    for name in names[:: -(-len(names) // _MOST_TENSORS) or 1]:
        for piece in _narrow(checkpoint, name):
            steps, is_coarse = _steps(checkpoint, name, piece)
            if max(steps, default=0) > 1 and is_coarse:
                coarse.append(f"'{name}' in {piece.file.path.name}")
            elif max(steps, default=0) > 1:
                at = max(range(len(steps)), key=steps.__getitem__)
                raise CheckpointError(
                    f"'{name}' is not its float32 weight, rounded: number {at} of what {piece.file.path.name} has is "
                    f"{steps[at]} steps of {piece.spec.dtype.torch} off",
                    subject=checkpoint.path,
                    hint=f"{_OTHER_SAVES}{_or_without(options)}",
                )
            elif any(steps):
                apart.append(f"'{name}' in {piece.file.path.name}")
    warnings = [
        f"{place} is not its float32 weight rounded to nearest, but {what}, or model and optimizer are of different "
        "saves"
        for place, what in (
            *((place, "the number beside it: the trainer rounds otherwise") for place in apart[:1]),
            *((place, "to one of few numbers: the model is trained in 8 bits or fewer") for place in coarse[:1]),
        )
    ]
    return replace(checkpoint, warnings=(*checkpoint.warnings, *warnings)) if warnings else checkpoint


def _or_without(options: ReadOptions) -> str:
    return f"; or average the model's own weights: leave out {option('masters', True)}" if options.masters else ""


def _narrow(checkpoint: Checkpoint, name: str) -> Iterator[StoredPiece]:
    """Yield what lies of a tensor in half precision, in order."""
    try:
        pieces = list(copied_pieces(checkpoint.tensors, name))
    except NotWrittenBack:
        return
    yield from (
        piece
        for piece in pieces
        if piece.spec.dtype.name in ROUNDED and not (piece.strides or piece.conjugate or piece.negative)
    )


def _steps(checkpoint: Checkpoint, name: str, piece: StoredPiece) -> tuple[list[int], bool]:
    """Return how far some numbers of a piece are from what their float32 ones round to, and whether they are few."""
    inner, whole, count = next(piece.parts(0, checkpoint.tensors.specs[name].count), (0, 0, 0))
    count = min(count, _MOST_ELEMENTS)
    wide = bytearray(count * _WIDE.itemsize)
    checkpoint.tensors.read_into(name, whole * _WIDE.itemsize, memoryview(wide))
    dtype = piece.spec.dtype
    stored = array("H", piece.file.read(piece.base + dtype.nbytes(inner), dtype.nbytes(count)))
    steps = steps_apart(dtype.name, round_to(dtype.name, bytes(wide)), stored)
    return steps, len(set(stored)) * _REPEATED <= count or any(_are_scaled(stored, *each) for each in _SCALED)


def _are_scaled(stored: Sequence[int], block: int, few: int) -> bool:
    """Return whether each block of numbers, of which there are some, has few sizes, as those that share a scale do."""
    begins = range(0, len(stored) - block + 1, block)
    return len(begins) >= _FEWEST_BLOCKS and all(
        len({bits & MAGNITUDE for bits in stored[at : at + block]}) <= few for at in begins
    )
