"""The averaging loops that people use, each run as a script of its own: `peer_loops.py LOOP PLAN.json OUTPUT`.

Written anew from what the loops do. All multiply with the plan's weights, so that their averages are the same as
ours, and all write safetensors in the dtype that they read, without fsync. What the originals do besides (building
models, hashing the result, converting configurations) is left out, which is in their favour.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]


def load(path: Path) -> Tensors:
    """Return all tensors of a checkpoint, as its format's own library reads it."""
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".pt":
        model: Tensors = torch.load(path, map_location="cpu", weights_only=True)["model"]
        return model
    if (path / ".metadata").exists():
        return _load_distributed(path)
    tensors: Tensors = {}
    for shard in sorted(path.glob("*.safetensors")):
        tensors.update(load_file(shard))
    return tensors


def _load_distributed(path: Path) -> Tensors:
    from torch.distributed import checkpoint

    reader = checkpoint.FileSystemReader(path)
    known = reader.read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in known.items()
        if isinstance(entry, checkpoint.metadata.TensorStorageMetadata)
    }
    checkpoint.load(tensors, storage_reader=reader, no_dist=True)
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


def naive(paths: Sequence[Path], weights: Sequence[float]) -> Tensors:
    """The script people write: `acc += w * x.float()`, and back to the dtype that was read."""
    total: Tensors = {}
    dtypes = {}
    for path, weight in zip(paths, weights, strict=True):
        for name, tensor in load(path).items():
            if name not in total:
                total[name] = torch.zeros(tensor.shape)
                dtypes[name] = tensor.dtype
            total[name] += weight * tensor.float()
    return {name: tensor.to(dtypes[name]) for name, tensor in total.items()}


def fairseq(paths: Sequence[Path], weights: Sequence[float]) -> Tensors:
    """As fairseq's script: load all of a file, clone or add in place, divide in the end.

    It widens float16 and sums bfloat16 as it is; here both are widened, or the average would be another.
    """
    total: Tensors = {}
    dtypes = {}
    for path, weight in zip(paths, weights, strict=True):
        state = load(path)
        for name in list(state):
            tensor = state[name]
            dtypes.setdefault(name, tensor.dtype)
            if tensor.dtype in (torch.float16, torch.bfloat16):
                tensor = tensor.float()
            if name not in total:
                total[name] = tensor.clone().mul_(weight)
            else:
                total[name].add_(tensor, alpha=weight)
    for tensor in total.values():
        tensor.div_(sum(weights))
    return {name: tensor.to(dtypes[name]) for name, tensor in total.items()}


def timm(paths: Sequence[Path], weights: Sequence[float]) -> Tensors:
    """As timm's script: load all of a file, add in float64, divide, clamp to float32, convert."""
    total: Tensors = {}
    dtypes = {}
    for path, weight in zip(paths, weights, strict=True):
        for name, tensor in load(path).items():
            if name not in total:
                total[name] = tensor.clone().to(torch.float64).mul_(weight)
                dtypes[name] = tensor.dtype
            else:
                total[name] += tensor.to(torch.float64).mul_(weight)
    limits = torch.finfo(torch.float32)
    for name in total:
        total[name].div_(sum(weights))
        total[name] = total[name].clamp_(limits.min, limits.max).to(torch.float32)
    return {name: tensor.to(dtypes[name]) for name, tensor in total.items()}


LOOPS: dict[str, Callable[[Sequence[Path], Sequence[float]], Tensors]] = {
    "naive": naive,
    "fairseq": fairseq,
    "timm": timm,
}


def main() -> None:
    """Average by the loop that is named, and write the result."""
    loop, plan, output = sys.argv[1:]
    entries = json.loads(Path(plan).read_text())
    averaged = LOOPS[loop]([Path(each["path"]) for each in entries], [each["weight"] for each in entries])
    save_file(averaged, output)


if __name__ == "__main__":
    main()
