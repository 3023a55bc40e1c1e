"""The values that a pickle is read into: plain containers, inert placeholders, and descriptions of tensors.

The second half is a table of the few calls whose meaning is known: torch's recipes for a tensor, and plain containers.
Each function there describes the object that the call would build; none makes a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from ema_cli.checkpoint import MAX_DIMENSIONS
from ema_cli.dataclass import dataclass
from ema_cli.dtypes import DTYPES

_MAX_KEY = (1 << 61) - 1  # an integer below is its own hash
_SHAPES = 64  # that are kept; with so few no file can slow it by values whose hashes are equal
_STORAGE_DTYPES: Mapping[str, str | None] = {
    "UntypedStorage": None,
    **{dtype.torch_storage: dtype.torch for dtype in DTYPES.values() if dtype.torch_storage is not None},
}


class PickleError(Exception):
    """A pickle that cannot be read, and why."""


class PickleEnds(PickleError):
    """The file ends before the pickle does."""


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function that the pickle names, as 'module.name'. Never imported."""

    path: str


@dataclass(eq=False, slots=True, repr=False)
class Inert:
    """A placeholder for an object of an unknown class.

    Attributes:
        kind: the class, as 'module.name'.
        args: the arguments with which it would be called.
        items: the items that would be set, if any.
        values: the values that would be appended, if any.
        state: the state that it would be given.
    """

    kind: str
    args: tuple[Any, ...] = ()
    items: dict[Any, Any] | None = None
    values: list[Any] | None = None
    state: Any = None

    def __repr__(self) -> str:
        return f"<{self.kind}>"  # never its content, which may be endless


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes in the pickle itself that were not read: where in the file they begin, and how many there are."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Storage:
    """A block of bytes outside the pickle: `count` elements of `dtype` (torch's name), or bytes where that is None."""

    dtype: str | None
    key: str
    count: int


@dataclass(frozen=True, eq=False, slots=True)
class TensorRef:
    """The description of a tensor. `offset` and `strides` count elements of `dtype` (torch's name) in its storage."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    conjugate: bool = False
    negative: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Refused:
    """A tensor that cannot be read faithfully, and why. An error only where it is among the weights."""

    reason: str


@dataclass(frozen=True, eq=False, slots=True)
class Wrapped(Refused):
    """A tensor of a class of its own around others, as DTensor is: refused where nobody knows the class.

    Attributes:
        kind: the class, as 'module.name'.
        args: what the tensor is made of: its class, dtype, shape, strides, and more.
        state: its attributes, as unpickled.
    """

    kind: str
    args: tuple[Any, ...]
    state: Any


def checked_key(key: Any) -> Any:
    """Return `key` if it may be the key of a dict, else a placeholder for it.

    A hostile file could choose other keys so that all their hashes are equal, which makes a dict slow without end, or
    nest them so that hashing overflows the C stack.
    """
    if isinstance(key, str | bytes | None) or (isinstance(key, int) and abs(key) < _MAX_KEY):
        return key
    if isinstance(key, Name | Inert | Storage | TensorRef):
        return key
    if isinstance(key, dict):
        raise PickleError("it has a dict as a key")
    return Inert("key", (key,))  # whose hash is its identity


def storage_dtype(path: str) -> str | None:
    """Return torch's name of the dtype of a storage class, None for the untyped one."""
    storage = path.rpartition(".")[2]
    return _STORAGE_DTYPES.get(storage, storage)


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any = False, hooks: Any = None, bits: Any = None
) -> TensorRef | Refused:
    """Describe torch._utils._rebuild_tensor_v2."""
    if isinstance(storage, Storage) and storage.dtype is None:
        return Refused("its storage has no dtype")
    _check_autograd(grad, hooks)
    return _describe(storage, getattr(storage, "dtype", ""), offset, shape, strides, bits)


def _tensor_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, bits: Any = None
) -> TensorRef | Refused:
    """Describe torch._utils._rebuild_tensor_v3, which names the dtype of an untyped storage."""
    if not isinstance(dtype, Name):
        raise PickleError("a tensor has no dtype")
    _check_autograd(grad, hooks)
    return _describe(storage, dtype.path.removeprefix("torch."), offset, shape, strides, bits)


def _describe(storage: Any, dtype: str, offset: Any, shape: Any, strides: Any, bits: Any) -> TensorRef | Refused:
    if not isinstance(storage, Storage):
        return Refused("its storage is not stored in the file")
    shape, strides = _sizes(shape), _sizes(strides)
    if not (_sizes((offset,)) and len(shape) == len(strides) <= MAX_DIMENSIONS):
        raise PickleError("a tensor's shape and strides do not belong together")
    bits = bits or {}
    if not isinstance(bits, dict):
        raise PickleError("a tensor's lazy bits are no dict")
    return TensorRef(storage, dtype, offset, shape, strides, "conj" in bits, "neg" in bits)


def _sizes(values: Any) -> tuple[int, ...]:
    if isinstance(values, tuple):
        for value in values:
            if type(value) is not int or not 0 <= value < 1 << 63:
                break
        else:
            return _one_of(values)
    raise PickleError("a tensor's shape, strides or offset are not counts")


@lru_cache(_SHAPES)
def _one_of(values: tuple[int, ...]) -> tuple[int, ...]:
    """Return equal counts as one object: a model has many tensors, and few shapes."""
    return values


def _parameter(data: Any, grad: Any, hooks: Any, _state: Any = None) -> Any:
    """Describe torch._utils._rebuild_parameter, and the one with the attributes that Python code gave it."""
    _check_autograd(grad, hooks)
    return data


def _check_autograd(grad: Any, hooks: Any) -> None:
    # Their values do not matter. But other types in their places would mean that all arguments are shifted.
    if not isinstance(grad, bool) or not isinstance(hooks, dict | None):
        raise PickleError("a tensor's arguments are not those that torch gives")


def _with_type(function: Any, kind: Any, args: Any, state: Any = None, *_: Any) -> Any:
    """Describe torch._tensor._rebuild_from_type_v2(function, type, args, state); `state` is kept of wrappers only."""
    plain = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")
    path = getattr(function, "path", "")
    known = KNOWN_CALLS.get(path)
    if getattr(kind, "path", "") in plain and known in (_tensor, _tensor_v3, _parameter):
        return known(*args)
    name = getattr(kind, "path", "unknown")
    reason = f"it is of the tensor subclass {name}"
    if path == "torch._utils._rebuild_wrapper_subclass" and isinstance(args, tuple):
        return Wrapped(reason, name, args, state)
    return Refused(reason)


def _mapping(items: Any = (), *_: Any) -> dict[Any, Any]:
    pairs = items.items() if isinstance(items, dict) else items
    return {checked_key(key): value for key, value in pairs}


def _default_mapping(_factory: Any = None, items: Any = (), *_: Any) -> dict[Any, Any]:
    return _mapping(items)


def _sequence(items: Any = ()) -> list[Any]:
    return list(items)


def _tuple(items: Any = ()) -> tuple[Any, ...]:
    return tuple(items)


def _complex(real: float = 0.0, imaginary: float = 0.0) -> complex:
    return complex(real, imaginary)


KNOWN_CALLS: Mapping[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _with_type,
    "torch.Size": _tuple,
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": _default_mapping,
    "builtins.dict": _mapping,
    "builtins.list": _sequence,
    "builtins.set": _sequence,
    "builtins.frozenset": _sequence,
    "builtins.tuple": _tuple,
    "builtins.complex": _complex,
    "__builtin__.set": _sequence,
    "__builtin__.frozenset": _sequence,
    "__builtin__.complex": _complex,
}
