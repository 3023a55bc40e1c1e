"""Numbers of any size: what averages, verifies; what is out of range is one clear error."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.conftest import Cli


def write(folder: Path, *names: str) -> None:
    """Write files of torch's under these names."""
    folder.mkdir()
    for value, name in enumerate(names):
        torch.save({"model": {"w": torch.full((3,), float(value))}}, folder / name)


@pytest.mark.parametrize("digits", [18, 19, 20, 60, 230])
def test_a_number_in_a_name_that_no_counter_reaches_is_no_clock(tmp_path: Path, cli: Cli, digits: int):
    """Clocks in files are below 2 ** 63, and those in names, too; a manifest with them is read again."""
    write(tmp_path / "run", f"step-{'8' * digits}1.pt", f"step-{'8' * digits}2.pt")
    done = cli("average", "run", "--half-life", "1ba", "-o", "out.safetensors", "-q")
    assert (done.code == 0) == (digits + 1 <= 19), done
    if done.code == 0:
        assert cli("verify", "out.safetensors", "--against", "run").code == 0
        assert cli("report", "out.safetensors", "-q").code == 0
    else:
        assert (done.code, "records no clock in batches" in done.err) == (4, True)


@pytest.mark.parametrize(
    "options",
    [
        ("--half-life", "1ba", "--epoch-length", "1e30ba"),
        ("--half-life", "1ba", "--epoch-length", f"{'9' * 40}e30ba"),
        ("--half-life", "1tok", "--spacing", "1e30tok"),
    ],
)
def test_a_clock_that_the_user_makes_too_large_is_an_error(tmp_path: Path, cli: Cli, options: tuple[str, ...]):
    """A product of what is allowed may be out of range."""
    write(tmp_path / "run", "epoch_1.pt", "epoch_2.pt")
    done = cli("average", "run", *options, "-o", "out.safetensors", "-q")
    assert done.code == 4
    assert "and clocks are less than 1e30" in done.err


@pytest.mark.parametrize("length", ["1e28ba", "0.0000000001ba"])
def test_large_and_small_clocks_are_read_again(tmp_path: Path, cli: Cli, length: str):
    """What is in range verifies, and has its page."""
    write(tmp_path / "run", "epoch_1.pt", "epoch_2.pt")
    half_life = ("--half-life", length, "--epoch-length", length, "--update-interval", "every")
    done = cli("average", "run", *half_life, "-o", "out.safetensors", "-q")
    assert done.code == 0, done
    assert cli("verify", "out.safetensors", "--against", "run").code == 0
    assert cli("report", "out.safetensors", "-q").code == 0


@pytest.mark.parametrize("digits", [40, 200])
def test_a_number_in_a_name_that_the_user_calls_a_clock_is_in_range(tmp_path: Path, cli: Cli, digits: int):
    """The user's word makes no clock that nothing else could hold."""
    write(tmp_path / "run", f"x-{'8' * digits}1.pt", f"x-{'8' * digits}2.pt")
    done = cli("average", "run", "--half-life", "1ba", "--name-clock", "ba", "-o", "out.safetensors", "-q")
    assert (done.code, "clocks are less than 1e30" in done.err) == (4, True)
