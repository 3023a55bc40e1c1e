"""Ultralytics: `yolo train save_period=1` keeps its averages of each epoch; its loader takes what averages them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from ultralytics import YOLO

from tests.libraries.resume.shared import assert_held, assert_trained, copied, main, mean

HALF = 1e-3  # its files are in half precision


def options(folder: Path, name: str, epochs: int) -> dict[str, Any]:
    """Return how a classifier of a few numbers is trained."""
    return {
        "data": str(folder / "work"), "epochs": epochs, "imgsz": 32, "batch": 4, "device": "cpu", "save_period": 1,
        "workers": 0, "plots": False, "project": str(folder), "name": name, "exist_ok": True, "amp": False,
        "val": False, "verbose": False,
    }  # fmt: skip


def train(folder: Path) -> None:
    """Train three epochs on noise."""
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for kind in ("dark", "light"):
            images = folder / "work" / part / kind
            images.mkdir(parents=True)
            for number in range(4):
                Image.fromarray(random.integers(0, 200, (32, 32, 3), dtype=np.uint8)).save(images / f"{number}.png")
    layers = [[-1, 1, "nn.AdaptiveAvgPool2d", [1]], [-1, 1, "nn.Flatten", []], [-1, 1, "nn.Linear", [8, 2]]]
    model = folder / "work" / "small.yaml"
    model.write_text(yaml.safe_dump({"nc": 2, "backbone": [[-1, 1, "Conv", [8, 3, 2]]], "head": layers}))
    YOLO(str(model), task="classify").train(**options(folder, "trained", 3))
    (folder / "run").mkdir()
    for path in (folder / "trained" / "weights").glob("epoch*.pt"):
        path.rename(folder / "run" / path.name)


def resume(folder: Path) -> None:
    """Load the average as a model, and train an epoch from it."""
    paths = [folder / f"run/epoch{epoch}.pt" for epoch in range(3)]
    exact = mean([YOLO(str(path), task="classify").model.state_dict() for path in paths])
    model = YOLO(str(folder / "averaged.pt"), task="classify")
    assert_held(model.model.state_dict(), exact, HALF)
    begun: dict[str, torch.Tensor] = {}
    model.add_callback("on_train_start", lambda trainer: begun.update(copied(trainer.model.state_dict())))
    model.add_callback("on_train_end", lambda trainer: assert_trained(trainer.model.state_dict(), begun))
    model.train(**options(folder, "on", 1))
    assert_held(begun, exact, HALF)


if __name__ == "__main__":
    main(train, resume)
