"""One of two processes that train one model together, averaged as they train; what they find is left in a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel

from ema_cli import EMA
from ema_cli.errors import EmaError
from tests.two_forks import launch_two

STEPS = 6
ASKED: dict[str, Any] = {"half_life": ("3ba", "20ba"), "update_interval": "1ba"}


def launch(folder: Path) -> Path:
    """Run both processes; return the folder with what they found."""
    launch_two("tests.online.two_processes", folder, "torch._dynamo")
    return folder


def make_model() -> nn.Sequential:
    """Return a model whose rows do not divide by two; its first layer is frozen."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 1), nn.Linear(1, 3))
    model[0].requires_grad_(False)
    return model


def steps(model: nn.Module, count: int = STEPS, seed: int = 1) -> Any:
    """Train on the same inputs in all processes, so that what they agree on is what one would find."""
    random = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for step in range(count):
        model(torch.randn(8, 5, generator=random)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        yield step


def shard(model: nn.Sequential, *, gathered: bool = False) -> nn.Sequential:
    """Cut a model over both processes; with `gathered`, a forward pass leaves it put together."""
    mesh = init_device_mesh("cpu", (2,))
    for layer in (model[1], model[3]):
        fully_shard(layer, mesh=mesh, reshard_after_forward=not gathered)
    fully_shard(model, mesh=mesh, reshard_after_forward=not gathered)
    return model


def full(tensors: dict[str, Any]) -> dict[str, Tensor]:
    """Return tensors put together from both processes."""
    return {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()
        for name, tensor in tensors.items()
    }


def together(ema: EMA) -> dict[str, dict[str, Tensor]]:
    """Return all that a state holds, put together."""
    state = ema.state_dict()
    found = {name: full(state["averages"][name]) for name in ema.names}
    found["copied"] = full(state["copied"])
    if state["first"] is not None:
        found["first"] = full(state["first"])
    return found


def told(action: Callable[[], object]) -> str:
    """Return the error that an action raises."""
    try:
        action()
    except EmaError as error:
        return str(error)
    return "no error"


def train_alone() -> dict[str, Any]:
    """Return what one process finds that trains alone."""
    model = make_model()
    ema = EMA(model, **ASKED)
    for _ in steps(model):
        ema.update()
    found: dict[str, Any] = {"state": together(ema)}
    model.eval()
    with torch.no_grad():
        found["trained"] = model(torch.ones(2, 5))
        with ema.applied("3ba"):
            found["averaged"] = model(torch.ones(2, 5))
    return found


def train_sharded(folder: Path) -> dict[str, Any]:
    """Train a model that FSDP2 cuts; count what an update communicates."""
    model = shard(make_model())
    ema = EMA(model, **ASKED)
    events, calls = 0, 0
    for _ in steps(model):
        with CommDebugMode() as communication:
            events += ema.update()
        calls += communication.get_total_counts()
    state = ema.state_dict()
    parts = {name: tensor.to_local().shape[0] for name, tensor in state["averages"]["3ba"].items()
             if isinstance(tensor, DTensor)}  # fmt: skip
    found: dict[str, Any] = {"events": events, "communicated": calls, "rows": parts, "state": together(ema)}

    # Saved by both; loaded by both into what has other weights.
    dcp.save({"ema": state}, checkpoint_id=folder / "dcp")
    other = shard(make_model())
    for _ in steps(other, 1, seed=9):
        pass
    again = EMA(other, **ASKED)
    again.update()  # so that its state has a first copy to be loaded into
    loaded = {"ema": again.state_dict()}
    dcp.load(loaded, checkpoint_id=folder / "dcp")
    again.load_state_dict(loaded["ema"])
    found["loaded"] = together(again)
    found["branches"] = [[branch.identity for branch in each.averages.lineage] for each in (ema, again)]
    found["clocks"] = [str(ema.clock), str(again.clock), ema.updates, again.updates, str(again.averages.began)]
    other.load_state_dict(model.state_dict())
    for ours, theirs in zip(steps(model, 3, seed=5), steps(other, 3, seed=5), strict=True):
        assert ours == theirs
        ema.update()
        again.update()
    found["went on"], found["went on again"] = together(ema), together(again)

    # A state that knows of no first copy does not lose it without a word.
    fresh = EMA(shard(make_model()), **ASKED)
    try:
        dcp.load({"ema": fresh.state_dict()}, checkpoint_id=folder / "dcp")
        found["lost"] = "no error"
    except CheckpointException as error:
        found["lost"] = str(error)
    return found


def use_sharded() -> dict[str, Any]:
    """Evaluate on the averages, also after forward passes that leave the parameters put together."""
    found: dict[str, Any] = {}
    for gathered in (False, True):
        model = shard(make_model(), gathered=gathered)
        ema = EMA(model, **ASKED)
        for _ in steps(model):
            ema.update()
        model.eval()
        with torch.no_grad():
            before = model(torch.ones(2, 5))
            with ema.applied("3ba"):
                inside = [model(torch.ones(2, 5)) for _ in range(2)]
            after = model(torch.ones(2, 5))
            alone = ema.get_ema_model(make_model().eval(), "3ba")(torch.ones(2, 5))
            updated = ema.update()
        found[f"gathered {gathered}"] = {
            "before": before, "inside": inside, "after": after, "alone": alone, "updated": updated,
        }  # fmt: skip
    return found


def vary_sharded() -> dict[str, Any]:
    """Average the same model beside it, on the host, and under torch.compile; and train on the averages."""
    model = shard(make_model())
    compiled = torch.compile(model, backend="eager")
    emas = {
        "beside": EMA(model, **ASKED),
        "host": EMA(model, **ASKED, offload="cpu"),
        "compiled": EMA(compiled, **ASKED),
    }
    for _ in steps(model):
        for ema in emas.values():
            ema.update()
    found: dict[str, Any] = {name: together(ema) for name, ema in emas.items()}
    for name, kind in (("sharded", shard), ("alone", lambda model: model)):
        model = kind(make_model())
        ema = EMA(model, "2ba", train_with_ema_weights=True)
        for _ in steps(model):
            ema.update()
        found[f"trained on, {name}"] = full(model.state_dict())
    # Its parameters are flat from the beginning.
    old = FullyShardedDataParallel(make_model().requires_grad_(True), device_id=torch.device("cpu"))
    found["fsdp1"] = told(lambda: EMA(old).update())
    return found


def save_sharded(folder: Path) -> dict[str, Any]:
    """Save from both processes; an error in one of them is one in both."""
    model = shard(make_model())
    ema = EMA(model, **ASKED)
    for _ in steps(model):
        ema.update()
    ema.save(folder / "sharded.safetensors", "3ba")
    stored = ema.store(folder / "stored")
    found = {"stored": str(stored), "exists": told(lambda: ema.save(folder / "sharded.safetensors", "3ba"))}
    found["no folder"] = told(lambda: ema.save(folder / "none" / "x.safetensors", "3ba"))
    (folder / "file").touch()
    found["no store"] = told(lambda: ema.store(folder / "file"))
    with torch.no_grad():
        weight: Any = model[1].weight
        if distributed.get_rank() == 1:
            weight.to_local()[0, 0] = float("nan")
    ema.update()
    found["not finite"] = told(lambda: ema.save(folder / "nan.safetensors", "3ba"))
    found["allowed"] = told(lambda: ema.save(folder / "nan.safetensors", "3ba", allow_non_finite=True))
    return found


def train_ddp(folder: Path) -> dict[str, Any]:
    """Train the same model in DDP."""
    model = DistributedDataParallel(make_model())
    ema = EMA(model, **ASKED)
    calls = 0
    for _ in steps(model):
        with CommDebugMode() as communication:
            ema.update()
        calls += communication.get_total_counts()
    ema.save(folder / "ddp.safetensors", "3ba")
    distributed.barrier()
    found: dict[str, Any] = {"state": together(ema), "communicated": calls}
    model.eval()
    with torch.no_grad(), ema.applied("3ba"):
        found["averaged"] = model(torch.ones(2, 5))
    return found


def main(folder: Path, rank: int) -> None:
    """Train in every way, and leave what was found."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {
        "alone": train_alone(),
        "sharded": train_sharded(folder),
        "used": use_sharded(),
        "varied": vary_sharded(),
        "saved": save_sharded(folder),
        "ddp": train_ddp(folder),
    }
    torch.save(found, folder / f"found-{rank}.pt")
    distributed.destroy_process_group()
