"""Average the checkpoints of a published average once more, as its manifest says, and compare every byte.

Writes nothing. Takes the memory of a fold, and as much again for the bytes that are compared.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ema_cli.checkpoint import TensorSpec
from ema_cli.errors import EmaError, RunError, UsageError, at_terminal
from ema_cli.folding.buffers import DEFAULT_BYTES, divide_memory, least_bytes
from ema_cli.folding.sink import TensorRange
from ema_cli.job import Job, lay_out
from ema_cli.manifest.types import Manifest
from ema_cli.release.metadata import (
    frame_differences,
    is_of_this_version,
    manifest_differences,
    side_file_differences,
)
from ema_cli.release.published import Published
from ema_cli.release.replay import Replay, open_replay
from ema_cli.release.snapshot import Snapshot
from ema_cli.release.verify import Against, Verified
from ema_cli.storage.ranges import join_ranges
from ema_cli.storage.source import ByteSource
from ema_cli.system.progress import ProgressCallback, no_progress
from ema_cli.text import plural
from ema_cli.writing.outputs import Output
from ema_cli.writing.record import Record
from ema_cli.writing.target import Target

SAMPLE_ELEMENTS = 1 << 16


def verify_against(
    verified: Verified,
    paths: Sequence[Path],
    *,
    sample: bool = False,
    threads: int = 1,
    report: ProgressCallback = no_progress,
) -> Verified:
    """Average the checkpoints at and below `paths` once more, and add every difference to the problems of an average.

    Nothing is compared where the manifest, or a file that it lists, is missing.

    Args:
        verified: the average as `verify` returned it.
        paths: where the inputs that the manifest names are looked for.
        sample: make and compare only the first 65,536 elements of each tensor.
        threads: for reading and averaging.
        report: called with the bytes read and the bytes in all.

    Raises:
        CheckpointError: naming the checkpoint that is missing, has changed, or cannot be read.
        RunError: where the checkpoints do not fit together.
        NonFiniteError: where they hold NaN or infinity, and the manifest does not allow it.
    """
    snapshot = verified.snapshot
    if snapshot.manifest is None or not snapshot.complete:
        return verified
    try:
        replay = open_replay(snapshot.manifest, paths, threads=threads)
    except (RunError, UsageError) as error:  # the manifest contradicts itself, or holds what can be no recipe
        return _with(verified, [f"{snapshot.published.manifest}: {error.message(at_terminal)}"])
    except EmaError as error:
        if not verified.problems:
            raise
        return _with(verified, [f"not compared with the checkpoints: {error.message(at_terminal)}"])
    return _compare(verified, snapshot.manifest, replay, sample=sample, threads=threads, report=report)


def _compare(
    verified: Verified, manifest: Manifest, replay: Replay, *, sample: bool, threads: int, report: ProgressCallback
) -> Verified:
    """Fold the inputs into a comparison with the average that is there."""
    snapshot = verified.snapshot
    job = _job(replay, snapshot.published)
    comparison = _Comparison(_places(snapshot))
    problems = comparison.expect(job.outputs[0])
    record = Record(
        job.checkpoints,
        job.options,
        job.copied,
        checksum=replay.checksum and not sample,
        threads=threads,
        warnings=manifest["warnings"],
    )
    most_elements = SAMPLE_ELEMENTS if sample else None
    folded = job.fold(
        [comparison],
        sizes=divide_memory(max(DEFAULT_BYTES, least_bytes()), threads),
        checksums=record.checksums,
        most_elements=most_elements,
        progress=report,
    )
    problems += comparison.problems()
    problems += side_file_differences(manifest, job.outputs[0], snapshot.published)
    if is_of_this_version(manifest):
        if not problems:
            files = {file.path: file for file in snapshot.files.values()}
            problems += frame_differences(files, job.outputs[0], snapshot.published.folder, sample=sample)
        again = record.manifest(job.outputs[0], replay.plan, {}, folded.non_finite[0])
        tensors = record.tensors(job.outputs[0], replay.plan, folded.non_finite[0])
        problems += manifest_differences(manifest, snapshot.published.manifest, again, tensors, sample=sample)
    inputs = [file for checkpoint in job.checkpoints for file in checkpoint.files]
    for file in (*inputs, *snapshot.files.values()):
        file.check_unchanged()
    different = comparison.different
    against = Against(
        checkpoints=len(job.checkpoints),
        tensors=comparison.tensors,
        most_elements=most_elements,
        bytes_read=folded.bytes_read,
        tensors_different=len(different),
        bytes_different=sum(difference.nbytes for difference in different.values()),
    )
    return replace(_with(verified, problems), against=against)


def _with(verified: Verified, problems: Sequence[str]) -> Verified:
    return replace(verified, problems=(*verified.problems, *problems))


def _job(replay: Replay, published: Published) -> Job:
    """Return what would be made once more, where it lies already."""
    return lay_out([replay.plan], [Target(published.path, published.is_folder)], replay.options)


@dataclass(slots=True)
class _Place:
    """Where a tensor lies."""

    source: ByteSource
    begin: int
    spec: TensorSpec


@dataclass(slots=True)
class _Difference:
    """How much of a tensor is not as it should be: how many bytes, and from which on."""

    nbytes: int
    first: int


def _places(snapshot: Snapshot) -> dict[str, _Place]:
    places: dict[str, _Place] = {}
    for checkpoint in snapshot.opened.values():
        for name, spec in checkpoint.tensors.specs.items():
            located = checkpoint.tensors.locate(name)
            if located is not None:  # else it is a view, which is a problem already
                places[name] = _Place(*located, spec)
    return places


@dataclass(slots=True)
class _Comparison:
    """A sink that compares what a fold makes with what is `there`."""

    there: Mapping[str, _Place]
    tensors: int = 0
    different: dict[str, _Difference] = field(default_factory=dict)
    _expected: dict[str, str] = field(default_factory=dict)  # the fold's name of a tensor -> the one it is written with
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def expect(self, output: Output) -> list[str]:
        """Take the tensors of an output as those to compare; return where there are others."""
        problems = []
        for file in output.files:
            for name, spec in file.table.specs.items():
                place = self.there.get(name)
                if place is None or place.spec != spec:
                    has = f"is {place.spec}" if place is not None else "is not there"
                    problems.append(f"{output.target.path}: '{name}' {has}, but the checkpoints give {spec}")
                else:
                    self._expected[output.original(name)] = name
        self.tensors = len(self._expected)
        return problems

    def write(self, ranges: Sequence[TensorRange], data: memoryview) -> None:
        """Compare parts of tensors as they should be with what is there."""
        known = [(self.there[self._expected[part.name]], part) for part in ranges if part.name in self._expected]
        if len(known) < len(ranges):
            self._compare_ranges(ranges, data)
            return
        there, position = memoryview(bytearray(len(data))), 0
        for source, offset, size in join_ranges(
            (place.source, place.begin + part.start, part.size) for place, part in known
        ):
            source.read_into(offset, there[position : position + size])
            position += size
        if not np.array_equal(np.frombuffer(there, np.uint8), np.frombuffer(data, np.uint8)):
            self._compare_ranges(ranges, data)

    def give_up(self) -> None:
        """Do nothing: no comparison takes long."""

    def _compare_ranges(self, ranges: Sequence[TensorRange], data: memoryview) -> None:
        """Compare range by range, and note what differs."""
        position = 0
        for part in ranges:
            name = self._expected.get(part.name)
            if name is not None:
                place, there = self.there[name], bytearray(part.size)
                place.source.read_into(place.begin + part.start, memoryview(there))
                wanted = np.frombuffer(data[position : position + part.size], np.uint8)
                wrong = np.flatnonzero(np.frombuffer(there, np.uint8) != wanted)
                if len(wrong):
                    self._note(name, len(wrong), part.start + int(wrong[0]))
            position += part.size

    def _note(self, name: str, nbytes: int, first: int) -> None:
        with self._lock:
            known = self.different.setdefault(name, _Difference(0, first))
            known.nbytes += nbytes
            known.first = min(known.first, first)

    def problems(self) -> list[str]:
        """Return of each tensor what is not as it should be."""
        found = []
        for name, each in sorted(self.different.items()):
            place = self.there[name]
            element = each.first * 8 // place.spec.dtype.bits
            found.append(
                f"{place.source.path}: '{name}' is not what the checkpoints give: {plural(each.nbytes, 'byte')} "
                f"differ{'s' * (each.nbytes == 1)}, the first in element {element}"
            )
        return found
