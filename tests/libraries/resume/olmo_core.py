"""OLMo-core: its Trainer saves every second step, and goes on from the average with the newest's optimizer and step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from olmo_core.data import DataLoaderBase
from olmo_core.train import Duration, LoadStrategy, Trainer
from olmo_core.train.callbacks import Callback, CheckpointerCallback
from olmo_core.train.checkpoint import Checkpointer
from olmo_core.train.train_module import BasicTrainModule

from tests.libraries.resume.shared import assert_held, assert_trained, copied, main, mean

STEPS = (2, 4, 6)
TOKENS, WORDS = (2, 8), 16  # of a batch


class Model(torch.nn.Module):
    """A language model that looks at one token."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Embedding(WORDS, 6), torch.nn.LayerNorm(6), torch.nn.Linear(6, WORDS))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the logits of the next token."""
        logits: torch.Tensor = self.net(input_ids)
        return logits


class Module(BasicTrainModule):  # type: ignore[misc]
    """The library's own for any model, which does not count what a batch costs."""

    def global_num_flops_in_batch(self, batch: dict[str, Any]) -> None:
        """Say that it is not known."""


class Noise(DataLoaderBase):  # type: ignore[misc]
    """Batches of noise, the same at each place."""

    total_batches = 1000

    def state_dict(self) -> dict[str, Any]:
        """Return how far it is."""
        return {"batches_processed": self.batches_processed, "epoch": self._epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.batches_processed, self._epoch = state_dict["batches_processed"], state_dict["epoch"]

    def reshuffle(self, epoch: int | None = None, **_: Any) -> None:
        """Begin an epoch."""
        self._epoch = epoch or 1

    def _iter_batches(self) -> Iterator[dict[str, Any]]:
        return (self._batch(number) for number in range(self.batches_processed, self.total_batches))

    def get_mock_batch(self) -> dict[str, Any]:
        """Return a batch on which the Trainer tries a step without taking it."""
        return self._batch(0)

    def _batch(self, number: int) -> dict[str, Any]:
        return {"input_ids": torch.randint(WORDS, TOKENS, generator=torch.Generator().manual_seed(number))}


class Watch(Callback):  # type: ignore[misc]
    """Keeps the weights, and the step, with which training begins."""

    def pre_train(self) -> None:
        """Copy them."""
        self.begun, self.begun_at = copied(self.trainer.train_module.model.state_dict()), self.trainer.global_step


def run(folder: Path, name: str, steps: int, **options: Any) -> Any:
    """Train up to a step."""
    model = Model()
    module = Module(model, torch.optim.AdamW(model.parameters(), lr=0.01), TOKENS[0] * TOKENS[1])
    work = folder / f"work-{name}"
    watch = Watch()
    saver = CheckpointerCallback(save_interval=STEPS[0], save_async=False, max_checkpoints=None)
    trainer = Trainer(
        work_dir=work, train_module=module, data_loader=Noise(work_dir=work, global_batch_size=TOKENS[0] * TOKENS[1]),
        device=torch.device("cpu"), save_folder=str(folder / name), checkpointer=Checkpointer(work_dir=work),
        callbacks={"watch": watch, "checkpointer": saver}, max_duration=Duration.steps(steps), **options,
    )  # fmt: skip
    trainer.fit()
    return model, watch


def train(folder: Path) -> None:
    """Save three times."""
    run(folder, "run", STEPS[-1])


def resume(folder: Path) -> None:
    """Go on from the average."""
    saved = [weights(folder / f"run/step{step}") for step in STEPS]
    model, watch = run(
        folder, "on", STEPS[-1] + 1, load_path=str(folder / "averaged"), load_strategy=LoadStrategy.always
    )
    assert watch.begun_at == STEPS[-1]
    assert_held(watch.begun, mean(saved))
    assert_trained(model.state_dict(), watch.begun)


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a checkpoint, by the library's own loading."""
    from olmo_core.distributed.checkpoint import load_model_and_optim_state

    model = Model()
    load_model_and_optim_state(str(checkpoint / "model_and_optim"), model)
    return copied(model.state_dict())


if __name__ == "__main__":
    main(train, resume)
