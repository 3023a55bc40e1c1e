"""Files and folders in object stores, as places."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from ema_cli.dataclass import dataclass
from ema_cli.errors import Missing
from ema_cli.storage.info import Entry, Identity, Info, Kind
from ema_cli.storage.names import StorePath
from ema_cli.storage.store.listing import FOLDER, listing_of
from ema_cli.storage.store.object_file import ObjectFile, identity_of

if TYPE_CHECKING:
    from ema_cli.storage.staging.local import Staging


@dataclass(frozen=True, slots=True)
class ObjectPlace:
    """A place in an object store; a `Location`."""

    path: StorePath

    def info(self, *, follow: bool = True) -> Info:
        """Return what lies here. A store has no links."""
        try:
            stored = listing_of(self.path).object(self.path)
        except Missing:
            return Info(Kind.MISSING)
        if stored is FOLDER:
            return Info(Kind.FOLDER, 0, Identity((str(self.path),)))
        return Info(Kind.FILE, stored.size, identity_of(self.path, stored), stored.written)

    def names(self) -> list[str]:
        """Return the names in the folder here, in no order."""
        return list(listing_of(self.path).folder(self.path))

    def entries(self) -> list[Entry]:
        """Return what the folder here holds, in no order."""
        return [
            Entry(self.path, name, Kind.FOLDER if stored is FOLDER else Kind.FILE, is_link=False)
            for name, stored in listing_of(self.path).folder(self.path).items()
        ]

    def open(self) -> ObjectFile:
        """Return the object here, to be read by range. See `ObjectFile.of`."""
        return ObjectFile.of(self.path)

    def resolve(self) -> StorePath:
        """Return the address itself."""
        return self.path

    def free_bytes(self) -> int:
        """Return how many bytes can be written where an output is made before it is put here."""
        from ema_cli.storage.staging.in_store import free_temporary_bytes  # which only those need who write

        return free_temporary_bytes()

    def check_writable(self) -> None:
        """Do nothing: the claim on an output shows whether anything can be put here."""

    def make_folder(self) -> None:
        """Do nothing: a store has no folders."""

    def staging(self) -> AbstractContextManager[Staging]:
        """Return a private place on the disk for what will be put here."""
        from ema_cli.storage.staging.in_store import StoreStaging

        return StoreStaging(self.path)
