"""The command line with several at work: launchers that start all parts at once, a series, and what `--json` tells."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Cli
from tests.engines.runs import RUNS, files_below
from tests.formats.adapters.adapters import write_run as write_adapters

LAW = ("--name-clock", "ba", "--half-life", "200ba")
SCRIPT = """
from ema_cli.__main__ import main
from ema_cli.engines import tasks
tasks._LEAST_BYTES, tasks._ALIGNED_BYTES = 1024, 64
if __name__ == "__main__":
    main()
"""
COUNT = 3
LAUNCHERS = {
    "slurm": lambda number: {"SLURM_PROCID": number, "SLURM_NTASKS": COUNT},
    "array": lambda number: {
        "SLURM_ARRAY_TASK_ID": 4 + 2 * number,
        "SLURM_ARRAY_TASK_MIN": 4,
        "SLURM_ARRAY_TASK_STEP": 2,
        "SLURM_ARRAY_TASK_COUNT": COUNT,
    },
    "torchrun": lambda number: {"RANK": number, "WORLD_SIZE": COUNT, "SLURM_PROCID": 0, "SLURM_NTASKS": 1},
    "kubernetes": lambda number: {"JOB_COMPLETION_INDEX": number, "JOB_COMPLETIONS": COUNT},
}


@pytest.mark.parametrize(
    "launcher", ["slurm", *(pytest.param(each, marks=pytest.mark.slow) for each in list(LAUNCHERS)[1:])]
)
def test_parts_that_a_launcher_starts_at_once(tmp_path: Path, cli: Cli, launcher: str):
    """All end with 0, one publishes and prints the path; the bytes are those of one process, and nothing is left."""
    RUNS["one file"](tmp_path / "run")
    (tmp_path / "alone").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "script.py").write_text(SCRIPT)
    assert cli("average", "run", *LAW, "-o", "alone/x.safetensors").code == 0
    command = [sys.executable, "script.py", "average", "run", *LAW, "-o", "out/x.safetensors", "--part", "auto"]
    own = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "PMI_", "OMPI_"))}
    started = [
        subprocess.Popen(
            command,
            cwd=tmp_path,
            env=own | {name: str(value) for name, value in LAUNCHERS[launcher](number).items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(COUNT)
    ]
    ended = [(process.communicate(timeout=120), process.returncode) for process in started]
    assert [code for _, code in ended] == [0] * COUNT, ended
    assert sorted(out for (out, _), _ in ended) == ["", "", "out/x.safetensors\n"]
    assert files_below(tmp_path / "out") == files_below(tmp_path / "alone")


KILLED = """
import os
import signal
from ema_cli import averaging
averaging.publish_outputs = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.parametrize("several", [("--on", "processes=1"), ("--part", "0/1")], ids=lambda words: words[0])
@pytest.mark.parametrize("output", ["x.safetensors", "x"])
def test_who_publishes_is_killed(tmp_path: Path, cli: Cli, several: tuple[str, str], output: str):
    """With a manifest made already, that stood in the way once: the same command publishes, here at once."""
    RUNS["transformers"](tmp_path / "run")
    average = ("average", "run", "--half-life", "200ba")
    for folder in ("alone", "out"):
        (tmp_path / folder).mkdir()
    assert cli(*average, "-o", f"alone/{output}").code == 0
    again = (*average, "-o", f"out/{output}", *several)
    (tmp_path / "killed.py").write_text(KILLED + SCRIPT)
    killed = subprocess.run([sys.executable, "killed.py", *again], cwd=tmp_path, capture_output=True, timeout=50)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert any(".ema-cli-parts-" in name and "manifest" in name for name in files_below(tmp_path / "out"))
    done = cli(*again)
    assert (done.code, done.out) == (0, f"out/{output}\n")
    assert files_below(tmp_path / "out") == files_below(tmp_path / "alone")


@pytest.mark.slow
def test_a_part_that_is_killed_when_it_publishes(tmp_path: Path, cli: Cli):
    """Any part that is run again publishes, and on the same machine at once; the bytes are those of one process."""
    RUNS["one file"](tmp_path / "run")
    average = ("average", "run", *LAW)
    for folder in ("alone", "out"):
        (tmp_path / folder).mkdir()
    assert cli(*average, "-o", "alone/x.safetensors").code == 0
    parts = (*average, "-o", "out/x.safetensors", "--part")
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "killed.py").write_text(KILLED + SCRIPT)
    for script, part, code in (("script.py", "0/2", 0), ("killed.py", "1/2", -signal.SIGKILL), ("script.py", "0/2", 0)):
        assert not (tmp_path / "out" / "x.safetensors").exists()
        done = subprocess.run([sys.executable, script, *parts, part], cwd=tmp_path, capture_output=True, timeout=50)
        assert done.returncode == code, done.stderr
    assert done.stdout == b"out/x.safetensors\n"
    assert files_below(tmp_path / "out") == files_below(tmp_path / "alone")


def test_a_series_by_workers(tmp_path: Path, cli: Cli):
    """Every average of it has the bytes of one process; `--json` tells seconds and bytes of each worker."""
    RUNS["one file"](tmp_path / "run")
    average = ("average", "run", "--name-clock", "ba", "--half-life", "50ba", "--half-life", "200ba", "--series")
    assert cli(*average, "-o", "alone/{clock}-{half_life}.safetensors").code == 0
    done = cli(*average, "-o", "workers/{clock}-{half_life}.safetensors", "--on", "processes=2", "--json")
    assert done.code == 0, done.err
    written = done.json["written"]
    assert len(written["workers"]) >= 1
    for share in written["workers"]:
        assert share["tasks"] >= 1
        assert share["seconds"] > 0
        assert share["kernel"] == written["kernel"]
    assert sum(share["bytes_read"] for share in written["workers"]) == written["bytes_read"] > 0
    files = files_below(tmp_path / "workers")
    assert len(files) > 6
    assert files == files_below(tmp_path / "alone")


def test_products_of_adapters_are_averaged_by_the_one_who_asks(tmp_path: Path, cli: Cli):
    """They are small. It says so, and the bytes are the same; so it is when they are verified."""
    write_adapters(tmp_path / "run")
    command = ("average", "run", "--half-life", "2ba", "--exact-lora", "2")
    assert cli(*command, "-o", "alone").code == 0
    done = cli(*command, "-o", "out", "--on", "processes=1")
    assert done.code == 0, done.err
    assert "products of adapters are small: averaged here, by no worker of processes=1" in done.err
    assert files_below(tmp_path / "out") == files_below(tmp_path / "alone")
    assert cli("verify", "out", "--against", "run", "--on", "processes=1").code == 0


def test_products_of_adapters_have_no_parts(tmp_path: Path, cli: Cli):
    """The error says why, and how it works; nothing is left."""
    write_adapters(tmp_path / "run")
    done = cli("average", "run", "--half-life", "2ba", "--exact-lora", "2", "-o", "out", "--part", "0/2")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "error: --exact-lora: averages products of adapters, which are small: --part does not\n"
        "hint:  leave out --part\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
