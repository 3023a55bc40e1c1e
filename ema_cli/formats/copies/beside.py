"""What else a file of torch's holds beside the tensors that are replaced: it stays as it was, and a user should know.

Of interest are tensors: an optimizer's state, a trainer's own averages, and copies of the weights in float32.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from ema_cli.dataclass import dataclass
from ema_cli.dtypes import TORCH_DTYPES
from ema_cli.errors import CheckpointError, Unreadable
from ema_cli.formats.before import Before
from ema_cli.formats.copies.copied_file import Span
from ema_cli.formats.pickles.values import Inert, TensorRef
from ema_cli.formats.torch_save.file import open_torch
from ema_cli.storage.source import InputFile

# What trainers call the float32 copies of weights that their optimizers update: apex, Megatron, DeepSpeed, torch's.
_MASTERS = re.compile(r"(?:^|[._/])(?:master|fp32_(?:param|from|groups|flat)|single_partition_of_fp32|float32_groups)")
_TORCH = re.compile(r"\.(?:pt|pth|bin|ckpt)$")
_DEPTH = 3  # of the keys that are shown
_MOST_CHARS = 40  # of one


@dataclass(slots=True)
class Beside:
    """What stays as it was, by its place: `optimizer`, `state/optimizers`.

    Attributes:
        places: of everything with tensors.
        masters: those among them that hold copies of the weights.
        named: the classes and functions that the files name that were read for it.
    """

    places: list[str] = field(default_factory=list)
    masters: list[str] = field(default_factory=list)
    named: dict[Path, set[str]] = field(default_factory=dict)

    def without(self, left_out: Sequence[str]) -> Beside:
        """Return what is left when these places are left out."""
        gone = tuple(f"{place}{sign}" for place in left_out for sign in "/.:")
        places, masters = (
            [place for place in places if not f"{place}/".startswith(gone)] for places in (self.places, self.masters)
        )
        return Beside(places, masters, self.named)

    def add(self, other: Beside) -> None:
        """Add what another file holds."""
        self.places += other.places
        self.masters += other.masters
        self.named |= other.named


def beside_in_file(source: InputFile, replaced: Sequence[Span], before: Before) -> Beside:
    """Return what a file of torch's holds beside the ranges of it that are replaced.

    What was read of it is kept in `before`: the copy of the file has the same description.
    """
    names = set[str]()
    file = open_torch(source, before, names)
    begins, beside = [begin for begin, _ in replaced], Beside(named={source.path: names})
    spans = file.locate({ref.storage.key: None for ref in _tensors(file.root)})

    def is_replaced(ref: TensorRef) -> bool:
        span, dtype = spans.get(ref.storage.key), TORCH_DTYPES.get(ref.dtype)
        if span is None or dtype is None:
            return False
        at = span[0] + ref.offset * dtype.itemsize
        number = bisect_right(begins, at) - 1
        return number >= 0 and at < replaced[number][1]

    def look(value: Any, place: tuple[str, ...]) -> None:
        tensors = list(_tensors(value))
        if not any(is_replaced(ref) for ref in tensors):
            if tensors and place:
                beside.places.append("/".join(place))
                beside.masters += [f"{'/'.join(place)}/{key}" for key in _masters(value)][:1]
            return
        children = _children(value)
        values = list(children.values()) if isinstance(children, dict) else []
        if len(place) < _DEPTH and not any(isinstance(child, TensorRef) and is_replaced(child) for child in values):
            for key, child in children.items() if values else ():
                look(child, (*place, str(key)[:_MOST_CHARS] if isinstance(key, str | int) else "..."))

    look(file.root, ())
    return beside


def masters_in_file(file: InputFile) -> Beside:
    """Return the first copies of weights that a file of torch's holds; none in any other file."""
    if not _TORCH.search(file.path.name):
        return Beside()
    names = set[str]()
    try:
        masters = [f"{file.path.name}: {key}" for key in _masters(open_torch(file, names=names).root)][:1]
    except Unreadable:
        raise
    except CheckpointError:
        return Beside()
    return Beside(masters=masters, named={file.path: names})


def beside_by_name(names: Iterable[str], replaced: Iterable[str]) -> list[str]:
    """Return the places of what a checkpoint with tensors of these names holds beside those that are replaced."""
    tails = {name.rpartition(".")[2] for name in replaced}
    ours = tuple(replaced)
    others = [name for name in names if name.rpartition(".")[2] not in tails or not name.endswith(ours)]
    return list(dict.fromkeys(re.split(r"[./]", name)[0][:_MOST_CHARS] for name in others))


def _children(value: Any) -> Any:
    """Return what a container or a placeholder of an object holds."""
    if isinstance(value, Inert):
        return value.state if value.items is None else value.items
    return value


def _walk(value: Any) -> Iterator[Any]:
    """Yield a value and all that it holds, each container once."""
    todo, visited = [value], set[int]()
    while todo:
        item = todo.pop()
        if id(item) in visited:
            continue
        yield item
        if isinstance(item, Inert):
            visited.add(id(item))
            todo += [item.args, item.items, item.values, item.state]
        elif isinstance(item, dict | list | tuple):
            visited.add(id(item))
            todo += item.values() if isinstance(item, dict) else item


def _tensors(value: Any) -> Iterator[TensorRef]:
    return (item for item in _walk(value) if isinstance(item, TensorRef))


def _masters(value: Any) -> Iterator[str]:
    """Yield the keys in a value that are those of copies of weights, where tensors stand under them."""
    for item in _walk(value):
        if isinstance(item, dict):
            for key, child in item.items():
                if isinstance(key, str) and _MASTERS.search(key) and any(_tensors(child)):
                    yield key[:_MOST_CHARS]
