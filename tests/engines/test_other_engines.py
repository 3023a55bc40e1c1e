"""Ray, MPI and Slurm, in the opt-in group: they are large. All of it is bound to this machine."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ema_cli.averaging import average
from tests.engines.lost import first_worker_killed
from tests.engines.runs import files_below
from tests.engines.slurm import is_here, running_slurm
from tests.engines.test_equal_bytes import plans

pytestmark = pytest.mark.engines

BIN = Path(sys.executable).parent
CLIENT = "ray://127.0.0.1:9999"  # Ray takes ports of workers from 10002 on
COMMAND = """
from ema_cli.engines import tasks
from ema_cli.__main__ import main
tasks._LEAST_BYTES = 1 << 20
if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four checkpoints of 48 MB."""
    folder = tmp_path_factory.mktemp("others") / "one file"
    folder.mkdir()
    for step in (100, 200, 300, 400):
        random = torch.Generator().manual_seed(step)
        saved = {f"layer.{number}": torch.randn(1000, 1000, generator=random) for number in range(12)}
        save_file(saved, folder / f"step-{step}.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def alone(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process makes of it."""
    folder = tmp_path_factory.mktemp("alone")
    average(plans(run, "200ba"), folder / "x.safetensors")
    return files_below(folder)


def command(run: Path, folder: Path, engine: str) -> list[str]:
    """Return the program and its arguments, which write into `folder`."""
    (folder / "out").mkdir()
    (folder / "script.py").write_text(COMMAND)
    arguments = [run, "--name-clock", "ba", "--half-life", "200ba", "-o", "out/x.safetensors", "--on", engine]
    return [sys.executable, "script.py", "average", *map(str, arguments)]


@pytest.fixture
def ray_head(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A cluster of Ray's with two processors; yield the environment in which it is found."""
    pytest.importorskip("ray")
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": "/tmp"}
    start = [BIN / "ray", "start", "--head", "--node-ip-address=127.0.0.1", "--port=0", "--num-cpus=2"]
    start += [
        f"--ray-client-server-port={CLIENT.rpartition(':')[2]}",
        "--include-dashboard=false",
        "--disable-usage-stats",
        "--object-store-memory=80000000",
        "--block",
    ]
    head = subprocess.Popen(start, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert head.stdout is not None
        for line in head.stdout:
            if "Ray runtime started" in line:
                break
        yield environment
    finally:
        head.terminate()
        head.communicate(timeout=60)


@pytest.mark.parametrize(("address", "killed"), [("ray:auto", False), ("ray:auto", True), (CLIENT, True)])
def test_ray(run: Path, alone: dict[str, bytes], tmp_path: Path, ray_head: dict[str, str], address: str, killed: bool):
    """The bytes of one process, also where a worker is killed in the middle; on this machine, and by Ray's client."""
    arguments = command(run, tmp_path, address)
    with first_worker_killed(tmp_path / "out") if killed else nullcontext([0]) as died:
        done = subprocess.run(arguments, cwd=tmp_path, env=ray_head, stdout=subprocess.PIPE, text=True, timeout=120)
    assert died
    assert (done.returncode, done.stdout) == (0, "out/x.safetensors\n"), "nothing of Ray's own is there"
    assert files_below(tmp_path / "out") == alone


def mpiexec(number: int) -> list[str]:
    """Return what starts so many ranks, by Open MPI or MPICH."""
    found = BIN / "mpiexec"
    launch = [str(found) if found.exists() else "mpiexec"]
    said = subprocess.run([*launch, "--version"], capture_output=True, text=True, check=False).stdout
    return [*launch, *(["--oversubscribe"] if "Open MPI" in said or "prte" in said else []), "-n", str(number)]


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Open MPI run in a container, whose only user is root."""
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")


@pytest.mark.usefixtures("as_root")
def test_mpi(run: Path, alone: dict[str, bytes], tmp_path: Path):
    """The bytes of one process, of three ranks; and an error of rank 0 lets the others go."""
    pytest.importorskip("mpi4py")
    subprocess.run([*mpiexec(3), *command(run, tmp_path, "mpi")], cwd=tmp_path, check=True, timeout=120)
    assert files_below(tmp_path / "out") == alone
    again = [*mpiexec(3), sys.executable, "-m", "ema_cli", "average", "nowhere", "--half-life", "1ba", "--on", "mpi"]
    failed = subprocess.run(again, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert failed.returncode != 0
    assert "nowhere: does not exist" in failed.stderr


@pytest.mark.usefixtures("as_root")
def test_mpi_of_which_a_rank_is_killed(run: Path, alone: dict[str, bytes], tmp_path: Path):
    """MPI ends the whole job, and nothing is published; the same command makes it."""
    pytest.importorskip("mpi4py")
    arguments = [*mpiexec(3), *command(run, tmp_path, "mpi")]
    with first_worker_killed(tmp_path / "out") as killed:
        ended = subprocess.run(arguments, cwd=tmp_path, stdout=subprocess.PIPE, text=True, timeout=120, check=False)
    assert killed
    assert ended.returncode != 0
    assert "out/x.safetensors" not in ended.stdout.splitlines()  # beside the words of MPI itself
    assert not (tmp_path / "out" / "x.safetensors").exists()
    subprocess.run(arguments, cwd=tmp_path, check=True, timeout=120)
    assert files_below(tmp_path / "out") == alone


@pytest.mark.usefixtures("as_root")
def test_parts_that_mpi_starts(run: Path, alone: dict[str, bytes], tmp_path: Path):
    """Its variables say which part each rank is; one of them publishes, and prints the path."""
    pytest.importorskip("mpi4py")
    arguments = [word if word != "--on" else "--part" for word in command(run, tmp_path, "auto")]
    done = subprocess.run([*mpiexec(3), *arguments], cwd=tmp_path, check=True, timeout=120, stdout=subprocess.PIPE)
    assert done.stdout.decode().splitlines().count("out/x.safetensors") == 1
    assert files_below(tmp_path / "out") == alone


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Slurm with this machine as its node; yield the environment in which it is found."""
    if not is_here():
        pytest.skip("Slurm is not installed (Debian's slurm-wlm), or this is not root")
    (tmp_path / "slurm").mkdir()
    with running_slurm(tmp_path / "slurm") as environment:
        yield environment


@pytest.mark.parametrize(
    "launch",
    [
        ["srun", "-N", "1", "--ntasks-per-node", "3"],
        ["sbatch", "--wait", "--array=4-8:2", "--output=said-%a", "--wrap"],
    ],
    ids=lambda words: words[0],
)
def test_parts_that_slurm_starts(
    run: Path, alone: dict[str, bytes], tmp_path: Path, slurm: dict[str, str], launch: list[str]
):
    """As tasks of one job, and as the jobs of an array: its variables say which part each is; one publishes."""
    arguments = [word if word != "--on" else "--part" for word in command(run, tmp_path, "auto")]
    given = [shlex.join(arguments)] if launch[0] == "sbatch" else arguments
    done = subprocess.run([*launch, *given], cwd=tmp_path, env=slurm, capture_output=True, text=True, timeout=120)
    said = [path.read_text() for path in sorted(tmp_path.glob("said-*"))]
    assert done.returncode == 0, (done.stderr, said)
    assert len(said) == (3 if launch[0] == "sbatch" else 0)
    assert "".join([done.stdout, *said]).splitlines().count("out/x.safetensors") == 1
    assert files_below(tmp_path / "out") == alone
