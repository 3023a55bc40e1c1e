"""Checkpoints as Orbax writes them, made with tensorstore: zarr arrays in OCDBT or folders, and their tree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ts = pytest.importorskip("tensorstore")


def tree_of(arrays: dict[tuple[str, ...], Any], **more: object) -> dict[str, Any]:
    """Return what stands in `_METADATA`; texts and None stand for what is no array."""
    entries = {}
    for keys, value in arrays.items():
        kind = {"str": "string", "NoneType": "None", "int": "scalar"}.get(type(value).__name__, "jax.Array")
        entries[str(keys)] = {
            "key_metadata": [{"key": key, "key_type": 2} for key in keys],
            "value_metadata": {"value_type": kind, "skip_deserialize": kind == "None"},
        }
    return {
        "tree_metadata": entries, "use_ocdbt": True, "use_zarr3": False, "store_array_data_equal_to_fill_value": True,
        **more,
    }  # fmt: skip


def write_item(folder: Path, arrays: dict[tuple[str, ...], Any], **more: Any) -> Path:
    """Write an item: its arrays, and its tree. `chunks` is the shape of the blocks of arrays of two dimensions."""
    folder.mkdir(parents=True)
    chunks = more.pop("chunks", None)
    tree = tree_of(arrays, **more)
    for keys, value in arrays.items():
        if value is None or isinstance(value, str):
            continue
        array = np.asarray(value)
        name = ".".join(keys)
        base = {"driver": "file", "path": f"{folder}/"}
        kept = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
        block = list(chunks) if chunks and array.ndim == 2 else [max(length, 1) for length in array.shape]
        metadata = {"shape": list(array.shape), "chunks": block, "compressor": {"id": "zstd", "level": 1}}
        if tree["use_zarr3"]:
            grid = {"name": "regular", "configuration": {"chunk_shape": block}}
            metadata = {"shape": list(array.shape), "chunk_grid": grid}
        spec = {
            "driver": "zarr3" if tree["use_zarr3"] else "zarr",
            "kvstore": kept if tree["use_ocdbt"] else {"driver": "file", "path": f"{folder}/{name}/"},
            "metadata": metadata,
            "dtype": "bfloat16" if array.dtype == "V2" else array.dtype.name,
            "create": True,
            "store_data_equal_to_fill_value": tree["store_array_data_equal_to_fill_value"],
        }
        opened = ts.open(spec).result()
        opened.write(array.view(ts.bfloat16.numpy_dtype) if array.dtype == "V2" else array).result()
    (folder / "_METADATA").write_text(json.dumps(tree))
    return folder


def write_step(folder: Path, arrays: dict[tuple[str, ...], Any], *, committed: bool = True, **more: Any) -> Path:
    """Write a checkpoint of CheckpointManager's, with one item."""
    write_item(folder / "default", arrays, **more)
    about = {"item_handlers": {"default": "a.class"}, "commit_timestamp_nsecs": 1 if committed else None}
    (folder / "_CHECKPOINT_METADATA").write_text(json.dumps(about))
    if committed:
        (folder / "commit_success.txt").write_text("Checkpoint commit was successful")
    return folder
