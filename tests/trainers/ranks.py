"""Trainings of several processes on the CPU, each process a module of this folder; and what those processes need."""

from __future__ import annotations

import atexit
import gc
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

REPOSITORY = Path(__file__).parents[2]
# What processes of a training import that may be imported before they are several. Lightning reads the rank when it is.
_IMPORTED = {"deepspeed": ("deepspeed",), "transformers": ("transformers.trainer",)}


@cache
def _server() -> subprocess.Popen[str]:
    """Return the process that starts those of trainings; it ends with this one."""
    # No GPU, where there is one, and no network: the files are what matters.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tests.trainers.rank_server"]
    server = subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(server.communicate)
    return server


def launch(writer: str, folder: Path, *arguments: object, ranks: int = 2, package: str = "tests.trainers") -> Path:
    """Run `PACKAGE.WRITER FOLDER ARGUMENTS` as the processes of one training; return the folder it filled."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks,
              "NODE_RANK": 0, "GROUP_RANK": 0}  # fmt: skip
    environments = [
        {**os.environ, **{name: str(value) for name, value in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()}}
        for rank in range(ranks)
    ]
    with tempfile.NamedTemporaryFile("r") as told:
        request = {
            "module": f"{package}.{writer}",
            "arguments": list(map(str, (folder, *arguments))),
            "environments": environments,
            "imported": [name for part, names in _IMPORTED.items() if part in writer for name in names],
            "told": told.name,
            "seconds": 300,
        }
        server = _server()
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        codes = json.loads(server.stdout.readline())
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


@cache
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
