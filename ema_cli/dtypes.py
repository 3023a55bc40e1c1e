"""Element types of tensors: one row for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class DType:
    """An element type, under the name that safetensors gives it (C128 is ours), `bits` wide.

    Of the kinds, `packed` are numbers that mean something only together with others: too few bits, or with a scale.
    """

    name: str
    bits: int
    kind: Literal["float", "complex", "integer", "packed"]

    @property
    def averaged(self) -> bool:
        """Return whether tensors of this type are averaged; the others are copied from the newest."""
        return self.kind in ("float", "complex")

    @property
    def itemsize(self) -> int:
        """Return the size of an element in bytes, 1 for those that share a byte."""
        return max(self.bits // 8, 1)

    def nbytes(self, count: int) -> int:
        """Return the size of `count` elements in bytes."""
        return count * self.bits // 8


# In the order in which safetensors lays tensors out in a file.
DTYPES: Mapping[str, DType] = {
    dtype.name: dtype
    for dtype in (
        DType("C128", 128, "complex"),
        DType("U64", 64, "integer"),
        DType("I64", 64, "integer"),
        DType("F64", 64, "float"),
        DType("C64", 64, "complex"),
        DType("F32", 32, "float"),
        DType("U32", 32, "integer"),
        DType("I32", 32, "integer"),
        DType("BF16", 16, "float"),
        DType("F16", 16, "float"),
        DType("U16", 16, "integer"),
        DType("I16", 16, "integer"),
        DType("F8_E5M2FNUZ", 8, "packed"),
        DType("F8_E4M3FNUZ", 8, "packed"),
        DType("F8_E8M0", 8, "packed"),
        DType("F8_E4M3", 8, "packed"),
        DType("F8_E5M2", 8, "packed"),
        DType("I8", 8, "integer"),
        DType("U8", 8, "integer"),
        DType("F6_E3M2", 6, "packed"),
        DType("F6_E2M3", 6, "packed"),
        DType("F4", 4, "packed"),
        DType("BOOL", 8, "integer"),
    )
}
