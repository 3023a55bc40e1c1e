"""An adapter merged into its base model: a checkpoint of the whole model, whose new weights are made as they are read.

They are float64 here, W + scale x B A, so that an average of them is rounded once, to the dtype of the base model.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ema_cli.checkpoint import AdapterSettings, Checkpoint, Run, StoredRecord, Tensors, TensorSpec, shared
from ema_cli.dataclass import dataclass
from ema_cli.dtypes import DTYPES
from ema_cli.errors import CheckpointError, RunError, option
from ema_cli.formats.adapters.pairs import Pair, find_pairs, settings_of, whole_name
from ema_cli.formats.trainers.adapters import BASE
from ema_cli.storage.source import ByteSource

if TYPE_CHECKING:
    from ema_cli.formats.adapters.products import Matrix

_KEPT_PAIRS = 4  # of each checkpoint, in memory
_KEPT = (BASE, "revision")  # settings that still mean something
_TIED = "changes the embeddings: where the model has its output layer tied to them, that changes with them"
_ON_TOKENS = ("layer_replication", "trainable_token_indices")  # what a base model has no place for


@dataclass(frozen=True, slots=True)
class Change:
    """What an adapter does to a tensor of its base model.

    Attributes:
        whole: the name in the adapter of what takes its place; None where it stays.
        pair: whose product is added; None for none.
    """

    whole: str | None = None
    pair: Pair | None = None


class MergedTensors:
    """The tensors of a base model, some of them changed by an adapter; `Tensors`."""

    def __init__(self, base: Tensors, adapter: Tensors, changes: Mapping[str, Change]) -> None:
        self._base, self._adapter, self.changes = base, adapter, changes
        self.specs: Mapping[str, TensorSpec] = {
            name: replace(spec, dtype=DTYPES["F64"]) if name in changes else spec for name, spec in base.specs.items()
        }
        self._pairs: OrderedDict[str, tuple[Matrix, Matrix]] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[object, ...]:
        """Take the tables alone to a worker, without the factors that are kept."""
        return MergedTensors, (self._base, self._adapter, self.changes)

    def share(self, other: Tensors) -> None:
        """Use the other's table of specs, where it is equal."""
        self.specs = shared(self.specs, other.specs)

    def place(self, name: str) -> Hashable:
        """Return where the bytes lie; what is changed has a place of its own."""
        return ("merged", name) if name in self.changes else ("base", self._base.place(name))

    def locate(self, name: str) -> tuple[ByteSource, int] | None:
        """Return the file and the byte in it where a tensor begins that is not changed."""
        return None if name in self.changes else self._base.locate(name)

    def runs(self, name: str, start: int, size: int) -> Sequence[Run] | None:
        """Return where bytes of a tensor lie that is not changed."""
        return None if name in self.changes else self._base.runs(name, start, size)

    def offset(self, name: str, start: int) -> int:
        """Return where in its file byte `start` of tensor `name` lies."""
        return 0 if name in self.changes else self._base.offset(name, start)

    def shard(self, name: str) -> str:
        """Return the name of the base model's file that holds tensor `name`."""
        return self._base.shard(name)

    def stored_records(self) -> Iterator[StoredRecord]:
        """Yield the stored records of both."""
        yield from self._base.stored_records()
        yield from self._adapter.stored_records()

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        """Fill `out` from byte `start` of tensor `name`."""
        change = self.changes.get(name)
        if change is None:
            self._base.read_into(name, start, out)
            return
        import numpy as np  # which no header needs

        from ema_cli.folding.kernel.floats import decode
        from ema_cli.formats.adapters.products import add_product

        tensors, stored_name = (self._base, name) if change.whole is None else (self._adapter, change.whole)
        dtype, begin, count = tensors.specs[stored_name].dtype, start // 8, len(out) // 8
        stored = np.empty(dtype.nbytes(count), np.uint8)
        tensors.read_into(stored_name, dtype.nbytes(begin), stored.data)
        values = np.frombuffer(out, np.float64)
        decode(dtype, stored, values)
        if change.pair is not None:
            with np.errstate(all="ignore"):  # what is not finite, the fold finds
                add_product(*self._factors(name, change.pair), begin, values)
        if sys.byteorder == "big":
            values.byteswap(inplace=True)

    def _factors(self, name: str, pair: Pair) -> tuple[Matrix, Matrix]:
        """Return the factors of a pair, of which the last few are kept."""
        from ema_cli.formats.adapters.products import read_pair

        with self._lock:
            if name not in self._pairs:
                self._pairs[name] = read_pair(self._adapter, pair)
            self._pairs.move_to_end(name)
            while len(self._pairs) > _KEPT_PAIRS:
                self._pairs.popitem(last=False)
            return self._pairs[name]


