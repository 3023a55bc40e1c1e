"""Match a second set of weights with the model: by names without a wrapper's prefix, by flattened names, by order.

Nothing is taken for a model's averages by its name alone: names, or the order, and shapes must agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from math import prod
from typing import Any

from ema_cli.formats.pickles.values import TensorRef
from ema_cli.formats.trainers.layout import NamedTensor, StateDict
from ema_cli.formats.trainers.names import AVERAGES_KEY, BATCH_STATISTICS

Shaped = TensorRef | NamedTensor
Refs = Mapping[str, Shaped]
"""The tensors of one set, by the names that they have in the model."""

_MAX_PREFIXES = 8
_INTEGERS = ("int64", "int32", "int16", "int8", "uint8", "bool")


def tensors_of(state: Mapping[Any, Any]) -> dict[str, Shaped]:
    """Return the tensors among the values of a state dict."""
    return {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, Shaped)}


def common_prefix(names: Iterable[object]) -> str:
    """Return the first parts that all names have in common, with the last dot; nothing where there are none."""
    texts = [name if isinstance(name, str) else "" for name in names]
    ends = min(texts, default=""), max(texts, default="")  # what these have in common, those between have, too
    shared = takewhile(lambda pair: pair[0] == pair[1], zip(*ends, strict=False))
    parts, dot, _ = "".join(letter for letter, _ in shared).rpartition(".")
    return f"{parts}{dot}"


def parameters_of(model: StateDict) -> dict[str, TensorRef]:
    """Return what is among `model.parameters()`, as far as names and types show."""
    return {
        name: ref
        for name, ref in model.items()
        if isinstance(ref, TensorRef) and ref.dtype not in _INTEGERS and not name.endswith(BATCH_STATISTICS)
    }


def by_names(other: Mapping[Any, Any], model: StateDict) -> Refs | None:
    """Return the tensors of `other` under the names of the model, None where they are not the model's.

    The names may lack a prefix that the model's have, or have one more. Beside them single numbers may stand.
    """
    theirs, ours = tensors_of(other), tensors_of(model)
    for prefix in _prefixes(theirs):
        inside = {name.removeprefix(prefix): ref for name, ref in theirs.items() if name.startswith(prefix)}
        others = [ref for name, ref in theirs.items() if not name.startswith(prefix)]
        # Beside averages their raw weights may stand; beside anything else nothing but numbers.
        if AVERAGES_KEY.search(prefix) or all(map(_is_number, others)):
            matched = _below_a_prefix(inside, ours)
            if matched:
                return matched
    return None


def _below_a_prefix(inside: Refs, ours: Refs) -> Refs | None:
    """Return the tensors under the names of the model, which may have a prefix there; None if two prefixes fit."""
    plain = _matched(inside, ours)
    if plain:
        return plain
    fitting = [_matched({f"{outer}{name}": ref for name, ref in inside.items()}, ours) for outer in _prefixes(ours)]
    matches = [matched for matched in fitting if matched]
    return matches[0] if len(matches) == 1 else None


def by_flat_names(other: StateDict, model: StateDict, joint: str) -> Refs | None:
    """Return the tensors of `other`, whose names are the model's with `joint` for each dot, under the model's names."""
    ours = tensors_of(model)
    for outer in _prefixes(ours):
        names = {name.removeprefix(outer).replace(".", joint): name for name in ours if name.startswith(outer)}
        renamed = {names.get(name, f"?{name}"): ref for name, ref in tensors_of(other).items()}
        matched = _matched(renamed, ours)
        if matched:
            return matched
    return None


def by_order(values: Sequence[Any], model: StateDict) -> Refs | None:
    """Return a list of tensors under the names of the model, None where their shapes leave any doubt about that.

    The list may be of all tensors, or of the parameters: of a part of them, in the model's order.
    """
    refs = [value for value in values if isinstance(value, TensorRef)]
    if not refs or len(refs) != len(values):
        return None
    ours = {name: ref for name, ref in model.items() if isinstance(ref, TensorRef)}
    floats = {name: ref for name, ref in ours.items() if ref.dtype not in _INTEGERS}
    parameters = parameters_of(model)
    for table in (parameters, floats, ours):
        if len(refs) == len(table) and all(map(_alike, refs, table.values())):
            return dict(zip(table, refs, strict=True))
    names = list(parameters)
    first = _greedy(refs, [parameters[name] for name in names])
    last = _greedy(refs[::-1], [parameters[name] for name in reversed(names)])
    if first is None or last is None or first != [len(names) - 1 - at for at in reversed(last)]:
        return None
    return {names[at]: ref for at, ref in zip(first, refs, strict=True)}


def _greedy(refs: Iterable[Shaped], among: Sequence[Shaped]) -> list[int] | None:
    """Return the first places, in order, at which tensors of these shapes stand; None where they do not."""
    places: list[int] = []
    at = 0
    for ref in refs:
        while at < len(among) and not _alike(ref, among[at]):
            at += 1
        if at == len(among):
            return None
        places.append(at)
        at += 1
    return places


def _alike(one: Shaped, other: Shaped) -> bool:
    return one.shape == other.shape


def _is_number(ref: Shaped) -> bool:
    return prod(ref.shape) <= 1


def _matched(renamed: Refs, ours: Refs) -> Refs | None:
    """Return the tensors that are the model's; None if none is, or any that is more than a number is not."""
    matched = {name: ref for name, ref in renamed.items() if name in ours and _alike(ref, ours[name])}
    others = [ref for name, ref in renamed.items() if name not in matched]
    return matched if matched and all(map(_is_number, others)) else None


def _prefixes(names: Iterable[str]) -> Iterator[str]:
    """Yield nothing, then the first parts that names have in common, one part and two, the most frequent first."""
    yield ""
    counts: dict[str, int] = {}
    for name in names:
        head, dot, rest = name.partition(".")
        if dot:
            counts[f"{head}."] = counts.get(f"{head}.", 0) + 1
            second, dot, _ = rest.partition(".")
            if dot:
                counts[f"{head}.{second}."] = counts.get(f"{head}.{second}.", 0) + 1
    # Of equally frequent ones the shorter first: less is removed.
    order = sorted(counts, key=lambda prefix: (not AVERAGES_KEY.search(prefix), -counts[prefix], len(prefix)))
    yield from order[:_MAX_PREFIXES]
