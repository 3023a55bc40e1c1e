"""Slurm on this machine, as one node: its daemons, started for a test and ended with it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PATIENCE_SECONDS = 60
_SETTINGS = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE
"""
NEEDED = ("srun", "sinfo", "slurmctld", "slurmd")


def is_here() -> bool:
    """Return whether Slurm is installed, and this process may start it."""
    return os.getuid() == 0 and all(shutil.which(name) for name in NEEDED)


@contextmanager
def running_slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Start Slurm with one node, which is this machine; yield the environment in which `srun` finds it."""
    ports = []
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        ports += [each.getsockname()[1] for each in (one, two)]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = socket.gethostname().partition(".")[0]
    settings = folder / "slurm.conf"
    settings.write_text(_SETTINGS.format(host=host, controller=ports[0], node=ports[1], folder=folder))
    environment = {**os.environ, "SLURM_CONF": str(settings)}
    with (folder / "said").open("w") as said:
        daemons = [
            subprocess.Popen(command, env=environment, stdout=said, stderr=said)
            for command in (["slurmctld", "-D"], ["slurmd", "-D"])
        ]
        try:
            _wait_for_node(environment, folder)
            yield environment
        finally:
            for daemon in reversed(daemons):
                daemon.terminate()
                daemon.wait(timeout=_PATIENCE_SECONDS)


def _wait_for_node(environment: dict[str, str], folder: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        asked = subprocess.run(
            ["sinfo", "--noheader", "--format=%t"], env=environment, capture_output=True, text=True, check=False
        )
        if asked.stdout.strip() == "idle":
            return
        logs = [path.read_text() for path in (*folder.glob("*.log"), folder / "said")]
        assert time.monotonic() < deadline, f"{asked.stdout}{asked.stderr}{''.join(logs)}"
        time.sleep(0.2)