def merge(adapters: Sequence[Checkpoint], base: Checkpoint) -> list[Checkpoint]:
    """Return the checkpoints of an adapter's run as checkpoints of the whole model.

    Ranks, scales and places may differ between them: each is what it makes of the base model. That model itself may be
    among them, as what the training began with.

    Raises:
        RunError: for what is no LoRA adapter that PEFT wrote, and for a base model that does not fit.
        CheckpointError: for an adapter that is damaged.
    """
    own = [file.identity for file in base.files]
    trained = next((one.adapter for one in adapters if [file.identity for file in one.files] != own), base.adapter)
    adapters = [
        replace(one, files=(), warnings=(), notes=(), adapter=trained)
        if [file.identity for file in one.files] == own
        else one
        for one in adapters
    ]
    changes = [_changes(one, base) if one.files else dict[str, Change]() for one in adapters]
    changed = {name: Change() for of_one in changes for name in of_one}  # float64 in all of them
    merged = [
        MergedTensors(base.tensors, one.tensors, changed | of_one)
        for one, of_one in zip(adapters, changes, strict=True)
    ]
    for tensors in merged[1:]:
        tensors.share(merged[0])
    dtypes = {name: base.tensors.specs[name].dtype for name in changed}
    embeddings = any(
        change.pair is not None and change.pair.is_embedding for each in changes for change in each.values()
    )
    notes = (_TIED,) if embeddings else ()
    return [
        replace(
            one,
            tensors=tensors,
            files=(*one.files, *base.files),
            pretrained=base.pretrained,
            adapter=AdapterSettings({name: one.adapter.values[name] for name in _KEPT if name in one.adapter.values}),
            warnings=(*one.warnings, *base.warnings),
            notes=(*one.notes, *notes) if one.files else (),
            output_dtypes=dtypes,
            base=base,
            unchanged=frozenset(base.tensors.specs.keys() - changed.keys()),
        )
        for one, tensors in zip(adapters, merged, strict=True)
    ]


def _changes(adapter: Checkpoint, base: Checkpoint) -> dict[str, Change]:
    """Return what an adapter does to the tensors of its base model, by their names; raise as `merge`."""
    settings = settings_of(adapter, "merge_into")
    other = next((name for name in _ON_TOKENS if settings.get(name)), None)
    if other is not None:
        raise RunError(
            f"its {other} asks for more than new weights of the base model",
            subject=adapter.path,
            hint=f"leave out {option('merge_into')}",
        )
    specs, changes = base.tensors.specs, dict[str, Change]()
    for name, spec in adapter.tensors.specs.items():
        whole = whole_name(name)
        if whole is None:
            continue
        target = _target(whole, adapter, base)
        if specs[target].shape != spec.shape:
            raise _unlike(f"'{name}' is {spec}, but {specs[target]}", adapter, base)
        if target in changes:
            raise _twice(target, f"'{changes[target].whole}' and '{name}'", adapter)
        changes[target] = Change(name)
    pairs = find_pairs(adapter, settings)
    used = {name for pair in pairs for name in (pair.a, pair.b)}
    for name in adapter.tensors.specs:
        if whole_name(name) is None and name not in used:
            raise CheckpointError(f"'{name}' is of no pair of A and B", subject=adapter.path)
    for pair in pairs:
        target = _target(f"{pair.module}.weight", adapter, base)
        a, b, spec = adapter.tensors.specs[pair.a], adapter.tensors.specs[pair.b], specs[target]
        shape = (*a.shape[1:], b.shape[0]) if pair.is_transposed else (b.shape[0], *a.shape[1:])
        if spec.shape != shape:
            raise _unlike(f"'{pair.module}' is changed by {list(shape)}, but is {spec}", adapter, base)
        change = changes.get(target, Change())
        if change.pair is not None:
            raise _twice(target, f"'{change.pair.a}' and '{pair.a}'", adapter)
        changes[target] = replace(change, pair=pair)
    changes |= _tied(changes, adapter, base)
    packed = next((name for name in changes if specs[name].dtype.kind != "float"), None)
    if packed is not None:
        raise _unlike(f"'{packed}' is changed, but is {specs[packed]}", adapter, base)
    return changes


def _tied(changes: Mapping[str, Change], adapter: Checkpoint, base: Checkpoint) -> dict[str, Change]:
    """Return the changes of tensors that the base model's file holds as one with those to which something is added."""
    added = {base.tensors.place(name): name for name, change in changes.items() if change.pair is not None}
    if len(added) < sum(change.pair is not None for change in changes.values()):
        one, other = next(
            (added[base.tensors.place(name)], name)
            for name, change in changes.items()
            if change.pair is not None and added[base.tensors.place(name)] != name
        )
        raise _twice(one, f"as '{other}', too", adapter)
    found: dict[str, Change] = {}
    for name, spec in base.tensors.specs.items() if added else ():
        leader = added.get(base.tensors.place(name))
        if leader not in (None, name) and spec == base.tensors.specs[leader]:
            if name in changes:
                raise _twice(leader, f"as '{name}', too", adapter)
            found[name] = changes[leader]
    return found


def _twice(target: str, by: str, adapter: Checkpoint) -> CheckpointError:
    return CheckpointError(f"changes '{target}' of the base model twice: {by}", subject=adapter.path)


def _target(name: str, adapter: Checkpoint, base: Checkpoint) -> str:
    """Return the tensor of the base model that an adapter calls `name`.

    The adapter's model may have the base model as a part, as a model with a head has the one without.
    """
    for candidate in (name, name.partition(".")[2]):
        if candidate in base.tensors.specs:
            return candidate
    raise _unlike(f"'{name}' is changed, but is no tensor", adapter, base)


def _unlike(fact: str, adapter: Checkpoint, base: Checkpoint) -> RunError:
    model = adapter.adapter.values.get(BASE)
    return RunError(
        f"{fact} of {base.path}",
        subject=adapter.path,
        hint=f"give the model that it was trained on, in float types: {option('merge_into', 'BASE')}"
        + (f"; its {BASE} is {model}" if model else ""),
    )
