"""A tie that is in a file: names of one tensor, of which other checkpoints of the run store only one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import Cli, oracle

LAW = ("--half-life", "100ba")
TIED, ALONE = "tied", "alone"


def embeddings(step: int) -> torch.Tensor:
    """Return the embeddings of a step."""
    return torch.randn(4, 2, generator=torch.Generator().manual_seed(step))


def write(run: Path, kinds: dict[int, str], *, own: bool = False) -> None:
    """Write a checkpoint for each step: with the head tied to the embeddings, its `own`, or without one."""
    for step, kind in kinds.items():
        folder = run / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "epoch": 1}))
        w = embeddings(step)
        if kind == TIED:
            head = w.clone() if own else w
            torch.save(
                {"embed.weight": w, "lm_head.weight": head, "n": torch.tensor(step)}, folder / "pytorch_model.bin"
            )
        else:
            save_file({"embed.weight": w, "n": torch.tensor(step)}, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("kinds", "names"),
    [
        ({100: TIED, 200: TIED, 300: ALONE}, {"embed.weight", "n"}),
        ({100: ALONE, 200: TIED, 300: TIED}, {"embed.weight", "lm_head.weight", "n"}),
        ({100: TIED, 200: ALONE, 300: TIED}, {"embed.weight", "lm_head.weight", "n"}),
    ],
)
@pytest.mark.parametrize("target", ["out.safetensors", "out"])
def test_a_tie_in_the_file_makes_one_model(
    kinds: dict[int, str], names: set[str], target: str, cli: Cli, tmp_path: Path
) -> None:
    """Whichever of them store the tied name: the output has the newest's names, and says what was taken as one."""
    write(tmp_path / "run", kinds)
    done = cli("average", "run", *LAW, "-o", target)
    assert done.code == 0, done
    assert "'lm_head.weight'" in done.err
    assert "one tensor" in done.err
    path = tmp_path / target
    written = load_file(path / "model.safetensors" if path.is_dir() else path)
    assert written.keys() == names
    expected = oracle([{"w": embeddings(step)} for step in kinds], (0.25, 0.25, 0.5))["w"]
    for name in names - {"n"}:
        torch.testing.assert_close(written[name], expected, rtol=0, atol=1e-6)
    assert cli("verify", target, "--against", "run").code == 0
    assert cli("inspect", "run", *LAW).code == 0


@pytest.mark.parametrize("kinds", [{100: TIED, 200: ALONE}, {100: ALONE, 200: TIED}])
def test_a_head_of_its_own_is_no_tie(kinds: dict[int, str], cli: Cli, tmp_path: Path) -> None:
    """Equal numbers in other bytes prove nothing: these are two models."""
    write(tmp_path / "run", kinds, own=True)
    done = cli("average", "run", *LAW, "-o", "out")
    assert done.code == 4
    assert "'lm_head.weight'" in done.err


def test_several_averages_share_one_reading(cli: Cli, tmp_path: Path) -> None:
    """Two half-lives of such a run are each what they are alone."""
    write(tmp_path / "run", {100: TIED, 200: ALONE, 300: TIED})
    assert cli("average", "run", "--half-life", "50ba", "--half-life", "100ba", "-o", "both").code == 0
    assert cli("average", "run", "--half-life", "50ba", "-o", "alone").code == 0
    one = load_file(tmp_path / "both" / "ema-50ba" / "model.safetensors")
    other = load_file(tmp_path / "alone" / "model.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
