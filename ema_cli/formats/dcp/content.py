"""The content of `.metadata` of torch.distributed.checkpoint: which pieces of which tensor lie where.

It is made of a few dataclasses. Each stays an inert placeholder, which is known by the fields that it carries: trainers
write classes of their own modules where torch has the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from math import prod

from ema_cli.checkpoint import MAX_ELEMENTS, MAX_TENSORS, TensorSpec, check_tensor_name
from ema_cli.dataclass import dataclass
from ema_cli.dtypes import TORCH_DTYPES
from ema_cli.errors import CheckpointError
from ema_cli.formats.boxes import Damaged
from ema_cli.formats.dcp.layouts import Layouts
from ema_cli.formats.dcp.pieces import Record, Records, StoredTensor, find_clash, shown
from ema_cli.formats.dcp.places import Places
from ema_cli.formats.dcp.tensors import DcpTables
from ema_cli.formats.dcp.values import (
    MAX_PATH,
    State,
    dict_of,
    has_fields,
    is_empty,
    is_path,
    kind_of,
    shape_of,
    state_of,
    value_of,
)
from ema_cli.formats.pickles.values import Inert, Name
from ema_cli.storage.source import InputFile

METADATA = ("state_dict_metadata", "storage_data")
OF_TENSORS = (*METADATA, "planner_data")
KNOWN = (*OF_TENSORS, "storage_meta", "version")
_TENSOR = ("properties", "size", "chunks")


@dataclass(slots=True)
class Metadata:
    """The content of `.metadata`.

    Attributes:
        file: the file itself.
        tensors: the entry of each tensor, as unpickled; `tensor` makes a `StoredTensor` of it.
        items: the record of each value that is no tensor.
        paths: the keys that led to a value in the nested dict that was saved, by name, where they are recorded.
        blobs: the names of the values that are no tensors.
        more: the name of something that torch's own metadata do not say; empty where there is nothing.
    """

    file: InputFile
    tensors: dict[str, Inert] = field(default_factory=dict)
    paths: dict[str, tuple[object, ...]] = field(default_factory=dict)
    blobs: set[str] = field(default_factory=set)
    more: str = ""
    _places: Places = field(default_factory=Places)
    _layouts: Layouts = field(default_factory=Layouts)
    _tables: dict[tuple[tuple[str, str], ...], DcpTables] = field(default_factory=dict)

    @property
    def items(self) -> dict[str, Record]:
        """Return the record of each value that is no tensor."""
        return self._places.items

    def undescribed(self) -> Iterator[str]:
        """Yield the names under which something is stored or listed that is not described as a tensor."""
        yield from self.blobs
        yield from (name for name in self._places.names if name not in self.tensors)

    def tensor(self, name: str) -> StoredTensor:
        """Return spec and pieces of tensor `name`.

        Raises:
            CheckpointError: where they do not fit together.
        """
        try:
            return self._tensor(name, state_of(self.tensors[name], _TENSOR))
        except Damaged as error:
            raise CheckpointError(f"'{name}': {error}", subject=self.file.path) from None

    def tables(self, names: Mapping[str, str]) -> DcpTables:
        """Return the tensors of a model, given the name of each in the folder; raise as `tensor`."""
        key = tuple(names.items())
        if key not in self._tables:
            self._tables[key] = DcpTables.of({name: self.tensor(stored) for name, stored in names.items()})
        return self._tables[key]

    def _tensor(self, name: str, state: State) -> StoredTensor:
        properties = state.get("properties")
        if not isinstance(properties, Inert):
            raise Damaged("it has no properties")
        # A tuple as torch writes it today, a dict in older versions.
        values = properties.state
        dtype = values[0] if isinstance(values, tuple) and values else value_of(values, "dtype")
        known = TORCH_DTYPES.get(dtype.path.removeprefix("torch.")) if isinstance(dtype, Name) else None
        if known is None or known.torch_group > 1:
            raise Damaged(f"it has a dtype that is not read, {getattr(dtype, 'path', 'none')}")
        spec = TensorSpec(known, shape_of(state.get("size")))
        if spec.count > MAX_ELEMENTS:
            raise Damaged(f"it is {spec}, more than any file holds")
        pieces = self._layouts.of(spec.shape, state.get("chunks"))
        records = self._places.of(name, pieces)
        for piece, size in zip(pieces, records.sizes, strict=True):
            if spec.dtype.nbytes(prod(piece.shape)) > size:
                raise Damaged(f"its piece at {list(piece.offsets)} is larger than what is stored of it")
        return StoredTensor(spec, pieces, records)


def parse(file: InputFile, root: object) -> Metadata:
    """Return the content of a `.metadata`, given what it was unpickled to.

    Raises:
        Damaged: where it is none.
    """
    state = state_of(root, METADATA)
    metadata = Metadata(file)
    metadata.more = ", ".join(f"{name}"[:MAX_PATH] for name, value in state.items() if name not in KNOWN and value)
    for name, entry in dict_of(state.get("state_dict_metadata")).items():
        if isinstance(name, str) and has_fields(entry, _TENSOR):
            metadata.tensors[name] = entry
        elif isinstance(name, str) and is_empty(entry):
            metadata.blobs.add(name)  # of a value that is no tensor nothing is said
        else:
            raise Damaged(f"{shown(name)} is described by a {kind_of(entry)}, which is unknown")
    if len(metadata.tensors) > 4 * MAX_TENSORS:  # the optimizer has some for each of the model's
        raise Damaged(f"it names {len(metadata.tensors)} tensors; at most {4 * MAX_TENSORS} are read")
    metadata._places.read(dict_of(state.get("storage_data")), metadata.blobs)
    names = list(metadata.items)
    clash = find_clash(Records.of(metadata.items.values()), names.__getitem__)
    if clash is not None:
        raise Damaged(clash[1])
    paths = state.get("planner_data")
    if isinstance(paths, dict):
        metadata.paths = {name: path for name, path in paths.items() if isinstance(name, str)}
    # Where torch records for one tensor where it stood, it records it for all.
    has_paths = any(name in metadata.paths for name in metadata.tensors)
    for name in metadata.tensors:
        check_tensor_name(name, file.path)
        _check_path(name, metadata.paths.get(name) if has_paths else (name,))
    return metadata


def _check_path(name: str, path: object) -> None:
    """Check that a tensor's name is made of its path, as torch makes it."""
    if not is_path(path) or _joined_length(path) != len(name) or ".".join(map(str, path)) != name:
        raise Damaged(f"the tensor {shown(name)} is said to have stood elsewhere in what was saved")


def _joined_length(path: tuple[str | int, ...]) -> int:
    # Before anything is joined: one long text can stand in a path again and again.
    return sum(len(part) if isinstance(part, str) else len(str(part)) for part in path) + len(path) - 1
