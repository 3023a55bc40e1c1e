"""Names of places: a path of the local file system, or the address of an object in a store, as s3://bucket/run.

Both are a `Path`, so that whoever has one can find others from it. Only `location` makes a place of a name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path, PosixPath
from typing import NoReturn, Self

from ema_cli.errors import UsageError

HUB = "hf"  # the Hugging Face Hub, which has owners in the place of buckets
SCHEMES = ("s3", "gs", "az", "abfs", "abfss", HUB, "https", "http", "memory")
WEB = ("https", "http")  # servers that cannot list what they have

_HUB_PARTS = 3  # scheme, owner, repository
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/+", re.ASCII | re.IGNORECASE)  # pathlib makes one slash of two
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(:\d*)?", re.ASCII | re.IGNORECASE)  # of a web address
_USER = re.compile(r"//([^@]*:.*|[^/]*)@")  # in an address, and the password behind it
_IN_TEXT = re.compile(r"[a-z][a-z0-9+.-]+://\S+?(?=\)?(?:\s|$))", re.ASCII | re.IGNORECASE)
_INDEX = ".index.json"  # what the name of a list of shards ends with
_indexes: dict[Path, str] = {}  # of a folder of a web server: the name of the list of its shards
_queries: dict[Path, str] = {}  # what follows the question mark of web addresses that were named: it may be a signature
_anonymously = False  # whether what is named from now on is read so


class StorePath(PosixPath):
    """The address of a file or a folder in a store. Its parts are the scheme with its colon, the bucket, and the names.

    Nothing that the file system offers works on it: that is an error with its name, never a local file.
    """

    __slots__ = ()

    def __str__(self) -> str:
        is_whole = bool(self.parts) and self.parts[0].endswith(":")  # and no part of an address
        return f"{self.parts[0]}//{'/'.join(self.parts[1:])}" if is_whole else super().__str__()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __fspath__(self) -> NoReturn:
        raise UsageError(
            "is in a store, and this works with local files only", subject=self, hint="name a local path here"
        )

    def iterdir(self) -> NoReturn:
        """Raise a UsageError: from Python 3.13 on these look at the text of a path."""
        self.__fspath__()

    def glob(self, *_: object, **__: object) -> NoReturn:
        """Raise a UsageError."""
        self.__fspath__()

    def rglob(self, *_: object, **__: object) -> NoReturn:
        """Raise a UsageError."""
        self.__fspath__()

    def absolute(self) -> StorePath:
        """Return the address itself, which depends on no working directory."""
        return self

    def without_dots(self) -> StorePath:
        """Return the same place without `..` in its address."""
        return self if ".." not in self.parts else type(self)(os.path.normpath("/".join(self.parts)))

    @property
    def whole_bucket(self) -> Self:
        """Return the address of the bucket."""
        return type(self)(*self.parts[:2])

    @property
    def is_anonymous(self) -> bool:
        """Return whether no request for what is here is signed."""
        return False

    @property
    def scheme(self) -> str:
        """Return the kind of store: s3, gs, ..."""
        return self.parts[0].removesuffix(":")

    @property
    def bucket(self) -> str:
        """Return the bucket, the container or the host; nothing for the store around all of them."""
        return self.parts[1] if len(self.parts) > 1 else ""

    @property
    def key(self) -> str:
        """Return the name of the object in its bucket."""
        return "/".join(self.parts[2:])

    @property
    def is_named(self) -> bool:
        """Return whether a user named this web address, and not only a file beside it."""
        return self in _queries

    @property
    def query(self) -> str:
        """Return what followed the question mark in a web address: kept apart, since it may be a signature."""
        index = _indexes.get(self.parent)
        return _queries.get(self, "") or ("" if index is None else _queries.get(self.parent / index, ""))

    @property
    def index(self) -> StorePath | None:
        """Return the list of shards that a user named to name this folder of a web server."""
        name = _indexes.get(self)
        return None if name is None else self / name


class AnonymousPath(StorePath):
    """An address for which no request is signed, whatever credentials the environment has: what is there is public.

    So is every address that is found from it, here and in workers, which may work for others who sign.
    """

    __slots__ = ()

    @property
    def is_anonymous(self) -> bool:
        """Return True."""
        return True


def anonymously(path: Path) -> Path:
    """Return the address to be read without a signature; a local path as it is."""
    return AnonymousPath(*path.parts) if isinstance(path, StorePath) else path


def name_anonymously(yes: bool) -> None:
    """Say whether the addresses that are named in this process from now on are `AnonymousPath`s."""
    global _anonymously
    _anonymously = yes


def remember_query(path: StorePath, query: str) -> None:
    """Note what follows the question mark of a web address that came from another process."""
    _queries[path] = query


def as_path(word: str | Path) -> Path:
    """Return the name of the place that a user writes.

    Raises:
        UsageError: for an address without a bucket, with a pattern for one, with a password, or with `..` in it; and
            for an empty word.
    """
    if isinstance(word, StorePath):
        return word
    if word == "":  # for Python it is the working folder
        raise UsageError("a path is empty", hint="if it is a variable of a shell, set that; the working folder is .")
    scheme = _ADDRESS.match(str(word))
    name = "" if scheme is None else scheme[1].lower()
    if scheme is None or name not in SCHEMES:
        return Path(word)
    rest = str(word)[len(scheme[1]) :]
    text, _, query = rest.partition("?") if name in WEB else (rest, "", "")
    kind = AnonymousPath if _anonymously else StorePath
    path = kind(f"{name}:" if scheme[0].endswith("///") else name + text)
    # A password may hold a slash, with which the bucket would end.
    if ("@" in path.bucket or not _HOST.fullmatch(path.bucket)) if name in WEB and path.bucket else ":" in path.bucket:
        raise UsageError(
            "holds a user's name and password",
            subject=_without_secrets(f"{name}{text}"),
            hint="leave them out: credentials come from the environment",
        )
    if not path.bucket or ".." in path.parts:
        fact = "'..' has no meaning in a store" if path.bucket else "names no bucket"
        raise UsageError(fact, subject=path, hint="as s3://bucket/run")
    if path.scheme not in WEB and not set(path.bucket).isdisjoint("*?["):
        fact = "no bucket has such a name, and patterns of buckets are not filled in"
        raise UsageError(fact, subject=path, hint="name one, as s3://bucket/run")
    if path.scheme == HUB and len(path.parts) < _HUB_PARTS + (path.bucket in ("datasets", "spaces", "buckets")):
        raise UsageError("names no repository", subject=path, hint="as hf://org/model@main/checkpoints")
    if query or path.scheme in WEB:
        _queries[path] = query or path.query
    if path.scheme in WEB and path.name.endswith(_INDEX):
        # A web server does not list a folder, but this file does.
        _indexes[path.parent] = path.name
        return path.parent
    return path


def check_no_address(path: Path) -> None:
    """Check that a path that a user names is not the address of a store or a server of a kind that is not read.

    Raises:
        UsageError: for such an address, as hdfs://host/run.
    """
    if not isinstance(path, StorePath) and _ADDRESS.match(str(path)):
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES[:-2])
        raise UsageError(
            "is the address of a store or server of a kind that is not read",
            subject=_without_secrets(_ADDRESS.sub(r"\1://", str(path), count=1)),
            hint=f"copy what is there to a disk, or mount it, and name the path; read: {known}",
        )


def without_secrets(text: str) -> str:
    """Return a text in which no address has what may be a user's name, a password or a signature."""
    return _IN_TEXT.sub(lambda found: _without_secrets(found[0]), text)


