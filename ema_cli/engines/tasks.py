"""Cut an averaging into tasks: ranges of the output, each made by one worker.

The cuts follow from the outputs alone. So any number of workers, and of parts, makes the same tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from enum import Enum
from itertools import pairwise

from ema_cli.checkpoint import TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.folding.sample import Parts, Range
from ema_cli.text import plural
from ema_cli.writing.outputs import Output

_ALIGNED_BYTES = 1 << 20  # a stretch begins at a multiple of it: file systems lock, and stripe, by such units
_LEAST_BYTES = 80 << 20  # of a task: what it costs besides, in Dask some 10 ms of processors, is small then
_MOST_BYTES = 1 << 30
_TASKS = 256
_SHARED_EVENLY = (2, 4, 6, 8, 12, 16, 20, 24)  # so many stretches have few workers to wait for each other in the end


class Step(Enum):
    """What a task does."""

    WHOLE = "whole"  # makes files from the first byte to the last
    STRETCH = "stretch"  # writes a stretch of the tensors of a file
    FINISH = "finish"  # completes a file whose stretches are all there, and sums it up


@dataclass(frozen=True, slots=True)
class Task:
    """One task, as data.

    Attributes:
        number: its position in the order of all tasks, from 0.
        files: the numbers of its files, of each output.
        nbytes: how many bytes of tensors it is about.
        begin, end: of a stretch the first byte, and the one behind it, counted from the first of the tensors.
    """

    number: int
    step: Step
    files: tuple[tuple[int, ...], ...]
    nbytes: int
    begin: int = 0
    end: int = 0

    def describe(self, outputs: Sequence[Output]) -> str:
        """Return what it makes, for messages."""
        names = [outputs[0].files[number].name for number in self.files[0]]
        more = f" and {plural(len(names) - 1, 'file')} more" if len(names) > 1 else ""
        stretch = f", bytes {self.begin} to {self.end} of its tensors" if self.step is Step.STRETCH else ""
        return f"{names[0] if names else 'an empty file'}{more}{stretch}"

    def select(self, outputs: Sequence[Output]) -> list[Output]:
        """Return the outputs with the files of this task alone."""
        return [_with_files(output, numbers) for output, numbers in zip(outputs, self.files, strict=True)]

    def parts(self, output: Output) -> Parts:
        """Return the elements of a stretch, of the tensors that have any; `output` has its file alone."""
        (file,) = output.files
        ranges = (
            (output.original(file, name), _elements(spec, file.table.begins[name], self.begin, self.end))
            for name, spec in file.table.specs.items()
        )
        return Parts({name: part for name, part in ranges if part[1]})


def cut_tasks(outputs: Sequence[Output], *, shared_files: bool) -> list[Task]:
    """Return the tasks that make the tensor files of some outputs of one averaging, those that finish files last.

    Args:
        outputs: the outputs; they have the same tensors.
        shared_files: whether several workers may write into one file.
    """
    total = sum(file.table.nbytes for file in outputs[0].files)
    size = min(max(_LEAST_BYTES, total // _TASKS), _MOST_BYTES) // _ALIGNED_BYTES * _ALIGNED_BYTES
    tasks: list[Task] = []
    finishing: list[Task] = []
    for files in _joined(list(_components(outputs)), outputs, size):
        nbytes = sum(outputs[0].files[number].table.nbytes for number in files[0])
        if shared_files and nbytes >= 2 * size and _can_be_cut(outputs, files):
            for begin, end in pairwise(_cuts(nbytes, outputs[0].files[files[0][0]].header_size, size)):
                tasks.append(Task(0, Step.STRETCH, files, end - begin, begin, end))
            finishing.append(Task(0, Step.FINISH, files, nbytes))
        else:
            tasks.append(Task(0, Step.WHOLE, files, nbytes))
    return [replace(task, number=number) for number, task in enumerate([*tasks, *finishing])]


def _cuts(nbytes: int, header: int, size: int) -> list[int]:
    """Return where the stretches of a file begin and end, all about as long, and at least `size`.

    Args:
        nbytes: how many bytes of tensors the file has.
        header: how many bytes stand before them.
        size: about how long a stretch is to be.
    """
    count = nbytes // size
    count = max((number for number in _SHARED_EVENLY if number <= count), default=1) if count < 32 else count
    count = max(count, -(-nbytes // (_MOST_BYTES - _ALIGNED_BYTES)))
    ends = ((header + nbytes * number // count) // _ALIGNED_BYTES * _ALIGNED_BYTES for number in range(1, count))
    return [0, *(end - header for end in ends), nbytes]


_Files = tuple[tuple[int, ...], ...]


def _components(outputs: Sequence[Output]) -> Iterator[_Files]:
    """Yield the files that have to be made together: of all outputs those that share a tensor, as few as that gives."""
    leaders: dict[tuple[int, int], tuple[int, int]] = {}

    def leader(node: tuple[int, int]) -> tuple[int, int]:
        while leaders[node] != node:
            leaders[node] = leaders[leaders[node]]
            node = leaders[node]
        return node

    holders: dict[str, tuple[int, int]] = {}
    for number, output in enumerate(outputs):
        copies = [] if output.likeness is None else output.likeness.files
        places = {copy.source.path: at for at, copy in enumerate(copies)}
        for at, file in enumerate(output.files):
            node = (number, at)
            leaders.setdefault(node, node)
            for name in file.table.specs:
                original = output.original(file, name)
                pieces = output.likeness.pieces.get(original, ()) if output.likeness is not None else ()
                for other in (node, *((number, places[piece.file.path]) for piece in pieces)):
                    leaders.setdefault(other, other)
                    one, two = leader(holders.setdefault(original, other)), leader(other)
                    leaders[max(one, two)] = min(one, two)
    members: dict[tuple[int, int], list[list[int]]] = {}
    for node in sorted(leaders):
        files = members.setdefault(leader(node), [[] for _ in outputs])
        files[node[0]].append(node[1])
    for files in members.values():
        yield tuple(map(tuple, files))


def _joined(components: Sequence[_Files], outputs: Sequence[Output], size: int) -> Iterator[_Files]:
    """Yield the components; small ones that follow each other come together."""
    waiting: list[list[int]] = []
    room = 0
    for files in components:
        nbytes = sum(outputs[0].files[number].table.nbytes for number in files[0])
        if waiting and nbytes > room:
            yield tuple(map(tuple, waiting))
            waiting = []
        if not waiting:
            waiting, room = [[] for _ in outputs], size
        for together, numbers in zip(waiting, files, strict=True):
            together.extend(numbers)
        room -= nbytes
    if waiting:
        yield tuple(map(tuple, waiting))


def _can_be_cut(outputs: Sequence[Output], files: _Files) -> bool:
    """Return whether it is one file of each output, written by us alone, with its tensors at the same places."""
    if any(len(numbers) != 1 for numbers in files) or any(output.likeness is not None for output in outputs):
        return False
    tables = [output.files[number].table for output, (number,) in zip(outputs, files, strict=True)]
    return all(table.begins == tables[0].begins and table.specs == tables[0].specs for table in tables)


def _elements(spec: TensorSpec, tensor_begin: int, begin: int, end: int) -> Range:
    """Return the elements of a tensor whose first byte lies in a stretch: the first, and how many."""
    first, last = (_elements_before(spec, at - tensor_begin) for at in (begin, end))
    return first, last - first


def _elements_before(spec: TensorSpec, nbytes: int) -> int:
    """Return how many elements begin in the first `nbytes` of a tensor; those that share a byte stay together."""
    if nbytes <= 0:
        return 0
    step = 1 if spec.dtype.bits >= 8 else 8
    elements = -(-nbytes * 8 // spec.dtype.bits)
    return min(-(-elements // step) * step, spec.count)


def _with_files(output: Output, numbers: Sequence[int]) -> Output:
    files = [output.files[number] for number in numbers]
    likeness = output.likeness
    if likeness is not None:
        originals = {output.original(file, name) for file in files for name in file.table.specs}
        pieces = {name: pieces for name, pieces in likeness.pieces.items() if name in originals}
        likeness = replace(likeness, files=[likeness.files[number] for number in numbers], pieces=pieces)
    return Output(output.target, files, originals=output.originals, likeness=likeness)
