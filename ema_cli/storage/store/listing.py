"""What a bucket holds, as its pages of listing say: no request for each name.

A store has no folders; the names of objects make them. Below a place that somebody asks for all is listed at once.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import field

from ema_cli.dataclass import dataclass
from ema_cli.errors import Missing, Unreadable
from ema_cli.storage.names import HUB, WEB, StorePath
from ema_cli.storage.store.clients import check_package, client_of, obstore, store_errors
from ema_cli.storage.store.hub import forget_commits, hub_files
from ema_cli.storage.store.requests import content_of, listed, look_at
from ema_cli.storage.store.stored_object import StoredObject

FIRST_BYTES = 1 << 18  # of a web server's file, which says its size only with some of its bytes
_MOST_INDEX_BYTES = 64 << 20
_BESIDE = (
    "config.json", "generation_config.json", "trainer_state.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
)  # fmt: skip
_MOST_OBJECTS = 200_000  # that are listed at once; above that, folder by folder


def shards_of(text: bytes, index: StorePath) -> list[str]:
    """Return the names of the files that a list of shards names.

    Raises:
        Unreadable: where it is none.
    """
    try:
        names = set(json.loads(text)["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Unreadable("is no list of shards", subject=index) from error
    if not all(isinstance(name, str) and name and "/" not in name and name not in (".", "..") for name in names):
        raise Unreadable("names a shard that is no file beside it", subject=index)
    return sorted(names)


FOLDER = None
"""What `Listing` gives for a name that only begins those of objects."""


@dataclass(slots=True)
class Listing:
    """What is known of one bucket, by the names of objects in it.

    Attributes:
        root: the address of the bucket.
    """

    root: StorePath
    _folders: dict[str, dict[str, StoredObject | None]] = field(default_factory=dict)
    _single: dict[str, StoredObject | None] = field(default_factory=dict)
    _whole: set[str] = field(default_factory=set)  # below these all is known
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def object(self, path: StorePath) -> StoredObject | None:
        """Return the object at an address, `FOLDER` for what lies around objects.

        Raises:
            Missing: where neither is.
            Unreadable: where the store does not say.
        """
        key = path.key
        with self._lock:
            if not key or key in self._folders:
                return FOLDER
            around, _, name = key.rpartition("/")
            if around in self._folders or self._is_whole(key):
                known: Mapping[str, StoredObject | None] = self._folders.get(around, {})
                if name not in known:
                    raise Missing("does not exist", subject=path)
                return known[name]
            if self._is_around(key):
                return FOLDER
            if key not in self._single:
                self._single[key] = self._ask(path)
            return self._single[key]

    def folder(self, path: StorePath) -> Mapping[str, StoredObject | None]:
        """Return what lies in a folder, by name.

        Raises:
            Missing: where there is no such folder.
            Unreadable: where the store does not list it.
        """
        key = path.key
        if path.scheme in WEB and path.index is None:
            raise Unreadable(
                "cannot be looked into: a web server does not list",
                subject=path,
                hint="name the files themselves, or the list of a model's shards: https://.../model.safetensors.index.json",
            )
        with self._lock:
            if self.object(path) is not FOLDER:
                raise Unreadable("cannot be looked into: not a folder", subject=path)
            if key not in self._folders and path.index is not None:
                self._folders[key] = self._indexed(path, path.index)
            if key not in self._folders and path.scheme == HUB:
                self._list_hub(path)
            if key not in self._folders:
                self._folders[key] = _level(path)
            return self._folders[key]

    def names(self, path: StorePath) -> list[str]:
        """Return the names in a folder; none where there is no such folder. Nothing is listed that lies deeper.

        Raises:
            Unreadable: where the store does not list it.
        """
        key = path.key
        with self._lock:
            names = self._folders[key] if key in self._folders else _level(path)
            if names:  # else it is no folder
                self._folders[key] = names
            return list(names)

    def below(self, path: StorePath) -> dict[StorePath, StoredObject]:
        """Return the objects at an address and below it, at any depth; none where nothing is there.

        Raises:
            Unreadable: where the store does not list them.
        """
        try:
            stored = self.object(path)
        except Missing:
            return {}
        if stored is not FOLDER:
            return {path: stored}
        found: dict[StorePath, StoredObject] = {}
        for name in self.folder(path):
            found |= self.below(path / name)
        return found

    def _is_around(self, key: str) -> bool:
        """Return whether something is known to lie in a folder: then it may hold much that nobody asks for."""
        return any(known.startswith(f"{key}/") for known in (*self._whole, *self._single))

    def _is_whole(self, key: str) -> bool:
        return any(key == root or key.startswith(f"{root}/") for root in self._whole)

    def _ask(self, path: StorePath) -> StoredObject | None:
        """Return what lies at an address, of which nothing is known yet."""
        if path.scheme in WEB:
            return self._begin(path) if path.index is None else FOLDER
        if path.scheme == HUB:
            return self._list_hub(path)
        # Names of files have a suffix, as a rule: then one request is enough.
        for look in (self._head, self._list) if path.suffix else (self._list, self._head):
            try:
                return look(path)
            except Missing:
                continue
        raise Missing("does not exist", subject=path)

    def _head(self, path: StorePath) -> StoredObject:
        with store_errors(path, "cannot be looked at"):
            return StoredObject.of(look_at(path))

    def _begin(self, path: StorePath) -> StoredObject:
        """Read the beginning of a file of a web server: what is signed for reading allows nothing else."""
        with store_errors(path, "cannot be read"):
            try:
                meta, content = content_of(path, (0, FIRST_BYTES))
            except (obstore().exceptions.PermissionDeniedError, obstore().exceptions.UnauthenticatedError) as error:
                # Nor does it say what lies beside that: buckets answer so where nothing is.
                raise error if path.is_named else FileNotFoundError from error
            stored = StoredObject.of(meta, content)
        if not stored.is_etag and not stored.written:  # which obstore then says it is, as of 1970
            raise Unreadable(
                "the server tells nothing by which another version would be known, neither ETag nor Last-Modified",
                subject=path,
                hint="download it, and name the path",
            )
        return stored

    def _indexed(self, path: StorePath, index: StorePath) -> dict[str, StoredObject | None]:
        """Return what a folder of a web server holds: the shards that a list names, and what belongs to a model."""
        with store_errors(index, "cannot be read"):
            meta, text = content_of(index, most=_MOST_INDEX_BYTES)
        if not text and int(meta["size"]) > _MOST_INDEX_BYTES:
            raise Unreadable("is too long for a list of shards", subject=index)
        shards = shards_of(text, index)
        found: dict[str, StoredObject | None] = {index.name: StoredObject.of(meta)}
        for name in (*shards, *_BESIDE):
            try:
                found[name] = self._begin(path / name)
            except Missing:
                if name in shards:
                    raise
        return found

    def _list_hub(self, path: StorePath) -> StoredObject | None:
        """List all that lies at an address of the Hub and below it."""
        folders = dict[str, dict[str, StoredObject | None]]({path.key: {}})
        for file in hub_files(path):
            stored = StoredObject(file.size, file.tag, is_etag=False, pinned=file.pinned)
            if file.key == path.key:
                return stored
            _put(folders, file.key, stored, path.key)
        if not folders[path.key]:
            raise Missing("does not exist", subject=path)
        self._folders.update(folders)
        self._whole.add(path.key)
        return FOLDER

    def _list(self, path: StorePath) -> None:
        """List all that lies below an address."""
        with store_errors(path, "cannot be looked into"):
            folders = listed(lambda: _tree(path))
        if folders is not None:
            self._folders.update(folders)
            self._whole.add(path.key)
        return FOLDER


def _level(path: StorePath) -> dict[str, StoredObject | None]:
    """Return what lies in a folder, by name: of what lies deeper nothing is listed, which may be much."""
    with store_errors(path, "cannot be looked into"):
        here = listed(lambda: obstore().list_with_delimiter(client_of(path), path.key or None))
    names = {_last(meta["path"]): StoredObject.of(meta) for meta in here["objects"]}
    return {**names, **dict.fromkeys(map(_last, here["common_prefixes"]), FOLDER)}


def _tree(path: StorePath) -> dict[str, dict[str, StoredObject | None]] | None:
    """Return all folders at an address and below it, each with what lies in it; None where that is too much.

    Raises:
        Missing: where nothing is there.
    """
    count, folders = 0, dict[str, dict[str, StoredObject | None]]({path.key: {}})
    for page in obstore().list(client_of(path), path.key, chunk_size=1000):
        count += len(page)
        for meta in page:
            _put(folders, meta["path"], StoredObject.of(meta), path.key)
        if count > _MOST_OBJECTS:
            return None
    if not count:
        raise Missing("does not exist", subject=path)
    return folders


def _put(folders: dict[str, dict[str, StoredObject | None]], key: str, stored: StoredObject | None, root: str) -> None:
    """Add an object, and the folders around it up to the root, to a tree."""
    while key != root:
        around, _, name = key.rpartition("/")
        names = folders.setdefault(around, {})
        if name in names and (stored is not FOLDER or names[name] is FOLDER):
            return  # what marks a folder that there is already, or a folder that is known
        names[name] = stored
        key, stored = around, FOLDER


def _last(key: str) -> str:
    return key.rpartition("/")[2]


_listings: dict[tuple[StorePath, bool], Listing] = {}
_lock = threading.Lock()


def listing_of(path: StorePath) -> Listing:
    """Return what is known of the bucket of an address.

    Raises:
        UsageError: where the package is not installed that reads it.
    """
    if path.scheme != HUB:
        check_package(path)
    root = path.whole_bucket
    with _lock:
        return _listings.setdefault((root, root.is_anonymous), Listing(root))


def forget_listings() -> None:
    """Look anew at all buckets from now on."""
    with _lock:
        _listings.clear()
    forget_commits()
