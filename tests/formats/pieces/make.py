"""Safetensors files in which ranks saved their pieces, and what torch's own reader makes of them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from tests.formats.dcp_folders import Box

OWN = "shard-0000{}-model-0000{}-of-0000{}.safetensors"


def write_shard(path: Path, pieces: Mapping[str, tuple[torch.Tensor, Sequence[int]]]) -> None:
    """Write one rank's file: each piece with its offsets."""
    path.parent.mkdir(parents=True, exist_ok=True)
    info = {name: {"saved_offsets": list(offsets)} for name, (_, offsets) in pieces.items()}
    tensors = {name: piece.clone().contiguous() for name, (piece, _) in pieces.items()}
    save_file(tensors, path, metadata={"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(info)})


def write_pieces(folder: Path, cut: Mapping[str, tuple[torch.Tensor, Sequence[Box]]]) -> Path:
    """Write tensors cut into boxes, the first box of each into the file of the first rank, and so on."""
    ranks = max(len(boxes) for _, boxes in cut.values())
    for rank in range(ranks):
        pieces = {}
        for name, (tensor, boxes) in cut.items():
            if rank < len(boxes):
                offsets, sizes = boxes[rank]
                ranges = tuple(slice(at, at + size) for at, size in zip(offsets, sizes, strict=True))
                pieces[name] = tensor[ranges], offsets
        write_shard(folder / f"shard-{rank + 1:05}-model-00001-of-00001.safetensors", pieces)
    return folder


def load_pieces(folder: Path) -> dict[str, torch.Tensor]:
    """Return the whole tensors, by torch's reader."""
    loaded: dict[str, torch.Tensor] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch.distributed is not initialized
        reader = HuggingFaceStorageReader(str(folder))
        _load_state_dict(loaded, storage_reader=reader, planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    return loaded


def halves(tensor: torch.Tensor, dimension: int, parts: int = 2) -> list[Box]:
    """Return the boxes that FSDP and tensor parallel trainings make: cut along one dimension as torch.chunk cuts."""
    boxes, at = [], 0
    for part in tensor.chunk(parts, dimension):
        offsets = tuple(at if each == dimension else 0 for each in range(tensor.dim()))
        boxes.append((offsets, tuple(part.shape)))
        at += part.shape[dimension]
    return boxes
