"""Facts about a place in storage, as far as one look at it tells."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

from ema_cli.dataclass import dataclass


class Kind(Enum):
    """What lies at a location."""

    FILE = "a regular file"
    FOLDER = "a folder"
    LINK = "a link"  # only where links are not followed
    OTHER = "neither a regular file nor a folder"
    MISSING = "nothing"
    IMPOSSIBLE = "nothing, and nothing can have that name"  # too long, as a rule


@dataclass(frozen=True, slots=True)
class Identity:
    """Tells one file from every other, and from itself after a change. Equal for all links to it.

    That of a folder stays the same whatever is put into it.
    """

    parts: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Info:
    """What lies at a location.

    Attributes:
        kind: what it is.
        size: its bytes; 0 unless it is a file.
        identity: where it exists.
        written: when its bytes were written, in seconds since 1970, as anybody may have set it; 0 where nobody says.
        changed: of a local file, when anything of it was changed, in nanoseconds: bytes, names, rights, the other time.
            Nobody can set it, so that a change of the bytes is never missed; 0 elsewhere, where identity tells that.
    """

    kind: Kind
    size: int = 0
    identity: Identity | None = None
    written: float = 0.0
    changed: int = 0

    @property
    def exists(self) -> bool:
        """Return whether anything is there."""
        return self.kind not in (Kind.MISSING, Kind.IMPOSSIBLE)

    @property
    def is_file(self) -> bool:
        """Return whether a regular file is there."""
        return self.kind is Kind.FILE

    @property
    def is_folder(self) -> bool:
        """Return whether a folder is there."""
        return self.kind is Kind.FOLDER

    @property
    def is_link(self) -> bool:
        """Return whether a link is there, and was not followed."""
        return self.kind is Kind.LINK


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a folder. `kind` is that of what a link leads to: `MISSING` where it leads nowhere."""

    folder: Path
    name: str
    kind: Kind
    is_link: bool

    @property
    def path(self) -> Path:
        """Return the whole path."""
        return self.folder / self.name

    @property
    def is_file(self) -> bool:
        """Return whether it is a regular file, or a link to one."""
        return self.kind is Kind.FILE

    @property
    def is_folder(self) -> bool:
        """Return whether it is a folder, or a link to one."""
        return self.kind is Kind.FOLDER
