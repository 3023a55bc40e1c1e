"""What happens to a NaN or an infinity: refused with an error, or noted where it is let through.

An infinity that is equal in all checkpoints, as in an attention mask, is kept and noted; a sum that overflows on the
way to a finite average is mended (kernel/settling.py). All else that is not finite is an error that names checkpoint,
tensor and element; with leave of the user it is written as IEEE arithmetic has it, and the tensor is noted.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from glob import escape

from ema_cli.checkpoint import Checkpoint, Tensors
from ema_cli.errors import NonFiniteError, option
from ema_cli.folding.blocks import Block
from ema_cli.folding.kernel import NOBODY, NonFiniteElements

_RANGE = 1e30  # float16 reaches less far; bfloat16 and float32 reach equally far


class NonFinite:
    """The tensors of one average that hold NaN or infinity. Noted from several threads.

    Attributes:
        let_through: those with a NaN or infinity that would be an error.
        infinite: those with an infinity that is equal in all checkpoints.
    """

    def __init__(self, checkpoints: Sequence[Checkpoint], *, allowed: bool) -> None:
        self.let_through: set[str] = set()
        self.infinite: set[str] = set()
        self._checkpoints = checkpoints
        self._allowed = allowed
        self._lock = threading.Lock()

    @property
    def names(self) -> set[str]:
        """Return all these tensors."""
        return self.let_through | self.infinite

    def note(self, block: Block, elements: NonFiniteElements) -> None:
        """Note the tensors that hold these elements of a block.

        Raises:
            NonFiniteError: for the first element that is not allowed.
        """
        if len(elements.infinite):
            with self._lock:
                self.infinite.update(block.names_of(elements.infinite))
        if not len(elements.wrong):
            return
        if not self._allowed:
            raise self._error(block, elements)
        with self._lock:
            self.let_through.update(block.names_of(elements.wrong))

    def _error(self, block: Block, elements: NonFiniteElements) -> NonFiniteError:
        """Return the error for the first of the elements."""
        first = int(elements.wrong.argmin())
        name, element = block.find(int(elements.wrong[first]))
        culprit = int(elements.culprits[first])
        if culprit == NOBODY:
            return NonFiniteError(
                f"'{name}' is too large for {block.target.name} at element {element} of the average",
                hint=f"write a wider type: {option('dtype', 'float32')} or bfloat16"
                if block.target.is_narrow and block.target.overflow < _RANGE
                else f"no type that is written holds more: weights that reach less far from an average, or let it "
                f"pass with {option('allow_non_finite', True)}",
            )
        base = self._checkpoints[culprit].base
        if base is not None and _is_wrong(base.tensors, name, element):
            return NonFiniteError(
                f"'{name}' is not finite at element {element}",
                subject=base.path,
                hint=f"merge into another base model, {option('merge_into', 'BASE')}, or let it pass with "
                f"{option('allow_non_finite', True)}",
            )
        return NonFiniteError(
            f"'{name}' is not finite at element {element}",
            subject=self._checkpoints[culprit].path,
            hint=f"leave it out with {option('exclude', escape(self._checkpoints[culprit].name))}, or let "
            f"it pass with {option('allow_non_finite', True)}",
        )


def _is_wrong(tensors: Tensors, name: str, element: int) -> bool:
    """Return whether an element of a tensor is NaN or infinite, as it is stored."""
    spec = tensors.specs.get(name)
    if spec is None or spec.dtype.kind != "float":
        return False
    import numpy as np  # which nothing needs that is finite

    from ema_cli.folding.kernel.floats import decode

    stored, value = np.empty(spec.dtype.itemsize, np.uint8), np.empty(1)
    tensors.read_into(name, element * spec.dtype.itemsize, stored.data)
    decode(spec.dtype, stored, value)
    return not np.isfinite(value).all()
