"""Write the files of one output into a folder that nobody sees yet, and read them back."""

from __future__ import annotations

import resource
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ema_cli.checkpoint import TensorSpec
from ema_cli.errors import EmaError, OutputError, Unreadable, VerificationError
from ema_cli.folding.sink import TensorRange
from ema_cli.formats.output_file import OutputFile
from ema_cli.formats.torch_save.file import open_torch
from ema_cli.formats.torch_save.writer import TorchOutput
from ema_cli.storage.location import location
from ema_cli.storage.output_stream import OutputStream, output_errors
from ema_cli.storage.ranges import join_ranges
from ema_cli.system.threads import thread_errors
from ema_cli.writing.outputs import Output
from ema_cli.writing.target import Target

_INPUT_DESCRIPTORS = 256


def allow_descriptors(outputs: int) -> None:
    """Raise the soft limit on open files, as far as it may be, where several averages in many shards need it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = outputs + _INPUT_DESCRIPTORS
    if resource.RLIM_INFINITY != soft < wanted:
        wanted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def make_folder(staged: Path, whole: Target, part: Target) -> Path:
    """Make the folder in which the files of one average are written, in the place of what is published."""
    path = staged / part.path.relative_to(whole.path.parent)
    folder = path if part.is_folder else path.parent
    with output_errors(whole.path):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


class FileSink:
    """The files of one output, open for writing: takes what a fold makes."""

    def __init__(self, output: Output, folder: Path, *, summed: bool) -> None:
        """Open the files in `folder` and write their headers; `summed`: sum them up while they are written.

        Raises:
            OutputError: where a file cannot be written.
        """
        self.streams: list[OutputStream] = []
        self._places: dict[str, tuple[OutputStream, int, Mapping[str, int]]] = {}  # stream, first data byte, begins
        try:
            for file in output.files:
                stream = OutputStream(folder / file.name, summed=summed)
                self.streams.append(stream)
                stream.write(0, file.header)
                begins = file.table.begins
                if output.originals:  # by the names that the fold knows
                    begins = {output.original(name): begin for name, begin in begins.items()}
                self._places.update(dict.fromkeys(begins, (stream, file.header_size, begins)))
        except BaseException:
            self.close()
            raise

    def write(self, ranges: Sequence[TensorRange], data: memoryview) -> None:
        """Write parts of tensors, which lie one after another in `data`."""
        places = ((*self._places[part.name], part) for part in ranges)
        stretches = (
            (stream, first + begins[part.name] + part.start, part.size) for stream, first, begins, part in places
        )
        position = 0
        for stream, offset, size in join_ranges(stretches):
            stream.write(offset, data[position : position + size])
            position += size

    def give_up(self) -> None:
        """Let threads end that sum up what was written: nobody needs it any more."""
        for stream in self.streams:
            stream.give_up()

    def close(self) -> None:
        """Close the files."""
        with ExitStack() as stack:
            for stream in self.streams:
                stack.callback(stream.close)


def sum_up(streams: Sequence[OutputStream], threads: int) -> list[str]:
    """Return the sha256 of each file; where the writing was faster, the rest is read now, file by file on threads."""
    with thread_errors(), ThreadPoolExecutor(threads, "sum") as pool:
        try:
            return list(pool.map(OutputStream.sha256, streams))
        except BaseException:
            for stream in streams:
                stream.give_up()
            raise


def write_texts(output: Output, folder: Path) -> dict[str, tuple[int, str]]:
    """Write what is no tensor: configuration, index, side files; return of each its size and sha256."""
    written: dict[str, tuple[int, str]] = {}
    for name, text in output.texts.items():
        with output_errors(folder / name):
            (folder / name).parent.mkdir(exist_ok=True)
        written[name] = write_small(folder / name, [text])
    for name, source in output.copies.items():
        with output_errors(folder / name):
            (folder / name).parent.mkdir(exist_ok=True)
        step = 1 << 20
        blocks = (source.read(at, min(step, source.size - at)) for at in range(0, source.size, step))
        written[name] = write_small(folder / name, blocks)
    return written


def write_small(path: Path, blocks: Iterable[bytes]) -> tuple[int, str]:
    """Write a file block by block; return its size and sha256."""
    stream = OutputStream(path)
    try:
        position = 0
        for block in blocks:
            stream.write(position, block)
            position += len(block)
        stream.sync()
        return position, stream.sha256()
    finally:
        stream.close()


def read_back(path: Path, file: OutputFile) -> None:
    """Check that the official reader, our own of a file of torch's, finds in the file what was meant."""
    specs = file.table.specs
    if isinstance(file, TorchOutput):
        if _torch_specs(path) != specs:
            raise _other_tensors(path)
        return
    try:
        with safe_open(path, framework="np") as reader:
            names = reader.keys()
            same = len(names) == len(specs) and all(
                name in specs
                and (found := reader.get_slice(name)).get_dtype() == specs[name].dtype.name
                and tuple(found.get_shape()) == specs[name].shape
                for name in names
            )
    except SafetensorError as error:
        raise VerificationError(f"does not read back: {error}", subject=path.name) from error
    except OSError as error:
        raise OutputError(f"cannot be read back: {error.strerror or error}", subject=path.name) from error
    if not same:
        raise _other_tensors(path)


def _torch_specs(path: Path) -> Mapping[str, TensorSpec]:
    """Return the tensors that are in the file, which must be marked as ours."""
    try:
        found = open_torch(location(path).open())
        return found.tensors(found.root).specs if found.mark else {}
    except Unreadable as error:
        raise OutputError(f"cannot be read back: {error}", subject=path.name) from error
    except EmaError as error:
        raise VerificationError(f"does not read back: {error}", subject=path.name) from error


def _other_tensors(path: Path) -> VerificationError:
    return VerificationError("reads back with other tensors than were written", subject=path.name)
