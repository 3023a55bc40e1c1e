"""What the tests on trainers' own files share: no network, and Composer's recurrence as the oracle."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainers.ranks import let_torchvision_load

Tensors = Mapping[str, torch.Tensor]

# Half a unit in the last place, as a share of the value, and a thousandth of that for the arithmetic before it.
HALF_ULP = {dtype: torch.finfo(dtype).eps / 2 * 1.001 for dtype in (torch.bfloat16, torch.float16, torch.float32)}


@pytest.fixture(scope="session", autouse=True)
def offline() -> Iterator[None]:
    """Keep the libraries from the network; they read this when they are first imported."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
            patch.setenv(name, "1")
        let_torchvision_load()
        yield


def require(package: str) -> None:
    """Fail with the reason where a package is not installed; a process of its own imports it."""
    assert importlib.util.find_spec(package), f"{package} is missing; make test-trainers installs it"


def names(folder: Path) -> set[str]:
    """Return the names of what lies in a folder."""
    return {path.name for path in folder.iterdir()}


def load_dcp(folder: Path) -> dict[str, Any]:
    """Return all that a folder of torch.distributed.checkpoint holds, nested as it was saved, by torch's own loader."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    loaded: dict[str, Any] = {}
    _load_state_dict(loaded, FileSystemReader(folder), planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    return loaded


def recurrence(
    saved: Sequence[Tensors], clocks: Sequence[float], half_life: float, interval: float = 1
) -> dict[str, torch.Tensor]:
    """Return Composer's average in float64, event by event: `average * s + newest * (1 - s)`.

    Integers are those of the newest checkpoint that was folded.
    """
    smoothing = math.exp(-math.log(2) * interval / half_life)

    def fold(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        return old * smoothing + new.double() * (1 - smoothing) if new.is_floating_point() else new

    average: dict[str, torch.Tensor] = {}
    passed = 0
    for tensors, clock in zip(saved, clocks, strict=True):
        events = math.floor(clock / interval)
        if clock < min(1, interval) or (average and events == passed):
            continue
        if not average:
            average = {name: new.double() if new.is_floating_point() else new for name, new in tensors.items()}
            passed = events
        for _ in range(events - passed):
            average = {name: fold(average[name], new) for name, new in tensors.items()}
        passed = events
    return average


def assert_rounds(actual: Tensors, exact: Tensors) -> None:
    """Check names, integers, and that each float is the exact one rounded once to its own dtype.

    Values are around 1, and every step of float32 arithmetic before the rounding may cost half of 1.2e-7 of that.
    """
    assert sorted(actual) == sorted(exact)
    for name, tensor in actual.items():
        if tensor.is_floating_point():
            slack = HALF_ULP[tensor.dtype]
            torch.testing.assert_close(tensor.double(), exact[name], rtol=slack, atol=3e-7, msg=name)
        else:
            assert torch.equal(tensor, exact[name]), name
