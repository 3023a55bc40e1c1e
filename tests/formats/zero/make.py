"""Files as DeepSpeed's ZeRO saves them, made by torch alone: the cutting is written apart from the package's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]


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

    def write_universal(self, folder: Path, tensor_ranks: int = 1) -> Path:
        """Write what `ds_to_universal` makes of the save, of a model whose tensors so many ranks cut."""
        folder.mkdir(parents=True, exist_ok=True)
        is_cut = tensor_ranks > 1
        for rank in range(self.ranks if self.stage == 3 else tensor_ranks):
            name = f"zero_pp_rank_{rank}_mp_rank_00" if self.stage == 3 else f"mp_rank_{rank:02}"
            states = self.model_states(rank)
            if is_cut:
                states["mp_world_size"] = tensor_ranks
                states["module"] = {
                    name: tensor.chunk(tensor_ranks)[0].clone()
                    if name in self.masters.keys() - self.buffers.keys() and tensor.ndim
                    else tensor
                    for name, tensor in states["module"].items()
                }
            torch.save(states, folder / f"{name}_model_states.pt")
        stored = {name: tensor for group in self.groups for name, tensor in group.items()}
        for name, tensor in {**stored, **(self.frozen if is_cut else {})}.items():
            path = folder / "zero" / name / "fp32.pt"
            path.parent.mkdir(parents=True)
            param = {"param": tensor.float().clone(), "cat_dim": 0}
            torch.save(tensor.flatten().clone() if self.stage == 3 else param, path)
        torch.save({"loss_scaler": None}, folder / "zero" / "optimizer_state.pt")
        return folder

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