def _without_secrets(address: str) -> str:
    """Return an address without what may be a user's name, a password or a signature."""
    shown = _USER.sub("//...@", address.partition("?")[0])
    scheme, _, rest = shown.partition("://")
    return shown if _HOST.fullmatch(rest.partition("/")[0]) else f"{scheme}://..."


def plain(path: Path) -> Path:
    """Return the absolute path without `.` and `..` in it; links are not followed."""
    return path.without_dots() if isinstance(path, StorePath) else Path(os.path.abspath(path))


def absolute_name(path: Path) -> str:
    """Return the text of an absolute path, in a fifth of pathlib's time."""
    return str(path) if isinstance(path, StorePath) else os.path.join(os.getcwd(), path)


def common_folder(paths: Iterable[Path]) -> Path:
    """Return the innermost folder around all paths, which are all absolute or all relative.

    Around a single bucket that is the store, as `s3:`.

    Raises:
        UsageError: where some are in a store and others are not, or they are in different ones.
    """
    several = list(paths)
    if not any(isinstance(path, StorePath) for path in several):
        return Path(os.path.commonpath(several))
    first = several[0]
    for folder in (first, *first.parents):
        is_in_bucket = len(folder.parts) > 1
        if all(path.is_relative_to(folder) for path in several) and (is_in_bucket or len(several) == 1):
            return folder
    if any(isinstance(path, StorePath) and not path.bucket for path in several):
        raise UsageError("a whole bucket is named beside others", hint="name what lies in one bucket")
    other = next(path for path in several if path.parts[:2] != first.parts[:2])
    raise UsageError(f"is not in the store of {first}", subject=other, hint="name what lies in one of the two")


def relative_name(path: Path, folder: Path) -> str:
    """Return the path from a folder to a place in it or around it."""
    return os.path.relpath(path, folder) if not isinstance(path, StorePath) else path.relative_to(folder).as_posix()
