"""Averages in trainings with Accelerate: one line registers them, and what is resumed gives the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ema_cli import EMA
from tests.trainers.conftest import Tensors, assert_rounds, recurrence, require
from tests.trainers.ranks import launch
from tests.trainers.write_accelerate_ema import HALF_LIVES, STEPS

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("ignore")]

BATCHES, ACCUMULATED, SAVED_AFTER = 24, 2, 6  # of which 12 optimizer steps


class Training:
    """A training whose gradients are those of two batches each, with averages of half-life 4ba."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        accelerate = pytest.importorskip("accelerate")

        self.accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATED)
        torch.manual_seed(8)
        model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Dropout(0.2), nn.Linear(7, 3)).to(dtype)
        self.batches = torch.randn(BATCHES, 4, 5).to(dtype)
        self.model, self.optimizer = self.accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.05))
        self.ema = EMA(self.model, half_life="4ba")
        self.accelerator.register_for_checkpointing(self.ema)
        self.seen: list[Tensors] = []

    def run(self, folder: Path, *, skip: int = 0) -> Training:
        """Train through the data, from step `skip` on; save after six steps."""
        step = skip
        for batch in self.batches[skip * ACCUMULATED :]:
            with self.accelerator.accumulate(self.model):
                self.accelerator.backward(self.model(batch).pow(2).mean())
                self.optimizer.step()
                self.optimizer.zero_grad()
            if self.accelerator.sync_gradients:
                step += 1
                self.ema.update()
                self.seen.append({name: each.detach().clone() for name, each in self.model.state_dict().items()})
                if step == SAVED_AFTER and not skip:
                    self.accelerator.save_state(str(folder))
        return self


def averages(ema: EMA) -> dict[str, torch.Tensor]:
    """Return what an EMA holds, by name."""
    state = ema.state_dict()
    return {**state["averages"]["4ba"], **state["copied"]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_line_saves_and_resumes_with_the_same_bits(tmp_path: Path, dtype: torch.dtype):
    """register_for_checkpointing(ema) is all: save_state and load_state go on as if there had been no stop."""
    whole = Training(dtype).run(tmp_path / "state")
    assert whole.ema.updates == BATCHES // ACCUMULATED - 1
    exact = recurrence(whole.seen, range(1, len(whole.seen) + 1), 4)
    assert_rounds(averages(whole.ema), exact)

    resumed = Training(dtype)
    resumed.accelerator.load_state(str(tmp_path / "state"))
    resumed.run(tmp_path / "unused", skip=SAVED_AFTER)
    ours, theirs = averages(resumed.ema), averages(whole.ema)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert (resumed.ema.clock, resumed.ema.updates) == (whole.ema.clock, whole.ema.updates)


def test_unwrapped_and_saved_models_hold_what_is_applied(tmp_path: Path):
    """unwrap_model and save_model give the averages inside `applied`, and the model as it is trained outside."""
    done = Training().run(tmp_path / "state")
    exact = recurrence(done.seen, range(1, len(done.seen) + 1), 4)
    with done.ema.applied():
        assert_rounds(done.accelerator.unwrap_model(done.model).state_dict(), exact)
        done.accelerator.save_model(done.model, str(tmp_path / "released"))
    assert_rounds(load_file(tmp_path / "released" / "model.safetensors"), exact)
    live = done.accelerator.unwrap_model(done.model).state_dict()
    assert all(torch.equal(tensor, done.seen[-1][name]) for name, tensor in live.items())


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_resume_with_the_same_bits(tmp_path: Path, kind: str):
    """A prepared model, in DDP or sharded: the averages are the dense ones, and resume bit for bit in each process."""
    require("accelerate")
    launch("write_accelerate_ema", tmp_path, kind, "whole")
    launch("write_accelerate_ema", tmp_path, kind, "resumed")
    seen = [load_file(tmp_path / "whole" / f"step-{step}.safetensors") for step in range(1, STEPS + 1)]
    for half_life in HALF_LIVES:
        exact = recurrence(seen, range(1, STEPS + 1), float(half_life.removesuffix("ba")))
        held = [load_file(tmp_path / "whole" / f"{rank}-{half_life}.safetensors") for rank in range(2)]
        assert_rounds(held[0], exact)
        # Statistics are each process's own; of sharded models, too, Accelerate loads those of one of them.
        weights = [name for name in held[0] if "running" not in name]
        assert all(torch.equal(held[0][name], held[1][name]) for name in weights)
        for rank in range(2):
            resumed = load_file(tmp_path / "resumed" / f"{rank}-{half_life}.safetensors")
            assert resumed.keys() == held[rank].keys()
            names = list(resumed) if (kind, rank) == ("ddp", 0) else weights
            assert all(torch.equal(resumed[name], held[rank][name]) for name in names), rank
