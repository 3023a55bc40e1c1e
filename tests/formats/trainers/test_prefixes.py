"""Names without the prefixes of wrappers: torch's own wrappers go, names of the model stay, and all of it is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import CheckpointError
from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import ReadOptions
from tests.formats.reading import read_all, stored_bytes


def opened(folder: Path, names: list[str], *, keep: bool = False) -> Checkpoint:
    """Save a tensor under each name, filled with its number, and open the file."""
    torch.save({name: torch.full((2,), float(number)) for number, name in enumerate(names)}, folder / "a.pt")
    return open_checkpoint(folder / "a.pt", ReadOptions(keep_prefix=keep))


def test_names_that_only_look_like_wrappers_stay(tmp_path: Path) -> None:
    """A prefix within a part of a name, or before some of the names, is the model's own."""
    names = ["module.a", "b_orig_mod.c", "\nmodule.d"]
    checkpoint = opened(tmp_path, names)
    assert (list(checkpoint.tensors.specs), checkpoint.notes) == (names, ())


# Names as saved -> names of the bare model, and what is said to be removed.
CASES: dict[str, tuple[list[str], list[str], str]] = {
    "torch.compile": (["_orig_mod.a.w", "_orig_mod.b"], ["a.w", "b"], "_orig_mod."),
    "DDP": (["module.a.w", "module.b"], ["a.w", "b"], "module."),
    "both": (["module._orig_mod.a.w", "module._orig_mod.b"], ["a.w", "b"], "_orig_mod., module."),
    "the other way": (["_orig_mod.module.a.w", "_orig_mod.module.b"], ["a.w", "b"], "_orig_mod., module."),
    "a part compiled": (["a._orig_mod.w", "b"], ["a.w", "b"], "_orig_mod."),
    "FSDP": (["_fsdp_wrapped_module.a._fsdp_wrapped_module.w", "b"], ["a.w", "b"], "_fsdp_wrapped_module."),
    "activation checkpointing": (
        ["a._checkpoint_wrapped_module.w", "b._checkpoint_wrapped_module._orig_mod.w"],
        ["a.w", "b.w"],
        "_checkpoint_wrapped_module., _orig_mod.",
    ),
    "twice": (["module.module.a", "module.module.b"], ["a", "b"], "module."),
    "twice compiled": (["_orig_mod._orig_mod.a"], ["a"], "_orig_mod."),
}


@pytest.mark.parametrize("label", CASES)
def test_prefixes_go_and_are_named(label: str, tmp_path: Path) -> None:
    """The names are the bare model's, in the same order, each with its own bytes; a note lists what was removed."""
    saved, bare, removed = CASES[label]
    checkpoint = opened(tmp_path, saved)
    assert list(checkpoint.tensors.specs) == bare
    expected = {name: stored_bytes(torch.full((2,), float(number))) for number, name in enumerate(bare)}
    assert read_all(checkpoint.tensors) == expected
    assert checkpoint.notes == (f"prefixes removed from names: {removed} (--keep-prefix keeps them)",)
    kept = opened(tmp_path, saved, keep=True)
    assert (list(kept.tensors.specs), kept.notes) == (saved, ())


@pytest.mark.parametrize(
    "names",
    [
        ["module.a", "b"],  # a part of the model is called so
        ["module"],
        ["module.", "module"],
        ["my_module.a", "submodule.b"],
        ["a.module.w"],
        ["x_orig_mod.a", "_orig_mod"],
        ["model.a", "model.b"],  # what Lightning puts there is the attribute's name
        ["_orig_modX.a"],
        ["a._fsdp_wrapped_module_.w"],
    ],
)
def test_names_of_the_model_stay(names: list[str], tmp_path: Path) -> None:
    """What only looks like a prefix, or stands before a part of the names, is left as it is, and nothing is said."""
    checkpoint = opened(tmp_path, names)
    assert (list(checkpoint.tensors.specs), checkpoint.notes) == (names, ())


def test_two_names_that_become_one_are_refused(tmp_path: Path) -> None:
    """Never is one tensor lost for another: the error names both and the option that keeps them apart."""
    with pytest.raises(CheckpointError, match=r"'_orig_mod\.a' and 'a' are one name without their prefixes") as caught:
        opened(tmp_path, ["a", "_orig_mod.a"])
    assert caught.value.hint == "keep the names as they are: keep_prefix=True"
    assert list(opened(tmp_path, ["a", "_orig_mod.a"], keep=True).tensors.specs) == ["a", "_orig_mod.a"]


def test_a_name_that_safetensors_keeps_for_itself_is_refused_behind_a_prefix_too(tmp_path: Path) -> None:
    """Without its prefix it would stand in an output's header where the metadata stand."""
    with pytest.raises(CheckpointError, match="'__metadata__', which safetensors keeps for itself"):
        opened(tmp_path, ["module.__metadata__", "module.a"])
    names = list(opened(tmp_path, ["module.__metadata__", "module.a"], keep=True).tensors.specs)
    assert names == ["module.__metadata__", "module.a"]


def test_ties_and_tables_are_kept(tmp_path: Path) -> None:
    """Renamed tensors share places, files and tables as they did before."""
    base = torch.ones(3)
    for name in "ab":
        torch.save({"module.x": base, "module.y": base, "module.z": torch.zeros(3)}, tmp_path / f"{name}.pt")
    one, two = (open_checkpoint(tmp_path / f"{name}.pt").tensors for name in "ab")
    assert one.place("x") == one.place("y") != one.place("z")
    assert one.shard("x") == "a.pt"
    two.share(one)
    assert two.specs is one.specs
    assert two.shard("x") == "b.pt"
    torch.save({"x": base, "y": base, "z": torch.zeros(3)}, tmp_path / "c.pt")
    bare = open_checkpoint(tmp_path / "c.pt").tensors
    bare.share(one)
    assert (bare.specs is one.specs, bare.shard("z")) == (True, "c.pt")


class Block(nn.Module):
    """A part that can be wrapped."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(2, 2)


@pytest.mark.slow
def test_torchs_own_wrappers(tmp_path: Path) -> None:
    """What DataParallel and torch.compile make of a state dict has the bare model's names again."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    bare = nn.Sequential(Block(), Block())
    parts = nn.Sequential(checkpoint_wrapper(bare[0]), torch.compile(bare[1], backend="eager"))
    wrapped = nn.DataParallel(torch.compile(parts, backend="eager"))
    torch.save(wrapped.state_dict(), tmp_path / "a.pt")
    weights = open_checkpoint(tmp_path / "a.pt").tensors
    assert read_all(weights) == {name: stored_bytes(tensor) for name, tensor in bare.state_dict().items()}
