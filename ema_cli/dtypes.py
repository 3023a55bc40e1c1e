"""Element types of tensors: one row for each, with the names that safetensors, torch and numpy give it.

A new type is a row of `DTYPES`; one that numpy does not know also needs its conversions in `folding/kernel`. Neither
torch nor numpy is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from ema_cli.dataclass import dataclass
from ema_cli.errors import UsageError


@dataclass(frozen=True, eq=False, slots=True)
class DType:
    """An element type. Equal to itself alone, also after it was pickled or copied.

    Attributes:
        name: safetensors' name of it. C128 is ours: safetensors has no such type.
        bits: size of an element.
        kind: float and complex elements are averaged, integers and booleans are copied. "packed" elements have too few
            bits to be averaged, or mean something only together with a scale.
        torch: torch's name, None where torch has no such type.
        torch_storage: the class of the storages that torch pickles for it, None where those are untyped.
        numpy: numpy's name of the numbers as they are stored, None where numpy has none. Of complex elements: of each
            of the two parts.
        exponent_bits: bits of the exponent of a float, or of each part of a complex element.
        in_safetensors: whether a safetensors file can hold it.
        torch_group: how many elements torch counts as one.
    """

    name: str
    bits: int
    kind: Literal["float", "complex", "integer", "packed"]
    torch: str | None = None
    torch_storage: str | None = None
    numpy: str | None = None
    exponent_bits: int = 0
    in_safetensors: bool = True
    torch_group: int = 1

    @property
    def averaged(self) -> bool:
        """Return whether tensors of this type are averaged; the others are copied from the newest checkpoint."""
        return self.kind in ("float", "complex")

    @property
    def is_narrow(self) -> bool:
        """Return whether this is a float that is averaged in a wider type, float32."""
        return self.kind == "float" and self.bits < 32

    @property
    def itemsize(self) -> int:
        """Return the size of an element in bytes, 1 for elements that share a byte."""
        return max(self.bits // 8, 1)

    @property
    def components(self) -> int:
        """Return how many real numbers make one element: 2 for complex types, which are averaged part by part."""
        return 2 if self.kind == "complex" else 1

    @property
    def component_bits(self) -> int:
        """Return the size in bits of one of the real numbers that make an element."""
        return self.bits // self.components

    @property
    def exponent_mask(self) -> int:
        """Return the bits of the exponent, as a mask over the bits of one component.

        They are all set in NaN and infinity, and only there. For F16, with 5 bits of exponent above 10 of mantissa:
        0b0_11111_0000000000.
        """
        return ((1 << self.exponent_bits) - 1) << self._mantissa_bits

    @property
    def overflow(self) -> float:
        """Return the magnitude from which on rounding a float64 to this type gives infinity.

        Half a step above the largest number, as ties round to even. For F16: the largest is 65504, steps are 32 there,
        so 65520. For F64 it is infinity.
        """
        largest_exponent = 2 ** (self.exponent_bits - 1) - 1
        return (2 - 2.0 ** -(self._mantissa_bits + 1)) * float(2**largest_exponent)

    @property
    def precision(self) -> float:
        """Return the largest relative error of rounding to this type."""
        return 2.0 ** -(self._mantissa_bits + 1)

    @property
    def _mantissa_bits(self) -> int:
        return self.component_bits - self.exponent_bits - 1

    def nbytes(self, count: int) -> int:
        """Return the size of `count` elements in bytes."""
        return count * self.bits // 8

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return _row, (self.name,)


# In the order in which safetensors lays tensors out in a file.
DTYPES: Mapping[str, DType] = {
    dtype.name: dtype
    for dtype in (
        DType("C128", 128, "complex", "complex128", "ComplexDoubleStorage", "<f8", 11, in_safetensors=False),
        DType("U64", 64, "integer", "uint64"),
        DType("I64", 64, "integer", "int64", "LongStorage"),
        DType("F64", 64, "float", "float64", "DoubleStorage", "<f8", 11),
        DType("C64", 64, "complex", "complex64", "ComplexFloatStorage", "<f4", 8),
        DType("F32", 32, "float", "float32", "FloatStorage", "<f4", 8),
        DType("U32", 32, "integer", "uint32"),
        DType("I32", 32, "integer", "int32", "IntStorage"),
        DType("BF16", 16, "float", "bfloat16", "BFloat16Storage", None, 8),
        DType("F16", 16, "float", "float16", "HalfStorage", "<f2", 5),
        DType("U16", 16, "integer", "uint16"),
        DType("I16", 16, "integer", "int16", "ShortStorage"),
        DType("F8_E5M2FNUZ", 8, "packed", "float8_e5m2fnuz"),
        DType("F8_E4M3FNUZ", 8, "packed", "float8_e4m3fnuz"),
        DType("F8_E8M0", 8, "packed", "float8_e8m0fnu"),
        DType("F8_E4M3", 8, "packed", "float8_e4m3fn"),
        DType("F8_E5M2", 8, "packed", "float8_e5m2"),
        DType("I8", 8, "integer", "int8", "CharStorage"),
        DType("U8", 8, "integer", "uint8", "ByteStorage"),
        DType("F6_E3M2", 6, "packed"),
        DType("F6_E2M3", 6, "packed"),
        DType("F4", 4, "packed", "float4_e2m1fn_x2", torch_group=2),
        DType("BOOL", 8, "integer", "bool", "BoolStorage"),
    )
}

TORCH_DTYPES: Mapping[str, DType] = {dtype.torch: dtype for dtype in DTYPES.values() if dtype.torch is not None}

# The types that the averaged floats of an output can be converted to, by the names under which users know them.
OUTPUT_DTYPES: Mapping[str, DType] = {name: TORCH_DTYPES[name] for name in ("float32", "bfloat16", "float16")}
_SHORT_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "float": "float32", "half": "float16"}


def output_dtype(name: str) -> DType:
    """Return the dtype that users know as `name`, as bfloat16 or bf16, to write floating tensors in.

    Raises:
        UsageError: for a type that cannot be written.
    """
    dtype = OUTPUT_DTYPES.get(_SHORT_NAMES.get(name.lower(), name.lower()))
    if dtype is None:
        raise UsageError(f"'{name}' cannot be written", option="dtype", hint=f"one of {', '.join(OUTPUT_DTYPES)}")
    return dtype


def _row(name: str) -> DType:
    return DTYPES[name]
