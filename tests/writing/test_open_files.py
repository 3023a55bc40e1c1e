"""The files of a sink: large ones go past the page cache, and nothing of it shows."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ema_cli import making, passes
from ema_cli.law.recipe import Recipe
from ema_cli.passes import plan_passes
from ema_cli.planning.series import make_series
from ema_cli.preparing import prepare
from ema_cli.runs.run import open_run
from ema_cli.storage import direct_stream, segments
from ema_cli.storage.direct_stream import DirectStream
from ema_cli.writing import open_files
from ema_cli.writing.output_options import OutputOptions
from ema_cli.writing.target import parse_target
from tests.conftest import Cli, write_hf_run, write_torch_run

FORMS = {
    "out.safetensors": ["--half-life", "20ba"],
    "several": ["--half-life", "20ba", "--half-life", "40ba"],
    "shards": ["--half-life", "20ba", "--max-shard-size", "1kB"],
    "without-sums.safetensors": ["--half-life", "20ba", "--no-manifest"],
}


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Make every file a large one, of segments of a page; return those that were written past the page cache."""
    made: list[Path] = []

    class Noted(DirectStream):
        def __init__(self, path: Path, *args: object, **options: object) -> None:
            super().__init__(path, *args, **options)  # type: ignore[arg-type]
            made.append(path)

    monkeypatch.setattr(open_files, "DirectStream", Noted)
    monkeypatch.setattr(direct_stream, "_LEAST_BYTES", 1)
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 1 << 12)
    return made


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder, but not the run."""
    files = (path for path in folder.rglob("*") if path.is_file() and "run" not in path.relative_to(folder).parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("name", FORMS)
def test_large_files_have_the_same_bytes(
    cli: Cli, tmp_path: Path, name: str, direct: list[Path], monkeypatch: pytest.MonkeyPatch
):
    """Those of the files beside them, manifest and sums, too; and nothing else is left."""
    write_hf_run(tmp_path / "run", range(10, 51, 10))
    with monkeypatch.context() as small:
        small.setattr(direct_stream, "_LEAST_BYTES", 1 << 30)
        assert cli("average", "run", *FORMS[name], "-o", name).code == 0
    assert not direct
    expected = contents(tmp_path)
    assert cli("average", "run", *FORMS[name], "-o", name, "--force", "--threads", 3).code == 0
    assert direct
    assert contents(tmp_path) == expected


def test_more_descriptors_are_allowed_for_files_that_are_open_twice(
    cli: Cli, tmp_path: Path, direct: list[Path], monkeypatch: pytest.MonkeyPatch
):
    """As many large shards have two each; where the hard limit is lower, they are written as any file."""
    write_hf_run(tmp_path / "run", [10, 20, 30])
    allowed: list[tuple[int, bool]] = []
    monkeypatch.setattr(making, "allow_descriptors", lambda count, *, twice: allowed.append((count, twice)))
    shards = ("average", "run", "--half-life", "20ba", "--max-shard-size", "1B", "-o")
    assert cli(*shards, "direct").code == 0
    count = len(direct)
    assert allowed == [(count, True)]
    assert count > 1
    monkeypatch.setattr(passes, "most_open_files", lambda: 2 * count - 1)
    assert cli(*shards, "plain").code == 0
    assert allowed == [(count, True), (count, False)]
    assert len(direct) == count


@pytest.mark.parametrize("options", [["-o", "out.pt"], ["-o", "again.pt", "--like-input"]])
def test_what_is_read_again_for_its_sums_is_written_as_any_file(
    cli: Cli, tmp_path: Path, options: list[str], direct: list[Path]
):
    """A `.pt`, which holds sums of its records, and a copy of one."""
    write_torch_run(tmp_path / "run", [10, 20, 30])
    assert cli("average", "run", "--half-life", "20ba", *options).code == 0
    assert not direct


def test_a_full_disk_is_one_error_and_leaves_nothing(
    cli: Cli, tmp_path: Path, direct: list[Path], monkeypatch: pytest.MonkeyPatch
):
    """Though another thread meets it, while the fold goes on."""
    write_hf_run(tmp_path / "run", range(10, 51, 10))

    def pwrite(descriptor: int, data: memoryview, position: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(direct_stream.os, "pwrite", pwrite)
    done = cli("average", "run", "--half-life", "20ba", "-o", "out.safetensors")
    assert done.code == 5
    assert "out.safetensors: cannot be written: No space left on device" in done.err
    assert "make room, or write elsewhere with -o" in done.err
    assert direct
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize(
    ("averages", "max_memory", "expected"),
    [(1, None, 8), (3, None, 24), (6, None, 28), (1, 1 << 40, 8), (6, 1 << 40, 32)],
)
def test_segments_are_part_of_the_memory(
    tmp_path: Path, averages: int, max_memory: int | None, expected: int, direct: list[Path]
):
    """Some for each average, within a bound; a quarter of the memory at most, and none where that would be few."""
    write_hf_run(tmp_path / "run", range(10, 51, 10))
    plans = make_series(
        open_run(tmp_path / "run"), [Recipe(half_life=f"{number}ba") for number in range(10, 10 + averages)]
    )
    job = prepare(plans[-averages:], parse_target(tmp_path / "out"), OutputOptions(), force=False)
    (only,) = plan_passes(job, 2, max_memory)
    assert only.segments == expected


def test_what_is_read_again_takes_no_memory_for_segments(tmp_path: Path, direct: list[Path]):
    """Nor a thread."""
    write_hf_run(tmp_path / "run", range(10, 51, 10))
    plans = make_series(open_run(tmp_path / "run"), [Recipe(half_life="20ba")])[-1:]
    job = prepare(plans, parse_target(tmp_path / "out.pt"), OutputOptions(), force=False)
    (only,) = plan_passes(job, 2, None)
    assert only.segments == 0
