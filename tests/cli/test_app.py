"""The program as a process: terminals, pipes and signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ema_cli._version import __version__
from ema_cli.folding.kernel.choice import chosen_kernel
from tests.conftest import Cli


def test_a_closed_pipe_is_no_traceback(run: Path, tmp_path: Path):
    """`ema-cli inspect | head -1` ends quietly."""
    command = f"{sys.executable} -m ema_cli inspect ckpts --half-life 20ba | head -c 1"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_no_arguments_show_the_help(cli: Cli):
    """Without arguments: the help, and the code for usage."""
    done = cli()
    assert done.code == 2
    assert "Usage: ema-cli" in done.out


def test_the_version_names_the_kernel(cli: Cli):
    """Two lines: the version, and what does the arithmetic."""
    assert cli("--version").out == f"ema-cli {__version__}\nkernel: {chosen_kernel()}\n"


@pytest.mark.slow
def test_a_kernel_that_is_not_there_is_an_error(run: Path, tmp_path: Path):
    """EMA_KERNEL names one of two, and nothing is averaged with another."""
    command = [sys.executable, "-m", "ema_cli", "average", "ckpts", "--half-life", "20ba", "-o", "x.pt"]
    environment = os.environ | {"EMA_KERNEL": "fast"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("error: EMA_KERNEL: there is no kernel 'fast'\nhint:  one of numpy, compiled\n")
    assert not (tmp_path / "x.pt").exists()


SLOW_RUN = """
import sys, time
from pathlib import Path
from ema_cli.cli import app
from ema_cli.folding import buffers, fold
real = fold.run_block
def slow(*arguments):
    yield from real(*arguments)
    Path("started").touch()
    time.sleep(0.05)
fold.run_block = slow
buffers.divide_memory = lambda *_, **__: buffers.BufferSizes(threads=2, most_workers=2, rows=2, row_bytes=64)
sys.argv[1:] = ["average", "ckpts", "--half-life", "200ba", "--threads", "2", "-f", "-o", "x.safetensors"]
app.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_the_old_output_and_no_litter(run: Path, tmp_path: Path, number: int, code: int):
    """Ctrl-C or a kill in the middle: the old output as it was, nothing else, and the signal's code."""
    (tmp_path / "x.safetensors").write_bytes(b"old")
    with subprocess.Popen([sys.executable, "-c", SLOW_RUN], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "started").exists() and time.monotonic() < deadline:
            assert process.poll() is None
        process.send_signal(number)
        _, err = process.communicate()
    assert process.returncode == code
    assert "Traceback" not in err
    (tmp_path / "started").unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpts", "x.safetensors"]
    assert (tmp_path / "x.safetensors").read_bytes() == b"old"


@pytest.mark.slow
def test_after_a_kill_the_next_run_cleans_up(cli: Cli, run: Path, tmp_path: Path):
    """SIGKILL leaves a hidden folder; the next average beside it removes it and succeeds."""
    with subprocess.Popen([sys.executable, "-c", SLOW_RUN], cwd=tmp_path) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "started").exists() and time.monotonic() < deadline:
            assert process.poll() is None
        process.kill()
    assert any(path.name.startswith(".ema-cli-") for path in tmp_path.iterdir())
    assert cli("average", "ckpts", "--half-life", "200ba", "-o", "x.safetensors").code == 0
    assert not any(path.name.startswith(".ema-cli-") for path in tmp_path.iterdir())
