"""The digest of an averaging differs where any byte of its tensor files may, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ema_cli.engines import digest
from ema_cli.engines.digest import decided, digest_of
from ema_cli.job import Job
from ema_cli.manifest.fingerprint import fingerprints
from ema_cli.preparing import prepare
from ema_cli.writing.output_options import OutputOptions
from ema_cli.writing.target import parse_target
from tests.engines.runs import RUNS
from tests.engines.test_equal_bytes import plans


def job_of(run: Path, target: str = "x.safetensors", half_life: str = "200ba", **options: Any) -> Job:
    return prepare(
        plans(run, half_life), parse_target(run.parent / target), OutputOptions.parse(**options), force=False
    )


def said(job: Job, *, checksum: bool = False) -> str:
    return digest_of(decided(job, fingerprints(job.checkpoints, 1), checksum=checksum))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return RUNS["one file"](tmp_path / "one file")


def test_it_is_the_same_for_all_who_make_the_same(run: Path, tmp_path: Path):
    """Whoever opened the run, where it lies, and whatever is to be replaced."""
    once = said(job_of(run))
    assert said(job_of(run)) == once
    assert said(replace(job_of(run), force=True)) == once
    (tmp_path / "elsewhere").mkdir()
    assert said(job_of(run.rename(tmp_path / "elsewhere" / "one file"))) == once


@pytest.mark.parametrize(
    "other",
    [
        lambda run: said(job_of(run), checksum=True),
        lambda run: said(job_of(run, half_life="201ba")),
        lambda run: said(job_of(run, dtype="float32")),
        lambda run: said(job_of(run, target="x.pt")),
        lambda run: said(job_of(run, target="x", max_shard_size=9000)),
        lambda run: said(job_of(run, allow_non_finite=True)),
        lambda run: (run / "step-200.safetensors").unlink() or said(job_of(run)),
    ],
    ids=["sums", "weights", "type", "container", "shards", "what is let through", "checkpoints"],
)
def test_it_differs_with_what_decides_bytes(run: Path, other: Callable[[Path], str]):
    """Each by itself."""
    once = said(job_of(run))
    assert other(run) != once


@pytest.mark.parametrize("name", ["ema-cli", "numpy"])
def test_it_differs_with_the_versions(run: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    """So parts of two versions are not mixed, though no engine compares them."""
    once, own = said(job_of(run)), digest.versions()
    monkeypatch.setattr(digest, "versions", lambda: {**own, name: "0.0.1"})
    assert said(job_of(run)) != once


def test_it_differs_with_one_byte_of_a_checkpoint(run: Path):
    """By its fingerprint."""
    once = said(job_of(run))
    file = run / "step-200.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert said(job_of(run)) != once
