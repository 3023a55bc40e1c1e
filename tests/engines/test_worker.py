"""What a worker finds wrong with its range: the error of one machine, with its exit code, and the worker's name."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from ema_cli.averaging import average, perform
from ema_cli.engines.engine import Engine
from ema_cli.engines.worker import name_of_worker
from ema_cli.errors import CheckpointError, NonFiniteError
from ema_cli.folding.kernel.choice import VARIABLE
from ema_cli.preparing import prepare
from ema_cli.writing.target import parse_target
from tests.engines.lost import Wrapped
from tests.engines.runs import RUNS, files_below
from tests.engines.test_equal_bytes import plans

pytestmark = pytest.mark.usefixtures("small_tasks")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of one file each, beside folders for what is made of it."""
    for folder in ("refused", "alone", "workers"):
        (tmp_path / folder).mkdir()
    return RUNS["one file"](tmp_path / "one file")


def change(file: Path, name: str, value: float) -> None:
    """Set one element of a tensor, in a file that is written anew; several threads may."""
    saved, fresh = load_file(file), file.with_name(f"fresh-{os.urandom(4).hex()}")
    saved[name].view(-1)[-3] = value
    save_file(saved, fresh, metadata={"format": "pt"})
    fresh.replace(file)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_value_that_is_not_finite(tmp_path: Path, run: Path, executor: Executor, value: float):
    """Its tensor is named; where it is let through, the manifest says what that of one process says."""
    change(run / "step-200.safetensors", "layer.1.weight", value)
    made = plans(run, "200ba")
    with pytest.raises(NonFiniteError) as alone:
        average(made, tmp_path / "refused" / "x.safetensors")
    with pytest.raises(NonFiniteError) as caught:
        average(made, tmp_path / "refused" / "x.safetensors", executor=executor)
    assert caught.value.fact == f"{alone.value.fact} (worker {name_of_worker()})"
    assert (caught.value.subject, caught.value.exit_code) == (alone.value.subject, 6)
    assert files_below(tmp_path / "refused") == {}
    results = [
        average(made, tmp_path / folder / "x.safetensors", executor=by, allow_non_finite=True)
        for folder, by in (("alone", None), ("workers", executor))
    ]
    assert results[1].non_finite == results[0].non_finite == ("layer.1.weight",)
    assert files_below(tmp_path / "workers") == files_below(tmp_path / "alone")


def test_a_checkpoint_that_changes(tmp_path: Path, run: Path, executor: Executor):
    """It is the same error whoever saw it, and nothing is left."""
    job = prepare(plans(run, "200ba"), parse_target(tmp_path / "refused" / "x.safetensors"), force=False)

    def change_first(function: Callable[..., Any], *arguments: Any) -> Any:
        change(run / "step-200.safetensors", "embeddings", 1.0)
        return function(*arguments)

    with pytest.raises(CheckpointError, match=rf"changed .*\(worker {name_of_worker()}\)") as caught:
        perform(job, by=Engine("x", Wrapped(executor, change_first)))
    assert (caught.value.exit_code, list((tmp_path / "refused").iterdir())) == (3, [])


def test_workers_of_two_kernels(tmp_path: Path, run: Path):
    """Which one a worker has is told; the bytes are the same."""
    made = plans(run, "200ba")
    average(made, tmp_path / "alone" / "x.safetensors")

    def with_numpy(function: Callable[..., Any], *arguments: Any) -> Any:
        before = os.environ.pop(VARIABLE, None)
        os.environ[VARIABLE] = "numpy"
        try:
            return function(*arguments)
        finally:
            os.environ.pop(VARIABLE)
            if before is not None:
                os.environ[VARIABLE] = before

    job = prepare(made, parse_target(tmp_path / "workers" / "x.safetensors"), force=False)
    with ThreadPoolExecutor(1) as one:
        result = perform(job, by=Engine("x", Wrapped(one, with_numpy, lambda task: task.number % 2 == 0)))
    kernels = {share.kernel for share in result.workers}
    assert "numpy (EMA_KERNEL says so)" in kernels
    assert result.kernel == ", ".join(sorted(kernels))
    assert files_below(tmp_path / "workers") == files_below(tmp_path / "alone")
