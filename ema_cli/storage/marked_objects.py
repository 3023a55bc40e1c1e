"""Marked folders in a store: without the mark, what lies there is nothing, and is removed by whoever comes next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ema_cli.errors import Missing
from ema_cli.storage.marked_folders import MarkedFolders
from ema_cli.storage.names import StorePath
from ema_cli.storage.staging.in_store import IGNORES_CONDITIONS
from ema_cli.storage.store.claim import Claim, is_claim
from ema_cli.storage.store.clients import output_errors_in_store
from ema_cli.storage.store.listing import forget_listings, listing_of
from ema_cli.storage.store.requests import copy, remove
from ema_cli.storage.store.unfinished_uploads import abort_unfinished

_held: dict[Path, Claim] = {}  # the claims of this process, by what they are on


class MarkedObjects(MarkedFolders):
    """Marked folders below one address. The folder around them is held by a claim beside it."""

    __slots__ = ()

    @contextmanager
    def held(self, other: str, way_out: str) -> Iterator[list[str]]:
        """Hold the folder around them; see `MarkedFolders`. A claim says by itself who has it, and until when."""
        with Claim(self._address) as claim:
            _held[self.around] = claim
            try:
                yield [] if claim.is_heeded else [f"{self.around}: {IGNORES_CONDITIONS}"]
            finally:
                del _held[self.around]

    def check_held(self) -> None:
        """Raise an OutputError if another run took the claim."""
        _held[self.around].check()

    def paths(self) -> list[Path]:
        """Return the folders that are there, in no order; none where nothing is."""
        try:
            return MarkedFolders.paths(self)
        except Missing:
            return []

    def move(self, path: Path, to: Path) -> None:
        """Give a folder another name: it is copied, its mark last, and removed then."""
        for source in self._in_order(path):
            target = self._address / to.name / source.relative_to(path)
            with output_errors_in_store(source):
                copy(source, target)
        self.remove(path)

    def remove(self, path: Path) -> None:
        """Remove a folder, its mark first: it is gone as a whole, or there."""
        _remove(reversed(self._in_order(path)))

    def remove_litter(self) -> None:
        """Remove what a run that was killed had not finished, or not removed yet; its claims, too, and its uploads."""
        whole = {path.name for path in self.paths()}
        below = {path: path.relative_to(self.around).parts for path in _below(self._address)}
        inner = [path for path, names in below.items() if len(names) > 1 and names[0] not in whole]
        _remove([*inner, *(path for path, names in below.items() if len(names) == 1 and is_claim(path))])
        abort_unfinished(self._address)

    @property
    def _address(self) -> StorePath:
        assert isinstance(self.around, StorePath)
        return self.around

    def _in_order(self, path: Path) -> list[StorePath]:
        """Return what lies in a folder, its mark last."""
        return sorted(_below(self._address / path.name), key=lambda one: one == path / self.mark)


def _below(path: StorePath) -> list[StorePath]:
    forget_listings()
    return [*listing_of(path).below(path)]


def _remove(paths: Iterable[StorePath]) -> None:
    for path in paths:
        with output_errors_in_store(path), suppress(FileNotFoundError):
            remove(path)
    forget_listings()
