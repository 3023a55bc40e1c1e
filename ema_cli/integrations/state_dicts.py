"""Read what `average` wrote as a state dict of torch."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ema_cli.formats.output_file import whole_name


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors of an average by name, on the CPU; of several folders each name begins with its folder.

    Args:
        path: a file that ends in .safetensors, .pt or .pth, or a folder with the former.
    """
    if path.is_dir():
        files = sorted(path.rglob("*.safetensors"))
        return {
            whole_name(str(file.relative_to(path)), name): tensor
            for file in files
            for name, tensor in load_file(file).items()
        }
    if path.suffix == ".safetensors":
        return load_file(path)
    tensors: dict[str, Tensor] = torch.load(path, weights_only=True)
    return tensors
