"""Renames that replace nothing, that replace a regular file, or that exchange two names in one step."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
from pathlib import Path

from ema_cli.errors import OutputError
from ema_cli.storage.output_stream import WRITE_ELSEWHERE

NO_REPLACE, EXCHANGE = 1, 2  # flags of renameat2(2)


def is_there(path: Path) -> bool:
    """Return whether anything has that name. (For os.path.lexists, a disk that cannot be read is empty.)

    Raises:
        OSError: where the file system does not say.
    """
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def refuse_irregular(path: Path) -> None:
    """Raise an OutputError for anything but a regular file: a rename onto /dev/full would replace the device."""
    if is_there(path) and not stat.S_ISREG(path.lstat().st_mode):
        raise OutputError("is not a regular file", subject=path, hint=WRITE_ELSEWHERE)


def rename(source: Path, target: Path, *, replace: bool) -> None:
    """Give `source` the name `target`; where that is taken, only a regular file is replaced, and only with `replace`.

    Raises:
        FileExistsError: where the name is taken, without `replace`.
        OutputError: where something else than a regular file would be replaced.
        OSError: where the file system refuses.
    """
    if replace:
        refuse_irregular(target)
        source.replace(target)
    elif not rename_with(source, target, NO_REPLACE):
        # No such call on this system or file system: a check and a rename, with a moment between them.
        if is_there(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        source.rename(target)


def exchange_folders(source: Path, target: Path, aside: Path) -> None:
    """Let two folders exchange their names; where that takes two steps, the old `target` is `aside` at the end.

    Raises:
        OutputError: where `target` is no folder.
        OSError: where the file system refuses.
    """
    if not stat.S_ISDIR(target.lstat().st_mode):
        raise OutputError("is not a folder", subject=target, hint=WRITE_ELSEWHERE)
    if not rename_with(source, target, EXCHANGE):
        target.rename(aside)
        source.rename(target)


def rename_with(source: Path, target: Path, flag: int) -> bool:
    """Call Linux's renameat2 with one of its flags; return False where it is not supported."""
    if not sys.platform.startswith("linux"):
        return False
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    at_cwd = -100
    if call(at_cwd, os.fsencode(source), at_cwd, os.fsencode(target), flag) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(target))
