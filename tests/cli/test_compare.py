"""`ema-cli compare`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.comparing.models import flat
from tests.conftest import Cli, write_hf_run, write_torch_run


def test_compare_on_the_command_line(cli: Cli, tmp_path: Path):
    """An average of ours and a checkpoint of another format are compared; numbers in JSON are those of float64."""
    saved = write_torch_run(tmp_path / "ckpts", [100, 200, 300])
    cli("average", "ckpts", "--half-life", "100ba", "-o", "out.safetensors")
    done = cli("compare", "out.safetensors", "ckpts/step-300.pt")
    assert (done.code, done.err) == (0, "")
    assert "3 tensors compared, 1 equal to the byte" in done.out
    assert [line.split()[0] for line in done.out.splitlines()[4:8]] == ["layer", "layer", "norm", "all"]
    told = cli("compare", "out.safetensors", "ckpts/step-300.pt", "--json", "--threads", "3").json
    assert (told["schema_version"], told["command"]) == (1, "compare")
    assert told == cli("compare", "out.safetensors", "ckpts/step-300.pt", "--json", "--threads", "1").json
    average = cli("inspect", "out.safetensors", "--json").json["tensors"]
    assert {each["name"] for each in told["tensors"]} == {each["name"] for each in average}
    first = cli("compare", "ckpts/step-100.pt", "ckpts/step-300.pt", "--json").json
    names = ["layer.weight", "layer.bias"]
    expected = torch.linalg.vector_norm(flat(saved[0], names) - flat(saved[2], names)).item()
    assert first["total"]["distance"] == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_fits(cli: Cli, tmp_path: Path, width: int):
    """In a terminal of 80 columns long names are folded; in one of 200 they are whole. No colour in a pipe."""
    long = "transformer.decoder.very_long_name_of_a_module_list.blocks.3"
    for number in (1, 2):
        save_file({f"{long}.weight": torch.full((3,), float(number))}, tmp_path / f"{number}.safetensors")
    done = cli("compare", "1.safetensors", "2.safetensors", env={"COLUMNS": str(width), "NO_COLOR": "1"})
    assert max(map(len, done.out.splitlines())) <= (width if width > 90 else 90)
    assert ("\x1b" in done.out, long in done.out) == (False, width == 200)


def test_compare_takes_folders_and_names_what_it_cannot(cli: Cli, tmp_path: Path):
    """A folder that is a checkpoint, or holds just one; of several, one is to be named; hostile names are escaped."""
    write_hf_run(tmp_path / "hf", [100, 200])
    write_torch_run(tmp_path / "one", [100])
    assert cli("compare", "hf/checkpoint-100", "one").code == 0
    done = cli("compare", "hf", "one")
    assert (done.code, "holds 2 checkpoints" in done.err) == (2, True)
    assert cli("compare", "nothing", "one").code == 2
    save_file({"other\x1b[31m": torch.zeros(1), "layer.bias": torch.zeros(4)}, tmp_path / "odd.safetensors")
    done = cli("compare", "odd.safetensors", "one")
    assert done.code == 0
    assert "only in A: 'other\\x1b[31m'" in done.out
    assert "only in B: 'layer.weight', 'norm.num_batches_tracked'" in done.out
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    assert cli("compare", "x.safetensors", "one", "--json").json["error"]["code"] == 4


def test_compare_of_raw_weights_with_their_averages(cli: Cli, tmp_path: Path):
    """A file that holds both is compared with itself by --weights, and --weights that neither has is refused."""
    raw, averages = {"layer.weight": torch.ones(2)}, {"layer.weight": torch.zeros(2)}
    torch.save({"state_dict": raw, "state_dict_ema": averages, "epoch": 1}, tmp_path / "both.pth.tar")
    save_file(averages, tmp_path / "plain.safetensors")
    assert cli("compare", "both.pth.tar", "plain.safetensors", "--json").json["total"]["equal"] == 0
    told = cli("compare", "both.pth.tar", "plain.safetensors", "--weights", "ema", "--json").json
    assert told["total"]["equal"] == 1
    assert cli("compare", "plain.safetensors", "plain.safetensors", "--weights", "ema").code == 4
