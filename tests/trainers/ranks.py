"""Trainings of several processes on the CPU, each process a module of this folder; and what those processes need."""

from __future__ import annotations

import atexit
import gc
import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

REPOSITORY = Path(__file__).parents[2]


def launch(writer: str, folder: Path, *arguments: object, ranks: int = 2, package: str = "tests.trainers") -> Path:
    """Run `PACKAGE.WRITER FOLDER ARGUMENTS` as the processes of one training; return the folder it filled."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # No GPU, where there is one, and no network: the files are what matters.
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks,
              "NODE_RANK": 0, "GROUP_RANK": 0, "OMP_NUM_THREADS": 1, "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
    command = [sys.executable, "-m", f"{package}.{writer}", *map(str, (folder, *arguments))]
    with tempfile.TemporaryFile("w+") as told:
        running = []
        for rank in range(ranks):
            own = {name: str(value) for name, value in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()}
            running.append(
                subprocess.Popen(command, cwd=REPOSITORY, env={**os.environ, **own}, stdout=told, stderr=told)
            )
        try:
            codes = [process.wait(timeout=300) for process in running]
        finally:
            for process in running:
                process.kill()
        told.seek(0)
        assert not any(codes), told.read()
    return folder


@contextmanager
def gloo() -> Iterator[int]:
    """Join the other processes, on the CPU; give this one's rank."""
    torch.distributed.init_process_group("gloo")
    yield torch.distributed.get_rank()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def leave() -> None:
    """Wait for the other processes, and end this one: the last thing that a process of a training does.

    The interpreter does not tear itself down. Caches of torch and of trainers hold groups until then, also those that
    were destroyed, and each group has threads: one of gloo's that is ended so late may abort a process that is done.
    """
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    gc.collect()  # what closes its files when it goes
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def gather(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return whole tensors for those that are spread over the processes; every process must call it."""
    from torch.distributed.tensor import DTensor

    whole = {}
    for name, tensor in state.items():
        whole[name] = (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()
    return whole


def let_torchvision_load() -> None:
    """Declare two of torchvision's operators where its wheel is for CUDA and torch is not: no test runs them.

    Its import fails without them, and with it that of timm, PEFT, diffusers and Composer.
    """
    found = importlib.util.find_spec("torchvision")
    if found is None or not found.submodule_search_locations:
        return
    try:
        torch.ops.load_library(next(Path(found.submodule_search_locations[0]).glob("_C*.so")))
    except OSError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float threshold) -> Tensor")
