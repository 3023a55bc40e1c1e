"""What float32 rounds off an average, kept beside it: so that a thousand updates err no more than one.

An average moves by a small share at each update, and float32 rounds that: after n updates the error is that of one
times the root of n, and where a tensor has come to rest, all that is below half a step is lost, again and again. So the
sum is made in float64 from (average + rest) and the checkpoint; the average is that rounded to float32, and the rest is
the difference, rounded to bfloat16: 8 bits more, which leaves an error of 2 ** -33 of a value at each update.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ema_cli.checkpoint import Checkpoint, Run, StoredRecord, Tensors, TensorSpec
from ema_cli.dtypes import DTYPES
from ema_cli.folding.sink import Sink, TensorRange
from ema_cli.storage.source import ByteSource

_WIDER = {"F32": "F64", "C64": "C128"}
_SLICE = 1 << 15  # numbers that are worked on at once
_REST, _WIDE = 2, 8  # bytes of each real number; of the average it is four


def with_rest(kept: Mapping[str, TensorSpec], copied: frozenset[str]) -> frozenset[str]:
    """Return the names of the tensors that have a rest: those that are averaged in float32."""
    return frozenset(name for name, spec in kept.items() if spec.dtype.name in _WIDER and name not in copied)


def rest_specs(kept: Mapping[str, TensorSpec], names: frozenset[str]) -> dict[str, TensorSpec]:
    """Return the specs of the rests: one bfloat16 for each real number, in a row."""
    specs = {name: kept[name] for name in kept if name in names}
    return {name: TensorSpec(DTYPES["BF16"], (spec.count * spec.dtype.components,)) for name, spec in specs.items()}


def wide_spec(spec: TensorSpec) -> TensorSpec:
    """Return the spec of the sum of an average and its rest."""
    return replace(spec, dtype=DTYPES[_WIDER[spec.dtype.name]])


class WithRest:
    """An average with its rest, as float64; `Tensors`. Other tensors are as they are kept."""

    def __init__(self, kept: Tensors, rest: Tensors | None, names: frozenset[str]) -> None:
        """Take the tensors of an average, its rest if there is one, and which tensors have one."""
        self._kept = kept
        self._rest = rest
        self._names = names
        self.specs: Mapping[str, TensorSpec] = {
            name: wide_spec(spec) if name in names else spec for name, spec in kept.specs.items()
        }

    def share(self, other: Tensors) -> None:
        """Do nothing: there are few of these."""

    def place(self, name: str) -> Hashable:
        """Return where the average lies."""
        return self._kept.place(name)

    def locate(self, name: str) -> tuple[ByteSource, int] | None:
        """Return the place of a tensor without a rest; None for others, as the sum lies nowhere."""
        return None if name in self._names else self._kept.locate(name)

    def runs(self, name: str, start: int, size: int) -> Sequence[Run] | None:
        """Return the runs of a tensor without a rest; None for others."""
        return None if name in self._names else self._kept.runs(name, start, size)

    def offset(self, name: str, start: int) -> int:
        """Return 0 for a sum."""
        return 0 if name in self._names else self._kept.offset(name, start)

    def shard(self, name: str) -> str:
        """Return the file of the average."""
        return self._kept.shard(name)

    def stored_records(self) -> Iterator[StoredRecord]:
        """Yield nothing."""
        return iter(())

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        """Fill `out` with the sum of an average and its rest."""
        if name not in self._names:
            self._kept.read_into(name, start, out)
            return
        count, first, sums = len(out) // _WIDE, start // _WIDE, np.frombuffer(out, np.float64)
        kept = _memory.floats("kept", count)
        self._kept.read_into(name, first * kept.itemsize, kept.data.cast("B"))
        if self._rest is None:
            np.copyto(sums, kept)
            return
        rest = _memory.rests("rest", count)
        self._rest.read_into(name, first * _REST, rest.data.cast("B"))
        for part in _slices(count):
            np.add(kept[part], _from_bfloat16(rest[part]), out=sums[part], dtype=np.float64)


class RestSink:
    """Divides sums in float64 into averages in float32 and rests, each for its own sink; a `Sink`."""

    def __init__(self, kept: Sink, rest: Sink, names: frozenset[str]) -> None:
        """Take where the averages go, and the rests, and which tensors have one."""
        self._kept = kept
        self._rest = rest
        self._names = names

    def write(self, ranges: Sequence[TensorRange], data: memoryview) -> None:
        """Divide the bytes of these ranges. All of a call have a rest, or none has: a block is of one kind."""
        if ranges[0].name not in self._names:
            self._kept.write(ranges, data)
            return
        sums = np.frombuffer(data, np.float64)
        kept, rest = _memory.floats("kept", len(sums)), _memory.rests("rest", len(sums))
        with np.errstate(all="ignore"):  # an infinity, as in a mask, has no rest
            for part in _slices(len(sums)):
                np.copyto(kept[part], sums[part], casting="same_kind")
                off = _memory.floats("off", len(kept[part]))
                np.subtract(sums[part], kept[part], out=off, dtype=np.float64, casting="same_kind")
                _to_bfloat16(off, rest[part])
        self._kept.write(_scaled(ranges, kept.itemsize), kept.data.cast("B"))
        self._rest.write(_scaled(ranges, _REST), rest.data.cast("B"))

    def give_up(self) -> None:
        """End what both sinks still do."""
        self._kept.give_up()
        self._rest.give_up()


def opened(kept: Checkpoint, rest: Checkpoint | None, names: frozenset[str]) -> Checkpoint:
    """Return an average with its rest; that of the first copy is 0, and is not kept."""
    files = kept.files if rest is None else (*kept.files, *rest.files)
    return replace(kept, tensors=WithRest(kept.tensors, None if rest is None else rest.tensors, names), files=files)


def _scaled(ranges: Sequence[TensorRange], size: int) -> list[TensorRange]:
    return [TensorRange(part.name, part.start // _WIDE * size, part.size // _WIDE * size) for part in ranges]


def _slices(count: int) -> Iterator[slice]:
    """Yield slices of so many elements which the processor's cache holds."""
    return (slice(begin, min(begin + _SLICE, count)) for begin in range(0, count, _SLICE))


def _from_bfloat16(stored: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return stored numbers, until this thread asks for others."""
    bits = _memory.floats("bits", len(stored)).view(np.uint32)
    np.copyto(bits, stored)
    np.left_shift(bits, 16, out=bits)
    return bits.view(np.float32)


def _to_bfloat16(numbers: NDArray[np.float32], out: NDArray[np.uint16]) -> None:
    """Round numbers to bfloat16, halves away from 0; what is not finite is 0."""
    bits = _memory.floats("bits", len(numbers)).view(np.uint32)
    np.add(numbers.view(np.uint32), np.uint32(0x8000), out=bits)
    np.right_shift(bits, 16, out=bits)
    np.copyto(out, bits, casting="unsafe")
    finite = np.isfinite(numbers)
    if not finite.all():
        out[~finite] = 0


class _Memory(threading.local):
    """Arrays that a thread uses for one block after another: new ones would cost the system more than the sums."""

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[np.uint32]] = {}

    def floats(self, use: str, count: int) -> NDArray[np.float32]:
        """Return an array for one use, with anything in it."""
        if len(self._arrays.get(use, ())) < count:
            self._arrays[use] = np.empty(count, np.uint32)
        return self._arrays[use][:count].view(np.float32)

    def rests(self, use: str, count: int) -> NDArray[np.uint16]:
        """Return an array for one use, with anything in it."""
        return self.floats(use, -(-count // 2)).view(np.uint16)[:count]


_memory = _Memory()
