"""What several test modules need: options of the whole suite, small runs on disk, and the command line."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from safetensors.torch import save_file

from tests.inprocess import InProcess

# Examples take what they take on a busy machine; a test that hangs is stopped by whoever runs it.
settings.register_profile("part", deadline=None, max_examples=25)
settings.register_profile("full", deadline=None, max_examples=1000)

# One thread in each process, here and in those that tests start: several processes run at a time as it is, and where
# others take the processors, threads that wait for each other take many times as long.
torch.set_num_threads(1)
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"

OWN_FILES = {"README.md", "ema-manifest.json", "SHA256SUMS"}  # of a folder, beside what is the model's
COMPOSER = Path(__file__).parent / "data" / "composer"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that `make test-full` gives."""
    parser.addoption("--full", action="store_true", help="run exhaustive loops whole, and the tests marked `full`")


def pytest_configure(config: pytest.Config) -> None:
    """Choose how many examples a property is tried with."""
    settings.load_profile("full" if config.getoption("full") else "part")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests marked `full` without --full."""
    if config.getoption("full"):
        return
    exhaustive = [item for item in items if item.get_closest_marker("full")]
    config.hook.pytest_deselected(items=exhaustive)
    items[:] = [item for item in items if not item.get_closest_marker("full")]


def pytest_collection_finish() -> None:
    """Leave what stays until the end out of each search for garbage: libraries, and thousands of tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether loops run whole; else they run a fixed part, with each kind of fault at each place once."""
    return bool(request.config.getoption("full"))


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Let this process go on at once where it would wait for the disk; the programs that tests start do wait.

    A machine that goes down takes the tests along. That nothing is published before the disk has it, and what becomes
    of an error there, is shown with programs of their own: tests/faults.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # which knows an open descriptor from a closed one, too
        yield


@pytest.fixture(scope="session", autouse=True)
def _default_signals() -> None:
    """Start programs with the signals' defaults, however the tests were started: nohup and `&` ignore some.

    What is ignored stays ignored when a program starts another; a handler does not pass on. So this process still goes
    on after a hang-up.
    """
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGXFSZ):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda _number, _frame: None)


class Outcome:
    """What a run of the command line gave."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        parsed: dict[str, Any] = json.loads(self.out)
        return parsed

    def __repr__(self) -> str:
        return f"exit {self.code}\n--- out\n{self.out}\n--- err\n{self.err}"


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run `ema-cli` with arguments in `tmp_path`, or in `cwd`: in this process, which saves an interpreter's start."""

    def run(*arguments: object, cwd: Path = tmp_path, env: Mapping[str, str] | None = None) -> Outcome:
        with monkeypatch.context() as patch:
            patch.chdir(cwd)
            for name, value in (env or {}).items():
                patch.setenv(name, value)
            program = InProcess(cwd, capsys)
            code, out = program(*arguments)
        return Outcome(code, out, program.err)

    return run


@pytest.fixture
def program(tmp_path: Path) -> Cli:
    """Run `ema-cli` as `cli` does, in a process of its own: for what only a process has, such as its memory."""

    def run(*arguments: object, cwd: Path = tmp_path, env: Mapping[str, str] | None = None) -> Outcome:
        command = [sys.executable, "-m", "ema_cli", *map(str, arguments)]
        environment = {**os.environ, **(env or {})}
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
        assert "Traceback" not in done.stderr, done.stderr
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


def make_tensors(seed: int) -> dict[str, torch.Tensor]:
    """Return a small model's state dict: floats, and an integer counter that is copied."""
    random = torch.Generator().manual_seed(seed)
    return {
        "layer.weight": torch.randn(4, 3, generator=random),
        "layer.bias": torch.randn(4, generator=random),
        "norm.num_batches_tracked": torch.tensor(seed),
    }


def write_torch_run(folder: Path, steps: Sequence[int], name: str = "step-{}.pt") -> list[dict[str, torch.Tensor]]:
    """Save one `{"model": ..., "step": ...}` per step, as a plain training loop does; return the state dicts."""
    folder.mkdir(parents=True, exist_ok=True)
    saved = []
    for step in steps:
        tensors = make_tensors(step)
        torch.save({"model": tensors, "step": step}, folder / name.format(step))
        saved.append(tensors)
    return saved


def write_hf_run(
    folder: Path, steps: Sequence[int], epoch_length: int = 100, most_steps: int | None = None
) -> list[dict[str, torch.Tensor]]:
    """Write `checkpoint-N` folders as the Hugging Face Trainer leaves them; return the state dicts.

    `most_steps`: with how many the training ends, as the Trainer says; None where it does not.
    """
    saved = []
    for step in steps:
        checkpoint = folder / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        tensors = make_tensors(step)
        save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
        state = {"epoch": step / epoch_length, "global_step": step, "log_history": [], "num_input_tokens_seen": 0}
        state |= {} if most_steps is None else {"max_steps": most_steps}
        (checkpoint / "trainer_state.json").write_text(json.dumps(state, indent=2))
        (checkpoint / "config.json").write_text('{\n  "dtype": "float32",\n  "model_type": "tiny"\n}\n')
        (checkpoint / "tokenizer.json").write_text("{}")
        torch.save({"state": {}, "param_groups": []}, checkpoint / "optimizer.pt")
        torch.save({"rng": torch.zeros(4)}, checkpoint / "rng_state.pth")
        torch.save({"lr": 1}, checkpoint / "scheduler.pt")
        torch.save({"args": 1}, checkpoint / "training_args.bin")
        saved.append(tensors)
    return saved


def oracle(saved: Sequence[Mapping[str, torch.Tensor]], weights: Sequence[float]) -> dict[str, torch.Tensor]:
    """Return the weighted average in float64, rounded once; integers as in the newest."""
    averaged = {}
    for name, newest in saved[-1].items():
        if newest.is_floating_point():
            total = sum(w * tensors[name].double() for w, tensors in zip(weights, saved, strict=True))
            averaged[name] = torch.as_tensor(total).to(newest.dtype)
        else:
            averaged[name] = newest
    return averaged
