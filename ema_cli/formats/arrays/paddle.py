"""Read what `paddle.save` writes, `.pdparams`: a pickle of numpy's arrays, whose bytes are read where they lie."""

from __future__ import annotations

from typing import Any

from ema_cli.errors import CheckpointError, IncompleteCheckpoint
from ema_cli.formats.arrays.numpy_types import describe, dtype_of
from ema_cli.formats.pickles.unpickle import unpickle_around_bytes
from ema_cli.formats.pickles.values import Blob, Inert, PickleEnds, PickleError
from ema_cli.formats.torch_save.archive import Span
from ema_cli.formats.torch_save.content import TorchFile, locate_in
from ema_cli.storage.source import ByteSource

_ARRAY = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_NAMES = "StructuredToParameterName@@"  # what Paddle calls each parameter within a program; beside a state dict
_CUT = "UnpackBigParamInfor@@"  # where it cuts arrays of gigabytes, in old protocols of pickles
_MAX_DEPTH = 8
_OTHER_PROTOCOL = "load it with paddle.load, and save it again: paddle.save(state, path, protocol=4)"


def open_pdparams(file: ByteSource) -> TorchFile:
    """Read the descriptions of all arrays.

    Raises:
        IncompleteCheckpoint: where the pickle has no end.
        CheckpointError: for what is no pickle, and arrays that are not read.
    """
    try:
        root = unpickle_around_bytes(file)
    except PickleEnds as error:
        raise IncompleteCheckpoint(f"the pickle in it is cut short: {error}", subject=file.path) from error
    except PickleError as error:
        raise CheckpointError(f"the pickle in it cannot be read: {error}", subject=file.path) from error
    if isinstance(root, dict):
        if _CUT in root:
            raise CheckpointError("has large arrays in slices", subject=file.path, hint=_OTHER_PROTOCOL)
        root.pop(_NAMES, None)
    spans: dict[str, Span] = {}
    try:
        root = _described(root, spans, "the array", _MAX_DEPTH)
    except CheckpointError as error:
        error.about(file.path)
        raise

    return TorchFile(file, root, locate_in(spans))


def _described(value: Any, spans: dict[str, Span], name: str, depth: int) -> Any:
    """Return a value with the description of a tensor in the place of each array; note where the bytes of each lie.

    A tensor below the top is a tuple of its name in a program and its array.
    """
    match value:
        case dict() if depth:
            return {key: _described(inner, spans, str(key)[:200], depth - 1) for key, inner in value.items()}
        case (str(), Inert(kind=kind) as array) if kind in _ARRAY:
            return _described(array, spans, name, depth)
        case Inert(kind=kind) if kind in _ARRAY:
            return _array(value, spans, name)
    return value


def _array(array: Inert, spans: dict[str, Span], name: str) -> Any:
    """Return the description of an array, a text in the place of texts and times."""
    match array.state:
        case (int(), tuple(shape), dtype, bool(by_columns), data) if all(type(length) is int for length in shape):
            torch_dtype = dtype_of(_code(dtype), name)
        case _:
            raise CheckpointError(f"'{name}' is no array of numbers")
    if torch_dtype is None:
        return "text"
    if not isinstance(data, Blob):
        raise CheckpointError(f"'{name}' is not stored as bytes", hint=_OTHER_PROTOCOL)
    # Paddle has no type of unsigned numbers with 16 bits: bfloat16 lies under that name.
    torch_dtype = "bfloat16" if torch_dtype == "uint16" else torch_dtype
    spans[str(data.offset)] = data.offset, data.size
    return describe(str(data.offset), torch_dtype, shape, by_columns=by_columns)


def _code(dtype: Any) -> str:
    """Return numpy's code of a type, as `<f4`."""
    match dtype:
        case Inert(kind="numpy.dtype", args=(str(kind), *_), state=(int(), str(order), *_)):
            return f"{order}{kind}"
    return "?"
