"""Folders of torch.distributed.checkpoint, written in this process by its own classes, and read by its own reader."""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

Box = tuple[tuple[int, ...], tuple[int, ...]]  # offsets and sizes


def save_folder(folder: Path, state: Mapping[str, Any]) -> Path:
    """Save a state, nested as it may be, as a training of one process does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch.distributed is not initialized
        dcp.save(dict(state), checkpoint_id=folder, no_dist=True)
    return folder


def load_folder(folder: Path) -> dict[str, Any]:
    """Return all that a folder holds, nested as it was saved, by torch's own reader."""
    loaded: dict[str, Any] = {}
    _load_state_dict(loaded, dcp.FileSystemReader(folder), planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    return loaded


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
            self.store(MetadataIndex(name, offsets), piece.clone())

    def add_item(self, name: str, value: object) -> None:
        """Store what is no tensor."""
        self.metadata.state_dict_metadata[name] = BytesStorageMetadata()
        self.store(MetadataIndex(name), value)

    def store(self, index: MetadataIndex, value: object) -> None:
        """Append a record to the file of the process whose turn it is."""
        rank = self._count % 2
        self._count += 1
        file = self._files[rank]
        start = file.tell()
        record = io.BytesIO()
        torch.save(value, record)
        file.write(record.getbuffer())
        self.metadata.storage_data[index] = _StorageInfo(f"__{rank}_0.distcp", start, file.tell() - start)

    def write(self) -> Path:
        """Write the files, `.metadata` last, and return the folder."""
        for rank, file in enumerate(self._files):
            if file.tell():
                (self.folder / f"__{rank}_0.distcp").write_bytes(file.getvalue())
        (self.folder / ".metadata").write_bytes(pickle.dumps(self.metadata))
        return self.folder
