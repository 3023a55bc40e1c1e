"""Warnings and notes of an average are made anew from the checkpoints and what lies around them, and compared."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Cli, write_hf_run, write_torch_run
from tests.inprocess import write_stored_run
from tests.release.verified import SINGLE, against, check, vouch

pytestmark = pytest.mark.slow

_FULL, _NARROW = "all bytes are those of", "tensors, and all files that were copied, are those of"


def damaged_last(folder: Path) -> None:
    """Write a run whose newest file is cut short, as while it is written."""
    write_torch_run(folder, [10, 20, 30])
    (folder / "step-40.pt").write_bytes((folder / "step-30.pt").read_bytes()[:300])


def of_statistics(folder: Path) -> None:
    """Write a run whose model has statistics of a batch norm, and names in wrappers."""
    folder.mkdir()
    for step in (10, 20, 30):
        model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
        torch.save(
            {"state_dict": torch.nn.DataParallel(model).state_dict(), "epoch": step}, folder / f"epoch_{step}.pt"
        )


def with_damage(folder: Path) -> None:
    """Write a run with a damaged checkpoint in its middle."""
    write_torch_run(folder, [10, 20, 30])
    (folder / "step-20.pt").write_bytes((folder / "step-20.pt").read_bytes()[:300])


def epochs_from_0(folder: Path) -> None:
    """Write a run whose epochs are counted from 0, which a note says."""
    folder.mkdir()
    for epoch in range(3):
        torch.save({"model": {"w": torch.full((3,), float(epoch))}, "epoch": epoch}, folder / f"e{epoch}.pt")


RUNS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "hf": (lambda folder: write_hf_run(folder, [100, 200, 300]), ("--half-life", "1ba")),
    "newest is half-written": (damaged_last, ("--half-life", "10ba")),
    "damage is left out": (with_damage, ("--half-life", "10ba", "--skip-damaged")),
    "statistics": (of_statistics, ("--half-life", "10ep")),
    "epochs from 0": (epochs_from_0, ("--half-life", "1ep")),
    "a pattern that matches nothing": (lambda folder: write_torch_run(folder, [1, 2]), ("--last", "2", "--exclude", "x",
                                       "--profile", "uniform")),
    "before the start": (with_damage, ("--half-life", "10ba", "--start", "30ba")),
    "stored": (lambda folder: write_stored_run(folder / "ema", ("20ba", "60ba"), steps=100),
               ("--from", "stored", "--half-life", "30ba")),
}  # fmt: skip


def average(cli: Cli, run: str, tmp_path: Path) -> Path:
    """Write a run and its average."""
    write, options = RUNS[run]
    write(tmp_path / "run")
    done = cli("average", "run", *options, "-o", SINGLE, "-q")
    assert done.code == 0, done
    return tmp_path / SINGLE


@pytest.mark.parametrize("run", RUNS)
def test_what_was_said_is_said_again(cli: Cli, tmp_path: Path, run: str):
    """Everything is compared, also what was said of files beside the checkpoints; the sentence claims it."""
    average(cli, run, tmp_path)
    done = cli("verify", SINGLE, "--against", "run", "--strict")
    overruled = "clocks are not" in done.err
    assert (done.code, _FULL in done.out or overruled) == (6 if overruled else 0, True), done
    assert "not compared" not in done.out + done.err


@pytest.mark.parametrize("kind", ["warnings", "notes"])
@pytest.mark.parametrize("run", RUNS)
def test_another_text_is_named_as_not_compared(cli: Cli, tmp_path: Path, run: str, kind: str):
    """What the checkpoints do not give may have been said of what is gone: nobody can tell, and it is named."""
    out = average(cli, run, tmp_path)
    vouch(out, lambda manifest: manifest[kind].append("x: was passed over"))
    assert check(out).problems == ()
    done = cli("verify", SINGLE, "--against", "run")
    assert (done.code, _NARROW in done.out) == (0, True), done
    assert f"not compared: {kind} of what lay around the checkpoints" in done.out
    strict = cli("verify", SINGLE, "--against", "run", "--strict")
    text = f"not compared: {kind} of what lay around the checkpoints (--strict)"
    assert (strict.code, text in strict.err) == (6, True)


@pytest.mark.parametrize("kind", ["warnings", "notes"])
@pytest.mark.parametrize("run", RUNS)
def test_a_text_that_is_left_out_is_seen(cli: Cli, tmp_path: Path, run: str, kind: str):
    """A problem where the checkpoints give it, else named: no sentence claims that it was compared."""
    out = average(cli, run, tmp_path)
    given: list[str] = []

    def edit(manifest: dict[str, Any]) -> None:
        given.extend(manifest[kind])
        manifest[kind] = []

    vouch(out, edit)
    verified = against(out, tmp_path / "run")
    assert bool(verified.problems or verified.not_compared) == bool(given), given


def test_the_trap_of_sparse_checkpoints_cannot_be_hushed_up(cli: Cli, tmp_path: Path):
    """That one checkpoint is nearly all of the average follows from the weights."""
    out = average(cli, "hf", tmp_path)
    vouch(out, lambda manifest: manifest.update(warnings=[]))
    (problem,) = against(out, tmp_path / "run").problems
    assert 'does not say in its warnings what the checkpoints give: "checkpoint-300 holds' in problem


def test_a_manifest_without_notes_is_one_without_its_notes(cli: Cli, tmp_path: Path):
    """The schema allows it for manifests of older versions; this version says what it says."""
    out = average(cli, "epochs from 0", tmp_path)
    vouch(out, lambda manifest: manifest.pop("notes"))
    verified = against(out, tmp_path / "run")
    assert verified.problems or verified.not_compared


def test_a_training_that_goes_on_changes_no_release(cli: Cli, tmp_path: Path):
    """Later checkpoints, and the inputs alone in another folder: the average holds."""
    out = average(cli, "newest is half-written", tmp_path)
    (tmp_path / "alone").mkdir()
    for step in (10, 20, 30):
        shutil.copy(tmp_path / f"run/step-{step}.pt", tmp_path / "alone")
    write_torch_run(tmp_path / "run", [40, 50])
    for run in ("run", "alone"):
        verified = against(out, tmp_path / run)
        assert verified.problems == ()
        assert verified.not_compared == ("warnings of what lay around the checkpoints",)
    assert cli("average", "alone", "--recipe", f"{SINGLE}.manifest.json", "-o", "again.safetensors", "-q").code == 0
    manifests = [(tmp_path / f"{name}.manifest.json").read_text() for name in (SINGLE, "again.safetensors")]
    assert manifests[0].replace(SINGLE, "again.safetensors") == manifests[1]


def test_stored_averages_of_a_training_that_was_resumed(cli: Cli, tmp_path: Path):
    """What is stored later, and passed over then, is nothing that the average had to say."""
    out = average(cli, "stored", tmp_path)
    folder = next(path for path in (tmp_path / "run/ema").iterdir() if path.is_dir())
    (folder.parent / "990ba").mkdir()
    (folder.parent / "990ba/20ba.safetensors").write_bytes(b"\x40")
    assert against(out, tmp_path / "run").problems == ()


def test_a_sample_compares_them_too(cli: Cli, tmp_path: Path):
    """But for values that are not finite, which may stand where it does not look."""
    out = average(cli, "hf", tmp_path)
    vouch(out, lambda manifest: manifest.update(warnings=[]))
    assert "does not say in its warnings" in against(out, tmp_path / "run", sample=True).problems[0]
