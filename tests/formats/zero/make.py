"""Files as DeepSpeed's ZeRO saves them, made by torch alone: the cutting is written apart from the package's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]
PADDING = 777  # in the rows of a vocabulary beyond its end
# What the converter writes beside a parameter of how it put it together.
RECORDS = {
    "rows": {"cat_dim": 0},
    "padded": {"cat_dim": 0, "vocab_tensor": True},
    "columns": {"cat_dim": 1},
    "halves": {"cat_dim": 0, "param_n_sub_params": 2},
    "whole": {},
}


def save_in(path: Path, value: object) -> None:
    """Save a value in a folder that is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path)


@dataclass
class Saved:
    """A model to be saved in parts.

    Attributes:
        stage: of ZeRO.
        ranks: how many share the model.
        groups: the float32 weights of each group of the optimizer.
        frozen: parameters that do not train.
        shared: further names of parameters.
        buffers: what lies whole in the model states.
        dtype: of the model.
        step: of the training.
        cuts: how ranks cut tensors between them, by name: rows, padded rows, columns, or the rows of both halves.
        more: what else the model states hold.
        changed: called with each rank's model states and optimizer states before they are written.
    """

    stage: int = 3
    ranks: int = 2
    groups: Sequence[Tensors] = ()
    frozen: Tensors = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
    buffers: Tensors = field(default_factory=dict)
    dtype: torch.dtype = torch.bfloat16
    step: int = 5
    cuts: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def masters(self) -> Tensors:
        """Return the weights whole: float32 ones where there are such."""
        trained = {name: tensor for group in self.groups for name, tensor in group.items()}
        tied = {name: trained[kept] for name, kept in self.shared.items()}
        return trained | tied | self.frozen | self.buffers

    @property
    def model(self) -> Tensors:
        """Return the weights as the model has them."""
        kept = {*self.frozen, *self.buffers}
        return {name: value if name in kept else value.to(self.dtype) for name, value in self.masters.items()}

    def write(self, folder: Path) -> Path:
        """Write the files of all ranks."""
        folder.mkdir(parents=True, exist_ok=True)
        for rank in range(self.ranks):
            prefix = "bf16_" if self.dtype == torch.bfloat16 else ""
            torch.save(self.optimizer_states(rank), folder / f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
            if self.stage == 3:
                torch.save(self.model_states(rank), folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        if self.stage < 3:
            torch.save(self.model_states(0), folder / "mp_rank_00_model_states.pt")
        return folder

    def write_universal(self, folder: Path, tensor_ranks: int = 1, *, maps: bool = False) -> Path:
        """Write what `ds_to_universal` makes of the save, of a model whose tensors so many ranks cut.

        With `maps` it is what DeepSpeed's own tensor parallel training makes: they say how, and not each file.
        """
        folder.mkdir(parents=True, exist_ok=True)
        parts = {name: self.cut(name, tensor, tensor_ranks) for name, tensor in self.model.items()}
        info = {f"^{re.escape(name)}$": self.map_of(name, tensor_ranks) for name in parts if name not in self.buffers}
        for rank, part in product(range(tensor_ranks), range(self.ranks if self.stage == 3 else 1)):
            name = f"zero_pp_rank_{part}_mp_rank_{rank:02}" if self.stage == 3 else f"mp_rank_{rank:02}"
            states = self.model_states(part)
            if tensor_ranks > 1:
                states["mp_world_size"] = tensor_ranks
                if self.stage < 3:
                    states["module"] |= {name: each[rank] for name, each in parts.items()}
                states["param_shapes"] = [{name: parts[name][rank].shape for name in group} for group in self.groups]
                if self.frozen:
                    states["frozen_param_fragments"] = {name: parts[name][rank].clone() for name in self.frozen}
            if maps:
                states["universal_checkpoint_info"] = {"affine_map": {"version": 1, "params": info}}
            torch.save(states, folder / f"{name}_model_states.pt")
        stored = {name: tensor for group in self.groups for name, tensor in group.items()}
        for name, tensor in stored.items():
            record = {} if tensor_ranks == 1 or maps else RECORDS[self.how(name)]
            param = {**record, "param": tensor.float().clone()}
            is_row = self.stage == 3 and tensor_ranks == 1
            save_in(folder / "zero" / name / "fp32.pt", tensor.flatten().clone() if is_row else param)
        for name, each in parts.items() if self.stage < 3 else ():
            if name not in stored:  # as the converter does: the first rank's, of what the optimizer does not have
                save_in(folder / "zero" / name / "fp32.pt", {"param": each[0].float()})
        torch.save({"loss_scaler": None}, folder / "zero" / "optimizer_state.pt")
        return folder

    def how(self, name: str) -> str:
        """Return how ranks cut a tensor between them."""
        return self.cuts.get(self.shared.get(name, name), "whole")

    def cut(self, name: str, tensor: torch.Tensor, ranks: int) -> list[torch.Tensor]:
        """Return what each of several ranks has of a tensor."""
        how = self.how(name)
        if how == "halves":
            halves = [half.tensor_split(ranks) for half in tensor.chunk(2)]
            return [torch.cat([half[rank] for half in halves]) for rank in range(ranks)]
        if how == "padded":
            tensor = torch.cat(
                [tensor, torch.full((-len(tensor) % (2 * ranks), *tensor.shape[1:]), PADDING).to(tensor)]
            )
        if how in ("rows", "padded", "columns"):
            return [part.contiguous().clone() for part in tensor.tensor_split(ranks, int(how == "columns"))]
        return [tensor.clone() for _ in range(ranks)]

    def map_of(self, name: str, ranks: int) -> dict[str, Any]:
        """Return the map by which a tensor is cut: of each rank blocks, by strides of the whole and of its own."""
        whole = self.model[name]
        numbers = torch.arange(whole.numel()).reshape(whole.shape)
        entries = {}
        for rank, own in enumerate(self.cut(name, numbers, ranks)):
            blocks = own.chunk(2) if self.how(name) == "halves" else [own]
            pieces, at = [], 0
            for block in blocks:
                source = [int(block.min()) if block.numel() else 0, list(numbers.stride())]
                dest = [at, list(block.contiguous().stride())]
                pieces.append({"shape": list(block.shape), "source": source, "dest": dest, "locations": [rank]})
                at += block.numel()
            entries[rank] = {"shard_shape": list(own.shape), "pieces": pieces}
        return {"logical_shape": list(whole.shape), "ranks": entries}

    def model_states(self, rank: int) -> dict[str, Any]:
        """Return what one rank saves of the model."""
        is_cut = self.stage == 3
        module = {
            name: torch.zeros(0, dtype=tensor.dtype) if is_cut and name not in self.buffers else tensor.clone()
            for name, tensor in self.model.items()
        }
        fragments = {
            name: self.part_of(tensor, rank) if is_cut else tensor.clone() for name, tensor in self.frozen.items()
        }
        return {
            "module": module,
            "buffer_names": list(self.buffers),
            "param_shapes": [{name: tensor.shape for name, tensor in group.items()} for group in self.groups],
            "frozen_param_shapes": {name: tensor.shape for name, tensor in self.frozen.items()},
            "frozen_param_fragments": fragments,
            "shared_params": dict(self.shared) if rank == 0 else {},
            "global_steps": self.step,
            "global_samples": 16 * self.step,
            "dp_world_size": self.ranks,
            "mp_world_size": 1,
            "ds_version": "0.19.8",
            **self.more,
        }

    def optimizer_states(self, rank: int) -> dict[str, Any]:
        """Return what one rank saves of the optimizer."""
        parts = self.flat_parts(rank)
        states = {"state": {0: {"step": torch.tensor(float(self.step)), "exp_avg": torch.zeros_like(parts[0])}}}
        if self.stage == 3:
            own = {"fp32_flat_groups": parts, "partition_count": self.ranks, "optimizer_state_dict": states}
        else:
            counts = [self.ranks] * len(parts)
            own = {
                "single_partition_of_fp32_groups": parts,
                "partition_count": counts,
                "base_optimizer_state": states,
                "param_alignment_paddings": [[0] * len(group) for group in self.groups],
            }
        return {"optimizer_state_dict": {"zero_stage": self.stage, **own}, "ds_version": "0.19.8"}

    def flat_parts(self, rank: int) -> list[torch.Tensor]:
        """Return one rank's part of each group."""
        if self.stage == 3:
            return [torch.cat([self.part_of(tensor, rank) for tensor in group.values()]) for group in self.groups]
        rows = [torch.cat([tensor.flatten() for tensor in group.values()]) for group in self.groups]
        parts = [self.part_of(row, rank, align=2) for row in rows]
        # The padding at the end is not saved.
        begins = [rank * len(part) for part in parts]
        lengths = [
            max(0, min(len(part), len(row) - begin)) for row, part, begin in zip(rows, parts, begins, strict=True)
        ]
        return [part[:length].clone() for part, length in zip(parts, lengths, strict=True)]

    def part_of(self, tensor: torch.Tensor, rank: int, align: int = 1) -> torch.Tensor:
        """Return one of equal parts of a tensor, which is padded for that."""
        flat = tensor.flatten()
        padding = -len(flat) % (align * self.ranks)
        return torch.cat([flat, torch.full((padding,), 9.0).to(flat.dtype)]).chunk(self.ranks)[rank].clone()


def small(step: int = 5, **more: Any) -> Saved:
    """Return a small model of odd sizes, with all that there may be."""
    random = torch.Generator().manual_seed(step)
    weights = {name: torch.randn(shape, generator=random) for name, shape in
               {"a.weight": (3, 5), "b.weight": (7,), "c.weight": (2, 3, 3), "d": (1,), "e": ()}.items()}  # fmt: skip
    names = list(weights)
    given = {
        "groups": [{name: weights[name] for name in names[:2]}, {name: weights[name] for name in names[2:]}],
        "frozen": {"f.weight": torch.randn(3, 3, generator=random).bfloat16(), "f.bias": torch.ones(1).bfloat16()},
        "shared": {"head.weight": "a.weight"},
        "buffers": {"seen": torch.tensor((1 << 24) + step), "mean": torch.randn(3, generator=random)},
        "step": step,
    }
    return Saved(**(given | more))
