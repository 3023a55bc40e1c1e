"""Averages in the form of their input, loaded by each library's own loader, compared, and trained on from.

`make test-libraries` gives the Python that has the libraries, in LIBRARY_PYTHON; the programs are in `resume/`.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Cli

PYTHON = os.environ.get("LIBRARY_PYTHON", "")
REPOSITORY = Path(__file__).parents[2]
LEFT = ("--copy", "*_extra_state*")  # empty, of Megatron's modules
# By library: what the average is called, and what its command needs.
PROGRAMS = {
    "mmengine": ("averaged.pth", ()),
    "mmcv": ("averaged.pth", ()),
    "fairseq": ("averaged.pt", ()),
    "ultralytics": ("averaged.pt", ("--weights", "ema")),
    "olmo_core": ("averaged", ()),
    "torchtitan": ("averaged", ()),
    "megatron fully_reshardable": ("averaged", ("--masters", *LEFT)),
    "megatron plain": ("averaged", ("--masters", *LEFT)),
    "megatron dp_reshardable": ("averaged", ("--drop", "optimizer", *LEFT)),
}

pytestmark = pytest.mark.skipif(not PYTHON, reason="make test-libraries runs it")


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_library_goes_on_from_an_average(program: str, cli: Cli, tmp_path: Path) -> None:
    """Its own loader takes the average; before the first step the model holds it, and after the step it does not."""
    library, *kind = program.split()
    output, options = PROGRAMS[program]

    def run(what: str) -> None:
        command = [PYTHON, "-W", "ignore", "-m", f"tests.libraries.resume.{library}", what, str(tmp_path), *kind]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
        if what == "train" and "ModuleNotFoundError" in done.stderr:
            pytest.skip(f"{library} is not installed: {done.stderr.strip().splitlines()[-1]}")
        assert done.returncode == 0, done.stdout + done.stderr

    run("train")
    done = cli("average", "run", "--profile", "uniform", "--like-input", "-o", output, *options)
    assert done.code == 0, done
    verify = cli("verify", output, "--against", "run", "--like-input")
    assert verify.code == 0, verify
    run("resume")
