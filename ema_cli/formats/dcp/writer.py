"""Lay out a folder as torch.distributed.checkpoint writes it for one rank, before any tensor is read. No torch here.

One shard holds an archive of torch's for each tensor, one behind the other, and `.metadata` says where each lies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial

from ema_cli.checkpoint import TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.errors import OutputError, option
from ema_cli.formats.boxes import Box
from ema_cli.formats.dcp.pieces import Record, Records, StoredTensor
from ema_cli.formats.output_file import Stream, Table, WithoutHeader
from ema_cli.formats.torch_save.pickle_writer import PickleWriter
from ema_cli.formats.torch_save.writer import Part, TorchOutput, lay_out_tensor, write_frame

SHARD_NAME = "__0_0.distcp"  # the first file of rank 0

_MODULE = "torch.distributed.checkpoint"
_SIZE = b"ctorch\nSize\n"
_NEW = b")\x81"  # makes an object of the class before, without calling it


@dataclass(frozen=True, slots=True)
class DcpShard(WithoutHeader):
    """The shard with all tensors; an `OutputFile`."""

    table: Table
    name: str = SHARD_NAME

    @property
    def size(self) -> int:
        """Return the size of the file in bytes."""
        return self.table.nbytes

    def records(self) -> Iterator[tuple[int, TorchOutput]]:
        """Yield the archive of each tensor, with the byte at which it begins."""
        for spec, begin in zip(self.table.specs.values(), self.table.begins.values(), strict=True):
            archive, inner = _archive(spec)
            yield begin - inner, archive

    def finish(self, stream: Stream) -> None:
        """Write what stands around the tensors, which are all written."""
        write_frame(stream, self.frame, self.summed())

    def summed(self) -> Iterator[tuple[int, int]]:
        """Yield where each tensor lies: the first byte, and how many."""
        specs, begins = self.table.specs, self.table.begins
        return ((begins[name], spec.nbytes) for name, spec in specs.items())

    def frame(self, checksum_of: Callable[[int, int], int]) -> Iterator[Part]:
        """Yield all bytes that are no tensor's, each part with its offset.

        Args:
            checksum_of: returns the CRC-32 of a tensor, which has so many bytes from a byte of the file on.
        """
        for start, archive in self.records():
            yield start, archive.header
            shifted = partial(_shifted, checksum_of, start)
            for offset, data in archive.frame(shifted):
                yield start + offset, data


def lay_out_shard(specs: Mapping[str, TensorSpec], tables: Sequence[Table] = ()) -> DcpShard:
    """Return the layout of the shard.

    Args:
        specs: the tensors, in the order in which they are stored.
        tables: tables of other averages; one of the same tensors in the same order is used again.

    Raises:
        OutputError: for a tensor that torch has no type for, or no whole element.
    """
    for table in tables:
        if list(table.specs.items()) == list(specs.items()):
            return DcpShard(table)
    begins: dict[str, int] = {}
    end = 0
    for name, spec in specs.items():
        if spec.dtype.torch is None or spec.dtype.torch_group > 1:
            raise OutputError(
                f"'{name}' is {spec}, which torch.distributed.checkpoint is not known to hold",
                hint=f"write it as safetensors: {option('o', 'DIR')}",
            )
        archive, inner = _archive(spec)
        begins[name] = end + inner
        end += archive.size
    return DcpShard(Table(b"", begins, specs, end))


def _shifted(checksum_of: Callable[[int, int], int], start: int, begin: int, size: int) -> int:
    return checksum_of(start + begin, size)


@lru_cache(maxsize=1024)
def _archive(spec: TensorSpec) -> tuple[TorchOutput, int]:
    """Return the archive of a tensor, and the byte of it at which the tensor's first element lies."""
    archive = lay_out_tensor("tensor", spec)
    return archive, archive.header_size + archive.table.begins["tensor"]


def shard_metadata(shard: DcpShard) -> bytes:
    """Return the `.metadata` of a folder with one shard, in which each tensor is one piece."""
    tensors = {}
    for (name, spec), (start, archive) in zip(shard.table.specs.items(), shard.records(), strict=True):
        box = Box((0,) * len(spec.shape), spec.shape, 0, spec.count)
        tensors[name] = StoredTensor(spec, (box,), Records.of([Record(SHARD_NAME, start, archive.size)]))
    return metadata_text(tensors, {}, {name: (name,) for name in tensors})


