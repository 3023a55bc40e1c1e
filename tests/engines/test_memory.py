"""How much memory several take, each by itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "several",
    [("--on", "processes=1"), pytest.param(("--part", "0/1"), marks=pytest.mark.full)],
    ids=lambda words: words[0],
)
def test_what_a_worker_takes(tmp_path: Path, several: tuple[str, str]):
    """`--max-memory` holds for each process: the one who asks, its workers, a part. Here it is less than they took."""
    (tmp_path / "run").mkdir()
    for step in range(100, 700, 100):
        random = torch.Generator().manual_seed(step)
        saved = {f"layer.{number}": torch.randn(1024, 1024, generator=random) for number in range(8)}
        save_file(saved, tmp_path / "run" / f"step-{step}.safetensors")
    half_lives = [word for number in range(12) for word in ("--half-life", f"{100 + number}ba")]
    words = ["average", "run", "--name-clock", "ba", *half_lives, "-o", "out", "--force", "--threads", "16", *several]
    ours = [sys.executable, "-c", MEASURE, sys.executable, "-m", "ema_cli"]

    def most(*more: str) -> int:
        """Return the peak of the process that took most, in bytes."""
        done = subprocess.run([*ours, *words, *more], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return int(done.stdout.split()[-1]) << 10

    free, bounded = most(), most("--max-memory", "70MB")
    assert bounded <= 70_000_000
    assert bounded < 0.8 * free  # how much that is depends on how many threads get a block before none is left
