"""Write one checkpoint in one of the formats that are measured. Torch is imported only for its own formats."""

from __future__ import annotations

import json
import multiprocessing
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from . import values
from .values import Model

SHARDS = 4

# Writes the checkpoint of a step into a folder.
Writer = Callable[[Path, Model, int, int], None]


def write_file(folder: Path, model: Model, seed: int, step: int) -> None:
    """Write `step-N.safetensors`, piece by piece."""
    _write_safetensors(folder / f"step-{step}.safetensors", model, seed, step, range(len(model.tensors)))


def write_shards(folder: Path, model: Model, seed: int, step: int) -> None:
    """Write `checkpoint-N/` as the Hugging Face Trainer does, the weights in shards."""
    at = folder / f"checkpoint-{step}"
    at.mkdir()
    names: dict[str, str] = {}
    for number, indices in enumerate(split(model, SHARDS), 1):
        name = f"model-{number:05}-of-{SHARDS:05}.safetensors"
        _write_safetensors(at / name, model, seed, step, indices)
        names.update((model.tensors[index].name, name) for index in indices)
    index = {"metadata": {"total_size": model.nbytes}, "weight_map": names}
    texts: dict[str, object] = {
        "model.safetensors.index.json": index,
        "config.json": model.config,
        "trainer_state.json": {"global_step": step, "epoch": step / 1000, "max_steps": 100_000},
    }
    for name, text in texts.items():
        (at / name).write_text(json.dumps(text))


def write_torch(folder: Path, model: Model, seed: int, step: int) -> None:
    """Write `step-N.pt` as a plain training loop does."""
    import torch

    torch.save({"model": dict(_torch_tensors(model, seed, step)), "step": step}, folder / f"step-{step}.pt")


def write_distributed(folder: Path, model: Model, seed: int, steps: Sequence[int]) -> None:
    """Write `step-N/` for all steps, each tensor cut over four processes, by torch.distributed.checkpoint itself."""
    import torch.distributed.checkpoint  # noqa: F401 (here, so that the four need not import it)

    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as meet:
        tasks = [
            context.Process(target=_write_rank, args=(folder, model, seed, steps, rank, f"{meet}/meet"))
            for rank in range(SHARDS)
        ]
        for task in tasks:
            task.start()
        for task in tasks:
            task.join()
    if any(task.exitcode for task in tasks):
        raise RuntimeError(f"{folder}: torch.distributed.checkpoint could not write it")


def _write_rank(folder: Path, model: Model, seed: int, steps: Sequence[int], rank: int, meet: str) -> None:
    import torch
    from torch import distributed
    from torch.distributed import checkpoint
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=SHARDS)
    mesh = init_device_mesh("cpu", (SHARDS,))
    for step in steps:
        state: dict[str, Any] = {}
        for name, tensor in _torch_tensors(model, seed, step):
            pieces = tensor.chunk(SHARDS)
            mine = pieces[rank].clone() if rank < len(pieces) else tensor[:0].clone()
            state[name] = DTensor.from_local(
                mine, mesh, [Shard(0)], run_check=False, shape=tensor.shape, stride=tensor.stride()
            )
        checkpoint.save({"model": state, "step": step}, checkpoint_id=folder / f"step-{step}")
    distributed.destroy_process_group()


def split(model: Model, parts: int) -> list[list[int]]:
    """Return the tensors' places, cut into runs of about one size."""
    shards: list[list[int]] = [[] for _ in range(parts)]
    total, seen = sum(tensor.count for tensor in model.tensors), 0
    for index, tensor in enumerate(model.tensors):
        shards[min(parts - 1, seen * parts // total)].append(index)
        seen += tensor.count
    return shards


def _write_safetensors(path: Path, model: Model, seed: int, step: int, indices: Sequence[int]) -> None:
    with path.open("wb") as file:
        file.write(_header(model, tuple(indices)))
        for index in indices:
            for part in values.chunks(model, seed, step, index):
                file.write(part.data)


@cache
def _header(model: Model, indices: tuple[int, ...]) -> bytes:
    """Return the header, which is the same at every step."""
    width = {"BF16": 2, "F32": 4}[model.dtype]
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in (model.tensors[index] for index in indices):
        start, end = end, end + tensor.count * width
        entries[tensor.name] = {"dtype": model.dtype, "shape": tensor.shape, "data_offsets": (start, end)}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _torch_tensors(model: Model, seed: int, step: int) -> Iterator[tuple[str, Any]]:
    import torch

    for index, tensor in enumerate(model.tensors):
        stored = torch.from_numpy(values.whole(model, seed, step, index))
        yield tensor.name, stored.view(torch.bfloat16) if model.dtype == "BF16" else stored
