"""Who reads a run from a store: ema-cli, which averages it, and programs that only read the same objects."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from .commands import HERE, ema_cli
from .measure import Command

CONNECTIONS = 16
OURS = "ema-cli"
LABELS = {
    OURS: "ema-cli",
    "whole": "obstore, whole objects in pieces",
    "pieces": "obstore, 8 MiB a request in pieces",
    "bytes": "obstore, 4 MiB a request at once",
    "rclone": "rclone cat, a process for each object",
    "aws": "aws s3 cp, a process for each object",
    "limit": "16 connections, by their rate alone",
}
READERS = tuple(name for name in LABELS if name not in (OURS, "limit"))
# One connection a process, so that there are as many of all together; and no file of credentials, as there is none.
_VERSION = re.compile(r"\d+\.\d[\w.]*")
_AWS_CONFIG = "[default]\ns3 =\n  max_concurrent_requests = 1\n"


def near(run: str, names: Sequence[str], half_life: str, work: Path, tools: Path) -> dict[str, Command]:
    """Return the commands that read the objects `names` below `run`; `tools` is an environment with more programs."""
    reader = [sys.executable, str(HERE / "store_reader.py"), run, str(CONNECTIONS)]
    found = {
        OURS: ours(run, half_life, work),
        "whole": Command((*reader, "0", "pieces"), {}, work / "none", work / "whole.log"),
        "pieces": Command((*reader, "8", "pieces"), {}, work / "none", work / "pieces.log"),
        "bytes": Command((*reader, "4", "bytes"), {}, work / "none", work / "bytes.log"),
    }
    if rclone := _program("rclone", tools):
        remote = ":s3,provider=Other,env_auth=true,endpoint='" + os.environ["AWS_ENDPOINT_URL"] + "':"
        address = remote + run.removeprefix("s3://")
        each = [shlex.join([rclone, "--config", "/dev/null", "cat", f"{address}/{name}"]) for name in names]
        found["rclone"] = _side_by_side(each, work / "rclone.log")
    if aws := _program("aws", tools):
        config = work / "aws-config"
        config.write_text(_AWS_CONFIG)
        each = [shlex.join([aws, "s3", "cp", "--quiet", f"{run}/{name}", "-"]) for name in names]
        found["aws"] = _side_by_side(each, work / "aws.log", {"AWS_CONFIG_FILE": str(config)})
    return found


def ours(run: str, half_life: str, work: Path) -> Command:
    """Return our command: the average to one file, without a manifest, as no other program here writes one."""
    output = work / "average.safetensors"
    law = ("--half-life", half_life, "--no-manifest", "--force")
    return Command((*ema_cli(), "average", run, *law, "-q", "-o", str(output)), {}, output, work / "ema-cli.log")


def versions(known: Mapping[str, str], weed: str, tools: Path) -> dict[str, str]:
    """Return the versions of all that takes part: those of `known`, and of the programs here."""
    found = {name: known[name] for name in ("python", "ema-cli")}
    found["obstore"] = importlib.metadata.version("obstore")
    commands = {"SeaweedFS": [weed, "version"], "rclone": [_program("rclone", tools), "version"]}
    for name, command in {**commands, "aws": [_program("aws", tools), "--version"]}.items():
        if command[0] is None:
            found[name] = "not installed"
            continue
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        number = _VERSION.search(said)
        found[name] = number[0] if number else "unknown"
    return found


def _program(name: str, tools: Path) -> str | None:
    """Return the path of a program of this environment, of `tools`, or of the system."""
    folders = [str(Path(sys.executable).parent), str(tools / "bin"), os.environ["PATH"]]
    return shutil.which(name, path=os.pathsep.join(folders))


def _side_by_side(commands: Sequence[str], log: Path, environment: dict[str, str] | None = None) -> Command:
    """Return a command that runs all of these at once, and fails where one of them does."""
    script = "".join(f'{command} > /dev/null & ids="$ids $!"\n' for command in commands)
    whole = f"{script}for id in $ids; do wait $id || exit 1; done"
    return Command(("sh", "-c", whole), environment or {}, log.with_suffix(".none"), log)
