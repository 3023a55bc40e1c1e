"""A staging folder that others see stays while anybody uses it, and goes when nobody has for days."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from ema_cli.storage.lease import Held
from ema_cli.storage.staging.local import Staging
from ema_cli.storage.staging.shared import SharedStaging

DIGEST = "0123456789abcdef" * 4
DAY = 86400


def shared(target: Path) -> Path:
    """Leave the folder of a run that was killed."""
    with SharedStaging(target, DIGEST) as staging:
        (staging.folder / "part").write_text("made")
        with staging.working("part-0"):
            pass
        staging.keep()
    return staging.folder


def age(folder: Path, days: float) -> None:
    """Let all in a folder be so many days old."""
    then = time.time() - days * DAY
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (then, then))


def test_its_name_is_that_of_the_digest(tmp_path: Path):
    """So all who make the same average find it."""
    assert shared(tmp_path / "out").name == f".ema-cli-parts-{DIGEST[:16]}"
    assert shared(tmp_path / "out") == shared(tmp_path / "out")


@pytest.mark.parametrize(("days", "stays"), [(0, True), (6.9, True), (7.1, False)])
def test_what_nobody_finished_goes_after_seven_days(tmp_path: Path, days: float, stays: bool):
    """With the next run that writes to the same folder, whatever average that makes."""
    folder = shared(tmp_path / "out")
    age(folder, days)
    with Staging(tmp_path / "another"):
        pass
    assert folder.exists() is stays


@pytest.mark.parametrize("name", ["part-1-0123", "publishing"])
def test_a_lease_that_is_renewed_spares_it(tmp_path: Path, name: str):
    """However old all else in it is: a part may wait in a queue, and a task takes its time."""
    folder = shared(tmp_path / "out")
    age(folder, 30)
    (folder / ".tasks" / name).write_text("renewed now")
    then = time.time() - 30 * DAY
    os.utime(folder / ".tasks", (then, then))
    with Staging(tmp_path / "another"):
        pass
    assert (folder / "part").read_text() == "made"


def test_one_at_a_time_publishes(tmp_path: Path):
    """Who is second is told so, and the claim of the first is as it was."""
    with SharedStaging(tmp_path / "out", DIGEST) as staging, staging.publishing(seconds=1) as first:
        with pytest.raises(Held, match="another run"), staging.publishing(seconds=1):
            pass
        assert first.is_ours()
    assert list(tmp_path.iterdir()) == []
