"""What libraries wrote is averaged as it lies there, and gives the average of what each library loads."""

from __future__ import annotations

import json
import os
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Cli, oracle
from tests.docs.pages import DOCS, table
from tests.libraries.loading import safetensors_files
from tests.libraries.rows import DATA, LIBRARIES, RUNS, Written


def weights(clocks: list[int], half_life: int) -> list[float]:
    """Return the share of each checkpoint where each is an update: the law, written step by step."""
    shares = [1.0]
    for older, newer in pairwise(clocks):
        kept = 2 ** -((newer - older) / half_life)
        shares = [kept * share for share in shares] + [1 - kept]
    return shares


def written_row(folder: str) -> Written:
    """Return the run in a folder; skip the test where it is not written anew, or what reads it is missing."""
    if "LIBRARY_FILES" in os.environ and not (DATA / folder).is_dir():
        pytest.skip("its library is not installed")
    if folder.startswith("orbax"):
        pytest.importorskip("tensorstore")
    return RUNS[folder]


def expected(row: Written, half_life: int) -> dict[str, torch.Tensor]:
    """Return the average in float64 of what the library loads."""
    saved = [row.load(DATA / row.folder / path) for path in row.checkpoints]
    return dict(oracle(saved, weights(list(row.checkpoints.values()), half_life)))


def _largest(value: torch.Tensor) -> float:
    return max([1.0, *value.double().abs().flatten().tolist()])


def test_the_page_has_each_library() -> None:
    """The table of what trainers write has a row for each library whose files are here."""
    rows = [cells[0] for cells in table(DOCS / "reference" / "what-your-trainer-writes.md", "library")]
    assert rows == list(LIBRARIES)


@pytest.mark.parametrize("folder", RUNS)
def test_what_is_said_of_a_good_run_is_no_warning(folder: str, cli: Cli, tmp_path: Path) -> None:
    """--strict passes wherever nothing is wrong; averages averaged again, or points that are none, are doubtful."""
    row = written_row(folder)
    clocks = list(row.checkpoints.values())
    law = ("--half-life", f"{clocks[-1] - clocks[0]}{row.unit}", "--update-interval", "every")
    done = cli("average", DATA / row.folder, *law, *row.arguments, "--strict", "--dry-run", "-o", tmp_path / "out")
    is_doubtful = folder.startswith("schedulefree") or "ema" in row.arguments
    assert done.code == (6 if is_doubtful else 0), done


@pytest.mark.slow
@pytest.mark.parametrize("folder", RUNS)
def test_a_run_that_a_library_wrote_is_averaged(folder: str, cli: Cli, tmp_path: Path) -> None:
    """With the arguments that the page names, every number is that of the average in float64, rounded once."""
    row = written_row(folder)
    clocks = list(row.checkpoints.values())
    half_life = clocks[-1] - clocks[0]
    law = ("--half-life", f"{half_life}{row.unit}", "--update-interval", "every")
    done = cli("average", DATA / row.folder, *law, *row.arguments, "-o", tmp_path / "out")
    assert done.code == 0, done
    copied = [file for file in row.side_files if file.endswith(".safetensors")]
    written = safetensors_files(tmp_path / "out")
    values = expected(row, half_life)
    assert written.keys() - {name for file in copied for name in load_file(tmp_path / "out" / file)} == values.keys()
    for tensor, value in values.items():
        assert written[tensor].dtype == value.dtype
        assert written[tensor].shape == value.shape
        assert torch.allclose(written[tensor].double(), value.double(), rtol=0, atol=1e-6 * _largest(value)), tensor
    assert cli("verify", tmp_path / "out", "--against", DATA / row.folder).code == 0
    for file in row.side_files:
        assert (tmp_path / "out" / file).is_file(), file
    newest = DATA / row.folder / list(row.checkpoints)[-1]
    for file in copied:
        assert (tmp_path / "out" / file).read_bytes() == (newest / file).read_bytes(), file


def test_what_olmo_core_merged_is_passed_over(cli: Cli, tmp_path: Path) -> None:
    """An average beside the checkpoints of the run neither enters nor stops it; it is listed, and refused by itself."""
    row = RUNS["olmo-core-3.0.0"]
    shutil.copytree(DATA / row.folder, tmp_path / "run")
    for step in (2000, 2500):
        merged = tmp_path / "run" / f"step{step}-merged"
        shutil.copytree(tmp_path / "run" / "step2000" / "model_and_optim", merged / "model_and_optim")
    done = cli("average", "run", "--half-life", "1000ba", "-o", "out.safetensors")
    assert done.code == 0, done
    manifest = json.loads((tmp_path / "out.safetensors.manifest.json").read_text())
    assert [entry["name"] for entry in manifest["inputs"]] == list(row.checkpoints)
    assert "step2500-merged" in cli("inspect", "run", "--half-life", "1000ba").out
    assert cli("average", "run/step2500-merged", "--half-life", "1000ba", "-o", "x.safetensors").code == 4


def test_mace_may_have_saved_averages(cli: Cli) -> None:
    """Its option ema puts them in the place of the model, and leaves no trace; its second stage is no average."""
    shown = " ".join(cli("inspect", DATA / "mace-0.3.16").out.split())
    assert "where MACE averaged while it trained (its option ema), these are the averages" in shown
    assert "small_run-1_epoch-3_swa.pt: taken for raw weights, although its name says averages" in shown
