"""Which classes a file names whose code runs where it is loaded."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from ema_cli.formats.before import Before
from ema_cli.formats.copies.beside import beside_in_file
from ema_cli.formats.copies.classes import classes_in
from ema_cli.storage.location import location

PLAIN = {"state_dict": torch.nn.Linear(2, 2).state_dict(), "sizes": torch.Size([1]), "half": torch.ones(2).bfloat16()}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("value", "classes"),
    [
        (PLAIN, []),
        (torch.nn.Parameter(torch.ones(2)), []),
        ({"a": argparse.Namespace(x=torch.ones(1))}, ["argparse.Namespace"]),
        ({"a": {1: [print]}}, ["__builtin__.print"]),
        (torch.nn.Linear(1, 1), ["torch.nn.modules.linear.Linear"]),
    ],
)
def test_all_but_tensors_and_plain_containers_is_named(tmp_path: Path, value: Any, classes: list[str], zipped: bool):
    """In both of torch's formats; what torch.load takes with weights_only is not."""
    torch.save(value, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    found = [name for name in classes_in([location(tmp_path / "x.pt").open()]) if "_codecs" not in name]
    assert found == classes
    if not classes:
        torch.load(tmp_path / "x.pt", weights_only=True)


def test_pickles_are_looked_through_and_other_files_are_not(tmp_path: Path):
    """A plain pickle loads code as well; of one that cannot be read nobody knows."""
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(print))
    (tmp_path / "b.json").write_text('{"a": 1}')
    (tmp_path / "c.bin").write_bytes(b"\x80\x04\xff damaged")
    found = classes_in([location(tmp_path / name).open() for name in ("a.pkl", "b.json", "c.bin")])
    assert found == ["builtins.print", "whatever c.bin names, which cannot be read"]


@pytest.mark.parametrize("zipped", [True, False])
def test_a_description_that_was_read_before_is_not_read_again(tmp_path: Path, zipped: bool):
    """What was found in it counts, and what other pickles in the archive name."""
    path = tmp_path / "x.pt"
    torch.save(argparse.Namespace(x=torch.ones(1)), path, _use_new_zipfile_serialization=zipped)
    if zipped:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("x/inner/data.pkl", pickle.dumps(print))
    file = location(path).open()
    named = beside_in_file(file, [], Before()).named
    others = ["builtins.print"] if zipped else []
    assert classes_in([file], named) == classes_in([file]) == ["argparse.Namespace", *others]
    assert classes_in([file], {path: {"a.B"}}) == ["a.B", *others]
