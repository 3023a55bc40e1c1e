"""Write one checkpoint in one of the formats that are measured. Torch is imported only for its own formats."""

from __future__ import annotations

import json
import multiprocessing
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from types import MappingProxyType
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


def write_pieces(folder: Path, model: Model, seed: int, step: int) -> None:
    """Write `step-N/` as torch's HuggingFaceStorageWriter does: each of four ranks its rows, in a file of its own."""
    at = folder / f"step-{step}"
    at.mkdir()
    width = {"BF16": 2, "F16": 2, "F32": 4}[model.dtype]
    for rank in range(SHARDS):
        entries, offsets, parts, end = dict[str, object](), dict[str, object](), list[bytes](), 0
        for index, tensor in enumerate(model.tensors):
            rows = -(-tensor.shape[0] // SHARDS)
            begin, last = min(rank * rows, tensor.shape[0]), min((rank + 1) * rows, tensor.shape[0])
            if begin == last:
                continue
            data = values.whole(model, seed, step, index)[begin:last].tobytes()
            shape = [last - begin, *tensor.shape[1:]]
            start, end = end, end + len(data)
            assert len(data) == prod(shape) * width
            entries[tensor.name] = {"dtype": model.dtype, "shape": shape, "data_offsets": (start, end)}
            offsets[tensor.name] = {"saved_offsets": [begin, *[0] * (len(shape) - 1)]}
            parts.append(data)
        told = {"format": "pt", "DCP_SHARDING_INFO": json.dumps(offsets)}
        text = json.dumps({"__metadata__": told, **entries}).encode()
        text += b" " * (-len(text) % 8)
        name = f"shard-{rank + 1:05}-model-00001-of-00001.safetensors"
        (at / name).write_bytes(b"".join((struct.pack("<Q", len(text)), text, *parts)))


def write_torch(folder: Path, model: Model, seed: int, step: int) -> None:
    """Write `step-N.pt` as a plain training loop does."""
    import torch

    torch.save({"model": dict(_torch_tensors(model, seed, step)), "step": step}, folder / f"step-{step}.pt")


def write_zero(folder: Path, model: Model, seed: int, step: int) -> None:
    """Write `step-N/` as ZeRO-3 does with four ranks: the float32 weights one after another, a quarter of each."""
    import torch

    at = folder / f"step-{step}"
    at.mkdir()
    names = [f"zero_pp_rank_{rank}_mp_rank_00" for rank in range(SHARDS)]
    states = {
        "module": {tensor.name: torch.zeros(0) for tensor in model.tensors},
        "buffer_names": list[str](),
        "param_shapes": [{tensor.name: torch.Size(tensor.shape) for tensor in model.tensors}],
        "global_steps": step,
        "dp_world_size": SHARDS,
        "mp_world_size": 1,
        "ds_version": "0.19.8",
    }
    whole = [tensor.flatten() for _, tensor in _torch_tensors(model, seed, step)]
    whole = [torch.nn.functional.pad(tensor, (0, -len(tensor) % SHARDS)) for tensor in whole]
    for rank, name in enumerate(names):
        flat = torch.cat([tensor.chunk(SHARDS)[rank] for tensor in whole])
        own = {"zero_stage": 3, "fp32_flat_groups": [flat], "partition_count": SHARDS}
        torch.save({"optimizer_state_dict": own, "ds_version": "0.19.8"}, at / f"{name}_optim_states.pt")
        torch.save(states, at / f"{name}_model_states.pt")


def write_distributed(folder: Path, model: Model, seed: int, steps: Sequence[int], *, by_rank: bool = False) -> None:
    """Write `step-N/` for all steps, each tensor cut over four processes, by torch.distributed.checkpoint itself.

    Or `by_rank`: by each process its own file, as verl does.
    """
    import torch.distributed.checkpoint  # noqa: F401 (here, so that the four need not import it)

    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as meet:
        tasks = [
            context.Process(target=_write_rank, args=(folder, model, seed, steps, rank, f"{meet}/meet", by_rank))
            for rank in range(SHARDS)
        ]
        for task in tasks:
            task.start()
        for task in tasks:
            task.join()
    if any(task.exitcode for task in tasks):
        raise RuntimeError(f"{folder}: torch.distributed.checkpoint could not write it")


def _write_rank(
    folder: Path, model: Model, seed: int, steps: Sequence[int], rank: int, meet: str, by_rank: bool
) -> None:
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
        at = folder / f"step-{step}"
        if by_rank:
            at.mkdir(exist_ok=True)
            torch.save(state, at / f"model_world_size_{SHARDS}_rank_{rank}.pt")
        else:
            checkpoint.save({"model": state, "step": step}, checkpoint_id=at)
    distributed.destroy_process_group()


def write_stored(run: Path, model: Model, seed: int, steps: Sequence[int], half_lives: Sequence[str]) -> None:
    """Write `NNNba/HALF-LIFE.safetensors` as `EMA.store` does at these steps, which say of a small model what they say.

    Of that model too many updates would have to be made; it moves at random, as all values here do.
    """
    import torch

    from ema_cli import EMA

    torch.manual_seed(seed)
    small = torch.nn.Linear(64, 64, dtype=torch.bfloat16)
    ema = EMA(small, half_life=tuple(half_lives))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for step in range(1, steps[-1] + 1):
            for parameter in small.parameters():
                parameter += torch.randn_like(parameter) / 10
            ema.update()
            if step in steps:
                ema.store(folder)
        for number, path in enumerate(stored_files(Path(folder), steps, half_lives)):
            with path.open("rb") as file:
                metadata = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))["__metadata__"]
            out = run / path.relative_to(folder)
            out.parent.mkdir(exist_ok=True)
            _write_safetensors(out, model, seed, number, range(len(model.tensors)), metadata)


def stored_files(run: Path, steps: Sequence[int], half_lives: Sequence[str]) -> list[Path]:
    """Return the files that `EMA.store` writes at these steps, but for the first copy of the model."""
    return [run / f"{step}ba" / f"{half_life}.safetensors" for step in steps for half_life in half_lives]


def split(model: Model, parts: int) -> list[list[int]]:
    """Return the tensors' places, cut into runs of about one size."""
    shards: list[list[int]] = [[] for _ in range(parts)]
    total, seen = sum(tensor.count for tensor in model.tensors), 0
    for index, tensor in enumerate(model.tensors):
        shards[min(parts - 1, seen * parts // total)].append(index)
        seen += tensor.count
    return shards


def _write_safetensors(
    path: Path,
    model: Model,
    seed: int,
    step: int,
    indices: Sequence[int],
    metadata: Mapping[str, str] = MappingProxyType({"format": "pt"}),
) -> None:
    with path.open("wb") as file:
        file.write(_header(model, indices, metadata))
        for index in indices:
            for part in values.chunks(model, seed, step, index):
                file.write(part.data)


def _header(model: Model, indices: Sequence[int], metadata: Mapping[str, str]) -> bytes:
    """Return the header of a file with these tensors."""
    width = {"BF16": 2, "F16": 2, "F32": 4}[model.dtype]
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
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
