"""An object as a store describes it, and what tells it from whatever takes its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ema_cli.dataclass import dataclass


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as the store describes it. `tag` tells it from what is put in its place: ETag, else time of change."""

    size: int
    tag: str
    is_etag: bool = True
    first_bytes: bytes = b""
    pinned: str = ""  # where it is read on the Hub
    written: float = 0.0  # seconds since 1970, as the store has it

    @property
    def is_identified(self) -> bool:
        """Return whether the tag tells the object from all that may ever be put in its place."""
        return bool(self.pinned) or (self.is_etag and not self.tag.startswith("W/"))

    @property
    def condition(self) -> str | None:
        """Return the ETag that a request asks for; None where there is none that servers take for a condition."""
        if not self.is_etag or self.tag.startswith("W/"):
            return None
        return self.tag if self.tag.startswith('"') else f'"{self.tag}"'

    def is_tagged(self, tag: str) -> bool:
        """Return whether an answer with this tag is of the object."""
        return _plain(tag) == _plain(self.tag)

    @classmethod
    def of(cls, meta: Mapping[str, Any], first_bytes: bytes = b"") -> StoredObject:
        """Return the object of obstore's description."""
        written = meta["last_modified"].timestamp()
        return cls(int(meta["size"]), tag_of(meta), meta["e_tag"] is not None, first_bytes, written=written)


def tag_of(meta: Mapping[str, Any]) -> str:
    """Return the ETag of obstore's description, else the time of change."""
    return str(meta["e_tag"]) if meta["e_tag"] is not None else str(meta["last_modified"])


def _plain(tag: str) -> str:
    """Return an ETag as all answers of a store have it: a listing of Azure's leaves out the quotes."""
    return tag.removeprefix("W/").strip('"')
