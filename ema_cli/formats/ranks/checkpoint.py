"""Open a model of which each rank saved its share, from the files of all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import field, fields, replace
from functools import partial
from pathlib import Path

from ema_cli.checkpoint import Checkpoint, Progress, Tensors
from ema_cli.dataclass import dataclass
from ema_cli.errors import OTHER_SAVES, CheckpointError, EmaError, UsageError, option
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.pickles.values import TensorRef
from ema_cli.formats.ranks.assembly import Assembly
from ema_cli.formats.ranks.flat import read_flat
from ema_cli.formats.ranks.schedules import check_schedules
from ema_cli.formats.ranks.table import Description, RankTable
from ema_cli.formats.torch_save.content import TorchFile
from ema_cli.formats.torch_save.file import from_torch, is_zip, open_torch
from ema_cli.formats.trainers.choice import settle_averages
from ema_cli.formats.trainers.layout import StateDict
from ema_cli.formats.trainers.places import select_tensors
from ema_cli.storage.location import location
from ema_cli.storage.replicas import Replicas
from ema_cli.storage.source import InputFile


def open_ranks(path: Path, files: Mapping[int, Path], options: ReadOptions) -> Checkpoint:
    """Return the checkpoint at `path`, whose files are those of ranks, by their numbers.

    Raises:
        IncompleteCheckpoint: where the files of ranks are missing.
        CheckpointError: where the files do not fit each other, or one cannot be read.
    """
    rank, *others = sorted(files)
    file = location(files[rank]).open()
    opened = _Watched.of(open_torch(file, options.before))
    assembly, progress, warnings = Assembly(), dict[int, Progress](), list[str]()
    reading = _Reading(assembly, options, len(files))

    def build(values: StateDict) -> Tensors:
        named = {str(name): value for name, value in values.items()}
        reading.add(rank, file, lambda: (opened, assembly.read(file, opened, named, Progress())))
        for other in others:  # one at a time: of each only its boxes are kept
            progress[other] = reading.open(other, files[other])
        tensors, said = assembly.finish(options)
        warnings.extend(said)
        return tensors

    checkpoint = from_torch(file, opened, options, build)
    for other, theirs in progress.items():
        _check_progress(files[other], files[rank], theirs, checkpoint.progress)
    schedules = check_schedules(files) if others and not checkpoint.progress.clocks else ()
    said = (f"put together of the files of {len(files)} ranks",) if others else ()
    return replace(
        checkpoint,
        name=path.name,
        path=path,
        files=(*assembly.files.values(), *checkpoint.files[1:], *schedules),
        warnings=(*checkpoint.warnings, *warnings),
        notes=(*checkpoint.notes, *said),
        replicas=partial(_replicas, files, options),
    )


def open_flat(path: Path, files: Mapping[int, Path], options: ReadOptions) -> Checkpoint:
    """Return the checkpoint at `path`, whose files are those of all ranks, with what FSDP flattened; without a clock.

    Raises:
        CheckpointError: where the files do not fit each other, or one cannot be read.
        RunError, UsageError: for options that have no meaning here.
    """
    if options.key is not None:
        raise UsageError(
            f"{option('key')} says where the weights are, and these files say it themselves",
            subject=path,
            hint=f"leave out {option('key')}",
        )
    assembly = _read_flat(files, options)
    tensors, warnings = assembly.finish(options)
    read = tuple(assembly.files.values())
    checkpoint = Checkpoint(
        name=path.name,
        path=path,
        tensors=tensors,
        files=read,
        format="torch zip" if is_zip(read[0]) else "torch legacy",
        warnings=tuple(warnings),
        notes=(f"put together of the files of {len(files)} ranks",),
        replicas=partial(_flat_replicas, files, options),
    )
    return settle_averages(checkpoint, options)


def _flat_replicas(files: Mapping[int, Path], options: ReadOptions) -> Iterator[Replicas]:
    return _read_flat(files, options).replicas(options)


def _read_flat(files: Mapping[int, Path], options: ReadOptions) -> Assembly:
    assembly = Assembly()
    reading = _Reading(assembly, options, len(files))
    for rank, path in sorted(files.items()):
        file = location(path).open()

        def read(file: InputFile = file) -> tuple[_Watched, RankTable]:
            opened = _Watched.of(open_torch(file))
            return opened, read_flat(file, opened, len(files))

        reading.add(rank, file, read)
    return assembly


def _replicas(files: Mapping[int, Path], options: ReadOptions) -> Iterator[Replicas]:
    """Yield what several ranks have; raise as `open_ranks`."""
    assembly = Assembly()
    reading = _Reading(assembly, options, len(files))
    for rank, path in sorted(files.items()):
        reading.open(rank, path)
    yield from assembly.replicas(options)


@dataclass(frozen=True, slots=True)
class _Watched(TorchFile):
    """A file that notes whether numbers of its tensors were looked at: then its pickle alone does not say what it has.

    A clock that is a tensor is another one in the next checkpoint, whose pickle is the same.
    """

    looks: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, file: TorchFile) -> _Watched:
        """Return the same file, with nothing looked at."""
        return cls(*(getattr(file, each.name) for each in fields(TorchFile)))

    def scalar(self, name: str, ref: TensorRef) -> int | float | None:
        self.looks.append(name)
        return TorchFile.scalar(self, name, ref)

    def beginning(self, name: str, ref: TensorRef, size: int) -> bytes:
        self.looks.append(name)
        return TorchFile.beginning(self, name, ref, size)


@dataclass(frozen=True, slots=True)
class _Reading:
    """Reads the files of one checkpoint's ranks into an assembly."""

    assembly: Assembly
    options: ReadOptions
    count: int

    def open(self, rank: int, path: Path) -> Progress:
        """Add the file of a further rank, and return its clocks."""
        file = location(path).open()

        def read() -> tuple[_Watched, RankTable]:
            opened = _Watched.of(open_torch(file))
            try:
                selection = select_tensors(opened.root, self.options, opened)
            except EmaError as error:
                error.about(path)
                raise
            values = {str(name): value for name, value in selection.tensors.items()}
            return opened, self.assembly.read(file, opened, values, selection.progress)

        return self.add(rank, file, read).progress

    def add(self, rank: int, file: InputFile, read: Callable[[], tuple[_Watched, RankTable]]) -> RankTable:
        """Add a file, and return what it says; `read` reads it where no file before said the same."""
        key = rank, self.count, self.options.key, self.options.weights
        description = Description(file, key, self.options.before)
        known = description.known()
        if known is None:
            opened, table = read()
            spans = opened.locate(dict.fromkeys(part.key for part in table.parts))
            if not opened.looks:
                description.keep(table)
        else:
            table, spans = known
        self.assembly.add(rank, file, table, spans)
        return table


def _check_progress(path: Path, first: Path, theirs: Progress, progress: Progress) -> None:
    """Check that two ranks saved at one moment, as far as their files say when."""
    for unit, clock in progress.clocks.items():
        other = theirs.clocks.get(unit)
        if other is not None and other.value != clock.value:
            raise CheckpointError(
                f"was saved at {other.value}{unit}, and {first.name} at {clock.value}{unit}",
                subject=path,
                hint=OTHER_SAVES,
            )
