"""Publish into a store: sent while it is made, completed when all of it is there, what makes it a release last.

Files of tensors are sent in parts, of which a store shows nothing until they are completed. Small files, and outputs
that are not made in the order of their files, are made on the disk for temporary files first.

A store has no rename. While objects are put, a claim keeps other runs out, and nothing is a release: an older one is
withdrawn first. After a kill there is the older one, the new one, or none.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType

from ema_cli.errors import CheckpointError, OutputError
from ema_cli.storage.around import Around, Copy
from ema_cli.storage.local_file import LocalFile
from ema_cli.storage.names import StorePath
from ema_cli.storage.source import FileRegion
from ema_cli.storage.staging.local import Sender, Staging
from ema_cli.storage.store.claim import Claim, Died
from ema_cli.storage.store.clients import obstore, output_errors_in_store, store_errors
from ema_cli.storage.store.listing import forget_listings, listing_of
from ema_cli.storage.store.requests import content_of, is_given_up, put, remove
from ema_cli.storage.store.store_stream import StoreStream
from ema_cli.storage.store.unfinished_uploads import abort_unfinished
from ema_cli.storage.store.uploads import abort, part_bytes
from ema_cli.system.signals import deferred_signals, note_publication, note_unfinished
from ema_cli.text import plural

IGNORES_CONDITIONS = "this store ignores conditions: it keeps no second run out, so let only one write there at a time"
_FILES_AT_ONCE = 2


def temporary_folder() -> Path:
    """Return the folder for temporary files, in which an output for a store is made."""
    return Path(tempfile.gettempdir())


def free_temporary_bytes() -> int:
    """Return how many bytes can be written there."""
    return shutil.disk_usage(temporary_folder()).free


class StoreStaging(Staging):
    """A private folder on the disk for what will be put at an address, and what is sent there meanwhile."""

    def __init__(self, address: StorePath) -> None:
        super().__init__(temporary_folder() / address.name)
        self._address = address
        self._claim = Claim(address)
        self._put: dict[StorePath, int] = {}  # the size of each object that this run put
        self._streams: dict[StorePath, StoreStream] = {}  # what is sent while it is made
        self._checks: list[Callable[[], object]] = []  # of what is sent, once it is there
        self._completed: list[StoreStream] = []  # and not looked at yet
        self._placed: dict[StorePath, tuple[StorePath, int]] = {}  # what workers made, where, and its size
        self._withdraws = False  # what makes an older output a release

    def __enter__(self) -> StoreStaging:
        try:
            with deferred_signals():
                self._claim.__enter__()
                super().__enter__()
                if not self._claim.is_heeded:
                    self.notes.append(f"{self._address}: {IGNORES_CONDITIONS}")
                if self._claim.died is not None:
                    self._remove_left(self._claim.died)
        except BaseException as error:
            # A signal that was held back surfaces here, too.
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with deferred_signals():
            try:
                super().__exit__(kind, error, trace)
                for stream in self._streams.values():
                    stream.give_up()
                self._abort(self._streams.values())
                # The error that brings us here says more.
                with suppress(OutputError), output_errors_in_store(self._address):
                    if self._put and self._claim.is_ours():  # else what is there is another run's
                        self._withdraw(self._put)
            finally:
                self._claim.is_unfinished |= is_given_up()  # the same of all else that was asked
                if self._withdraws or (self._put and self._claim.is_unfinished):
                    note_unfinished()
                self._claim.__exit__(kind, error, trace)

    def _remove_left(self, died: Died) -> None:
        """Remove what a run that died has left."""
        forget_listings()
        left = [path for path in died.puts if listing_of(path).below(path)]
        uploads = abort_unfinished(self._address)
        self._withdraw(left)
        forget_listings()
        what = [plural(len(left), "object")] if left else []
        what += [plural(uploads, "unfinished upload")] if uploads else []
        if what:
            self.notes.append(f"{self._address}: a run that died there left {' and '.join(what)}: removed")

    def sender(self, objects: int) -> Sender:
        """Return what sends files to where they belong while they are made."""
        return partial(self._send, objects)

    def _send(
        self, objects: int, path: Path, size: int, header: bytes, around: Around | None, *, summed: bool
    ) -> StoreStream:
        address = self._address_of(path)
        spill = self.folder / f"spill-{len(self._streams)}"
        self._streams[address] = StoreStream(address, size, header, around, spill=spill, summed=summed, objects=objects)
        return self._streams[address]

    def read_back(self, folder: Path, check: Callable[[Path], object]) -> None:
        """Check a folder of the output: if it is sent, where it goes, and before anything is a release."""
        if self._streams:
            self._checks.append(partial(check, self._address_of(folder)))
        else:
            super().read_back(folder, check)

    def _address_of(self, path: Path) -> StorePath:
        """Return where in the store a path in the private folder belongs."""
        return self._address.parent.joinpath(*path.relative_to(self.folder).parts)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Look anew at what is there: the claim holds off other runs all the time."""
        forget_listings()
        yield

    def publish_file(self, name: str, sidecars: Mapping[str, Path] | None = None, *, force: bool) -> None:
        """Put the staged file `name` at the address, after its sidecars; older ones of these are withdrawn first."""
        paths = [(path, staged) for staged, path in (sidecars or {}).items() if isinstance(path, StorePath)]
        beside = {path: self.folder / staged for path, staged in paths}
        self._claim.say([*beside, self._address], [self._address])
        self._withdraws = force and any(listing_of(path).below(path) for path in beside)
        self._withdraw(beside)
        self._upload({path: file for path, file in beside.items() if file.exists()}, new=True)
        self._check()
        if self._address in self._streams or self._address in self._placed:
            self._complete([self._address])
            self._check()
        else:
            self._upload({self._address: self.folder / name})
        self._confirm()

    def publish_folder(self, name: str, *, force: bool, manifest: str = "", suffix: str = "") -> None:
        """Put the files of the staged folder `name` below the address; last what makes each average a release.

        Of an average that is a folder that is its manifest; of a file the file, which its manifest cannot vouch for
        before. Older manifests are withdrawn first, and what is not replaced is removed.
        """
        source = self.folder / name
        files = {self._address / path.relative_to(source): path for path in source.rglob("*") if path.is_file()}
        sent = [path for path in (*self._streams, *self._placed) if path.is_relative_to(self._address)]
        manifests = {path for path in files if path.name == manifest}
        vouched = {path for path in (*files, *sent) if suffix and path.with_name(path.name + suffix) in files}
        last = manifests | vouched
        older = listing_of(self._address).below(self._address)
        self._claim.say({**files, **dict.fromkeys(sent), **older}, manifests or vouched)
        self._claim.is_unfinished = self._withdraws = bool(older)
        self._withdraw(path for path in older if path.name == manifest or (suffix and path.name.endswith(suffix)))
        self._upload({path: file for path, file in files.items() if path not in last})
        self._complete([path for path in sent if path not in vouched])
        self._withdraw(path for path in older if path not in files and path not in sent)
        self._check()
        if vouched:
            self._upload({path: file for path, file in files.items() if path in vouched})
            self._complete([path for path in sent if path in vouched])
            self._check()
        self._upload({path: files[path] for path in manifests}, new=True)
        self._confirm()

    def _complete(self, paths: Iterable[StorePath]) -> None:
        """Let the store put together what was sent, and look at it."""
        streams = [self._streams.pop(path) for path in paths]
        try:
            for stream in streams:
                self._put[stream.path] = stream.size
                stream.upload.end()
            for stream in streams:
                stream.upload.wait()
        except BaseException:
            self._abort(streams)
            raise
        self._completed += streams

    def _abort(self, streams: Iterable[StoreStream]) -> None:
        """Let the store forget what was sent; where it does not answer it may yet do what it was asked for."""
        self._claim.is_unfinished |= not abort(stream.upload for stream in streams)

    def _upload(self, files: Mapping[StorePath, Path], *, new: bool = False) -> None:
        """Put local files at addresses, two at a time; where they are `new`, only if nothing is there."""
        self._put.update({path: file.stat().st_size for path, file in files.items()})
        pool, streams = ThreadPoolExecutor(_FILES_AT_ONCE, "put"), list[StoreStream]()
        try:
            for future in [pool.submit(self._put_one, path, file, streams, new=new) for path, file in files.items()]:
                future.result()
        except BaseException:
            for stream in streams:
                stream.give_up()
            raise
        finally:
            pool.shutdown(cancel_futures=True)  # nothing may come after the claim is given back
        self._completed += streams

    def _put_one(self, path: StorePath, file: Path, streams: list[StoreStream], *, new: bool) -> None:
        """Put a local file; a large one is sent as what is made here, and added to `streams`."""
        source = LocalFile(file)
        if new:
            self._create(path, source.read(0, source.size))
        elif source.size <= part_bytes(source.size):
            with output_errors_in_store(path):
                put(path, source.read(0, source.size))
        else:
            whole = Copy(FileRegion(source, 0, source.size))
            spill = self.folder / "never"
            stream = StoreStream(path, source.size, b"", whole, spill=spill, summed=False, objects=_FILES_AT_ONCE)
            streams.append(stream)
            stream.sync()
            stream.upload.end()
            stream.upload.wait()

    def _create(self, path: StorePath, content: bytes) -> None:
        """Put an object where nothing is; one with this content is ours, of a request whose answer was lost."""
        with output_errors_in_store(path):
            try:
                put(path, content, "create")
            except obstore().exceptions.AlreadyExistsError as error:
                if content_of(path)[1] != content:
                    del self._put[path]
                    raise OutputError("was put there by another run meanwhile", subject=path) from error

    def _withdraw(self, paths: Iterable[StorePath]) -> None:
        """Remove the objects at some addresses, if they are there."""
        for path in paths:
            with output_errors_in_store(path), suppress(FileNotFoundError):
                remove(path)

    def _check(self) -> None:
        """Check that all is there that was put, in full, and that no other run took the claim; read back what was sent.

        Raises:
            OutputError: where it is not so.
            VerificationError: where a file that was sent is not read as it was meant.
        """
        self._claim.check()
        forget_listings()
        for path, size in self._put.items():
            try:
                stored = listing_of(path).object(path)
            except CheckpointError as error:
                raise OutputError(error.fact, subject=path) from error
            there = 0 if stored is None else stored.size
            if there != size:
                raise OutputError(f"has {there} bytes in the store, and {size} were put there", subject=path)
        for stream in self._completed:
            _check_end(stream)
        self._completed.clear()
        if not self._streams and self._placed.keys() <= self._put.keys():
            while self._checks:
                self._checks.pop()()

    def _confirm(self) -> None:
        """Note that the output is published: what was put stays."""
        note_publication()
        self._claim.is_unfinished = self._withdraws = False
        self._put.clear()
        forget_listings()


def _check_end(stream: StoreStream) -> None:
    """Check that an object ends as what was sent.

    Raises:
        OutputError: where it does not.
    """
    path, begin = stream.path, stream.size - len(stream.last)
    try:
        with store_errors(path, "does not read back"):
            _, end = content_of(path, (begin, stream.size) if begin else None)
    except CheckpointError as error:
        raise OutputError(error.fact, subject=path) from error
    if end != stream.last:
        raise OutputError("does not end in the store as it was sent", subject=path)
