"""Folders of torch.distributed.checkpoint, written by its own classes; equal states give equal bytes."""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

Box = tuple[tuple[int, ...], tuple[int, ...]]  # offsets and sizes


def save_folder(folder: Path, state: Mapping[str, Any]) -> Path:
    """Save a state, nested as it may be, as a training of one process does."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch.distributed is not initialized
        dcp.save(dict(state), checkpoint_id=folder, no_dist=True)
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())  # of this moment
    if metadata.storage_meta is not None:  # which has the folder's absolute path and an id of this save alone
        metadata.storage_meta.checkpoint_id = folder.name
        metadata.storage_meta.save_id = metadata.storage_meta.load_id = None
    path.write_bytes(pickle.dumps(metadata))
    return folder


class Pieces:
    """A folder with tensors cut into any boxes, and items; its `metadata` may be changed until it is written."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.metadata = Metadata({}, storage_data={})
        self._files = [io.BytesIO(), io.BytesIO()]
        self._count = 0

    def add(self, name: str, tensor: torch.Tensor, boxes: Sequence[Box] | None = None) -> None:
        """Store a tensor as these boxes of it, one process after the other; whole without any."""
        if boxes is None:
            boxes = [((0,) * tensor.dim(), tuple(tensor.shape))]
        chunks = [ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for offsets, sizes in boxes]
        entry = TensorStorageMetadata(TensorProperties(tensor.dtype), tensor.size(), chunks)
        self.metadata.state_dict_metadata[name] = entry
        for offsets, sizes in boxes:
            piece = tensor[tuple(slice(at, at + size) for at, size in zip(offsets, sizes, strict=True))]
            self._store(MetadataIndex(name, torch.Size(offsets)), piece.clone())

    def add_item(self, name: str, value: object) -> None:
        """Store what is no tensor."""
        self.metadata.state_dict_metadata[name] = BytesStorageMetadata()
        self._store(MetadataIndex(name), value)

    def write(self) -> Path:
        """Write the files, `.metadata` last, and return the folder."""
        for rank, file in enumerate(self._files):
            if file.tell():
                (self.folder / f"__{rank}_0.distcp").write_bytes(file.getvalue())
        (self.folder / ".metadata").write_bytes(pickle.dumps(self.metadata))
        return self.folder

    def _store(self, index: MetadataIndex, value: object) -> None:
        """Append a record to the file of the process whose turn it is."""
        rank = self._count % 2
        self._count += 1
        file = self._files[rank]
        start = file.tell()
        record = io.BytesIO()
        torch.save(value, record)
        file.write(record.getbuffer())
        self.metadata.storage_data[index] = _StorageInfo(f"__{rank}_0.distcp", start, file.tell() - start)
