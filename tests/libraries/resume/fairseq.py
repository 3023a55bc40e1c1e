"""fairseq: its program trains a small language model on noise, and goes on from the average.

Its last release is of 2022. That it is imported by today's Python and numpy takes what stands before the import.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.libraries.resume.shared import assert_held, assert_trained, copied, main, mean

os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # its checkpoints hold its own classes
_dataclass: Callable[..., Any] = dataclasses.dataclass


def dataclass(kind: Any = None, /, **options: Any) -> Any:
    """Make a dataclass; those of fairseq have instances of each other as defaults, which today must be hashable."""

    def make(kind: Any) -> Any:
        of_it = {"unsafe_hash": True} if kind.__module__.startswith(("fairseq", "hydra")) else {}
        return _dataclass(kind, **{**of_it, **options})

    return make if kind is None else make(kind)


dataclasses.dataclass = dataclass  # type: ignore[assignment]
vars(np).update(float=float, int=int, bool=bool)
sys.path[:0] = [os.environ["FAIRSEQ"]] if "FAIRSEQ" in os.environ else []

from fairseq import checkpoint_utils, options  # noqa: E402
from fairseq.data import data_utils  # noqa: E402
from fairseq.dataclass.utils import convert_namespace_to_omegaconf  # noqa: E402
from fairseq.trainer import Trainer  # noqa: E402
from fairseq_cli import train as program  # noqa: E402

UPDATES = (2, 4, 6)


def in_pairs(indices: Any, *_: Any, **__: Any) -> list[Any]:
    """Return batches of two rows: what does that in fairseq needs a compiler."""
    return [indices[at : at + 2] for at in range(0, len(indices), 2)]


data_utils.batch_by_size = in_pairs


def run(folder: Path, updates: int, *more: str) -> None:
    """Train up to an update, and save every second."""
    parser = options.get_training_parser()
    args = options.parse_args_and_arch(parser, [
        "--task", "dummy_lm", "--dict-size", "12", "--dataset-size", "64", "--arch", "transformer_lm", "--cpu",
        "--decoder-layers", "1", "--decoder-embed-dim", "8", "--decoder-ffn-embed-dim", "8", "--tokens-per-sample", "8",
        "--decoder-attention-heads", "2", "--optimizer", "adam", "--lr", "0.01", "--batch-size", "2",
        "--max-update", str(updates), "--save-interval-updates", "2", "--save-dir", str(folder), "--no-progress-bar",
        "--no-epoch-checkpoints", "--no-last-checkpoints", "--disable-validation", "--criterion", "cross_entropy",
        "--num-workers", "0", "--decoder-learned-pos", *more,
    ])  # fmt: skip
    program.main(convert_namespace_to_omegaconf(args))


def train(folder: Path) -> None:
    """Save three times."""
    run(folder / "run", UPDATES[-1])


def resume(folder: Path) -> None:
    """Load the average as fairseq does for evaluation, and go on from it."""
    paths = [next((folder / "run").glob(f"checkpoint_1_{update}.pt")) for update in UPDATES]
    saved = [checkpoint_utils.load_checkpoint_to_cpu(str(path))["model"] for path in paths]
    exact, averaged = mean(saved), str(folder / "averaged.pt")
    assert_held(checkpoint_utils.load_checkpoint_to_cpu(averaged)["model"], exact)
    begun: dict[str, torch.Tensor] = {}
    step = Trainer.train_step

    def watched(self: Any, *args: Any, **more: Any) -> Any:
        if not begun:
            begun.update(copied(self.model.state_dict()))
            assert self.get_num_updates() == UPDATES[-1]
        return step(self, *args, **more)

    Trainer.train_step = watched
    run(folder / "on", UPDATES[-1] + 2, "--restore-file", averaged)
    assert_held(begun, exact)
    on = checkpoint_utils.load_checkpoint_to_cpu(str(folder / f"on/checkpoint_1_{UPDATES[-1] + 2}.pt"))
    assert_trained(on["model"], begun)


if __name__ == "__main__":
    main(train, resume)
