"""An output in a store that workers make: each puts whole files beside it, and the store copies them to their places.

So an older release stays until the new one is whole, and what is finished outlives the one who asked for it. What lies
beside goes when the output is published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from types import TracebackType

from ema_cli.errors import CheckpointError, Missing, OutputError
from ema_cli.storage.lease import Held
from ema_cli.storage.names import StorePath
from ema_cli.storage.staging.in_store import StoreStaging
from ema_cli.storage.staging.local import SHARED_PREFIX, Staging
from ema_cli.storage.store.claim import claim_on
from ema_cli.storage.store.clients import output_errors_in_store
from ema_cli.storage.store.listing import forget_listings, listing_of
from ema_cli.storage.store.requests import copy
from ema_cli.storage.store.unfinished_uploads import abort_unfinished

_COPIES_AT_ONCE = 8
MOST_COPIED = 5 * 10**9
"""Stores copy at most so many bytes in one request."""


class SharedStoreStaging(StoreStaging):
    """What workers make at an address, and what the one who asks adds to it.

    Attributes:
        tasks: the address below which workers tell of their tasks.
    """

    def __init__(self, address: StorePath, digest: str, *, claims: bool) -> None:
        """Take the address, the digest of the average, and whether this process has the claim from the beginning."""
        super().__init__(address)
        self.tasks = address.with_name(f".{address.name}{SHARED_PREFIX}{digest[:16]}")
        self._kept = False
        self._claims = claims

    def __enter__(self) -> SharedStoreStaging:
        if self._claims:
            super().__enter__()
        else:
            Staging.__enter__(self)
        return self

    def remove_empty(self) -> None:
        """Do nothing: in a store there are no folders."""

    def working(self, name: str) -> AbstractContextManager[object]:
        """Do nothing: nobody removes what lies in a store because it is old."""
        return nullcontext()

    def publishing(self) -> AbstractContextManager[object]:
        """Take the claim, until the end.

        Raises:
            Held: where another run has it.
            OutputError: where the store refuses.
        """
        try:
            self._claim.__enter__()
        except OutputError as error:
            forget_listings()
            if claim_on(self._address) is None:
                raise
            raise Held("another run is just publishing", subject=self._address) from error
        return nullcontext()

    def is_there(self) -> bool:
        """Return whether what was told of tasks is still there: who publishes removes it."""
        forget_listings()
        with suppress(Missing):
            return bool(listing_of(self.tasks).below(self.tasks))
        return False

    @property
    def claim(self) -> tuple[StorePath, str]:
        """Return the address of the claim under which workers put files, and its owner."""
        return self._claim.path, self._claim.owner

    def is_lost(self) -> bool:
        """Return whether another run took the claim, as far as the store says."""
        with suppress(OutputError), output_errors_in_store(self._address):
            return self._claim.is_lost()
        return False

    def folder_of(self, folder: Path) -> StorePath:
        """Return where workers put the files of a folder in the private one."""
        return self.tasks.joinpath("files", *folder.relative_to(self.folder).parts)

    def expect(self, folder: Path, files: Mapping[str, int]) -> None:
        """Note the files that workers make of a folder in the private one, by name, each with its size."""
        for name, size in files.items():
            self._placed[self._address_of(folder) / name] = self.folder_of(folder) / name, size

    def _complete(self, paths: Iterable[StorePath]) -> None:
        """Copy what workers put to where it belongs, and complete what was sent."""
        wanted = list(paths)
        copied = {path: self._placed[path] for path in wanted if path in self._placed}
        self._put.update({path: size for path, (_, size) in copied.items()})
        with ThreadPoolExecutor(_COPIES_AT_ONCE, "copy") as pool:
            list(pool.map(_copy, [source for source, _ in copied.values()], copied))
        super()._complete(path for path in wanted if path not in copied)

    def keep(self) -> None:
        """Leave what workers put, for who goes on."""
        self._kept = True

    def read_back(self, folder: Path, check: Callable[[Path], object]) -> None:
        """Check a folder where it goes, before anything is a release."""
        self._checks.append(partial(check, self._address_of(folder)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._kept:
            forget_listings()
            # The error that brings us here says more.
            with suppress(CheckpointError, OutputError), output_errors_in_store(self._address):
                # Else what is there is another run's: of one that took this claim, or that has refused it.
                if self._claim.is_ours() if self._claims else not self._claim.is_lost():
                    self._withdraw(listing_of(self.tasks).below(self.tasks))
                    abort_unfinished(self.tasks)  # of workers that died
        super().__exit__(kind, error, trace)


def _copy(source: StorePath, path: StorePath) -> None:
    with output_errors_in_store(path):
        copy(source, path)
