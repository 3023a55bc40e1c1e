"""Candidates: whole for whoever evaluates them, and finished only where one wins."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ema_cli import Recipe, average, make_plan, open_run, tune
from ema_cli.errors import OutputError
from ema_cli.job import Job
from ema_cli.storage import output_stream
from ema_cli.tuning import workshop
from ema_cli.tuning.candidate import Candidate
from tests.conftest import write_hf_run, write_torch_run
from tests.tuning.evaluations import asked, contents

HALF_LIVES = ["200ba", "400ba", "800ba"]
OUTPUTS = ["best", "best.safetensors", "best.pt"]
FAR = 1e9


def metric(path: Path) -> float:
    """Return a metric that is best at 400ba, by what a candidate says of itself."""
    half_life = asked(path).get("half_life")
    return FAR if half_life is None else abs(float(half_life.removesuffix("ba")) - 400)


def file_of(path: Path) -> Path:
    """Return the file with the tensors of a candidate."""
    return path / "model.safetensors" if path.is_dir() else path


@pytest.fixture
def expected(tmp_path: Path) -> Callable[[str], dict[str, bytes]]:
    """Make a run; what `average` publishes of it under a name."""
    write_hf_run(tmp_path / "run", range(100, 2001, 100))
    (tmp_path / "alone").mkdir()

    def averaged(output: str) -> dict[str, bytes]:
        average(make_plan(open_run([tmp_path / "run"]), Recipe(half_life="400ba")), tmp_path / "alone" / output)
        return published(tmp_path / "alone" / output)

    return averaged


def published(path: Path) -> dict[str, bytes]:
    """Return the files of an average, without manifest and sums."""
    return contents(path) if path.is_dir() else {path.name: path.read_bytes()}


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_candidate_has_the_bytes_of_average_while_it_is_evaluated(
    output: str, tmp_path: Path, expected: Callable[[str], dict[str, bytes]]
):
    """Side files, too; manifest and sums are made for the one that wins."""
    wanted = expected(output)
    seen = []

    def evaluate(path: Path) -> float:
        if asked(path).get("half_life") == "400ba":
            seen.append(published(path))
            assert {each.name for each in path.parent.iterdir()} == {output}
            assert not (path / "ema-manifest.json").exists()
        return metric(path)

    tune(open_run([tmp_path / "run"]), tmp_path / output, evaluate=evaluate, half_lives=HALF_LIVES)
    assert seen == [wanted]


def test_the_disk_has_to_have_the_winner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Eight others would take the disk several times as long, and are removed."""
    write_torch_run(tmp_path / "run", range(100, 2001, 100))
    synced = []

    def sync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        os.fdatasync(descriptor)

    monkeypatch.setattr(output_stream.os, "fsync", sync)
    tune(open_run([tmp_path / "run"]), tmp_path / "best.pt", evaluate=metric, half_lives=HALF_LIVES)
    assert sorted(path.name for path in synced if "best.pt" in path.name) == [
        "best.pt",
        "best.pt.manifest.json",
        "best.pt.sha256",
    ]


def overwrite(path: Path) -> None:
    with file_of(path).open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"changed!")


def put_beside(path: Path) -> None:
    (path / "results.json" if path.is_dir() else path.with_name(f"{path.name}.sha256")).write_text("0.5")


def replace(path: Path) -> None:
    shutil.copy(file_of(path), path.parent / "other")
    (path.parent / "other").replace(file_of(path))


def remove(path: Path) -> None:
    shutil.rmtree(path.parent)


def link(path: Path) -> None:
    (path.parent / "link").hardlink_to(file_of(path))
    (path.parent / "link").write_bytes(b"")


@pytest.mark.parametrize("change", [overwrite, put_beside, replace, remove, link])
@pytest.mark.parametrize("output", OUTPUTS)
def test_what_an_evaluation_changes_in_a_candidate_is_not_published(
    output: str, change: Callable[[Path], None], tmp_path: Path, expected: Callable[[str], dict[str, bytes]]
):
    """The winner is made again; no input is reached by way of a candidate."""
    wanted, inputs = expected(output), published(tmp_path / "run")

    def evaluate(path: Path) -> float:
        result = metric(path)
        change(path)
        return result

    tune(open_run([tmp_path / "run"]), tmp_path / output, evaluate=evaluate, half_lives=HALF_LIVES)
    assert published(tmp_path / output) == wanted
    assert published(tmp_path / "run") == inputs
    assert {path.name for path in tmp_path.iterdir()} == {
        "run",
        "alone",
        *(path.name for path in (tmp_path / "alone").iterdir()),
    }


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"half_lives": HALF_LIVES}, [1, 3]),
        ({"half_lives": ["1ba", "2ba", "400ba"]}, [1, 1]),
        ({"between": ("100ba", "1600ba"), "tries": 5}, [1, 4, 1]),
    ],
)
def test_what_nobody_has_changed_is_not_made_again(
    settings: dict[str, Any], expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """One reading for all averages, those of a grid, too; the last checkpoint is copied."""
    write_torch_run(tmp_path / "run", range(100, 2001, 100))
    made = []
    original = workshop.make_candidates

    def make_candidates(job: Job, *rest: Any) -> list[Candidate]:
        made.append(len(job.plans))
        return original(job, *rest)

    monkeypatch.setattr(workshop, "make_candidates", make_candidates)
    tune(open_run([tmp_path / "run"]), tmp_path / "best", evaluate=metric, **settings)
    assert made == expected


def test_checkpoints_may_be_gone_when_the_winner_is_published(
    tmp_path: Path, expected: Callable[[str], dict[str, bytes]]
):
    """A training deletes old ones while evaluations run; the manifest says what they were."""
    wanted = expected("best")

    def evaluate(path: Path) -> float:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return metric(path)

    tune(open_run([tmp_path / "run"]), tmp_path / "best", evaluate=evaluate, half_lives=HALF_LIVES)
    assert published(tmp_path / "best") == wanted


def test_what_was_put_in_the_place_of_the_output_meanwhile_is_not_replaced(tmp_path: Path):
    """Evaluations take hours; it may be replaced only where it is ours, as before them."""
    write_torch_run(tmp_path / "run", range(100, 2001, 100))

    def evaluate(path: Path) -> float:
        (tmp_path / "best").mkdir(exist_ok=True)
        (tmp_path / "best" / "thesis.tex").write_text("mine")
        return metric(path)

    with pytest.raises(OutputError, match=r"thesis\.tex"):
        tune(open_run([tmp_path / "run"]), tmp_path / "best", evaluate=evaluate, half_lives=HALF_LIVES, force=True)
    assert (tmp_path / "best" / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize(
    ("reason", "expected"), [(OSError(errno.EIO, "bad disk"), OutputError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
def test_where_the_winner_cannot_be_finished_nothing_is_left(
    reason: BaseException, expected: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The disk may say only at the end that it has not what was written; or somebody ends it just then."""
    write_torch_run(tmp_path / "run", range(100, 2001, 100))

    def sync(descriptor: int) -> None:
        raise reason

    monkeypatch.setattr(output_stream.os, "fsync", sync)
    with pytest.raises(expected):
        tune(open_run([tmp_path / "run"]), tmp_path / "best.pt", evaluate=metric, half_lives=HALF_LIVES)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
