"""The bytes of a published average, beside those that the checkpoints give: a sink that compares."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from pathlib import Path

import numpy as np

from ema_cli.checkpoint import Tensors, TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.folding.sink import TensorRange
from ema_cli.formats.output_file import whole_name
from ema_cli.release.snapshot import Snapshot
from ema_cli.release.watch_rounding import WatchRounding
from ema_cli.storage.ranges import join_ranges
from ema_cli.storage.source import ByteSource
from ema_cli.text import plural
from ema_cli.writing.outputs import Output


@dataclass(frozen=True, slots=True)
class Holder:
    """A published checkpoint, mostly a file, and what stands in the whole output before the names of its tensors."""

    path: Path
    tensors: Tensors
    prefix: str

    def spec(self, whole: str) -> TensorSpec:
        """Return the spec of a tensor by its name in the whole output."""
        return self.tensors.specs[whole.removeprefix(self.prefix)]

    def locate(self, whole: str) -> tuple[ByteSource, int] | None:
        """Return where its bytes lie, and the first of them; None where they do not lie in order."""
        return self.tensors.locate(whole.removeprefix(self.prefix))

    def read(self, whole: str, start: int, out: memoryview) -> None:
        """Fill `out` from byte `start` of a tensor."""
        self.tensors.read_into(whole.removeprefix(self.prefix), start, out)


@dataclass(slots=True)
class Difference:
    """The number of bytes of a tensor that differ, and the offset of the first, counted from the tensor's start."""

    nbytes: int
    first: int


def holders(snapshot: Snapshot) -> dict[str, Holder]:
    """Return the holder of each tensor by its name in the whole output: one for a file, as there are many tensors."""
    holders: dict[str, Holder] = {}
    for file, checkpoint in snapshot.opened.items():
        tensors = checkpoint.tensors
        holder = Holder(checkpoint.path, tensors, whole_name(file, ""))
        # Elsewhere than in the form of its input a view is a problem already.
        names = (name for name in tensors.specs if snapshot.is_one_checkpoint or tensors.locate(name) is not None)
        holders.update({whole_name(file, name): holder for name in names})
    return holders


@dataclass(slots=True)
class Comparison:
    """A sink that compares the bytes of a fold with the published ones.

    Attributes:
        there: what holds a tensor, by its name.
        rounding: that of `watch`, which explains small differences; None where there may be none.
    """

    there: Mapping[str, Holder]
    rounding: WatchRounding | None = None
    tensors: int = 0
    different: dict[str, Difference] = field(default_factory=dict)
    _renamed: dict[str, str] = field(default_factory=dict)  # tensor name in the fold -> another in the output
    _unexpected: set[str] = field(default_factory=set)  # names in the fold of what is not there
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def expect(self, output: Output) -> list[str]:
        """Compare the names and specs with those of an output; return the differences, and keep the rest to compare."""
        problems = []
        for file in output.files:
            for name, spec in file.table.specs.items():
                whole, original = output.whole(file, name), output.original(file, name)
                holder = self.there.get(whole)
                if holder is None or holder.spec(whole) != spec:
                    has = f"is {holder.spec(whole)}" if holder is not None else "is not there"
                    problems.append(f"{output.target.path}: '{whole}' {has}, but the checkpoints give {spec}")
                    self._unexpected.add(original)
                    continue
                self.tensors += 1
                if original != whole:
                    self._renamed[original] = whole
        return problems

    def _name(self, original: str) -> str | None:
        """Return the name in the output of a tensor of the fold, None of one that is not there."""
        return None if original in self._unexpected else self._renamed.get(original, original)

    def again(self) -> Comparison:
        """Return a comparison of the same tensors that has found nothing yet."""
        return Comparison(self.there, tensors=self.tensors, _unexpected=self._unexpected, _renamed=self._renamed)

    def __reduce__(self) -> tuple[object, ...]:
        return _comparison, (self.there, self._unexpected, self._renamed)

    def add(self, differences: Iterable[tuple[str, int, int]]) -> None:
        """Note what another comparison found: a tensor, how many bytes differ, and the first of them."""
        for name, nbytes, first in differences:
            self._note(name, nbytes, first)

    def write(self, ranges: Sequence[TensorRange], data: memoryview) -> None:
        """Compare averaged ranges of tensors with the published ones."""
        names = [name for part in ranges if (name := self._name(part.name)) is not None]
        known = [place for name in names if (place := self.there[name].locate(name)) is not None]
        if len(known) < len(ranges):
            self._compare_ranges(ranges, data)
            return
        there, position = memoryview(bytearray(len(data))), 0
        for source, offset, size in join_ranges(
            (source, begin + part.start, part.size) for (source, begin), part in zip(known, ranges, strict=True)
        ):
            source.read_into(offset, there[position : position + size])
            position += size
        if not np.array_equal(np.frombuffer(there, np.uint8), np.frombuffer(data, np.uint8)):
            self._compare_ranges(ranges, data)

    def give_up(self) -> None:
        """Do nothing: no comparison takes long."""

    def _compare_ranges(self, ranges: Sequence[TensorRange], data: memoryview) -> None:
        """Compare range by range, and note the bytes that differ."""
        position = 0
        for part in ranges:
            name = self._name(part.name)
            if name is not None:
                there = bytearray(part.size)
                self.there[name].read(name, part.start, memoryview(there))
                wanted = np.frombuffer(data[position : position + part.size], np.uint8)
                wrong = np.flatnonzero(np.frombuffer(there, np.uint8) != wanted)
                if len(wrong) and not self._is_rounding(name, part, there, wanted.tobytes()):
                    self._note(name, len(wrong), part.start + int(wrong[0]))
            position += part.size

    def _is_rounding(self, name: str, part: TensorRange, there: bytes | bytearray, wanted: bytes) -> bool:
        dtype = self.there[name].spec(name).dtype
        return self.rounding is not None and self.rounding.explains(dtype, part.name, part.start, there, wanted)

    def _note(self, name: str, nbytes: int, first: int) -> None:
        with self._lock:
            known = self.different.setdefault(name, Difference(0, first))
            known.nbytes += nbytes
            known.first = min(known.first, first)

    def problems(self) -> list[str]:
        """Return a problem for each tensor that differs."""
        problems = []
        for name, difference in sorted(self.different.items()):
            holder = self.there[name]
            place = holder.locate(name)
            element = difference.first * 8 // holder.spec(name).dtype.bits
            problems.append(
                f"{place[0].path if place else holder.path}: '{name}' is not what the checkpoints give: "
                f"{plural(difference.nbytes, 'byte')} differ{'s' * (difference.nbytes == 1)}, "
                f"the first in element {element}"
            )
        return problems


def _comparison(there: Mapping[str, Holder], unexpected: set[str], renamed: dict[str, str]) -> Comparison:
    """Return a comparison that has travelled, without what it found."""
    return Comparison(there, _unexpected=unexpected, _renamed=renamed)
