"""Libraries that average while a model trains: torch_ema, ema-pytorch, schedulefree, and a callback of Lightning's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from library_files.folders import fresh


def _net() -> Any:
    """Return a small model with a buffer and a counter."""
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))


def _train(model: Any, optimizer: Any, steps: int) -> Iterator[int]:
    """Train, and yield the number of each step when it is done."""
    import torch

    for step in range(1, steps + 1):
        model(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()
        yield step


def torch_ema(folder: Path) -> Path:
    """Save the state of its averages, lists in the order of the parameters, beside the model."""
    import torch
    from torch_ema import ExponentialMovingAverage

    made = fresh(folder, "torch-ema")
    model = _net()
    averages = ExponentialMovingAverage(model.parameters(), decay=0.9)
    for step in _train(model, torch.optim.SGD(model.parameters(), 0.1), 3):
        averages.update()
        saved = {"model": model.state_dict(), "ema": averages.state_dict(), "step": step}
        torch.save(saved, made / f"step-{step}.pt")
    return made


def ema_pytorch(folder: Path) -> Path:
    """Save the state of its wrapper, which holds both models: beside the model, and by itself."""
    import torch
    from ema_pytorch import EMA

    made = fresh(folder, "ema-pytorch")
    for name in ("beside", "alone"):
        (made / name).mkdir()
    model = _net()
    averages = EMA(model, beta=0.9, update_after_step=1, update_every=1)
    for step in _train(model, torch.optim.SGD(model.parameters(), 0.1), 4):
        averages.update()
        if step > 1:
            saved = {"model": model.state_dict(), "ema": averages.state_dict(), "step": step}
            torch.save(saved, made / "beside" / f"step-{step}.pt")
            torch.save(averages.state_dict(), made / "alone" / f"step-{step}.pt")
    return made


def schedulefree(folder: Path) -> Path:
    """Save a model and its schedule-free optimizer, in train mode and in eval mode."""
    import torch
    from schedulefree import AdamWScheduleFree

    made = fresh(folder, "schedulefree")
    for mode in ("train", "eval"):
        (made / mode).mkdir()
    model = _net()
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.1)
    optimizer.train()
    for step in _train(model, optimizer, 3):
        for mode in ("eval", "train"):
            getattr(optimizer, mode)()
            saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            torch.save(saved, made / mode / f"step-{step}.pt")
    return made


def lightning(folder: Path) -> Path:
    """Save with a callback that swaps averages in when Lightning validates; what it stored is in its state."""
    import torch
    from lightning.pytorch import LightningModule, Trainer, seed_everything
    from lightning.pytorch.callbacks import Callback, ModelCheckpoint
    from torch.utils.data import DataLoader, TensorDataset
    from torch_ema import ExponentialMovingAverage

    made = fresh(folder, "lightning", "lightning-callback")

    class Model(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = _net()

        def training_step(self, batch: Any, _: int) -> Any:
            return self.net(batch[0]).square().mean()

        def validation_step(self, batch: Any, _: int) -> None:
            self.log("loss", self.net(batch[0]).square().mean())

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    class Averages(Callback):
        """Averages that are in the model from validation until training goes on, and so when checkpoints are saved."""

        def on_fit_start(self, _: Any, module: Any) -> None:
            self.ema = ExponentialMovingAverage(module.parameters(), decay=0.9)

        def on_train_batch_end(self, *_: Any) -> None:
            self.ema.update()

        def on_validation_epoch_start(self, *_: Any) -> None:
            self.ema.store()
            self.ema.copy_to()

        def on_train_epoch_start(self, *_: Any) -> None:
            if self.ema.collected_params is not None:
                self.ema.restore()

        def state_dict(self) -> dict[str, Any]:
            return {"ema": self.ema.state_dict()}

    seed_everything(0)
    data = DataLoader(TensorDataset(torch.randn(16, 3)), batch_size=4)
    Trainer(
        max_epochs=3, accelerator="cpu", logger=False, num_sanity_val_steps=0, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Averages(), ModelCheckpoint(made, monitor="loss", save_top_k=-1)],
    ).fit(Model(), data, data)  # fmt: skip
    return made


WRITERS: Mapping[str, Callable[[Path], Path]] = {
    "torch-ema": torch_ema,
    "ema-pytorch": ema_pytorch,
    "schedulefree": schedulefree,
    "lightning-callback": lightning,
}
