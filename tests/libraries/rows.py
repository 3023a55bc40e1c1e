"""One row for each library whose files are in tests/data: what is averaged, and what must come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.libraries import loading

DATA = Path(__file__).parents[1] / "data"


@dataclass(frozen=True, slots=True)
class Library:
    """A run that a library wrote.

    Attributes:
        folder: the folder of the run, below tests/data.
        checkpoints: the clock of each checkpoint in the unit, by its path in the run, oldest first.
        load: gives the tensors that the library loads from a checkpoint.
        unit: of the clocks.
        arguments: what the command needs besides the folder and the law.
        side_files: of the newest checkpoint, that come with an output that is a folder.
    """

    folder: str
    checkpoints: Mapping[str, int]
    load: Callable[[Path], Mapping[str, torch.Tensor]]
    unit: str = "ba"
    arguments: tuple[str, ...] = ()
    side_files: tuple[str, ...] = field(default=())


# By the name in the first column of docs/reference/what-your-trainer-writes.md.
LIBRARIES: Mapping[str, Library] = {
    "OLMo-core 3.0.0": Library(
        "olmo-core-3.0.0", {"step1000": 1000, "step2000": 2000, "step3000": 3000}, loading.olmo_core
    ),
    "torch 2.13, HuggingFaceStorageWriter": Library(
        "torch-2.13-hf-writer/default", {"step-10": 10, "step-20": 20, "step-30": 30}, loading.safetensors_files
    ),
    "torch 2.13, HuggingFaceStorageWriter, each rank its own": Library(
        "torch-2.13-hf-writer/distributed", {"step-10": 10, "step-20": 20, "step-30": 30}, loading.safetensors_files
    ),
    "mlx 0.32.4": Library(
        "mlx-0.32.4",
        {"0000100_adapters.safetensors": 100, "0000200_adapters.safetensors": 200},
        load_file,
    ),
}
