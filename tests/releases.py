"""A release as a workflow makes it: its very commands, in a folder of their own, with programs put before ours."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


def workflow(name: str) -> dict[str, Any]:
    """Return an example workflow, parsed."""
    parsed: dict[str, Any] = yaml.safe_load((ROOT / "docs" / "ci" / name).read_text())
    return parsed


def github_release(job: str) -> tuple[str, dict[str, str]]:
    """Return what a job of the workflow for GitHub runs to average, and its environment."""
    told = workflow("github-release.yml")["jobs"][job]
    step = next(each for each in told["steps"] if each.get("name") == "Average and verify")
    return step["run"], {**told["env"], **step.get("env", {})}


def gitlab_release(job: str) -> tuple[str, dict[str, str]]:
    """Return what a job of the pipeline for GitLab runs to average, and its environment."""
    pipeline = workflow("gitlab-ci.yml")
    told = pipeline[job]
    line = next(each for each in told["script"] if "release.sh" in each)
    return line, {**pipeline[told["extends"]]["variables"], **told["variables"]}


class Job:
    """A folder in which a job runs: with scripts/ as in a checkout of this repository."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.summary = folder / "step_summary"
        self.shims = folder / "shims"
        folder.mkdir()
        (folder / "scripts").symlink_to(ROOT / "scripts")

    def run(
        self, command: str, environment: Mapping[str, str], *, cpus: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as GitHub does, on so many processors."""
        full = {
            **os.environ,
            "PATH": f"{self.shims}:{BIN}:{os.environ['PATH']}",
            "GITHUB_ACTIONS": "true",
            "GITHUB_STEP_SUMMARY": str(self.summary),
            **environment,
        }
        return subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", command],
            cwd=self.folder,
            env=full,
            capture_output=True,
            text=True,
            timeout=300,
            preexec_fn=None if cpus is None else lambda: os.sched_setaffinity(0, range(cpus)),
        )

    def damage_after(self, command: str, python: str) -> None:
        """Have some Python run each time that `ema-cli` has done what `command`, a pattern of the shell, says."""
        self.shims.mkdir()
        shim = self.shims / "ema-cli"
        (self.shims / "damage.py").write_text(python)
        shim.write_text(
            f'#!/bin/bash\n{BIN}/ema-cli "$@"\ncode=$?\n'
            f'[[ $code == 0 && "$*" == {command} ]] && {sys.executable} {self.shims}/damage.py\nexit $code\n'
        )
        shim.chmod(0o755)

    def files(self, output: str = "release") -> dict[str, bytes]:
        """Return every file of an output, by its path inside it."""
        root = self.folder / output
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    @property
    def names(self) -> set[str]:
        """Return what lies in the folder, but for what was put there."""
        ours = {"scripts", "shims", "step_summary", "checkpoints"}
        return {path.name for path in self.folder.iterdir()} - ours


def steps(told: str) -> list[str]:
    """Return the steps that were begun, by the groups of the job's log."""
    return [line.removeprefix("::group::") for line in told.splitlines() if line.startswith("::group::")]
