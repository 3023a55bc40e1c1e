"""Train with Lightning's ModelParallelStrategy, which saves a folder of shards for each checkpoint.

`python -m tests.trainers.write_lightning FOLDER`, in each process of the training. `run/` is what Lightning wrote,
`truth/` the whole tensors at each of its checkpoints.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.trainers.ranks import gather, leave, let_torchvision_load

EPOCHS, EPOCH_LENGTH, INTERVAL = 2, 8, 4


def make_model(sharded: bool = True) -> Any:
    """Return a LightningModule whose network, in the attribute `net`, is spread over the processes."""
    import lightning

    class Model(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net: Any = None

        def configure_model(self) -> None:
            if self.net is None:
                self.net = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))
                if sharded:
                    from torch.distributed.fsdp import fully_shard

                    fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

        def training_step(self, batch: Any, _index: int) -> torch.Tensor:
            loss: torch.Tensor = (self.net(batch[0]) - batch[0][:, :3]).pow(2).mean()
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=0.02)

    return Model()


def main(folder: Path) -> None:
    """Train for two epochs of eight batches, saving every fourth."""
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.strategies import ModelParallelStrategy

    class KeepTruth(lightning.Callback):  # type: ignore[misc, name-defined]
        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            if trainer.global_step % INTERVAL == 0:
                whole = gather(module.state_dict())
                if trainer.is_global_zero:
                    (folder / "truth").mkdir(parents=True, exist_ok=True)
                    save_file(whole, folder / "truth" / f"{trainer.global_step}.safetensors")

    torch.manual_seed(6)
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=2,
        strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
        callbacks=[ModelCheckpoint(folder / "run", save_top_k=-1, every_n_train_steps=INTERVAL), KeepTruth()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        use_distributed_sampler=False,  # the same batches in both, and so the same buffers
    )
    trainer.fit(make_model(), DataLoader(TensorDataset(torch.randn(EPOCH_LENGTH * 4, 5)), batch_size=4))


if __name__ == "__main__":
    let_torchvision_load()
    main(Path(sys.argv[1]))
    leave()
