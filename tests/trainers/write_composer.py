"""Train with Composer, and keep what its own EMA held.

`python -m tests.trainers.write_composer FOLDER`, in each process of a training, which is done four times. `raw/` has
every batch; `averages/` was trained with the EMA on, `ema.safetensors` is what that held at the end; `sharded/` was
trained with FSDP2, `last.safetensors` is its weights at the end; `sharded-averages/` with both.
"""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.trainers.ranks import gather, leave, let_torchvision_load

HALF_LIFE, INTERVAL = 6, 2
EPOCHS, EPOCH_LENGTH, BATCH = 2, 8, 4


def let_composer_load() -> None:
    """Stand in for what Composer imports and does not need here."""
    sys.modules["mcli"] = types.ModuleType("mcli")  # the client of its makers' platform
    os.environ["FSDP_VERSION"] = "2"
    let_torchvision_load()


def make_model() -> Any:
    """Return a ComposerModel with BatchNorm, whose network is its attribute `net`."""
    from composer import ComposerModel

    class Model(ComposerModel):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))
            for part in (self.net[0], self.net[2]):
                part._fsdp_wrap = True

        def forward(self, batch: Any) -> torch.Tensor:
            out: torch.Tensor = self.net(batch[0])
            return out

        def loss(self, out: torch.Tensor, batch: Any) -> torch.Tensor:
            return nn.functional.cross_entropy(out, batch[1])

    return Model()


def train(folder: Path, algorithms: Any = None, **options: Any) -> Any:
    """Train two epochs of eight batches; return the trainer."""
    from composer import Trainer
    from composer.utils import dist

    torch.manual_seed(0)
    model = make_model()
    inputs = torch.randn(EPOCH_LENGTH * BATCH * dist.get_world_size(), 5)
    data = TensorDataset(inputs, (inputs.sum(dim=1) > 0).long())
    trainer = Trainer(
        model=model,
        train_dataloader=DataLoader(data, batch_size=BATCH, sampler=dist.get_sampler(data, shuffle=True)),
        save_folder=str(folder),
        optimizers=torch.optim.SGD(model.parameters(), lr=0.1),
        algorithms=algorithms,
        device="cpu",
        seed=1,
        progress_bar=False,
        **{"max_duration": f"{EPOCHS}ep", **options},
    )
    trainer.fit()
    return trainer


def main(folder: Path) -> None:
    """Write the runs."""
    from composer.algorithms import EMA
    from composer.utils import dist

    dist.initialize_dist("cpu")
    train(folder / "raw", save_interval="1ba")
    ema = EMA(half_life=f"{HALF_LIFE}ba", update_interval=f"{INTERVAL}ba")
    trainer = train(folder / "averages", ema, save_interval="4ba")
    assert ema.ema_weights_active  # they are in the model at the end
    averages = trainer.state.model.state_dict()
    config = {"fsdp": {"state_dict_type": "sharded"}}
    trainer = train(folder / "sharded", save_interval="4ba", parallelism_config=config)
    last = gather(trainer.state.model.state_dict())
    train(folder / "sharded-averages", EMA(half_life="6ba"), save_interval="8ba", parallelism_config=config)
    if dist.get_global_rank() == 0:
        # Composer wraps the model of several processes in DDP.
        save_file({name.removeprefix("module."): each for name, each in averages.items()}, folder / "ema.safetensors")
        save_file(last, folder / "last.safetensors")


if __name__ == "__main__":
    let_composer_load()
    main(Path(sys.argv[1]))
    leave()
