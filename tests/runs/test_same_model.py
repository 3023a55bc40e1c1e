"""A foreign model in a run: the odd one out is named, and the hint leaves it out."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import Cli, make_tensors

LAW = ("--half-life", "1ba")


def save(folder: Path, *names: str, **more: torch.Tensor) -> None:
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names, 1):
        save_file({**make_tensors(number), **more}, folder / f"{name}.safetensors")


@pytest.mark.parametrize("odd", [1, 3, 5])
def test_the_odd_one_is_named_wherever_it_stands(cli: Cli, tmp_path: Path, odd: int):
    """The oldest, one in the middle or the newest: one line about it, none about the others; the hint works."""
    save(tmp_path / "run", *(f"step-{step}" for step in range(1, 6)))
    path = tmp_path / "run" / f"step-{odd}.safetensors"
    save_file({**load_file(path), "head": torch.zeros(3), "tail": torch.zeros(3)}, path)
    done = cli("average", "run", *LAW)
    assert done.code == 4
    (line,) = [line for line in done.err.splitlines() if line.startswith("error:")]
    assert line.count(".safetensors: ") == 1
    assert f"step-{odd}.safetensors: 'head' is F32 [3], but step-" in line
    assert "(and 1 more difference)" in line
    seen = cli("inspect", "run", "--json").json["run"]["differences"]
    assert [text.partition(":")[0] for text in seen] == [path.name]
    assert follow(cli, done.err) == 0


def follow(cli: Cli, text: str) -> int:
    """Run the command with the option that the hint gives; return the exit code."""
    hint = next(line for line in text.splitlines() if line.startswith("hint:"))
    return cli("average", "run", *LAW, "-o", "out", *shlex.split(hint[hint.index("--exclude") :])).code


def test_three_lines_at_most(cli: Cli, tmp_path: Path):
    """Five of another model: three are shown, the rest are counted, and one pattern leaves out all."""
    save(tmp_path / "run", *(f"step-{step}" for step in range(1, 8)))
    save(tmp_path / "run", *(f"step-{step}-critic" for step in range(11, 16)), value=torch.zeros(1))
    done = cli("average", "run", *LAW)
    assert (done.code, done.err.count("'value' is F32 [1]")) == (4, 3), done
    assert "2 more checkpoints of another model" in done.err
    assert "--exclude 'step-*-critic.safetensors'" in done.err
    assert follow(cli, done.err) == 0


def test_names_that_a_pattern_would_misread(cli: Cli, tmp_path: Path):
    """Brackets in a name are no pattern of the hint's."""
    save(tmp_path / "run", "[a]-step-1", "[a]-step-2", "[a]-step-3")
    path = tmp_path / "run" / "[a]-step-2.safetensors"
    save_file({"other": torch.zeros(1)}, path)
    done = cli("average", "run", *LAW)
    assert (done.code, follow(cli, done.err)) == (4, 0), done


def test_models_that_alternate_are_told_by_their_names(cli: Cli, tmp_path: Path):
    """As many of each: those of the newest stay, and the others' pattern does not match them."""
    save(tmp_path / "run", "G_step1", "G_step3", "G_step5")
    save(tmp_path / "run", "D_step2", "D_step4", "D_step6", score=torch.zeros(2))
    done = cli("average", "run", *LAW)
    assert (done.code, "--exclude 'G_step*.safetensors'" in done.err) == (4, True), done
    assert follow(cli, done.err) == 0
    assert set(load_file(next((tmp_path / "out").glob("*.safetensors")))) >= {"score"}
