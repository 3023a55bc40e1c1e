"""`--from stored` on the command line: what is suggested, refused and shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ema_cli.errors import NoWeights
from ema_cli.runs.stored import find_stored, open_stored
from tests.conftest import Cli


@pytest.mark.slow
def test_inspect_suggests_what_is_stored(cli: Cli, trained: tuple[Path, list[np.ndarray]], tmp_path: Path) -> None:
    """Beside raw checkpoints, `inspect` tells of stored averages, how near they come, and draws both profiles."""
    folder, seen = trained
    (tmp_path / "ema").symlink_to(folder)
    for step in (200, 400):
        save_file({"weight": seen[step - 1].astype(np.float32)}, tmp_path / f"step-{step}.safetensors")
    done = cli("inspect", str(tmp_path), str(folder.parent), "--half-life", "50ba")
    assert done.code == 2  # a folder that is no checkpoint beside another
    (tmp_path / "ema").unlink()
    (tmp_path / "ema").mkdir()
    for path in find_stored([folder]):
        there = tmp_path / "ema" / path.relative_to(folder)
        there.parent.mkdir(exist_ok=True)
        there.write_bytes(path.read_bytes())
    done = cli("inspect", str(tmp_path), "--half-life", "50ba")
    assert "Stored averages: 25ba, 100ba, at 10 clocks up to 400ba (--from stored)" in done.out
    assert "asked for, and reached" in done.out
    assert "Within 1%:" in done.out
    only = cli("inspect", str(tmp_path), "--from", "stored", "--half-life", "50ba")
    assert "ema/400ba/25ba.safetensors" in only.out


def test_inspect_says_what_to_store(cli: Cli, tmp_path: Path) -> None:
    """Where raw checkpoints are too far apart for a half-life and nothing is stored, `inspect` says what would do."""
    for step in (1000, 2000, 3000):
        save_file({"weight": np.full(3, step, dtype=np.float32)}, tmp_path / f"step-{step}.safetensors")
    done = cli("inspect", str(tmp_path), "--half-life", "50ba")
    assert "Checkpoints this far apart cannot make so short a half-life" in done.out
    assert 'EMA(model, half_life=("25ba", "100ba"))' in done.out


def test_a_folder_without_stored_averages(cli: Cli, tmp_path: Path) -> None:
    """Nothing stored is exit 3, with how to store some."""
    done = cli("average", str(tmp_path), "--from", "stored", "--half-life", "20ba")
    assert done.code == 3
    assert "ema.store" in done.err
    with pytest.raises(NoWeights):
        open_stored([tmp_path])


def test_options_for_raw_checkpoints_are_refused(cli: Cli, stored: Path) -> None:
    """How to read clocks and files of trainers has no place where averages say what they are."""
    done = cli("average", str(stored), "--from", "stored", "--half-life", "20ba", "--spacing", "100ba")
    assert done.code == 2
    assert "--spacing" in done.err
    assert cli("average", str(stored), "--from", "x", "--half-life", "20ba").code == 2
    assert cli("average", str(stored), "--half-life", "20ba", "--allow-approximate").code == 2


@pytest.mark.parametrize("columns", ["80", "200"])
def test_profiles_fit_the_width(columns: str, cli: Cli, stored: Path) -> None:
    """No line of the drawing is wider than the terminal, however long the clocks are."""
    done = cli("inspect", stored, "--from", "stored", "--half-life", "50ba", env={"COLUMNS": columns})
    drawn = done.out[done.out.index("asked for, and reached") :]
    assert max(map(len, drawn.splitlines())) <= int(columns)


def test_a_half_written_average_is_passed_over(cli: Cli, stored: Path) -> None:
    """Met in the search it is left out, with a warning; named, it is exit 3."""
    path = stored / "200ba/100ba.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    (stored / "200ba/gone.safetensors").symlink_to(stored / "nowhere")
    asked = ["--from", "stored", "--half-life", "50ba", "-o", "x.safetensors"]
    done = cli("average", stored, *asked, "--allow-approximate")
    assert done.code == 0, done
    assert "200ba/100ba.safetensors is passed over: half-written" in done.err
    assert cli("average", path, *asked).code == 3


def test_absolute_and_relative_paths_go_together(cli: Cli, stored: Path) -> None:
    """Folders may be named as one likes."""
    done = cli(
        "inspect", stored / "100ba", "ema/200ba", "ema/first.safetensors", "--from", "stored", "--half-life", "100ba"
    )
    assert done.code == 0, done
