"""Average the checkpoints of a published average again, by its manifest, and compare every byte.

Writes nothing. Takes the memory of a fold, and the same amount again for the bytes to compare.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path

import numpy as np

from ema_cli.checkpoint import Tensors, TensorSpec
from ema_cli.comparing.stored_sums import check_stored_sums
from ema_cli.dataclass import dataclass
from ema_cli.errors import EmaError, OutputError, RunError, UsageError, at_terminal
from ema_cli.folding.buffers import default_bytes, divide_memory, in_store, least_bytes
from ema_cli.folding.sample import Sample
from ema_cli.folding.sink import TensorRange
from ema_cli.formats.output_file import whole_name
from ema_cli.job import Job, lay_out
from ema_cli.manifest.recipe_record import check_base
from ema_cli.manifest.types import Manifest
from ema_cli.release.clocks import OtherClock, overruled_by
from ema_cli.release.copies import copy_differences
from ema_cli.release.frames import frame_differences
from ema_cli.release.metadata import compare_remarks, manifest_differences, own_words, side_file_differences
from ema_cli.release.published import Published
from ema_cli.release.replay import Replay, open_replay
from ema_cli.release.snapshot import Snapshot
from ema_cli.release.verify import Against, Verified
from ema_cli.release.watched import verify_watched
from ema_cli.runs.warnings import Remarks
from ema_cli.storage.ranges import join_ranges
from ema_cli.storage.source import ByteSource
from ema_cli.system.memory import give_back
from ema_cli.system.progress import ProgressCallback, no_progress
from ema_cli.text import plural
from ema_cli.writing.outputs import Output
from ema_cli.writing.record import Record
from ema_cli.writing.target import Target


def verify_against(
    verified: Verified,
    paths: Sequence[Path],
    *,
    sample: Sample | None = None,
    merge_into: Path | None = None,
    threads: int = 1,
    progress: ProgressCallback = no_progress,
) -> Verified:
    """Average the checkpoints at and below `paths` again, and add each difference to the problems of an average.

    Nothing is compared if the manifest, or a file that it lists, is missing. Of what `watch` wrote, see `watched`.

    Args:
        verified: the average as `verify` returned it.
        paths: the places at and below which the inputs are searched.
        sample: average and compare only these elements of each tensor.
        merge_into: the base model, of an average of adapters that were merged into it.
        threads: the number of threads for reading and averaging.
        progress: called with the bytes read so far and the total.

    Raises:
        UsageError: where a base model is given and not needed, or needed and not given.
        CheckpointError: naming a checkpoint that is missing, has changed, or cannot be read.
        RunError: if the checkpoints do not fit together.
        NonFiniteError: if they hold NaN or infinity, and the manifest does not allow it.
    """
    snapshot = verified.snapshot
    if snapshot.manifest is None or not snapshot.complete:
        return verified
    check_base(snapshot.manifest["recipe"], merge_into)
    if "watch" in snapshot.manifest:
        return verify_watched(verified, snapshot.manifest, paths, threads)
    try:
        replay = open_replay(snapshot.manifest, paths, merge_into=merge_into, threads=threads, with_remarks=True)
    except (RunError, UsageError, OtherClock) as error:  # the manifest is not true, or its recipe is impossible
        return _with_problems(verified, [f"{snapshot.published.manifest}: {error.message(at_terminal)}"])
    except EmaError as error:
        if not verified.problems:
            raise
        return _with_problems(verified, [f"not compared with the checkpoints: {error.message(at_terminal)}"])
    try:
        return _compare(verified, snapshot.manifest, replay, sample=sample, threads=threads, progress=progress)
    except OutputError as error:  # nothing is written here: no output can be laid out, or finished, by this manifest
        return _with_problems(verified, [f"is nothing that averaging gives: {error.message(at_terminal)}"])


def _compare(
    verified: Verified,
    manifest: Manifest,
    replay: Replay,
    *,
    sample: Sample | None,
    threads: int,
    progress: ProgressCallback,
) -> Verified:
    """Fold the inputs, and compare the result with the published average."""
    snapshot = verified.snapshot
    job = _job(replay, snapshot.published)
    for checkpoint in snapshot.opened.values():
        checkpoint.tensors.share(job.checkpoints[-1].tensors)
    comparison = _Comparison(_holders(snapshot))
    problems = comparison.expect(job.outputs[0])
    give_back(comparison.tensors)  # what reading headers and laying out took
    notes = [] if sample is not None else check_stored_sums(job.checkpoints, threads)
    record = Record(
        job.checkpoints,
        job.options,
        job.copied,
        checksum=replay.checksum and sample is None,
        threads=threads,
        remarks=Remarks(),
    )
    folded = job.fold(
        [comparison],
        sizes=divide_memory(
            max(default_bytes(job.checkpoints), least_bytes()), threads, from_store=in_store(job.checkpoints)
        ),
        checksums=record.checksums,
        sample=sample,
        progress=progress,
    )
    give_back(comparison.tensors)  # the buffers of the fold
    problems += comparison.problems()
    output, words = job.outputs[0], own_words(manifest, job.outputs[0])
    problems += side_file_differences(snapshot, output, {*words, *snapshot.edited})
    if not problems:
        problems += frame_differences(snapshot, output, same_version=not words)
    if not problems and output.likeness is not None:
        problems += copy_differences(snapshot, output.likeness, comparison.there)
    non_finite = folded.non_finite[0]
    again = record.manifest(output, replay.plan, {}, non_finite, next(iter(folded.factored), None))
    tensors = record.tensors(output, replay.plan, non_finite)
    path, sampled = snapshot.published.manifest, sample is not None
    problems += manifest_differences(manifest, path, again, tensors, sample=sampled)
    least, around = (record.remarks(replay.plan, non_finite, given) for given in (None, replay.remarks_around))
    missing, unknown = compare_remarks(manifest, path, least, around, sample=sampled)
    problems += missing
    inputs = [file for checkpoint in job.checkpoints for file in checkpoint.files]
    for file in (*inputs, *snapshot.files.values()):
        file.check_unchanged()
    different = comparison.different
    against = Against(
        checkpoints=len(job.checkpoints),
        tensors=comparison.tensors,
        sample=sample,
        bytes_read=folded.bytes_read,
        tensors_different=len(different),
        bytes_different=sum(difference.nbytes for difference in different.values()),
        overruled=overruled_by(
            manifest["recipe"],
            [clock.source for checkpoint in job.checkpoints for clock in checkpoint.progress.clocks.values()],
        ),
    )
    verified = _with_problems(verified, problems)
    return replace(verified, against=against, notes=tuple(notes), own_words=words, unknown=unknown)


def _with_problems(verified: Verified, problems: Sequence[str]) -> Verified:
    return replace(verified, problems=(*verified.problems, *problems))


def _job(replay: Replay, published: Published) -> Job:
    """Return the job of making the average again, with the published paths as its target."""
    options = replace(replay.options, version=replay.manifest["tool"]["version"])
    is_dcp = replay.manifest["recipe"]["format"] == "dcp"
    return lay_out([replay.plan], [Target(published.path, published.is_folder, is_dcp)], options)


@dataclass(frozen=True, slots=True)
class _Holder:
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
class _Difference:
    """The number of bytes of a tensor that differ, and the offset of the first, counted from the tensor's start."""

    nbytes: int
    first: int


def _holders(snapshot: Snapshot) -> dict[str, _Holder]:
    """Return the holder of each tensor by its name in the whole output: one for a file, as there are many tensors."""
    holders: dict[str, _Holder] = {}
    for file, checkpoint in snapshot.opened.items():
        tensors = checkpoint.tensors
        holder = _Holder(checkpoint.path, tensors, whole_name(file, ""))
        # Elsewhere than in the form of its input a view is a problem already.
        names = (name for name in tensors.specs if snapshot.is_one_checkpoint or tensors.locate(name) is not None)
        holders.update({whole_name(file, name): holder for name in names})
    return holders


@dataclass(slots=True)
class _Comparison:
    """A sink that compares the bytes of a fold with the published ones; `there`: what holds a tensor, by its name."""

    there: Mapping[str, _Holder]
    tensors: int = 0
    different: dict[str, _Difference] = field(default_factory=dict)
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
                if len(wrong):
                    self._note(name, len(wrong), part.start + int(wrong[0]))
            position += part.size

    def _note(self, name: str, nbytes: int, first: int) -> None:
        with self._lock:
            known = self.different.setdefault(name, _Difference(0, first))
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