def metadata_text(
    tensors: Mapping[str, StoredTensor], items: Mapping[str, Record], paths: Mapping[str, tuple[object, ...]]
) -> bytes:
    """Return `.metadata`: the pickle of the dataclasses with which torch describes a folder.

    It says no more than where everything lies, so that equal averages give equal bytes: no path, and no random id.

    Args:
        tensors: spec, pieces and records of each tensor.
        items: the record of each value that is no tensor.
        paths: the keys that led to a value in the nested dict that was saved.
    """
    writer = PickleWriter()
    writer.constant(_name("metadata", "Metadata"))
    writer.out += _NEW + b"}("
    writer.text("state_dict_metadata")
    writer.out += b"}"
    for _, name in writer.items([*tensors, *items]):
        writer.text(name)
        if name in tensors:
            _write_tensor(writer, tensors[name])
        else:
            writer.constant(_name("metadata", "BytesStorageMetadata"))
            writer.out += _NEW
    writer.text("planner_data")
    writer.out += b"}"
    for _, (name, path) in writer.items(paths.items()):
        writer.text(name)
        writer.out += b"("
        for key in path:
            if isinstance(key, int):
                writer.integer(key)
            else:
                writer.text(str(key))
        writer.out += b"t"
    writer.text("storage_data")
    writer.out += b"}"
    for _, (name, offsets, number, record) in writer.items(_places(tensors, items)):
        _write_place(writer, name, offsets, number, record)
    for name, value in (("storage_meta", b"N"), ("version", b"X\x05\0\0\x001.0.0")):
        writer.text(name)
        writer.out += value
    writer.out += b"ub."
    return bytes(writer.out)


def _places(
    tensors: Mapping[str, StoredTensor], items: Mapping[str, Record]
) -> Iterator[tuple[str, tuple[int, ...] | None, int | None, Record]]:
    """Yield name, offsets and number of each piece, and its record."""
    for name, tensor in tensors.items():
        for number, (piece, record) in enumerate(zip(tensor.pieces, tensor.records, strict=True)):
            yield name, piece.offsets, number, record
    for name, record in items.items():
        yield name, None, None, record


def _write_tensor(writer: PickleWriter, tensor: StoredTensor) -> None:
    """Write what a tensor is, and its pieces."""
    spec = tensor.spec
    writer.constant(_name("metadata", "TensorStorageMetadata"))
    writer.out += _NEW + b"}("
    writer.word("properties")
    layout = b"ctorch.serialization\n_get_layout\nX\x0d\0\0\0torch.strided\x85R"
    memory_format = _name("metadata", "_MEM_FORMAT_ENCODING") + b"K\0\x85R"  # contiguous
    dtype = f"ctorch\n{spec.dtype.torch}\n".encode()
    # False: it requires no gradient, and its memory is not pinned.
    properties = _NEW + b"(" + dtype + layout + b"\x89" + memory_format + b"\x89tb"
    writer.constant(_name("metadata", "TensorProperties") + properties)
    writer.word("size")
    _write_size(writer, spec.shape)
    writer.word("chunks")
    writer.out += b"]"
    for piece in tensor.pieces:
        writer.constant(_name("metadata", "ChunkStorageMetadata"))
        writer.out += _NEW + b"}("
        writer.word("offsets")
        _write_size(writer, piece.offsets)
        writer.word("sizes")
        _write_size(writer, piece.shape)
        writer.out += b"uba"
    writer.out += b"ub"


def _write_place(
    writer: PickleWriter, name: str, offsets: tuple[int, ...] | None, number: int | None, record: Record
) -> None:
    """Write the key of a piece, or of a value that is no tensor, and where that lies."""
    writer.constant(_name("metadata", "MetadataIndex"))
    writer.out += _NEW + b"}("
    writer.word("fqn")
    writer.text(name)
    writer.word("index")
    if offsets is None or number is None:
        writer.out += b"N"
    else:
        writer.integer(number)
        writer.word("offset")
        _write_size(writer, offsets)
    writer.out += b"ub"
    writer.constant(_name("filesystem", "_StorageInfo"))
    writer.out += _NEW + b"}("
    writer.word("relative_path")
    writer.text(record.file)
    for field, value in (("offset", record.start), ("length", record.size)):
        writer.word(field)
        writer.integer(value)
    writer.out += b"ub"


def _write_size(writer: PickleWriter, shape: tuple[int, ...]) -> None:
    writer.constant(_SIZE)
    writer.sizes(shape)
    writer.out += b"\x85R"


def _name(module: str, name: str) -> bytes:
    """Return the instruction that pushes a class of torch.distributed.checkpoint."""
    return f"c{_MODULE}.{module}\n{name}\n".encode()
