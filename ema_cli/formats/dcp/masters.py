"""The float32 weights that Megatron's optimizers keep in a folder of torch.distributed.checkpoint, by their names.

With `fully_reshardable`, and where no optimizer is distributed, each has the parameter's name and shape. Otherwise they
lie in the optimizer's buffers, and only Megatron knows whose they are.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ema_cli.checkpoint import TensorSpec
from ema_cli.errors import CheckpointError, NoSuchWeights, option
from ema_cli.formats.dcp.content import Metadata
from ema_cli.formats.dcp.pieces import Record
from ema_cli.formats.dcp.tensors import DcpTensors
from ema_cli.formats.shards import ShardedTensors
from ema_cli.formats.trainers.prefixes import Renamed

Names = Mapping[str, str]  # name in the model -> name in the folder

# `param` of a distributed optimizer, `fp32_param` of any other and of older versions; of several optimizers numbered.
_OF_PARAMETER = re.compile(r"(?:chained_\d+\.)?optimizer\.state\.(?:fp32_)?param\.(.+)")
_IN_BUFFERS = re.compile(r"(?:chained_\d+\.)?optimizer\.distributed\..*\.(?:param|param_state)(?:/shard_[\d._]+)?")
_SAVED_BY_NAME = "load it with Megatron, and save it with --dist-ckpt-optim-fully-reshardable"
_BY_NAME = re.compile(r"(?:^|[._/])(?:master|fp32_(?:param|from|groups|flat)|float32_groups)")


def masters_of(metadata: Metadata, names: Names) -> dict[str, str]:
    """Return the names of the float32 weights of a model's tensors, by the names of these; their shapes may differ."""
    named: dict[str, str] = {}
    for master, parameter in _named(metadata.tensors):
        named.setdefault(parameter, master)
    return {name: named[stored] for name, stored in names.items() if stored in named} if named else {}


def lie_in_buffers(metadata: Metadata) -> bool:
    """Return whether a distributed optimizer keeps float32 weights in buffers: `dp_reshardable`, Megatron's default."""
    return any(map(_IN_BUFFERS.fullmatch, (*metadata.tensors, *metadata.items)))


def buffers_error(path: Path) -> NoSuchWeights:
    """Return the error for float32 weights that are asked for and lie in buffers."""
    return NoSuchWeights(
        "keeps the float32 weights in the buffers of Megatron's distributed optimizer, and does not say which of their "
        "elements are whose",
        subject=path,
        hint=f"{_SAVED_BY_NAME}; or leave out {option('masters', True)}",
    )


def check_one_each(metadata: Metadata, names: Names) -> None:
    """Check that no tensor of a model has two float32 weights, of which nothing says which the trainer takes.

    Raises:
        CheckpointError: naming both; or naming one that is not described as a tensor.
    """
    named: dict[str, str] = {}
    own = {stored: name for name, stored in names.items()}
    _check_described(metadata, own)
    for master, parameter in _named(metadata.tensors):
        other = named.setdefault(parameter, master)
        if other != master and parameter in own:
            raise CheckpointError(
                f"'{own[parameter]}' has two float32 weights, '{other}' and '{master}'",
                hint=f"average the model's own: leave out {option('masters', True)}",
            )


def _check_described(metadata: Metadata, own: Names) -> None:
    """Check that what is called the float32 weights of a model's tensor is described as a tensor.

    Raises:
        CheckpointError: where it is not. Else the model's own would be averaged in its place, among others' masters.
    """
    for master, parameter in _named(metadata.undescribed()):
        if parameter in own:
            raise CheckpointError(
                f"'{master}', by its name the float32 weights of '{own[parameter]}', is not described as a tensor",
                subject=metadata.file.path,
                hint=f"bring back the file as it was saved, or leave out {option('masters', True)}",
            )


