"""Libraries with a training loop of their own: Ignite, SpeechBrain, skorch, fastai, MONAI, Lightning."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from library_files.folders import drop_state, fresh


def _net(seed: int = 0) -> Any:
    """Return a small model with a buffer and a counter."""
    import torch

    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))


def _rows(count: int = 20) -> tuple[Any, Any]:
    """Return inputs and targets."""
    import torch

    random = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 3, generator=random)
    return inputs, torch.stack([inputs.sum(1), inputs[:, 0]], 1)


def _step(model: Any, optimizer: Any) -> Callable[[Any, Any], float]:
    """Return what a loop of Ignite's does with a batch."""
    import torch

    def step(_engine: Any, batch: Any) -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        return float(loss)

    return step


def ignite(folder: Path) -> Path:
    """Save with Ignite's ModelCheckpoint: a model at each epoch; by iterations one with its trainer and averages."""
    import torch
    from ignite.engine import Engine, Events
    from ignite.handlers import EMAHandler, ModelCheckpoint

    made = fresh(folder, "pytorch-ignite", "ignite")
    batches = list(zip(*(part.split(4) for part in _rows()), strict=True))

    def run(name: str, event: Any, *, beside: bool) -> None:
        model = _net()
        trainer = Engine(_step(model, torch.optim.SGD(model.parameters(), 0.1)))
        saved = {"model": model}
        if beside:
            averages = EMAHandler(model, momentum=0.1)
            averages.attach(trainer)
            saved |= {"trainer": trainer, "ema_model": averages.ema_model}
        trainer.add_event_handler(event, ModelCheckpoint(str(made / name), "", n_saved=3), saved)
        trainer.run(batches, max_epochs=3)

    run("model", Events.EPOCH_COMPLETED, beside=False)
    run("iterations", Events.ITERATION_COMPLETED(every=5), beside=True)
    return made


def speechbrain(folder: Path) -> Path:
    """Train with SpeechBrain's Brain, which saves at the end of each epoch."""
    import torch

    with _without("torchaudio"):  # which its imports ask for, and this does not use
        from speechbrain.core import Brain
        from speechbrain.utils.checkpoints import Checkpointer
        from speechbrain.utils.epoch_loop import EpochCounter

    class Small(Brain):  # type: ignore[misc]
        def compute_forward(self, batch: Any, stage: Any) -> Any:
            return self.modules.model(batch[0])

        def compute_objectives(self, predictions: Any, batch: Any, stage: Any) -> Any:
            return torch.nn.functional.mse_loss(predictions, batch[1])

        def on_stage_end(self, stage: Any, loss: float, epoch: int | None = None) -> None:
            self.checkpointer.save_checkpoint(meta={"loss": float(loss)}, end_of_epoch=True)

    made = fresh(folder, "speechbrain")
    model, counter = _net(), EpochCounter(3)
    checkpointer = Checkpointer(str(made), {"model": model, "counter": counter})
    brain = Small(
        {"model": model}, lambda parameters: torch.optim.SGD(parameters, 0.1), checkpointer=checkpointer,
        run_opts={"device": "cpu", "ckpt_interval_minutes": 0},
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*_rows()), batch_size=4)
    brain.fit(counter, loader, progressbar=False)
    drop_state(made)
    return made


@contextmanager
def _without(name: str) -> Iterator[None]:
    """Let a module that is not installed be imported, empty."""
    missing = name not in sys.modules
    if missing:
        sys.modules[name] = types.ModuleType(name)
    try:
        yield
    finally:
        if missing:
            del sys.modules[name]


def skorch(folder: Path) -> Path:
    """Save with skorch's Checkpoint at each epoch, and with its TrainEndCheckpoint."""
    import torch
    from skorch import NeuralNetRegressor
    from skorch.callbacks import Checkpoint, TrainEndCheckpoint

    made = fresh(folder, "skorch")
    names = {f"f_{part}": None for part in ("optimizer", "criterion", "history")}
    each = Checkpoint(monitor=None, dirname=str(made), f_params="params_{last_epoch[epoch]}.pt", **names)
    last = TrainEndCheckpoint(dirname=str(made), fn_prefix="train_end_", **names)
    inputs, targets = (part.numpy() for part in _rows())
    torch.manual_seed(0)
    NeuralNetRegressor(
        _net(), max_epochs=3, lr=0.1, train_split=None, callbacks=[each, last], verbose=0
    ).fit(inputs, targets)  # fmt: skip
    return made


def fastai(folder: Path) -> Path:
    """Save with fastai's SaveModelCallback at each epoch: models with their optimizers, counted from 0."""
    import torch
    from fastai.callback.tracker import SaveModelCallback
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from torch.utils.data import DataLoader, TensorDataset

    made = fresh(folder, "fastai")
    loader = DataLoader(TensorDataset(*_rows()), batch_size=4)
    learner = Learner(
        DataLoaders(loader, loader), _net(), loss_func=torch.nn.MSELoss(), path=made, model_dir=".",
        cbs=SaveModelCallback(every_epoch=True, with_opt=True),
    )  # fmt: skip
    with learner.no_bar(), learner.no_logging():
        learner.fit(3, 0.1)
    return made


def monai(folder: Path) -> Path:
    """Save with MONAI's CheckpointSaver: at each epoch, and once at the end."""
    import torch
    from ignite.engine import Engine
    from monai.handlers import CheckpointSaver

    made = fresh(folder, "monai")
    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    trainer = Engine(_step(model, optimizer))
    saved = {"net": model, "opt": optimizer}
    CheckpointSaver(str(made), saved, save_interval=1, epoch_level=True, save_final=True).attach(trainer)
    trainer.run(list(zip(*(part.split(4) for part in _rows()), strict=True)), max_epochs=3)
    return made


def lightning(folder: Path) -> Path:
    """Save with Lightning's ModelCheckpoint: with its averages on from the second epoch, and without."""
    import torch
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
    from torch.utils.data import DataLoader, TensorDataset

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = _net()

        def training_step(self, batch: Any) -> Any:
            return torch.nn.functional.mse_loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    made = fresh(folder, "lightning")
    loader = DataLoader(TensorDataset(*_rows()), batch_size=4)
    for name, callbacks in {"raw": [], "averages": [EMAWeightAveraging(decay=0.9, update_starting_at_step=6)]}.items():
        checkpoint = ModelCheckpoint(str(made / name), save_top_k=-1)
        Trainer(
            max_epochs=3, accelerator="cpu", logger=False, callbacks=[checkpoint, *callbacks],
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=made,
        ).fit(Module(), loader)  # fmt: skip
    return made


WRITERS: Mapping[str, Callable[[Path], Path]] = {
    "ignite": ignite,
    "speechbrain": speechbrain,
    "skorch": skorch,
    "fastai": fastai,
    "monai": monai,
    "lightning": lightning,
}
