"""A small file that a user names in an option: read whole, or an error says what lies there instead. No numpy."""

from __future__ import annotations

import shlex
from pathlib import Path

from ema_cli.errors import CheckpointError, EmaError, Unreadable, UsageError, mentioned
from ema_cli.formats import weights_in
from ema_cli.storage.info import Info
from ema_cli.storage.location import location
from ema_cli.storage.named_paths import check_exists
from ema_cli.storage.names import StorePath
from ema_cli.storage.small_file import read_small_file


def read_named_file(path: Path, most_bytes: int, *, option: str, hint: str | None) -> bytes:
    """Return the content of a small file that a user names.

    Args:
        path: what the user names.
        most_bytes: the most that is read.
        option: the name of the option.
        hint: what a file looks like that the option takes.

    Raises:
        UsageError: as `check_named_file`, and where the file is too large or cannot be read.
    """
    check_named_file(path, option=option, hint=hint)
    try:
        return read_small_file(path, most_bytes)
    except CheckpointError as error:
        raise _named(error, path, option, hint) from error


def read_named_text(path: Path, most_bytes: int, *, option: str, hint: str | None) -> str:
    """Return the text of a small file that a user names, without the mark that other systems put before it.

    Raises:
        UsageError: as `read_named_file`, and where it is no text.
    """
    try:
        return read_named_file(path, most_bytes, option=option, hint=hint).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError("is no text", option=option, subject=path, hint=hint) from error


def check_named_file(path: Path, *, option: str, hint: str | None) -> None:
    """Check that a path can be a small file with something in it.

    Raises:
        UsageError: where nothing lies there, a folder, an empty file, a checkpoint or an average.
    """
    try:
        check_exists(path)
        info = location(path).info()
        fact = _unlike_a_file(info) or weights_in(path)
    except (UsageError, CheckpointError) as error:
        raise _named(error, path, option, hint) from error
    if fact is not None:
        raise UsageError(fact, option=option, subject=path, hint=hint)


def _unlike_a_file(info: Info) -> str | None:
    """Return what is wrong with what lies there, before it is opened; None for a file with something in it."""
    if info.is_folder:
        return "is a folder"
    if not info.is_file:  # as a FIFO, which a shell makes of `<(...)`
        return "is not a regular file"
    return None if info.size else "is empty"


def nearer_advice(error: EmaError, path: Path) -> str | None:
    """Return what to do where a file cannot be read, whatever it should look like; None where nothing stops that."""
    if isinstance(error, Unreadable) and not isinstance(path, StorePath):
        return f"see who may read it: ls -ld {shlex.quote(str(path))}"
    return error.advice(mentioned)


def _named(error: EmaError, path: Path, option: str, hint: str | None) -> UsageError:
    return UsageError(error.fact, option=option, subject=path, hint=nearer_advice(error, path) or hint)
