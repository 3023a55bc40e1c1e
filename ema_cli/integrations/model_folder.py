"""Write a model and its side files as a folder for `from_pretrained`. Imports no trainer."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from ema_cli.writing.side_files import find_side_files


def save_model(model: nn.Module, tensors: dict[str, Tensor] | None, folder: Path) -> None:
    """Write a model as the Trainer does, with `tensors` instead of its own unless None."""
    save = getattr(model, "save_pretrained", None)
    if save is not None:
        save(folder, state_dict=tensors)
        return
    folder.mkdir()
    save_file(model.state_dict() if tensors is None else tensors, folder / "model.safetensors", {"format": "pt"})


def copy_side_files(source: Path, target: Path) -> None:
    """Copy other files that the Trainer saved for loading the model, such as the tokenizer of a data collator."""
    for name, file in find_side_files(source).items():
        copy = target / name
        if not copy.exists():
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file.path, copy)
