"""What torch.save wrote, within an archive: where it lies there, so that it is read by range as it lies."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from ema_cli.errors import CUT_SHORT, CheckpointError, IncompleteCheckpoint
from ema_cli.formats.torch_save.content import TorchFile
from ema_cli.formats.torch_save.file import open_torch
from ema_cli.formats.torch_save.zip_directory import data_offset, read_directory
from ema_cli.storage.source import ByteSource, FileRegion

_BLOCK = 512  # of a tar archive
_MAX_MEMBERS = 1 << 16
_MAX_EXTENSION_BYTES = 1 << 16
_REGULAR, _EXTENDED, _LONG_NAME = (b"0", b"\0"), b"x", b"L"
_IGNORED = (b"g", b"K")  # of the whole archive, and long names of what links lead to
_RECORD = re.compile(rb"(\d{1,9}) ([^=]{1,99})=")
_MAX_NUMBER = 1 << 60


def zip_members(file: ByteSource) -> Mapping[str, FileRegion]:
    """Return the files in a zip archive by name, compressed ones left out."""
    return {
        name: FileRegion(file, data_offset(file, entry), entry.size)
        for name, entry in read_directory(file).items()
        if not entry.method
    }


def tar_members(file: ByteSource) -> Mapping[str, FileRegion]:
    """Return the regular files in a tar archive, by their names without `./`.

    Raises:
        IncompleteCheckpoint: where the archive has no end.
        CheckpointError: where it is damaged, or has a name twice.
    """
    members: dict[str, FileRegion] = {}
    for name, kind, start, size in _headers(file):
        name = name.removeprefix("./")
        if kind in _REGULAR:
            if name in members:
                raise CheckpointError(f"its tar archive has '{name[:200]}' twice", subject=file.path)
            members[name] = FileRegion(file, start, size)
    return members


def open_member(region: FileRegion, name: str) -> TorchFile:
    """Read what torch.save wrote into a member of an archive; an error says in which."""
    try:
        return open_torch(region)
    except CheckpointError as error:
        error.fact = f"'{name}' in it: {error.fact}"
        raise


def _headers(file: ByteSource) -> Iterator[tuple[str, bytes, int, int]]:
    """Yield name, kind, first byte and size of each member of a tar archive."""
    position, name, size = 0, "", -1
    for _ in range(_MAX_MEMBERS):
        if position + _BLOCK > file.size:
            raise IncompleteCheckpoint("cut short: its tar archive has no end", subject=file.path, hint=CUT_SHORT)
        header = file.read(position, _BLOCK)
        if not any(header):
            return
        _check_sum(file, header)
        start, stored = position + _BLOCK, _number(file, header[124:136])
        kind = header[156:157]
        if kind in (_EXTENDED, _LONG_NAME, *_IGNORED):
            if stored > min(_MAX_EXTENSION_BYTES, file.size - start):
                raise _damaged(file)
            content = file.read(start, stored)
            if kind == _EXTENDED:
                records = _records(file, content)
                name = _text(file, records.get(b"path", b"")) or name
                size = int(records[b"size"]) if records.get(b"size", b"").isdigit() else size
            elif kind == _LONG_NAME:
                name = _text(file, content.rstrip(b"\0"))
        else:
            stored = size if size >= 0 else stored
            if start + stored > file.size:
                raise IncompleteCheckpoint("cut short: its tar archive has no end", subject=file.path, hint=CUT_SHORT)
            yield name or _plain_name(file, header), kind, start, stored
            name, size = "", -1
        position = start + -(-stored // _BLOCK) * _BLOCK
    raise CheckpointError(f"its tar archive has more than {_MAX_MEMBERS} members", subject=file.path)


def _plain_name(file: ByteSource, header: bytes) -> str:
    name, prefix = (field.partition(b"\0")[0] for field in (header[:100], header[345:500]))
    return _text(file, prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name)


def _text(file: ByteSource, name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise CheckpointError("a name in its tar archive is not UTF-8", subject=file.path) from None


def _records(file: ByteSource, content: bytes) -> dict[bytes, bytes]:
    """Return the records of an extended header, each `LENGTH KEY=VALUE` and a newline."""
    records, position = dict[bytes, bytes](), 0
    while position < len(content):
        match = _RECORD.match(content, position)
        end = position + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(content) or content[end - 1 : end] != b"\n":
            raise _damaged(file)
        records[match[2]] = content[match.end() : end - 1]
        position = end
    return records


def _check_sum(file: ByteSource, header: bytes) -> None:
    """Check the sum of the header's bytes, its own field taken for spaces."""
    plain = header[:148] + b" " * 8 + header[156:]
    if _number(file, header[148:156]) != sum(plain):
        raise _damaged(file)


def _number(file: ByteSource, field: bytes) -> int:
    """Return a number: octal digits, or for large ones the bytes behind a set bit."""
    if field[0] == 0x80:
        number = int.from_bytes(field[1:], "big")
    else:
        digits = field.strip(b" \0")
        if not re.fullmatch(rb"[0-7]*", digits):
            raise _damaged(file)
        number = int(digits or b"0", 8)
    if number > _MAX_NUMBER:
        raise _damaged(file)
    return number


def _damaged(file: ByteSource) -> CheckpointError:
    return CheckpointError("its tar archive is damaged", subject=file.path)
