"""Write the files of one average into a private folder, and read them back."""

from __future__ import annotations

import math
import resource
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ema_cli.checkpoint import Checkpoint, TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.errors import EmaError, OutputError, Unreadable, VerificationError
from ema_cli.folding.sink import TensorRange
from ema_cli.formats import open_checkpoint
from ema_cli.formats.mark import FILE_SUFFIX, FOLDER_NAME
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.output_file import OutputFile
from ema_cli.formats.safetensors.header import open_file
from ema_cli.formats.torch_save.file import open_torch
from ema_cli.formats.torch_save.writer import TorchOutput
from ema_cli.manifest.sums import files_beside
from ema_cli.storage.around import Copy, pieces
from ema_cli.storage.location import location
from ema_cli.storage.output_stream import NewFile, OutputStream, WrittenFile, write_file
from ema_cli.storage.ranges import join_ranges
from ema_cli.storage.source import FileRegion
from ema_cli.storage.staging.local import Sender, Staging
from ema_cli.system.descriptors import raise_limit
from ema_cli.system.memory import give_back
from ema_cli.writing.open_files import OpenFiles, Storing, finishing
from ema_cli.writing.outputs import Output, is_large
from ema_cli.writing.target import Target

if TYPE_CHECKING:
    from ema_cli.writing.piece_sink import PieceSink

_INPUT_DESCRIPTORS = 256


def allow_descriptors(outputs: int, *, twice: bool = False) -> None:
    """Raise this process's limit on open files, as far as the system allows, to fit so many outputs and the inputs.

    Those that are written past the page cache are open `twice`.
    """
    raise_limit(outputs * (2 if twice else 1) + _INPUT_DESCRIPTORS)


