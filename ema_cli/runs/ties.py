"""Tied tensors: two names of one tensor, of which some writers store only one.

So a model's pytorch_model.bin has its head and its embeddings as one storage, and its model.safetensors the embeddings
alone. The tie is in the file, so both are of one model.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from ema_cli.checkpoint import Checkpoint, Tensors
from ema_cli.formats.trainers.prefixes import Renamed


def tied_to(tensors: Tensors, names: Iterable[str]) -> dict[str, str]:
    """Return those of some names that have their bytes from another one before them, each with the first such."""
    first: dict[Hashable, str] = {}
    leaders = {name: first.setdefault(_place(tensors, name), name) for name in names}
    return {name: leader for name, leader in leaders.items() if leader != name}


def known_by_tie(one: Tensors, other: Tensors) -> Mapping[str, str]:
    """Return the names that only `one` has, each with a name of the same tensor that both have."""
    missing = {name: _place(one, name) for name in one.specs if name not in other.specs}
    if not missing:
        return {}
    both: dict[Hashable, str] = {}
    for name in one.specs:
        if name in other.specs:
            both.setdefault(_place(one, name), name)
    return {name: both[place] for name, place in missing.items() if place in both}


def _place(tensors: Tensors, name: str) -> Hashable:
    """Return what tensors that share all their bytes have equal."""
    return tensors.place(name), str(tensors.specs[name])


def with_ties(checkpoint: Checkpoint, newest: Checkpoint) -> Checkpoint:
    """Return a checkpoint with all names of the newest: those that the newest has tied to names that it has itself."""
    if checkpoint.tensors.specs is newest.tensors.specs:
        return checkpoint
    known = known_by_tie(newest.tensors, checkpoint.tensors)
    if not known:
        return checkpoint
    stored = {**{name: name for name in checkpoint.tensors.specs}, **known}
    specs = {name: checkpoint.tensors.specs[inner] for name, inner in stored.items()}
    return replace(checkpoint, tensors=Renamed(specs, stored, checkpoint.tensors))


def tie_notes(checkpoints: Sequence[Checkpoint]) -> Iterator[tuple[str, str]]:
    """Yield what is taken as one tensor, because it is tied in some of the checkpoints; and the checkpoint's name."""
    for checkpoint in checkpoints[:-1]:
        one, newest = checkpoint.tensors, checkpoints[-1].tensors
        if one.specs is newest.specs or one.specs.keys() == newest.specs.keys():
            continue
        for name, tied in known_by_tie(one, newest).items():
            yield f"'{name}' is tied to '{tied}' there, and is not stored in the newest: one tensor", checkpoint.name
        for name, tied in known_by_tie(newest, one).items():
            yield f"'{name}' is not stored there, but in the newest, tied to '{tied}': one tensor", checkpoint.name
