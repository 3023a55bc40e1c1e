"""Read all files of a published average, each once, before anything is compared."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import wait
from dataclasses import field

from ema_cli.checkpoint import Checkpoint
from ema_cli.dataclass import dataclass
from ema_cli.errors import CheckpointError
from ema_cli.formats.folders.processors import processor_states
from ema_cli.formats.options import ReadOptions
from ema_cli.manifest.manifest import read_manifest
from ema_cli.manifest.recipe_record import read_options
from ema_cli.manifest.sums import MAX_SUMS_BYTES, parse_sums
from ema_cli.manifest.types import Manifest
from ema_cli.release.positions import Positions, positions_in_files, positions_in_shard
from ema_cli.release.published import Published, is_allowed
from ema_cli.release.read_file import FileSum, read_file
from ema_cli.release.surroundings import look_around
from ema_cli.release.tensor_files import SAFETENSORS, Problems, open_tensors, positions_in
from ema_cli.storage.location import location
from ema_cli.storage.small_file import read_small_file
from ema_cli.storage.source import InputFile
from ema_cli.system.progress import ProgressCallback
from ema_cli.system.threads import reading_pool, thread_errors
from ema_cli.writing.card import CARD_NAME

_TICK_SECONDS = 0.1
_TORCH = ".bin"  # in a folder: no side file has this suffix


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A published average as it was read. File names are relative to its folder.

    Attributes:
        published: the paths of the average, its manifest and its checksums.
        manifest: the manifest; None if it is missing or cannot be read.
        sums: file name -> sha256, as the checksum file lists them.
        sums_sha256: the sha256 of the checksum file itself; empty if it cannot be read.
        present: the names of what lies there and should be listed, without the checksum file.
        no_part: the names of what lies there and is no part of the average.
        edited: the names of listed files that the user allows to differ from what was written, and that do.
        files: the files that exist and are listed, opened.
        opened: the files among them that hold tensors, opened by our own reader.
        readings: the sha256 and the non-finite elements of each of `files`.
        problems: a sentence for each thing that could not be read, with the path of its file.
        complete: whether every listed file that may hold tensors could be opened.
        may_name_classes: whether the user lets what is written in the form of its input name classes, as that does.
    """

    published: Published
    manifest: Manifest | None = None
    sums: Mapping[str, str] = field(default_factory=dict)
    sums_sha256: str = ""
    present: frozenset[str] = frozenset()
    no_part: tuple[str, ...] = ()
    edited: frozenset[str] = frozenset()
    files: Mapping[str, InputFile] = field(default_factory=dict)
    opened: Mapping[str, Checkpoint] = field(default_factory=dict)
    readings: Mapping[str, FileSum] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    complete: bool = True
    may_name_classes: bool = False

    @property
    def like_input(self) -> bool:
        """Return whether the average is in the form of its input, as its manifest says."""
        return _is_like_input(self.manifest)

    @property
    def format(self) -> str:
        """Return the format of the files with its tensors, as its manifest says; empty without one."""
        return self.manifest["recipe"]["format"] if self.manifest is not None else ""

    @property
    def is_one_checkpoint(self) -> bool:
        """Return whether it is read as one checkpoint, and not file by file."""
        return _is_one_checkpoint(self.manifest)

    @property
    def outputs(self) -> dict[str, tuple[int, str]]:
        """Return the size in bytes and the sha256 of each file, as the manifest lists them."""
        rows = self.manifest["outputs"] if self.manifest is not None else []
        return {row["name"]: (row["bytes"], row["sha256"]) for row in rows}

    def problem(self, name: str, fact: str) -> str:
        """Return a problem of the file called `name`, or of the folder if the name is empty, with its path."""
        return f"{self.published.folder / name}: {fact}"


def take_snapshot(
    published: Published,
    *,
    allow_extra: Sequence[str] = (),
    may_name_classes: bool = False,
    threads: int,
    progress: ProgressCallback,
) -> Snapshot:
    """Read an average: its manifest, its checksums, and each listed file once.

    Args:
        published: the paths of the average.
        allow_extra: patterns of the names of files that may lie there, too, or, of the model card, be edited.
        may_name_classes: see `Snapshot`.
        threads: the number of files that are read at the same time.
        progress: called with the bytes read so far and the total.

    Raises:
        CheckpointError: if this process cannot read a file or a folder, or one changes meanwhile.
    """
    problems, of_sums = Problems(published), Problems(published)
    sums, sums_sha256 = _read_sums(published, of_sums)
    early = _open_early(published, sums, allow_extra)
    manifest = _read_manifest(published, problems)
    problems.sentences += of_sums.sentences
    outputs = {row["name"] for row in manifest["outputs"]} if manifest is not None else set()
    listed = sums.keys() | outputs | {published.manifest.name}
    around = look_around(published, {*listed, published.sums.name}, allow_extra)
    present = around.present - {published.sums.name}
    files = _open_files(published, sorted(listed & present), problems)
    opened: dict[str, Checkpoint] = {}
    is_one = _is_one_checkpoint(manifest)
    with_tensors = [""] if is_one and published.is_folder else _names_with_tensors(published, files)
    for name in with_tensors:
        read = read_options(manifest["recipe"]) if manifest is not None and is_one else None
        if _is_dcp(manifest):
            read = ReadOptions(keep_prefix=True)  # names are as they were written
        if read is None and name in early:
            checkpoint, sentences = early.pop(name)
            problems.sentences += sentences
        else:
            checkpoint = open_tensors(published.folder / name, name, problems, read)
        if checkpoint is not None:
            opened[name] = checkpoint
    missing = listed - present - {published.manifest.name}
    complete = not missing and len(opened) == len(with_tensors)
    positions: dict[str, Positions]
    if _is_dcp(manifest):
        positions = positions_in_shard(files, opened)
    elif is_one:
        positions = positions_in_files(published, opened)
    else:
        positions = {name: positions_in(name, checkpoint, problems) for name, checkpoint in opened.items()}
    readings = _read_files(files, positions, threads, progress)
    return Snapshot(
        published=published,
        manifest=manifest,
        sums=sums,
        sums_sha256=sums_sha256,
        present=present,
        no_part=around.no_part,
        edited=_edited(manifest, sums, readings, allow_extra),
        files=files,
        opened=opened,
        readings=readings,
        problems=tuple(problems.sentences),
        complete=complete,
        may_name_classes=may_name_classes,
    )


