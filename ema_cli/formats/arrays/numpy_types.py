"""Arrays of numpy's, described as torch's tensors are: by numpy's names of their types. Nothing is evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from ema_cli.checkpoint import MAX_DIMENSIONS, MAX_ELEMENTS
from ema_cli.dtypes import TORCH_DTYPES
from ema_cli.errors import CheckpointError
from ema_cli.formats.pickles.values import Storage, TensorRef

# numpy's codes, without the order of the bytes. It has none for bfloat16: ml_dtypes stores it as two bytes of no type.
_CODES: Mapping[str, str] = {
    "b1": "bool", "i1": "int8", "i2": "int16", "i4": "int32", "i8": "int64",
    "u1": "uint8", "u2": "uint16", "u4": "uint32", "u8": "uint64",
    "f2": "float16", "f4": "float32", "f8": "float64", "c8": "complex64", "c16": "complex128", "V2": "bfloat16",
}  # fmt: skip
_NO_NUMBERS = ("S", "U", "M", "m")  # texts and times
OTHER_SAVE = "save the arrays anew, as numbers of a type that torch has"


def dtype_of(code: str, name: str) -> str | None:
    """Return torch's name of the type that numpy writes as `<f4` and the like; None for texts and times.

    Raises:
        CheckpointError: about the array called `name`, for a type that no tensor has.
    """
    order, kind = (code[0], code[1:]) if code[:1] in "<>|=" else ("<", code)
    if kind.startswith("O"):
        raise CheckpointError(
            f"'{name}' holds Python objects, which only running what is in the file could read",
            hint="save numbers alone: without allow_pickle, numpy refuses to write anything else",
        )
    if kind[:1] in _NO_NUMBERS:
        return None
    dtype = _CODES.get(kind)
    if dtype is None:
        raise CheckpointError(f"'{name}' is of numpy's type '{code[:40]}', which no tensor has", hint=OTHER_SAVE)
    if order == ">" and TORCH_DTYPES[dtype].bits > 8:
        raise CheckpointError(f"'{name}' has its bytes in big-endian order", hint=OTHER_SAVE)
    return dtype


def describe(key: str, dtype: str, shape: tuple[int, ...], *, by_columns: bool = False) -> TensorRef:
    """Return the description of an array that has the storage `key` for itself.

    Args:
        key: says where the bytes lie.
        dtype: torch's name of the type.
        shape: its shape.
        by_columns: whether the first index runs fastest, as in Fortran.

    Raises:
        CheckpointError: for a shape that no tensor has.
    """
    # Before anything is multiplied: a file can describe any number of lengths in a few bytes.
    is_shape = len(shape) <= MAX_DIMENSIONS and all(0 <= length <= MAX_ELEMENTS for length in shape)
    if not is_shape or (count := prod(shape)) > MAX_ELEMENTS:
        shown = [length if abs(length) <= MAX_ELEMENTS else "..." for length in shape[:4]]
        raise CheckpointError(f"an array has {len(shape)} dimensions, {shown} first, which no tensor has")
    order = shape if by_columns else shape[::-1]
    strides, step = [], 1
    for length in order:
        strides.append(step)
        step *= max(length, 1)
    return TensorRef(Storage(dtype, key, count), dtype, 0, shape, tuple(strides if by_columns else strides[::-1]))
