"""Local files and folders, as places."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from ema_cli.dataclass import dataclass
from ema_cli.errors import OutputError, Unreadable
from ema_cli.storage.info import Entry, Info, Kind
from ema_cli.storage.local_file import LocalFile, identity_of, refusal

if TYPE_CHECKING:
    from ema_cli.storage.staging.local import Staging

_NOTHING_THERE = {
    errno.ENOENT: Kind.MISSING,
    errno.ENOTDIR: Kind.MISSING,
    errno.ELOOP: Kind.MISSING,
    errno.ENAMETOOLONG: Kind.IMPOSSIBLE,
}
_NOT_LISTED = "cannot be looked into"
_KINDS = {stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.FOLDER, stat.S_IFLNK: Kind.LINK}


@dataclass(frozen=True, slots=True)
class LocalPlace:
    """A place in the local file system; a `Location`."""

    path: Path

    def info(self, *, follow: bool = True) -> Info:
        """Return what lies here, or behind the link that lies here; without `follow`, the link itself."""
        try:
            status = os.stat(self.path, follow_symlinks=follow)
        except OSError as error:
            if error.errno in _NOTHING_THERE:
                return Info(_NOTHING_THERE[error.errno])
            raise refusal("cannot be looked at", self.path, error) from error
        except ValueError:  # a zero byte in the name
            return Info(Kind.IMPOSSIBLE)
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), Kind.OTHER)
        if kind is not Kind.FILE:
            return Info(kind, identity=identity_of(status))
        return Info(kind, status.st_size, identity_of(status), status.st_mtime, status.st_ctime_ns)

    def names(self) -> list[str]:
        """Return the names in the folder here, in no order."""
        try:
            return os.listdir(self.path)
        except OSError as error:
            raise refusal(_NOT_LISTED, self.path, error) from error

    def entries(self) -> list[Entry]:
        """Return what the folder here holds, in no order."""
        try:
            with os.scandir(self.path) as found:
                return [self._entry(entry) for entry in found]
        except OSError as error:
            raise refusal(_NOT_LISTED, self.path, error) from error

    def open(self) -> LocalFile:
        """Return the file here, to be read by range."""
        return LocalFile(self.path)

    def resolve(self) -> Path:
        """Return the absolute path of this place without links in it."""
        try:
            return self.path.resolve()
        except OSError as error:
            raise refusal("cannot be looked at", self.path, error) from error

    def free_bytes(self) -> int:
        """Return how many bytes can be written into the folder here."""
        from ema_cli.storage.output_stream import output_errors

        with output_errors(self.path):
            space = os.statvfs(self.path)
        return space.f_bavail * space.f_frsize

    def check_writable(self) -> None:
        """Raise an OutputError if this process may not put anything into the folder here."""
        from ema_cli.storage.output_stream import WRITE_ELSEWHERE

        if not os.access(self.path, os.W_OK | os.X_OK):
            raise OutputError("may not be written into", subject=self.path, hint=WRITE_ELSEWHERE)

    def make_folder(self) -> None:
        """Make a folder here, and those around it, unless there is one already; see `make_folders`."""
        from ema_cli.storage.output_stream import output_errors
        from ema_cli.storage.staging.local import make_folders  # which only those need who write

        with output_errors(self.path):
            make_folders(self.path)

    def staging(self) -> AbstractContextManager[Staging]:
        """Return a private place for what will be published here, all of it or nothing."""
        from ema_cli.storage.staging.local import Staging  # which only those need who write

        return Staging(self.path)

    def _entry(self, entry: os.DirEntry[str]) -> Entry:
        if entry.is_symlink():
            try:
                kind = LocalPlace(Path(entry.path)).info().kind
            except Unreadable:
                kind = Kind.OTHER  # it leads to where this process must not look
            return Entry(self.path, entry.name, kind, is_link=True)
        if entry.is_dir(follow_symlinks=False):
            return Entry(self.path, entry.name, Kind.FOLDER, is_link=False)
        kind = Kind.FILE if entry.is_file(follow_symlinks=False) else Kind.OTHER
        return Entry(self.path, entry.name, kind, is_link=False)