def _named(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield those names that are of float32 weights, each with that of its parameter."""
    # Of the names of all that was saved, which may be many, most are told by a look.
    marked = (name for name in names if ".state.param." in name or ".state.fp32_param." in name)
    yield from ((name, match[1]) for name in marked if (match := _OF_PARAMETER.fullmatch(name)))


def can_be_taken(metadata: Metadata, master: str) -> bool:
    """Return whether what has this name is float32 weights that say of which parameter they are, and have its shape.

    Where a parameter has two, neither can.
    """
    match = _OF_PARAMETER.fullmatch(master)
    if match is None or match[1] not in metadata.tensors:
        return False
    if sum(parameter == match[1] for _, parameter in _named(metadata.tensors)) > 1:
        return False
    return _fault({name: metadata.tensor(name).spec for name in (match[1], master)}, match[1], master) is None


def masters_that_stay(metadata: Metadata, replaced: Mapping[Path, Sequence[tuple[int, int]]]) -> Iterator[str]:
    """Yield the names of what holds weights once more, where their bytes are none of those that are replaced.

    Args:
        metadata: of the folder.
        replaced: ranges of the files in the folder, the first byte and the one behind, in order.
    """
    folder = metadata.file.path.parent

    def stays(record: Record) -> bool:
        spans = replaced.get(folder / record.file, ())
        number = bisect_right(spans, record.start, key=lambda span: span[0])
        return number == len(spans) or spans[number][0] >= record.start + record.size

    yield from (name for name in metadata.items if _IN_BUFFERS.fullmatch(name))
    yield from (name for name, parameter in _named(metadata.undescribed()) if parameter in metadata.tensors)
    for name in metadata.tensors:
        match = _OF_PARAMETER.fullmatch(name)
        is_named = match is not None and match[1] in metadata.tensors
        if (is_named or _IN_BUFFERS.fullmatch(name) or _BY_NAME.search(name)) and any(
            map(stays, metadata.tensor(name).records[:1])
        ):
            yield name


def with_masters(tensors: DcpTensors, names: Names, masters: Names) -> ShardedTensors:
    """Return a model's tensors: of those with float32 weights these, and their own as copies of them.

    Args:
        tensors: both, under the names that they have in the folder.
        names: the model's tensors.
        masters: the float32 weights.

    Raises:
        CheckpointError: where these are no float32, or have another shape: an older Megatron-Core cut them to rows.
    """
    for name, master in masters.items():
        fault = _fault(tensors.specs, names[name], master)
        if fault is not None:
            raise CheckpointError(fault, hint=f"leave out {option('masters', True)}")
    taken = {**names, **masters}
    specs = _specs(tensors, taken)
    own = {name: names[name] for name in masters}
    copies = [Renamed(_specs(tensors, own), own, tensors)]
    return ShardedTensors(specs, dict.fromkeys(specs, 0), [Renamed(specs, taken, tensors)], copies)


def without_masters(tensors: DcpTensors, names: Names, masters: Names) -> list[str]:
    """Return the names of a model's tensors in half precision without float32 weights, as frozen ones are."""
    return [name for name, stored in names.items() if name not in masters and tensors.specs[stored].dtype.is_narrow]


def _fault(specs: Mapping[str, TensorSpec], stored: str, master: str) -> str | None:
    """Return words for why one tensor is not the float32 weights of another; None where it may be."""
    spec, other = specs[stored], specs[master]
    if spec.shape != other.shape:
        shapes = f"'{master}' is {list(other.shape)}, and '{stored}' is {list(spec.shape)}"
        return f"{shapes}: which of its elements is which, only Megatron knows"
    if other.dtype.is_narrow or not other.dtype.averaged:
        # With a precision-aware optimizer there may be what is left over of float32, in 16 bits, beside the model's.
        return f"'{master}' is {other.dtype.name}, so these are not the weights in float32"
    return None


def _specs(tensors: DcpTensors, names: Names) -> dict[str, TensorSpec]:
    return {name: tensors.specs[stored] for name, stored in names.items()}
