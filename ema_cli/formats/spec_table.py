"""The specs of the tensors of a checkpoint, of which most are alike."""

from __future__ import annotations

from dataclasses import field

from ema_cli.checkpoint import TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.dtypes import DType


@dataclass(slots=True)
class SpecTable:
    """The specs of one checkpoint's tensors: equal ones are one object."""

    # Keyed by text: Python randomises the hashes of str; ints from a hostile file could be chosen to collide.
    _known: dict[str, TensorSpec] = field(default_factory=dict)

    def spec(self, dtype: DType, shape: tuple[int, ...]) -> TensorSpec:
        """Return the spec with that dtype and shape."""
        key = f"{dtype.name}{shape}"
        spec = self._known.get(key)
        if spec is None:
            spec = self._known[key] = TensorSpec(dtype, shape)
        return spec
