"""The folder of a library's files, and what is taken out of it to keep it small."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path

# What is never read, and large or different each time; and the cards of models.
_STATE = (
    "README.md",
    "optimizer.pt",
    "rng_state.pth",
    "training_args.bin",
    "scheduler.pt",
    "optimizer.bin",
    "optimizer.ckpt",
    "random_states_*.pkl",
)


def fresh(folder: Path, package: str, name: str | None = None) -> Path:
    """Return an empty folder named after an installed package and its version."""
    made = folder / f"{name or package}-{version(package).partition('+')[0]}"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    return made


def drop_state(folder: Path) -> None:
    """Remove what serves to resume, and model cards: optimizers, random states, arguments."""
    for pattern in _STATE:
        for path in folder.rglob(pattern):
            path.unlink()
