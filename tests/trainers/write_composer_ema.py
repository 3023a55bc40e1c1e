"""Train with our EMA in each of two processes of Composer's Trainer, stop, and resume.

`python -m tests.trainers.write_composer_ema FOLDER STRATEGY`. `truth/` has the whole tensors after each batch, `whole`
and `resumed` are the averages at the end of a training without and with a stop, `...-model` its weights; `run/` has its
checkpoints.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader, TensorDataset

from tests.trainers.ranks import gather, leave
from tests.trainers.write_composer import BATCH, EPOCH_LENGTH, let_composer_load, make_model

STOP = 11


def main(folder: Path, strategy: str) -> None:
    """Train two epochs of eight batches without a stop; and on from what was saved at the eleventh."""
    from composer import Callback, Trainer
    from composer.utils import dist

    from ema_cli.integrations.composer import EMA

    def keep(path: Path, tensors: dict[str, torch.Tensor]) -> None:
        if dist.get_global_rank() == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, path)

    def bare(model: Any) -> dict[str, torch.Tensor]:
        return {name.removeprefix("module."): each for name, each in gather(model.state_dict()).items()}

    class KeepTruth(Callback):  # type: ignore[misc]
        def batch_end(self, state: Any, logger: Any) -> None:
            keep(folder / "truth" / f"{state.timestamp.batch.value}.safetensors", bare(state.model))

    def train(name: str, *callbacks: Any, **options: Any) -> None:
        torch.manual_seed(0)
        model = make_model()
        inputs = torch.randn(BATCH, 5).repeat(EPOCH_LENGTH * dist.get_world_size(), 1)
        data = TensorDataset(inputs, (inputs.sum(dim=1) > 0).long())
        if strategy != "ddp":
            kind = "sharded" if strategy == "fsdp2" else "full"
            options["parallelism_config"] = {"fsdp": {"state_dict_type": kind}}
        algorithm = EMA("6ba", update_interval="2ba", store=folder / "stored")
        trainer = Trainer(
            model=model,
            train_dataloader=DataLoader(data, batch_size=BATCH, sampler=dist.get_sampler(data)),
            max_duration="2ep",
            optimizers=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
            algorithms=algorithm,
            callbacks=list(callbacks),
            device="cpu",
            seed=1,
            progress_bar=False,
            **options,
        )
        trainer.fit()
        state = algorithm.ema.state_dict()
        keep(folder / f"{name}.safetensors", gather({**state["averages"]["6ba"], **state["copied"]}))
        keep(folder / f"{name}-model.safetensors", bare(trainer.state.model))
        trainer.close()

    dist.initialize_dist("cpu")
    train("whole", KeepTruth(), save_folder=str(folder / "run"), save_interval=f"{STOP}ba")
    suffix = "" if strategy == "fsdp2" else "-rank0.pt"
    train("resumed", load_path=str(folder / "run" / f"ep1-ba{STOP}{suffix}"))


if __name__ == "__main__":
    let_composer_load()
    main(Path(sys.argv[1]), sys.argv[2])
    leave()
