"""Files as OLMo's LocalShardedCheckpointer saves what FSDP flattened, cut by code apart from the package's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp._flat_param import _ShardParamInfo

Row = Mapping[str, torch.Tensor]


def save_flat(
    folder: Path, modules: Mapping[str, Row], ranks: int, *, step: int = 7, old: bool = False, align: int = 1
) -> Path:
    """Save the parameters of each module as one row, cut into as many parts as there are ranks.

    Args:
        folder: the checkpoint's.
        modules: the parameters by the names of the modules, which are those of FSDP's wrappers, and by their own.
        ranks: how many share the model.
        step: in the state of the trainer.
        old: whether as torch before 2.1 says what lies where.
        align: each parameter begins at a multiple of so many elements.
    """
    for rank in range(ranks):
        state = {
            "modules": [
                {"name": name, "handles": handles(row, rank, ranks, old, align)} for name, row in modules.items()
            ]
        }
        for inner, content in (("model", state), ("train", {"global_step": step, "world_size": ranks, "epoch": 0})):
            (folder / inner).mkdir(parents=True, exist_ok=True)
            torch.save(content, folder / inner / f"rank{rank}.pt")
    (folder / "config.yaml").write_text("run_name: small\n")
    return folder


def handles(row: Row, rank: int, ranks: int, old: bool, align: int) -> list[dict[str, Any]]:
    """Return what one rank saves of a row; a module without parameters has no handle."""
    if not row:
        return []
    begins, parts = [], []
    for tensor in row.values():
        begins.append(sum(map(len, parts)))
        parts.append(torch.cat([tensor.flatten(), torch.zeros(-tensor.numel() % align, dtype=tensor.dtype)]))
    whole = torch.cat(parts)
    padding = -len(whole) % ranks
    size = (len(whole) + padding) // ranks
    mine = torch.cat([whole, torch.zeros(padding, dtype=whole.dtype)])[rank * size : (rank + 1) * size].clone()
    held = [
        (max(begin, rank * size), min(begin + tensor.numel(), (rank + 1) * size))
        for begin, tensor in zip(begins, row.values(), strict=True)
    ]
    known = {
        "data": mine,
        "_fqns": tuple(row),
        "_shapes": tuple(tensor.shape for tensor in row.values()),
        "_numels": tuple(tensor.numel() for tensor in row.values()),
        "_shard_numel_padded": padding if rank == ranks - 1 else 0,
        **(_of_torch_2_0(begins, held) if old else {"_shard_param_infos": _infos(begins, held, rank * size)}),
    }
    return [{f"flat_param.{key}": value for key, value in known.items()}]


def _infos(begins: Sequence[int], held: Sequence[tuple[int, int]], start: int) -> tuple[_ShardParamInfo, ...]:
    return tuple(
        _ShardParamInfo(True, first - start, last - first, first - begin, last - 1 - begin)
        if first < last
        else _ShardParamInfo(False, None, None, None, None)
        for begin, (first, last) in zip(begins, held, strict=True)
    )


def _of_torch_2_0(begins: Sequence[int], held: Sequence[tuple[int, int]]) -> dict[str, Any]:
    own = [number for number, (first, last) in enumerate(held) if first < last]
    offsets = tuple((held[number][0] - begins[number], held[number][1] - 1 - begins[number]) for number in own)
    return {"_shard_indices": (own[0], own[-1]) if own else (0, -1), "_shard_param_offsets": offsets}
