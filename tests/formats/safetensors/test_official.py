"""What the official reader finds in a file is compared with what is meant."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ema_cli.checkpoint import TensorSpec
from ema_cli.dtypes import DTYPES
from ema_cli.errors import CheckpointError, Unreadable
from ema_cli.formats.safetensors.official import different_tensors, digest_of, official_digest

SPECS = {"a": TensorSpec(DTYPES["F32"], (2,)), "b": TensorSpec(DTYPES["BF16"], (3, 1))}


def write(path: Path) -> Path:
    """Write a file of these tensors."""
    save_file({"a": torch.zeros(2), "b": torch.zeros(3, 1, dtype=torch.bfloat16)}, path)
    return path


def test_equal_tensors_differ_in_nothing(tmp_path: Path):
    """The same names, dtypes and shapes."""
    path = write(tmp_path / "x.safetensors")
    assert different_tensors(path, SPECS) == set()
    assert official_digest(path, 2) == digest_of(SPECS)


@pytest.mark.parametrize(
    ("specs", "different"),
    [
        ({"a": SPECS["a"]}, {"b"}),
        ({**SPECS, "c": SPECS["a"]}, {"c"}),
        ({"a": SPECS["a"], "c": SPECS["b"]}, {"b", "c"}),
        ({**SPECS, "b": TensorSpec(DTYPES["F16"], (3, 1))}, {"b"}),
        ({**SPECS, "a": TensorSpec(DTYPES["F32"], (1, 2))}, {"a"}),
    ],
)
def test_a_difference_names_the_tensors(specs: dict[str, TensorSpec], different: set[str], tmp_path: Path):
    """A tensor too few, too many, under another name, of another dtype or shape."""
    path = write(tmp_path / "x.safetensors")
    assert different_tensors(path, specs) == different
    assert official_digest(path, 2) != digest_of(specs)


def test_a_refused_file_is_told_from_one_that_cannot_be_read(tmp_path: Path):
    """The first is damaged; of the second nobody knows."""
    (tmp_path / "x.safetensors").write_bytes(b"no header")
    with pytest.raises(CheckpointError) as caught:
        official_digest(tmp_path / "x.safetensors", 2)
    assert type(caught.value) is CheckpointError
    with pytest.raises(Unreadable):
        official_digest(tmp_path / "none.safetensors", 2)
