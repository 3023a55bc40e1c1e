"""Find the model's tensors in a torch.distributed.checkpoint folder, by their places in the dict that was saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from ema_cli.dataclass import dataclass
from ema_cli.errors import CheckpointError, NoWeights, option
from ema_cli.formats.dcp.content import Metadata
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.trainers.dcp_layouts import DCP_AVERAGES, DCP_CLOCKS, DCP_FLAT_OTHERS, DCP_FLATTENED
from ema_cli.formats.trainers.layouts import OTHERS, PLAIN
from ema_cli.formats.trainers.names import AVERAGED_COUNT, AVERAGES_KEY, FOLLOWER_KEY
from ema_cli.formats.trainers.nested import quoted
from ema_cli.formats.trainers.prefixes import bare_names

Names = dict[str, str]  # name in the model -> name in the folder
_CLOCKS = {name for names in DCP_CLOCKS.values() for name in names}


@dataclass(slots=True)
class DcpModel:
    """The tensors of the model.

    Attributes:
        names: the model's tensors.
        averages: the averages beside it; where a tensor has none, the tensor itself.
        averages_at: the place of the averages.
        averaged: how it is known that the model itself is averages, None where it is not.
        beside: places of other tensors that could be a model's, and are not taken.
    """

    names: Names
    averages: Names = field(default_factory=dict)
    averages_at: str = ""
    averaged: str | None = None
    beside: tuple[str, ...] = ()


def find_model(metadata: Metadata, options: ReadOptions) -> DcpModel:
    """Return the model's tensors, by the place in the nested dict that was saved.

    Raises:
        NoWeights: where nothing is a model's.
        CheckpointError: where it could be one of several.
    """
    if options.key is not None:
        prefix = options.key + "."
        chosen = {name.removeprefix(prefix): name for name in metadata.tensors if name.startswith(prefix)}
        if not chosen:
            raise NoWeights(f"has no tensors under {option('key', options.key)}", hint=_at_the_top(metadata))
        return DcpModel(chosen)
    groups, flattened_others = _groups(metadata)
    beside = {place: groups.pop(place) for place in list(groups) if place and _is_averages(place[-1])}
    models = {place: names for place, names in groups.items() if place and place[-1] in PLAIN.model}
    followers = [place for place in groups if place and _is_follower(place[-1])]
    beside |= {place: groups.pop(place) for place in followers if len(groups) > 1}
    # A model at the top may have other things beside it; of several dicts, any could be the model.
    candidates = models or ({(): groups[()]} if () in groups else groups)
    if len(candidates) > 1:
        shown = [".".join(map(str, place)) for place in candidates]
        what = "models" if models else "tensors"
        raise CheckpointError(
            f"holds {what} at {', '.join(shown[:8])}", hint=f"say which to take: {option('key', f'{shown[0]}')}"
        )
    if not candidates:
        if beside:
            averages_at, names = _joined(beside)[0]
            return DcpModel(names, averaged=f"it holds nothing but averages, in '{averages_at}'")
        raise NoWeights(f"no tensors in a place we know for a model; {_at_the_top(metadata)}")
    (place, names), *_ = candidates.items()
    others = tuple(".".join(map(str, other)) or "the top" for other in groups if other != place)
    if place == ():
        names = _unflatten(names, flattened_others)
    for averages_at, stored in [("ema", _torchtitan_averages(metadata)), *_joined(beside)]:
        averages = stored if stored.keys() <= names.keys() else _bare(stored)
        if averages and averages.keys() <= names.keys():
            # Not always of buffers: a tensor without an average is taken as it is.
            return DcpModel(names, {**names, **averages}, averages_at, beside=others)
    return DcpModel(names, beside=(*others, *(at for at, _ in _joined(beside))))


def _groups(metadata: Metadata) -> tuple[dict[tuple[object, ...], Names], bool]:
    """Return the tensors by the dict they stood in, without those that are known to be no model's.

    Also return whether any of those others was flattened before it was saved.
    """
    groups: dict[tuple[object, ...], Names] = {}
    flattened_others = False
    for stored in metadata.tensors:
        path = metadata.paths.get(stored, (stored,))
        at = next((at for at, part in enumerate(path[:-1]) if part in PLAIN.model or _is_averages(part)), None)
        if len(path) == 1:
            is_other = bool(DCP_FLAT_OTHERS.match(stored) or DCP_AVERAGES.search(stored))
            flattened_others |= is_other
            is_other |= stored in _CLOCKS
        else:
            around = path[:-1] if at is None else path[:at]
            is_other = any(OTHERS.match(str(part)) for part in around)
        if is_other:
            continue
        length = min(1, len(path) - 1) if at is None else at + 1
        groups.setdefault(path[:length], {})[".".join(map(str, path[length:]))] = stored
    return groups, flattened_others


def _is_averages(key: object) -> bool:
    """Return whether a dict of this key holds averages, by the key."""
    return key in PLAIN.beside or (isinstance(key, str) and bool(AVERAGES_KEY.search(key)))


def _is_follower(key: object) -> bool:
    """Return whether a dict of this key may hold averages: a model that follows the one that trains, by the key."""
    return isinstance(key, str) and bool(FOLLOWER_KEY.search(key))


def _bare(averages: Names) -> Names:
    """Return averages under the names of the model in an AveragedModel, or in another wrapper."""
    names = [name for name in averages if name != AVERAGED_COUNT]
    return dict(zip(bare_names(names), (averages[name] for name in names), strict=True))


def _torchtitan_averages(metadata: Metadata) -> Names:
    return {match[1]: stored for stored in metadata.tensors if (match := DCP_AVERAGES.search(stored))}


def _joined(places: Mapping[tuple[object, ...], Names]) -> list[tuple[str, Names]]:
    """Return the places as text, each with its tensors."""
    return [(".".join(map(str, place)), names) for place, names in places.items()]


def _unflatten(names: Mapping[str, str], flattened_others: bool) -> Names:
    """Return the model's own names where everything was flattened before it was saved, without a record of how."""
    for prefix in DCP_FLATTENED:
        inside = {name.removeprefix(prefix): stored for name, stored in names.items() if name.startswith(prefix)}
        # All of it: "model." may also be the first part of the names in a model that has others.
        if inside and (prefix != "model." or (flattened_others and len(inside) == len(names))):
            return inside
    return dict(names)


def _at_the_top(metadata: Metadata) -> str:
    tops = dict.fromkeys(str(metadata.paths.get(name, (name,))[0]) for name in metadata.tensors)
    return f"at the top it holds {quoted(tops)}"
