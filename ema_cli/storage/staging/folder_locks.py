"""Locks of folders, held by descriptors, and folders synced to the disk."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)  # errors of file systems without locks
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def open_folder(folder: Path) -> int:
    """Return a descriptor of a folder, not locked yet."""
    return os.open(folder, _FOLDER)


def lock_folder(folder: Path, *, required: bool) -> int:
    """Return a descriptor that holds the folder's lock; -1 if another holds it, or the folder was removed meanwhile.

    Some network file systems have no locks. There, unless the lock is `required`, the descriptor comes without:
    no other run can lock the folder either, so that none takes it for abandoned.
    """
    try:
        descriptor = os.open(folder, _FOLDER | os.O_NOFOLLOW)
    except FileNotFoundError:
        return -1
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between our open and our lock another run may have taken it for abandoned.
        if os.path.samestat(os.fstat(descriptor), folder.lstat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError as error:
        if error.errno in _NO_LOCKS and not required:
            return descriptor
        close_folder(descriptor)
        raise
    close_folder(descriptor)
    return -1


def is_held_by_another(descriptor: int) -> bool:
    """Try to take the lock of an open folder, and return whether another holds it. Without locks, nobody does."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def close_folder(descriptor: int) -> None:
    """Close a folder's descriptor, and give back its lock. An error here says nothing about what was written."""
    with suppress(OSError):
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in a folder.

    Raises:
        OSError: where it does not take them.
    """
    descriptor = open_folder(folder)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder, which is no reason to refuse them.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        close_folder(descriptor)