def most_open_files() -> float:
    """Return how many files may be written at once, as far as the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if hard == resource.RLIM_INFINITY else hard - _INPUT_DESCRIPTORS


def make_folder(staging: Staging, whole: Target, part: Target) -> Path:
    """Make the folder for the files of one average, where it will be in what is published, and return its path."""
    path = part.path.relative_to(whole.path.parent)
    return staging.make_folder(path if part.is_folder else path.parent)


def publish(staging: Staging, target: Target, staged: Path, *, force: bool) -> None:
    """Put what is staged where the target is, in one step; of a single file also all that belongs beside it.

    Args:
        staging: the private folder.
        target: the output.
        staged: the path of the file or folder, below the private folder; what belongs to a file lies beside it.
        force: replace an output that is there.

    Raises:
        OutputError: where the file system refuses.
    """
    if target.is_folder:
        staging.publish_folder(str(staged), force=force, manifest=FOLDER_NAME, suffix=FILE_SUFFIX)
    else:
        beside = {str(staged.with_name(path.name)): path for path in files_beside(target.path)}
        staging.publish_file(str(staged), beside, force=force)


@dataclass(frozen=True, slots=True)
class _TensorFile:
    """An open file of tensors: the byte at which its data begin, and where in them each tensor does."""

    stream: NewFile
    data_begin: int
    begins: Mapping[str, int]

    def offset(self, part: TensorRange) -> int:
        """Return the byte in the file at which a range of a tensor begins."""
        return self.data_begin + self.begins[part.name] + part.start


class FileSink(OpenFiles):
    """Writes the tensors of one average into its files, in any order; a `Sink`."""

    def __init__(self, output: Output, folder: Path, storing: Storing) -> None:
        """Make the files in `folder`, and write their headers.

        Args:
            output: the average.
            folder: where its files are made.
            storing: how they get there.

        Raises:
            OutputError: where a file cannot be written.
        """
        super().__init__(folder, storing)
        self._files: list[_TensorFile] = []  # no table of all names: of many averages each has a sink
        self._last = 0  # the number of the file that had the last tensor
        try:
            for file in output.files:
                self._take(output, file, self.begin(file))
        except BaseException:
            self.close()
            raise

    @classmethod
    def into(cls, output: Output, stream: OutputStream) -> FileSink:
        """Return a sink that writes into a file that is open already, the only one of `output`; its header is not."""
        sink = cls(replace(output, files=[]), stream.path.parent, Storing(summed=False))
        sink._take(output, output.files[0], stream)
        sink.streams.append(stream)
        return sink

    def _take(self, output: Output, file: OutputFile, stream: NewFile) -> None:
        """Write the tensors of a file into a stream from now on."""
        begins = file.table.begins
        if output.originals or "/" in file.name:
            begins = {output.original(file, name): begin for name, begin in begins.items()}
        self._files.append(_TensorFile(stream, file.header_size, begins))

    def write(self, ranges: Sequence[TensorRange], data: memoryview) -> None:
        """Write ranges of tensors, whose bytes lie one after another in `data`."""
        files = ((self._file_of(part.name), part) for part in ranges)
        stretches = ((file.stream, file.offset(part), part.size) for file, part in files)
        position = 0
        for stream, offset, size in join_ranges(stretches):
            stream.write(offset, data[position : position + size], ahead=ranges[0].tied)
            position += size

    def _file_of(self, name: str) -> _TensorFile:
        """Return the file of a tensor; the next one as a rule is in the same, or in the one after it."""
        last = self._last
        if name not in self._files[last].begins:
            self._last = last = next(number for number, file in enumerate(self._files) if name in file.begins)
        return self._files[last]


def make_sink(output: Output, folder: Path, storing: Storing) -> FileSink | PieceSink:
    """Return the sink that writes an average into its files, which it makes in `folder`, or sends.

    Raises:
        OutputError: where a file cannot be written.
    """
    if output.likeness is None:
        return FileSink(output, folder, storing)
    from ema_cli.writing.piece_sink import PieceSink  # which most averages do not need

    files, places = output.likeness.files, output.likeness.pieces
    return PieceSink(files, places, folder, storing)


def finish_files(files: Sequence[tuple[OutputFile, NewFile]], threads: int) -> list[str]:
    """Finish files whose tensors are written, several at once; return the sha256 of each, empty where it is not kept.

    Each gets the bytes that depend on the tensors, is on the disk then, and is summed up to its end.

    Raises:
        OutputError: where one cannot be written.
    """

    def finish(file: OutputFile, stream: NewFile) -> str:
        if isinstance(stream, OutputStream):
            file.finish(stream)
        stream.sync()
        return stream.sha256()

    if any(not isinstance(stream, OutputStream) for _, stream in files):
        threads = 1  # what is left is sent: of one after another, as memory was planned for
    with finishing([stream for _, stream in files], threads) as pool:
        return list(pool.map(finish, *zip(*files, strict=True)))


def write_small_files(
    output: Output, folder: Path, sender: Sender | None = None, *, summed: bool = True, synced: bool = True
) -> dict[str, WrittenFile]:
    """Write the files without tensors: configuration, index, model card, side files; return them by name.

    Args:
        output: the average.
        folder: where they are made.
        sender: makes what sends large ones to a store instead; None where all are made in the folder.
        summed: whether the sums of those are wanted.
        synced: whether the disk has to have them in the end; else no sums are taken at all.

    Raises:
        OutputError: where one cannot be written.
        CheckpointError: where one cannot be read.
    """
    written: dict[str, WrittenFile] = {}
    for name, text in output.texts.items():
        location((folder / name).parent).make_folder()
        written[name] = write_file(folder / name, [text], summed=synced, synced=synced)
    for name, source in output.copies.items():
        whole = FileRegion(source, 0, source.size)
        if sender is not None and is_large(source):
            stream = sender(folder / name, source.size, b"", Copy(whole), summed=summed)
            stream.sync()
            written[name] = WrittenFile(source.size, stream.sha256())
            continue
        location((folder / name).parent).make_folder()
        written[name] = write_file(folder / name, pieces(whole), summed=synced, synced=synced)
    return written


def read_all_back(output: Output, folder: Path, newest: Checkpoint, options: ReadOptions) -> None:
    """Check that an output is read as it was meant.

    Args:
        output: the average.
        folder: where its files are.
        newest: the newest checkpoint.
        options: how that was read, as what is written in its form must be.

    Raises:
        VerificationError: where a file is refused, or holds other tensors.
        OutputError: where the file system does not give it.
    """
    if output.likeness is None and not output.target.is_dcp:
        for file in output.files:
            read_back(folder / file.name, file)
        return
    path = folder if output.target.is_folder else folder / output.target.path.name
    specs = newest.tensors.specs
    if output.likeness is None:
        specs, options = output.files[0].table.specs, ReadOptions(keep_prefix=True)  # names are as they were written
    with _reading_errors(path):
        same = open_checkpoint(path, options).tensors.specs == specs
    if not same:
        raise VerificationError("reads back with other tensors than were written", subject=path.name)


def read_back(path: Path, file: OutputFile) -> None:
    """Check that the tensors in the file are those that `file` says.

    Raises:
        VerificationError: where the file is refused, or holds other tensors.
        OutputError: where the file system does not give it.
    """
    give_back(len(file.table.specs))
    with _reading_errors(path):
        specs = _torch_specs(path, file.key) if isinstance(file, TorchOutput) else open_file(path).specs
    if specs != file.table.specs:
        raise VerificationError("reads back with other tensors than were written", subject=path.name)


@contextmanager
def _reading_errors(path: Path) -> Iterator[None]:
    """Turn an error in reading a file back into one of the output."""
    try:
        yield
    except Unreadable as error:
        raise OutputError(f"does not read back: {error.fact}", subject=path.name) from error
    except EmaError as error:
        raise VerificationError(f"does not read back: {error.fact}", subject=path.name) from error


def _torch_specs(path: Path, key: str) -> Mapping[str, TensorSpec]:
    """Return the tensors of a file that is marked as ours, under a key in it or at the top; none of any other."""
    opened = open_torch(location(path).open())
    return opened.tensors(opened.root[key] if key else opened.root).specs if opened.mark else {}
