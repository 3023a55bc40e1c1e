"""Folders of torch.distributed.checkpoint put together by hand."""

from __future__ import annotations

from pathlib import Path

from tests.hostile.make import (
    build,
    data,
    mapping,
    name,
    number,
    numbers,
    pack,
    storage,
    tensor,
    text,
    torch_zip,
    whole,
)

METADATA = "torch.distributed.checkpoint.metadata"
SHARD = "__0_0.distcp"
Offsets = tuple[int, ...]


def described(*pieces: tuple[Offsets, Offsets], size: Offsets = (2, 3), dtype: str = "torch.float32") -> bytes:
    """Push how `.metadata` describes a tensor: its size, and offsets and sizes of its pieces."""
    chunks = b"".join(
        build(f"{METADATA}.ChunkStorageMetadata", mapping({"offsets": numbers(*at), "sizes": numbers(*sizes)}))
        for at, sizes in pieces or [((0,) * len(size), size)]
    )
    properties = build(f"{METADATA}.TensorProperties", pack(name(dtype), b"N", b"\x89", b"N", b"\x89"))
    state = {"properties": properties, "size": numbers(*size), "chunks": b"](" + chunks + b"e"}
    return build(f"{METADATA}.TensorStorageMetadata", mapping(state))


def placed(start: int, size: int, file: bytes = text(SHARD), **more: bytes) -> bytes:
    """Push where a record lies."""
    state = {"relative_path": file, "offset": number(start), "length": number(size), **more}
    return build("torch.distributed.checkpoint.filesystem._StorageInfo", mapping(state))


def index(of: str, at: Offsets | None) -> bytes:
    """Push what a record is of."""
    offset = b"N" if at is None else numbers(*at)
    return build(f"{METADATA}.MetadataIndex", mapping({"fqn": text(of), "offset": offset, "index": b"N"}))


class Folder:
    """A folder to be written: what `.metadata` says, and the records of its shard."""

    def __init__(self, step: int = 3) -> None:
        self.entries: dict[str, bytes] = {}
        self.places: list[tuple[bytes, bytes]] = []
        self.shard = b""
        self.more: dict[str, bytes] = {}
        for label, key, shape in (("w", "0", (2, 3)), ("b", "1", (3,))):
            self.tensor(label, self.record(tensor(storage("0", len(data(step)[key]) // 4), shape=shape),
                data(step)[key]),
                        described(size=shape), (0,) * len(shape))  # fmt: skip
        self.item("step", torch_zip(whole(number(step)), {}))

    def record(self, value: bytes, content: bytes = b"") -> bytes:
        """Return a record of a tensor."""
        return torch_zip(whole(value), {"0": content})

    def place(self, of: str, record: bytes, at: Offsets | None) -> None:
        """Put a record into the shard."""
        self.places.append((index(of, at), placed(len(self.shard), len(record))))
        self.shard += record

    def tensor(self, label: str, record: bytes, entry: bytes, at: Offsets) -> None:
        """Add a tensor in one piece."""
        self.entries[label] = entry
        self.place(label, record, at)

    def item(self, label: str, record: bytes) -> None:
        """Add something that is no tensor."""
        self.entries[label] = build(f"{METADATA}.BytesStorageMetadata", b"}")
        self.place(label, record, None)

    def metadata(self) -> bytes:
        """Return the pickle."""
        places = b"}(" + b"".join(key + value for key, value in self.places) + b"u"
        state = {"state_dict_metadata": mapping(self.entries), "storage_data": places, "planner_data": b"N"}
        return whole(build(f"{METADATA}.Metadata", mapping({**state, **self.more})))

    def write(self, path: Path, metadata: bytes | None = None) -> None:
        """Write the folder."""
        path.mkdir()
        (path / SHARD).write_bytes(self.shard)
        (path / ".metadata").write_bytes(self.metadata() if metadata is None else metadata)
