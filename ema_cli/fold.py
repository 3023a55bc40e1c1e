"""Bring checkpoints into the average, range by range: read, multiply, add, round, write, forget.

Memory is a few small buffers for each thread, whatever the number and size of the checkpoints. Ranges are
independent of each other, and every byte that enters is read once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ema_cli.arithmetic import (
    Floats,
    components,
    decode,
    encode,
    is_stored_as,
    is_within,
    overflow_limit,
    settle_non_finite,
    weighted_average,
    work_dtype,
)
from ema_cli.checkpoint import Checkpoint, DType, TensorSpec
from ema_cli.errors import EmaError, NonFiniteError

RANGE_ELEMENTS = 1 << 17
_REPORT_SECONDS = 0.1

Write = Callable[[str, int, memoryview], None]


@dataclass(frozen=True, slots=True)
class Group:
    """Tensor names that share their bytes in every checkpoint, to be folded once; `spec` is the newest checkpoint's."""

    names: tuple[str, ...]
    spec: TensorSpec
    target: DType
    averaged: bool


@dataclass(slots=True)
class Fold:
    """The average of `checkpoints`, oldest first, with `weights` that sum to 1.

    `targets` gives the output dtype of each tensor by name; those in `copied` come from the newest checkpoint, as do
    integers. Float dtypes may differ between checkpoints. `write(name, start, data)` is called once for
    each range of each output tensor, from several threads. `non_finite` lists the tensors in which NaN or
    infinity was let through.

    Raises:
        NonFiniteError: unless `allow_non_finite`; names checkpoint and tensor.
        CheckpointError: where an input cannot be read.
    """

    checkpoints: Sequence[Checkpoint]
    weights: Sequence[float]
    targets: Mapping[str, DType]
    write: Write
    threads: int = 1
    range_elements: int = RANGE_ELEMENTS
    allow_non_finite: bool = False
    copied: frozenset[str] = frozenset()
    bytes_read: int = 0
    non_finite: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: bool = False

    @property
    def bytes_total(self) -> int:
        """Return how many bytes will be read."""
        total = 0
        for group in self.groups():
            name = group.names[0]
            read = self.checkpoints if group.averaged else self.checkpoints[-1:]
            total += sum(checkpoint.weights.specs[name].nbytes for checkpoint in read)
        return total

    def run(self, report: Callable[[int], None] = lambda _: None) -> None:
        """Fold everything; `report` is told, in this thread, how many bytes have been read so far."""
        ranges = self._ranges()
        with ThreadPoolExecutor(self.threads, "fold") as pool:
            try:
                workers = self._start(pool, ranges)
                while workers:
                    done, workers = wait(workers, _REPORT_SECONDS, FIRST_EXCEPTION)
                    for worker in done:
                        worker.result()
                    report(self.bytes_read)
            finally:
                # However this ends (an error, Ctrl-C), the other workers stop at their next range.
                self._stopped = True

    def _start(self, pool: ThreadPoolExecutor, ranges: Iterator[tuple[Group, int, int]]) -> set[Future[None]]:
        try:
            return {pool.submit(self._work, ranges) for _ in range(self.threads)}
        except RuntimeError as error:
            raise EmaError(f"no thread can be started: {error}", hint="use fewer --threads") from error

    def groups(self) -> Iterator[Group]:
        """Yield the tensors to fold, in the newest checkpoint's order; those tied everywhere come together."""
        specs = self.checkpoints[-1].weights.specs
        tied = self._tied_names()
        others = {name for names in tied.values() for name in names[1:]}
        for name, spec in specs.items():
            if name not in others:
                averaged = spec.dtype.averaged and name not in self.copied
                yield Group(tied.get(name, (name,)), spec, self.targets[name], averaged)

    def _tied_names(self) -> dict[str, tuple[str, ...]]:
        """Return the names that share their bytes in every checkpoint, by the first of them."""
        newest = self.checkpoints[-1].weights
        first: dict[object, str] = {}
        candidates: dict[str, list[str]] = {}
        for name, spec in newest.specs.items():
            if name in self.copied:
                continue  # it need not even be in the others
            leader = first.setdefault((newest.place(name), spec), name)
            if leader is not name:
                candidates.setdefault(leader, [leader]).append(name)
        tied = {}
        for names in candidates.values():
            parts: dict[object, list[str]] = {}
            for name in names:
                places = tuple(checkpoint.weights.place(name) for checkpoint in self.checkpoints)
                parts.setdefault(places, []).append(name)
            tied.update({part[0]: tuple(part) for part in parts.values() if len(part) > 1})
        return tied

    def _ranges(self) -> Iterator[tuple[Group, int, int]]:
        for group in self.groups():
            dtype = group.spec.dtype
            step = self.range_elements * 8 // max(dtype.itemsize, 8)
            if dtype.bits < 8:
                step = max(step // 8 * 8, 8)  # whole bytes, whatever the number of bits
            for start in range(0, group.spec.count, step):
                yield group, start, min(step, group.spec.count - start)

    def _work(self, ranges: Iterator[tuple[Group, int, int]]) -> None:
        buffers = _Buffers(self.range_elements)
        with np.errstate(all="ignore"):
            while True:
                with self._lock:
                    taken = None if self._stopped else next(ranges, None)
                if taken is None:
                    return
                group, start, count = taken
                if group.averaged and (len(self.weights) > 1 or group.target != group.spec.dtype):
                    self._average(group, start, count, buffers)
                else:
                    self._copy(group, start, count, buffers)

    def _copy(self, group: Group, start: int, count: int, buffers: _Buffers) -> None:
        """Write the range as the newest checkpoint has it."""
        nbytes = group.spec.dtype.nbytes
        data = buffers.raw[: nbytes(count)]
        self.checkpoints[-1].weights.read_into(group.names[0], nbytes(start), data.data)
        if group.averaged:
            self._check_copied(group, start, count, buffers)
        for name in group.names:
            self.write(name, nbytes(start), data.data)
        self._count(len(data))

    def _check_copied(self, group: Group, start: int, count: int, buffers: _Buffers) -> None:
        dtype = group.spec.dtype
        values = buffers.floats(work_dtype([dtype]), dtype, count)[0]
        decode(dtype, buffers.raw[: count * dtype.itemsize], values)
        # Only NaN: an infinity is equal in all of one checkpoint.
        wrong = np.flatnonzero(np.isnan(values))
        if len(wrong):
            self._non_finite(group, 0, start + int(wrong[0]) // components(dtype))

    def _average(self, group: Group, start: int, count: int, buffers: _Buffers) -> None:
        name = group.names[0]
        dtypes = [checkpoint.weights.specs[name].dtype for checkpoint in self.checkpoints]
        work = work_dtype(dtypes)
        three = buffers.floats(work, group.spec.dtype, count)

        def load(number: int, out: Floats) -> None:
            weights, dtype = self.checkpoints[number].weights, dtypes[number]
            if is_stored_as(dtype, out.dtype):
                weights.read_into(name, start * dtype.itemsize, out.data.cast("B"))
            else:
                raw = buffers.raw[: count * dtype.itemsize]
                weights.read_into(name, start * dtype.itemsize, raw.data)
                decode(dtype, raw, out)

        average = weighted_average(load, self.weights, three)
        limit = overflow_limit(group.target, average.dtype)
        if not is_within(average, limit):
            found = settle_non_finite(load, self.weights, average, limit)
            if found is not None:
                self._non_finite(group, found[0], start + found[1] // components(group.spec.dtype))
        data = encode(group.target, average)
        for each in group.names:
            self.write(each, start * group.target.itemsize, data)
        self._count(sum(dtype.nbytes(count) for dtype in dtypes))

    def _non_finite(self, group: Group, number: int, element: int) -> None:
        name = group.names[0]
        if self.allow_non_finite:
            with self._lock:
                self.non_finite.add(name)
        elif number < 0:
            raise NonFiniteError(
                f"'{name}' is too large for {group.target.name} at element {element} of the average",
                hint="write a wider type: --dtype float32 or bfloat16",
            )
        else:
            raise NonFiniteError(
                f"{self.checkpoints[number].path}: '{name}' is not finite at element {element}",
                hint="leave that checkpoint out (--start, --stop), or let it pass with --allow-non-finite",
            )

    def _count(self, nbytes: int) -> None:
        with self._lock:
            self.bytes_read += nbytes


class _Buffers:
    """One thread's memory, allocated once: 4 x 8 bytes for each element of a range (half as many of 16 bytes)."""

    def __init__(self, elements: int) -> None:
        self.raw = np.empty(elements * 8, dtype=np.uint8)
        self._floats = [np.empty(elements, dtype=np.float64) for _ in range(3)]

    def floats(self, work: np.dtype[Any], dtype: DType, count: int) -> tuple[Floats, Floats, Floats]:
        """Return three arrays for `count` elements of `dtype`, in the type `work` that they are accumulated in."""
        length = count * components(dtype)
        first, second, third = (array.view(work)[:length] for array in self._floats)
        return first, second, third
