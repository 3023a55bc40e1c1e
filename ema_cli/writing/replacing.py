"""Check that an output may be written: nothing of the user's is replaced, and never an input."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

from ema_cli.errors import CheckpointError, EmaError, OutputError, Unreadable, mentioned, option
from ema_cli.formats import open_checkpoint
from ema_cli.formats.mark import FOLDER_NAME, SIGNATURE_NAME, SUMS_NAME
from ema_cli.manifest.sums import files_beside, is_own_sidecar
from ema_cli.storage.info import Info, Kind
from ema_cli.storage.location import held_claim_on, left_by_the_dead, location, missing_folder, walk
from ema_cli.storage.names import StorePath
from ema_cli.storage.output_stream import WRITE_ELSEWHERE
from ema_cli.storage.source import InputFile
from ema_cli.writing.target import Target


def check_target(target: Target, inputs: Sequence[InputFile], *, force: bool) -> None:
    """Check that the target is free, or may be replaced.

    With `force` a file may be replaced, and a folder that holds only files that ema-cli wrote into it, or the signature
    of these. A manifest, sums or a signature beside a file are replaced if ema-cli wrote them: together with the file,
    or where a run that was killed left them alone.

    Raises:
        OutputError: where it may not be replaced, or the file system does not say what is there.
    """
    try:
        _check_surroundings(target)
        info = _look(target.path)
        if info.exists and not _is_left_alone(target.path, info):
            _check_existing(target, info, inputs, force=force)
    except CheckpointError as error:
        raise OutputError(error.fact, subject=error.subject, hint=error.advice(mentioned) or WRITE_ELSEWHERE) from error


def check_folder_around(path: Path) -> None:
    """Check that the folder exists in which a target lies.

    Raises:
        OutputError: where it does not.
    """
    parent = path.absolute().parent
    if not isinstance(path, StorePath) and not location(parent).info().is_folder:
        fact, hint = missing_folder(parent)
        raise OutputError(fact, subject=path, hint=hint or WRITE_ELSEWHERE)


def _check_surroundings(target: Target) -> None:
    """Check that the folder around the target exists, and that files with the names of its sidecars are ours."""
    path = target.path
    check_folder_around(path)
    for sidecar in () if target.is_folder else files_beside(path):
        if _look(sidecar).exists and not is_own_sidecar(sidecar, path.name):
            raise OutputError(
                "exists already, and is not ema-cli's", subject=sidecar, hint="move it away, or write elsewhere"
            )


def _is_left_alone(path: Path, info: Info) -> bool:
    """Return whether all that a folder in a store holds was left by a run that died."""
    left = left_by_the_dead(path) if info.is_folder else frozenset()
    return bool(left) and all(entry.path in left for entry in walk(path) if entry.is_file)


def _look(path: Path) -> Info:
    """Return what is at `path`, which must be a name that an output can have."""
    info = location(path).info(follow=False)
    if info.kind is Kind.IMPOSSIBLE:
        raise OutputError("cannot be looked at: File name too long", subject=path, hint=WRITE_ELSEWHERE)
    return info


def _check_existing(target: Target, info: Info, inputs: Sequence[InputFile], *, force: bool) -> None:
    """Check that what is there may be replaced, and that the user wants it. `--force` is named where it would do."""
    try:
        _check_replaceable(target, info)
        check_no_input(target, inputs)
        if target.is_folder:
            _check_own_folder(target.path)
    except OutputError as error:
        if force:
            raise
        if held_claim_on(target.path) is None:  # else it is of a run that writes there now
            fact = f"exists already, and {error.fact}"
            raise OutputError(fact, subject=target.path, hint=error.advice(mentioned)) from error
    if not force:
        hint = f"replace it with {option('force', True)}, or write elsewhere with {option('o')}"
        raise OutputError("exists already", subject=target.path, hint=hint)


def _check_replaceable(target: Target, info: Info) -> None:
    """Check that a file would replace a file, or a folder a folder."""
    path = target.path
    if not (info.is_file or info.is_folder):
        raise OutputError("is neither a regular file nor a folder", subject=path, hint=WRITE_ELSEWHERE)
    if info.is_folder != target.is_folder:
        present, wanted = ("a folder", "a file") if info.is_folder else ("a file", "a folder")
        raise OutputError(f"is {present}, and {wanted} would replace it", subject=path, hint=WRITE_ELSEWHERE)


def check_no_input(target: Target, inputs: Iterable[InputFile]) -> None:
    """Check that the target is none of the inputs, and no folder around one, by whatever links.

    Raises:
        OutputError: where it is.
    """
    real = location(target.path).resolve()
    for file in inputs:
        if location(file.path).resolve().is_relative_to(real):
            raise OutputError(f"holds an input, {file.path.name}", subject=target.path, hint=WRITE_ELSEWHERE)


def _check_own_folder(folder: Path) -> None:
    """Check that the marks of the averages in the folder, or one level below, list all that it holds."""
    present = {entry.path.relative_to(folder).as_posix() for entry in walk(folder)}
    if not present:
        return
    own = _own_names(folder) or _own_names_inside(folder)
    own |= {parent.as_posix() for name in own for parent in PurePath(name).parents}
    foreign = sorted(present - own)
    if foreign:
        raise OutputError(
            f"holds '{foreign[0]}', which ema-cli did not write there",
            subject=folder,
            hint=f"{WRITE_ELSEWHERE}, or move away what is yours",
        )


def _own_names_inside(folder: Path) -> set[str]:
    """Return the names of our files in a folder of several averages, each one file or a folder; relative to it."""
    own: set[str] = set()
    for entry in location(folder).entries():
        names = set() if entry.is_link else _own_names(entry.path)
        own.update((PurePath(entry.name) / name).as_posix() for name in names)
        if names and entry.is_file:
            own.update(sidecar.name for sidecar in files_beside(entry.path) if is_own_sidecar(sidecar, entry.name))
    return own


def _own_names(path: Path) -> set[str]:
    """Return the names of the files that the mark of an average lists, relative to its folder; empty if it has none.

    For an average in one file, that is the file itself, "".
    """
    is_folder = location(path).info().is_folder
    try:
        checkpoint = open_checkpoint(path)
    except Unreadable:
        raise  # nobody knows whose it is
    except EmaError:
        return set()
    if not checkpoint.mark:
        return set()
    if not is_folder:
        return {""}
    listed = checkpoint.mark.get("files")
    names = {name for name in listed if isinstance(name, str)} if isinstance(listed, list) else set()
    beside = {FOLDER_NAME, SUMS_NAME, SIGNATURE_NAME}
    return names | {file.path.relative_to(path).as_posix() for file in checkpoint.files} | beside
