"""Read what `paddle.save` writes, `.pdparams`: a pickle of numpy's arrays, whose bytes are read where they lie."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from ema_cli.dataclass import dataclass
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
    arrays = _Arrays()
    try:
        root = arrays.described(root, "the array", _MAX_DEPTH)
    except CheckpointError as error:
        error.about(file.path)
        raise

    return TorchFile(file, root, locate_in(arrays.spans))


@dataclass(slots=True)
class _Arrays:
    """Describes arrays, and notes where the bytes of each lie: `spans`, by the keys of storages."""

    spans: dict[str, Span] = field(default_factory=dict)
    _known: dict[tuple[int, int], Any] = field(default_factory=dict)  # by a dict's id, and how deep more are looked at

    def described(self, value: Any, name: str, depth: int) -> Any:
        """Return a value with the description of a tensor in the place of each array.

        A tensor below the top is a tuple of its name in a program and its array.
        """
        match value:
            case dict() if depth:
                return self._of_dict(value, depth)
            case (str(), Inert(kind=kind) as array) if kind in _ARRAY:
                return self.described(array, name, depth)
            case Inert(kind=kind) if kind in _ARRAY:
                return _array(value, self.spans, name)
        return value

    def _of_dict(self, values: dict[Any, Any], depth: int) -> dict[Any, Any]:
        # Each once: many keys may lead to one dict, many of whose keys lead to one, and so on.
        place = id(values), depth
        if place not in self._known:
            self._known[place] = {key: self.described(inner, _called(key), depth - 1) for key, inner in values.items()}
        found: dict[Any, Any] = self._known[place]
        return found


def _called(key: Any) -> str:
    return key[:200] if isinstance(key, str) else "the array"


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