def _is_like_input(manifest: Manifest | None) -> bool:
    return manifest is not None and manifest["recipe"].get("like_input", False)


def _is_dcp(manifest: Manifest | None) -> bool:
    return manifest is not None and manifest["recipe"]["format"] == "dcp"


def _is_one_checkpoint(manifest: Manifest | None) -> bool:
    return _is_like_input(manifest) or _is_dcp(manifest)


def _read_manifest(published: Published, problems: Problems) -> Manifest | None:
    path = published.manifest
    if not location(path).info(follow=False).exists:
        problems.add(path.name, f"is missing: this is no whole average{published.unfinished}")
        return None
    try:
        return read_manifest(path)
    except CheckpointError as error:
        problems.add_error(path.name, path, error)
        return None


def _read_sums(published: Published, problems: Problems) -> tuple[Mapping[str, str], str]:
    """Return the sum of each file as the checksum file lists it, and the sum of that file itself."""
    path, sums, text = published.sums, dict[str, str](), b""
    if not location(path).info(follow=False).exists:
        problems.add(path.name, "is missing")
        return {}, ""
    try:
        text = read_small_file(path, MAX_SUMS_BYTES)
        sums = parse_sums(text, str(path))
    except CheckpointError as error:
        problems.add_error(path.name, path, error)
    else:
        if not sums:
            problems.add(path.name, "lists nothing")
    return sums, hashlib.sha256(text).hexdigest()


def _edited(
    manifest: Manifest | None, sums: Mapping[str, str], readings: Mapping[str, FileSum], allow_extra: Sequence[str]
) -> frozenset[str]:
    """Return the name of the model card if the user allows another, and it is another: people edit it on the Hub."""
    if CARD_NAME not in readings or not is_allowed(CARD_NAME, allow_extra):
        return frozenset()
    listed = {row["sha256"] for row in (manifest["outputs"] if manifest else ()) if row["name"] == CARD_NAME}
    listed |= {sums[CARD_NAME]} if CARD_NAME in sums else set()
    return frozenset() if listed == {readings[CARD_NAME].sha256} else frozenset({CARD_NAME})


def _open_early(
    published: Published, sums: Mapping[str, str], allow_extra: Sequence[str]
) -> dict[str, tuple[Checkpoint | None, list[str]]]:
    """Open the files of safetensors that the checksums list, in a form of our own; return the problems of each, too.

    That is before the manifest is read: the official reader takes about as much memory for a while.
    """
    opened = {}
    for name in sorted(look_around(published, sums.keys(), allow_extra).present & sums.keys()):
        if name.lower().endswith(SAFETENSORS):
            problems = Problems(published)
            opened[name] = open_tensors(published.folder / name, name, problems, None), problems.sentences
    return opened


def _open_files(published: Published, names: Sequence[str], problems: Problems) -> dict[str, InputFile]:
    files: dict[str, InputFile] = {}
    for name in names:
        path = published.folder / name
        try:
            files[name] = location(path).open()
        except CheckpointError as error:
            problems.add_error(name, path, error)
    return files


def _names_with_tensors(published: Published, files: Mapping[str, InputFile]) -> list[str]:
    """Return the names of the files that hold tensors."""
    if not published.is_folder:
        return [published.path.name] if published.path.name in files else []
    of_processors = processor_states(published.folder, files)  # copied as they are
    return [name for name in files if name.lower().endswith((SAFETENSORS, _TORCH)) and name not in of_processors]


def _read_files(
    files: Mapping[str, InputFile], positions: Mapping[str, Positions], threads: int, progress: ProgressCallback
) -> dict[str, FileSum]:
    """Return the sha256 and the non-finite elements of each file. Each file is read once, the largest first."""
    total, done, stopped = sum(file.size for file in files.values()), 0, False

    def count(nbytes: int) -> None:
        nonlocal done
        done += nbytes  # not locked: two threads may count as one, which only the display shows
        if stopped:
            raise InterruptedError

    with reading_pool(threads, "sha256") as hasher, reading_pool(threads, "verify") as pool:
        try:
            with thread_errors():
                tasks = {
                    name: pool.submit(read_file, files[name], positions.get(name, {}), hasher, count)
                    for name in sorted(files, key=lambda name: -files[name].size)
                }
                waiting = set(tasks.values())
                while waiting:
                    finished, waiting = wait(waiting, _TICK_SECONDS)
                    for task in finished:
                        task.result()
                    progress(done, total)
        finally:
            # However this ends, the other threads stop at their next block.
            stopped = True
            pool.shutdown(wait=False, cancel_futures=True)
    return {name: tasks[name].result() for name in files}
