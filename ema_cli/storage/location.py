"""Places where checkpoints and outputs lie. Nothing outside this room calls the file system for those.

A `Path` is the name of such a place; `location(path)` is the place itself, which can be looked at, listed, read and
written. A kind of storage is a class that does what `Location` says, and a case in `location`: local files, and objects
in stores.
"""

from __future__ import annotations

import fnmatch
import os
import shlex
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ema_cli.errors import CheckpointError
from ema_cli.storage.info import Entry, Info
from ema_cli.storage.local_place import LocalPlace
from ema_cli.storage.names import HUB, WEB, StorePath, as_path
from ema_cli.storage.source import InputFile

if TYPE_CHECKING:
    from ema_cli.storage.staging.local import Staging

PATTERN_SIGNS = "*?["
_FIRST_NAME = 2  # among the parts of an address, behind scheme and bucket


class Location(Protocol):
    """A place in storage: a file, a folder, or one where nothing is yet."""

    @property
    def path(self) -> Path:
        """Return its name, for messages and to find others from it."""
        ...

    def info(self, *, follow: bool = True) -> Info:
        """Return what lies here, or behind the link that lies here; without `follow`, the link itself.

        Raises:
            Unreadable: where the storage does not say.
        """
        ...

    def names(self) -> list[str]:
        """Return the names in the folder here, in no order: faster than `entries`.

        Raises:
            Missing: where nothing is here.
            Unreadable: where it cannot be listed.
        """
        ...

    def entries(self) -> list[Entry]:
        """Return what the folder here holds, in no order.

        Raises:
            Missing: where nothing is here.
            Unreadable: where it cannot be listed.
        """
        ...

    def open(self) -> InputFile:
        """Return the file here, to be read by range.

        Raises:
            Missing: where nothing is here.
            CheckpointError: where it is no regular file.
            Unreadable: where it cannot be opened.
        """
        ...

    def resolve(self) -> Path:
        """Return the absolute path of this place without links in it.

        Raises:
            Unreadable: where the storage does not say.
        """
        ...

    def free_bytes(self) -> int:
        """Return how many bytes can be written into the folder here.

        Raises:
            OutputError: where the storage does not say.
        """
        ...

    def check_writable(self) -> None:
        """Check that something can be put into the folder here.

        Raises:
            OutputError: where this process may not.
        """
        ...

    def make_folder(self) -> None:
        """Make a folder here, and those around it, unless there is one already.

        Raises:
            OutputError: where that is refused.
        """
        ...

    def staging(self) -> AbstractContextManager[Staging]:
        """Return a private place for what will be published here, all of it or nothing.

        Raises:
            OutputError: where that is refused.
        """
        ...


def walk(folder: Path, *, hidden: bool = True, skip_unreadable: bool = False) -> Iterator[Entry]:
    """Yield all that a folder holds, at any depth, in no order. Links are not entered.

    Args:
        folder: where to begin.
        hidden: whether to enter folders whose names begin with a dot, and to yield these themselves.
        skip_unreadable: whether to pass over what cannot be listed.

    Raises:
        CheckpointError: where a folder cannot be listed, unless that is to be skipped.
    """
    waiting = [folder]
    while waiting:
        try:
            entries = location(waiting.pop()).entries()
        except CheckpointError:
            if not skip_unreadable:
                raise
            continue
        for entry in entries:
            is_inner = entry.is_folder and not entry.is_link
            if is_inner and not hidden and entry.name.startswith("."):
                continue
            if is_inner:
                waiting.append(entry.path)
            yield entry


def location(path: str | Path) -> Location:
    """Return the place that a path or an address names."""
    path = path if isinstance(path, Path) else as_path(path)
    if isinstance(path, StorePath):
        from ema_cli.storage.object_place import ObjectPlace  # which only those need who read from a store

        return ObjectPlace(path.without_dots())
    return LocalPlace(path)


def open_for_others(path: Path) -> InputFile:
    """Return the file at a path of which something else reads the bytes; its `check_unchanged` asks a store, too.

    Raises:
        CheckpointError: as `Location.open`.
    """
    if not isinstance(path, StorePath):
        return location(path).open()
    from ema_cli.storage.store.object_file import ObjectReadByOthers  # which only those need who read from a store

    return ObjectReadByOthers.of(path)


def names_in(folder: Path) -> set[str]:
    """Return the names in a folder; none where there is no folder or it cannot be listed, which a search reports."""
    try:
        return set(location(folder).names())
    except CheckpointError:
        return set()


def names_around(folder: Path) -> list[str]:
    """Return the names in a folder around what a user names, in no order; none as for `names_in`.

    Of a folder in a store nothing is listed that lies deeper, which may be much; of the Hub's and of servers' nothing.
    """
    with suppress(CheckpointError):
        if not isinstance(folder, StorePath):
            return location(folder).names()
        if folder.scheme not in (HUB, *WEB):
            from ema_cli.storage.store.listing import listing_of  # which only those need who look into a store

            return listing_of(folder).names(folder)
    return []


def look_anew(paths: Iterable[Path]) -> None:
    """Look anew at the stores in which some paths lie: what was listed for an earlier question may be out of date."""
    if any(isinstance(path, StorePath) for path in paths):
        from ema_cli.storage.store.listing import forget_listings

        forget_listings()


def claim_on(path: Path) -> Path | None:
    """Return the claim on a place in a store, of a run that writes there or died; None elsewhere."""
    if not isinstance(path, StorePath):
        return None
    from ema_cli.storage.store import claim  # which only those need who look into a store

    return claim.claim_on(path)


def held_claim_on(path: Path) -> Path | None:
    """Return the claim on a place in a store, of a run that may live; None elsewhere."""
    if not isinstance(path, StorePath):
        return None
    from ema_cli.storage.store import claim

    return claim.held_claim_on(path)


def left_by_the_dead(path: Path) -> frozenset[Path]:
    """Return what a run that died has left at a place in a store: whoever writes there next removes it."""
    if not isinstance(path, StorePath):
        return frozenset()
    from ema_cli.storage.store import claim

    died = claim.died_at(path)
    return frozenset() if died is None else died.puts


def missing_folder(folder: Path) -> tuple[str, str | None]:
    """Return what is wrong with a local folder in which something is to be written, and how to make it.

    It is None where nothing can: where a file lies in the place of the folder, or of one around it.
    """
    nearest = next((each for each in (folder, *folder.parents) if os.path.lexists(each)), folder.parent)
    if not location(nearest).info().is_folder:
        return f"{nearest} is no folder", None
    return f"the folder {folder} does not exist", f"make it first: mkdir -p {shlex.quote(str(folder))}"


def hint_at_pattern(path: Path) -> str | None:
    """Return what to name instead of an address with a pattern in it, which no shell fills in; None for other paths."""
    first = next((at for at, part in enumerate(path.parts) if any(sign in part for sign in PATTERN_SIGNS)), None)
    if not isinstance(path, StorePath) or first is None or first < _FIRST_NAME:
        return None
    folder = type(path)(*path.parts[:first])
    try:
        fitting = fnmatch.filter(location(folder).names(), path.parts[first])
    except CheckpointError:
        fitting = []
    if not fitting:
        return f"no name in {folder} fits this pattern"
    count = f"{len(fitting)} fit{'s' if len(fitting) == 1 else ''} this pattern"
    return f"a shell fills in no names of a store, where {count}: name them, or the folder, {folder}"
