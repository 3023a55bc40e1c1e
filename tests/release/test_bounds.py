"""Time and memory of small downloads: what is small to download is small to look at."""

from __future__ import annotations

import json
import os
import time
import tracemalloc
from pathlib import Path

import pytest

from ema_cli.errors import CheckpointError, UsageError
from ema_cli.formats.options import ReadOptions
from ema_cli.manifest.sums import MAX_SUMS_BYTES, parse_sums
from ema_cli.planning.gates import read_keys
from ema_cli.runs.tensor_rules import copied_names
from ema_cli.storage.small_file import read_small_file
from tests.conftest import Cli, write_torch_run
from tests.release.verified import SINGLE, SINGLE_SUMS, edit_mark, problems


def test_sums_of_newlines_take_no_memory():
    """Lines are read one by one, and the first that is no sum ends it."""
    text = b"\n" * MAX_SUMS_BYTES
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="line 1 is no sum"):
            parse_sums(text, "SHA256SUMS")
        assert tracemalloc.get_traced_memory()[1] < 2 * MAX_SUMS_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_sums_that_are_too_long_are_not_read(copy: Path):
    """A sparse file of any size takes nothing."""
    os.truncate(copy / SINGLE_SUMS, 1 << 40)
    assert any(f"{1 << 40} bytes are too many for this file" in problem for problem in problems(copy / SINGLE))


@pytest.mark.slow
def test_a_mark_of_many_checkpoints_is_shown_soon(tmp_path: Path, cli: Cli):
    """Of what a header lists, the newest are shown, and how many more there are; JSON has all."""
    write_torch_run(tmp_path / "pt", [1, 2])
    assert cli("average", "pt", "--half-life", "2ba", "-o", SINGLE, "-q").code == 0
    entries = [[f"step-{number}", f"{number}ba", 1 / 12_000] for number in range(12_000)]
    edit_mark(tmp_path / SINGLE, lambda mark: mark.update(checkpoints=entries))
    began = time.monotonic()
    done = cli("inspect", SINGLE)
    assert time.monotonic() - began < 10
    assert "and 11,500 older" in done.out
    assert "step-11999" in done.out
    assert len(cli("inspect", SINGLE, "--json").json["recipe"]["checkpoints"]) == 12_000


@pytest.mark.slow
def test_patterns_are_so_many_at_most(copy: Path, cli: Cli):
    """Each pattern is compared with each name: an option and a manifest may have so many."""
    with pytest.raises(UsageError, match="257 patterns are too many"):
        ReadOptions(copy=("*",) * 257)
    path = copy / f"{SINGLE}.manifest.json"
    manifest = json.loads(path.read_text())
    manifest["recipe"]["copy"] = ["x*"] * 257
    path.write_text(json.dumps(manifest))
    assert any("recipe.copy has more than 256 items" in problem for problem in problems(copy / SINGLE))


def test_patterns_are_compared_at_once():
    """Hundreds of patterns and thousands of names take no minutes; what matches is what a shell matches."""
    patterns = [f"layer.{number}.*a*b*c*d*e" for number in range(255)]
    names = [f"layer.{number}.{'abcd' * 20}" for number in range(5_000)]
    began = time.monotonic()
    assert copied_names(names, [*patterns, "layer.7.*[c-d]"]) == {names[7]}
    assert time.monotonic() - began < 5
    assert copied_names(["a.b", "A.b", "a|b", "ab"], ["a.*", "a|b"]) == {"a.b", "a|b"}
    assert copied_names(["a"], []) == frozenset()


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/tty", "/dev/stdin", "fifo", ".", "nothing"])
def test_only_regular_files_are_read(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch):
    """A device or a FIFO never ends, or never begins: it is not opened."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    if path == "/dev/stdin" and Path(path).resolve().is_file():
        pytest.skip("stdin is a file here")
    with pytest.raises(CheckpointError):
        read_small_file(Path(path), 10)
    with pytest.raises(UsageError, match="expect_keys"):
        read_keys(Path(path))


def test_a_list_of_keys_has_a_cap(tmp_path: Path):
    """A file of any size is refused by its size."""
    (tmp_path / "keys").write_text("")
    os.truncate(tmp_path / "keys", 1 << 40)
    with pytest.raises(UsageError, match="bytes are too many for this file"):
        read_keys(tmp_path / "keys")
    (tmp_path / "small").write_text("x" * 11)
    with pytest.raises(CheckpointError, match="11 bytes are too many for this file; at most 10 are read"):
        read_small_file(tmp_path / "small", 10)
