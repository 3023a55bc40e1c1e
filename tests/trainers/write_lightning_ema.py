"""Train with EMACallback in each of two processes, stop, and resume.

`python -m tests.trainers.write_lightning_ema FOLDER STRATEGY`. `truth/` has the whole tensors after each step,
`whole` and `resumed` are the averages at the end of a training without and with a stop, `...-model` its weights, `seen`
is what its last validation saw, `stored/` what it stored.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader, TensorDataset

from tests.trainers.ranks import gather, leave, let_torchvision_load
from tests.trainers.write_lightning import make_model as make_base

LENGTH, STOP = 12, 7


def make_model(sharded: bool) -> Any:
    """Return the module of `write_lightning`, with a validation that keeps the weights that it sees."""

    class Model(type(make_base(sharded))):  # type: ignore[misc]
        def validation_step(self, _batch: Any, _index: int) -> None:
            self.seen = {"net.0.weight": gather(self.state_dict())["net.0.weight"]}

    return Model()


def main(folder: Path, strategy: str) -> None:
    """Train once without a stop; once until the seventh step, and on from there."""
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.strategies import ModelParallelStrategy

    from ema_cli.integrations.lightning import EMACallback

    class KeepTruth(lightning.Callback):  # type: ignore[misc, name-defined]
        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            keep(trainer, folder / "truth" / f"{trainer.global_step}.safetensors", gather(module.state_dict()))

    def keep(trainer: Any, path: Path, tensors: dict[str, torch.Tensor]) -> None:
        if trainer.is_global_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, path)

    def make_sharded() -> Any:
        shards = strategy == "fsdp2"
        return ModelParallelStrategy(2, tensor_parallel_size=1, save_distributed_checkpoint=shards)

    def train(name: str, *others: Any, ckpt: Path | None = None, **options: Any) -> Any:
        torch.manual_seed(6)
        callback = EMACallback("6ba", store=folder / "stored")
        sharded = strategy != "ddp"
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=2,
            strategy=make_sharded() if sharded else "ddp",
            callbacks=[callback, *others],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            use_distributed_sampler=False,  # the same batches in both, and so the same buffers
            **options,
        )
        # Batches that are all the same: Lightning begins the data anew where it resumes within an epoch.
        data = torch.randn(4, 5, generator=torch.Generator().manual_seed(2))
        loader = DataLoader(TensorDataset(data.repeat(LENGTH, 1)), batch_size=4)
        model = make_model(sharded)
        trainer.fit(model, loader, loader, ckpt_path=ckpt)
        state = callback.ema.state_dict()
        keep(trainer, folder / f"{name}.safetensors", gather({**state["averages"]["6ba"], **state["copied"]}))
        keep(trainer, folder / f"{name}-model.safetensors", gather(model.state_dict()))
        keep(trainer, folder / "seen.safetensors", model.seen)
        return trainer

    train("whole", KeepTruth(), max_epochs=1, enable_checkpointing=False)
    saver = ModelCheckpoint(folder / "run", filename="{step}", every_n_train_steps=STOP)
    alone = {"filename": "{step}", "every_n_train_steps": STOP, "mode": "max", "save_weights_only": True}
    train("stopped", saver, ModelCheckpoint(folder / "alone", **alone), max_steps=STOP, max_epochs=1)
    train("resumed", ckpt=folder / "run" / f"step={STOP}.ckpt", max_epochs=1, enable_checkpointing=False)


if __name__ == "__main__":
    let_torchvision_load()
    main(Path(sys.argv[1]), sys.argv[2])
    leave()
