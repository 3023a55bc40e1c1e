"""NeMo's archives: the weights are read where they lie in the tar archive; in parts or compressed they are refused."""

from __future__ import annotations

import gzip
import subprocess
from pathlib import Path

import pytest
import torch

from ema_cli.errors import CheckpointError, NoWeights
from ema_cli.formats import open_checkpoint
from tests.conftest import Cli
from tests.formats.arrays.test_archives import tar, weights
from tests.formats.reading import read_all


def test_the_weights_are_read_where_they_lie(tmp_path: Path) -> None:
    """Beside a configuration and a tokenizer, as save_to packs a folder."""
    members = (("./model_config.yaml", b"target: x"), ("./model_weights.ckpt", weights()), ("./t.model", b"t"))
    (tmp_path / "a.nemo").write_bytes(tar(*members))
    checkpoint = open_checkpoint(tmp_path / "a.nemo")
    assert read_all(checkpoint.tensors) == {"w": torch.arange(6.0).numpy().tobytes()}
    assert (checkpoint.format, [file.path.name for file in checkpoint.files]) == ("nemo", ["a.nemo"])


@pytest.mark.parametrize("name", ["mp_rank_00/model_weights.ckpt", "model_weights/__0_0.distcp"])
def test_a_model_in_parts_is_refused(name: str, tmp_path: Path) -> None:
    """Of tensor parallel trainings, and in folders of their own."""
    (tmp_path / "a.nemo").write_bytes(tar((f"./{name}", weights())))
    with pytest.raises(CheckpointError, match=f"in parts, as '{name}'") as caught:
        open_checkpoint(tmp_path / "a.nemo")
    assert "save_to" in (caught.value.hint or "")


def test_an_archive_without_weights_holds_none(tmp_path: Path) -> None:
    """A tar archive of anything else."""
    (tmp_path / "a.nemo").write_bytes(tar(("notes.txt", b"text")))
    with pytest.raises(NoWeights, match=r"without model_weights\.ckpt"):
        open_checkpoint(tmp_path / "a.nemo")


def test_a_compressed_archive_is_unpacked_as_the_hint_says(tmp_path: Path) -> None:
    """Old versions compressed them: the command in the hint makes one that is read."""
    (tmp_path / "a b.nemo").write_bytes(gzip.compress(tar(("./model_weights.ckpt", weights()))))
    with pytest.raises(CheckpointError, match="gzip") as caught:
        open_checkpoint(tmp_path / "a b.nemo")
    command = (caught.value.hint or "").partition(": ")[2].replace("FOLDER", "out")
    (tmp_path / "out").mkdir()
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    assert list(open_checkpoint(tmp_path / "out" / "a b.nemo").tensors.specs) == ["w"]


def test_a_run_of_archives_is_averaged_and_checked(cli: Cli, tmp_path: Path) -> None:
    """By the clocks in their names; `verify --against` makes the average anew."""
    (tmp_path / "run").mkdir()
    for step in (1, 2, 3):
        (tmp_path / "run" / f"step={step}.nemo").write_bytes(tar(("./model_weights.ckpt", weights())))
    assert cli("average", "run", "--half-life", "1ba", "-o", "out.safetensors").code == 0
    assert cli("verify", "out.safetensors", "--against", "run").code == 0
    refused = cli("average", "run", "--half-life", "1ba", "-o", "like.nemo", "--like-input")
    assert (refused.code, "nemo is read only" in refused.err) == (5, True), refused
