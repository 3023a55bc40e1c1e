"""Specs, each kept once: a hundred thousand tensors have a few dozen."""

from __future__ import annotations

from dataclasses import dataclass, field

from ema_cli.checkpoint import DType, TensorSpec


@dataclass(slots=True)
class SpecTable:
    """The specs of one checkpoint's tensors."""

    # By text, whose hashes nobody can choose: those of numbers could all be made equal, which would take for ever.
    _known: dict[str, TensorSpec] = field(default_factory=dict)

    def spec(self, dtype: DType, shape: tuple[int, ...]) -> TensorSpec:
        """Return the spec with that dtype and shape."""
        key = f"{dtype.name}{shape}"
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = TensorSpec(dtype, shape)
        return found
