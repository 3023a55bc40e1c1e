"""More averages than fit into the memory are made in several passes, and no byte shows it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from ema_cli import averaging, passes
from ema_cli.averaging import average, perform
from ema_cli.errors import UsageError
from ema_cli.job import Job
from ema_cli.law.recipe import Recipe
from ema_cli.making import Recording
from ema_cli.passes import plan_passes
from ema_cli.planning.plan import make_plan
from ema_cli.planning.series import make_series
from ema_cli.preparing import prepare
from ema_cli.runs.run import open_run
from ema_cli.writing.output_options import OutputOptions
from ema_cli.writing.target import parse_target
from tests.conftest import write_hf_run
from tests.inprocess import InProcess


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A series of ten averages, at five clocks."""
    write_hf_run(tmp_path / "run", range(10, 51, 10))
    plans = make_series(open_run(tmp_path / "run"), [Recipe(half_life="15ba"), Recipe(half_life="40ba")])
    return prepare(plans, parse_target(tmp_path / "series"), OutputOptions(), force=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_that_fits_is_one_pass(job: Job):
    """Which is the job itself."""
    (only,) = plan_passes(job, 2, None)
    assert only.job is job


@pytest.mark.parametrize("most", [1, 3, 4, 9])
@pytest.mark.parametrize("checksum", [False, True])
def test_several_passes_give_the_same_bytes(
    most: int, checksum: bool, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Every file of every average, with the sums of what was read; each pass reads only what enters it."""
    whole = perform(job, recording=Recording(checksum))
    once = contents(tmp_path / "series")
    (tmp_path / "series").rename(tmp_path / "before")
    monkeypatch.setattr(passes, "most_open_files", lambda: most)
    parts = plan_passes(job, 2, None)
    assert len(parts) == -(-10 // most)
    assert max(len(each.job.plans) for each in parts) <= most
    read: list[tuple[int, int]] = []
    result = perform(job, recording=Recording(checksum), progress=lambda done, total: read.append((done, total)))
    assert contents(tmp_path / "series") == once
    assert result.manifests == whole.manifests
    assert result.bytes_read == sum(each.job.bytes_to_read for each in parts) == read[-1][0]
    assert {total for _, total in read} == {result.bytes_read}
    assert all(before <= after for (before, _), (after, _) in itertools.pairwise(read))
    assert len(parts[0].job.checkpoints) < len(parts[-1].job.checkpoints)


def test_several_passes_are_told_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """By the command before it reads a tensor, and by --dry-run; of one pass nothing is said."""
    monkeypatch.chdir(tmp_path)
    run, told = InProcess(tmp_path, capsys), list[str]()
    write_hf_run(tmp_path / "run", range(10, 51, 10))

    def make_pass(*arguments: object) -> None:
        told.append(capsys.readouterr().err)
        make(*arguments)  # type: ignore[arg-type]

    make = averaging.make_pass
    monkeypatch.setattr(averaging, "make_pass", make_pass)
    series = ("average", "run", "--half-life", "15ba", "--series", "-o")
    words = "5 averages in 3 passes, at most 2 in each: more do not fit into the memory"
    assert run(*series, "one")[0] == 0, run.err
    assert ("passes" in told[0], len(told)) == (False, 1)
    monkeypatch.setattr(passes, "most_open_files", lambda: 2)
    assert run(*series, "several", "--dry-run")[0] == 0
    assert words in run.err
    told.clear()
    assert run(*series, "several")[0] == 0, run.err
    assert (words in told[0], len(told)) == (True, 3)


def test_a_series_reads_each_byte_once(tmp_path: Path):
    """Of one law or of several: all averages take what is read of a checkpoint, and no byte of it is read again."""
    write_hf_run(tmp_path / "run", range(10, 51, 10))
    run = open_run(tmp_path / "run")
    recipes = [Recipe(half_life="15ba"), Recipe(half_life="40ba"), Recipe(profile="uniform")]
    stored = sum(spec.nbytes for checkpoint in run.checkpoints for spec in checkpoint.tensors.specs.values())
    for number in (1, 3):
        plans = make_series(run, recipes[:number])
        assert len(plans) == 5 * number
        assert average(plans, tmp_path / f"series-{number}").bytes_read == stored


def test_little_memory_is_more_passes_and_not_an_error(job: Job, monkeypatch: pytest.MonkeyPatch):
    """Until not even one average fits; the passes are of nearly equal size."""
    monkeypatch.setattr(passes, "peak_bytes", lambda: 30_000_000)
    monkeypatch.setattr(passes, "_LEAST_BUFFER_BYTES", 0)
    memory = 30_000_000 + (32 << 20) + 3 * 1024
    counts = {}
    for kilobytes in (400, 800, 2000):
        counts[kilobytes] = [len(each.job.plans) for each in plan_passes(job, 2, memory + kilobytes * 1000)]
    assert counts[2000] == [10]
    assert len(counts[400]) > len(counts[800]) > 1
    assert all(sum(each) == 10 and max(each) - min(each) <= 1 for each in counts.values())
    with pytest.raises(UsageError, match="too few; this average needs"):
        plan_passes(job, 2, memory)


def test_each_average_of_a_series_is_what_it_would_be_alone(job: Job, tmp_path: Path):
    """Tensors, side files, manifest and sums, to the byte."""
    perform(job)
    for plan, output in zip(job.plans, job.outputs, strict=True):
        average(make_plan(plan.run, plan.recipe), tmp_path / output.target.path.name)
        assert contents(tmp_path / output.target.path.name) == contents(output.target.path)
