"""Tensors in places that no layout knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Cli

PLACES = {
    "one, deeper": ({"app": {"model": {"w": 1.0}, "optim": {"state": {"w": 9.0}}}}, "app.model", ["w"]),
    "one, in a list of the user's own": ({"payload": {"net": {"net": {"w": 1.0}}}}, "payload.net.net", ["w"]),
    "several of one model": ({"net": {"decoder": {"w": 1.0}, "bert": {"w": 2.0}}}, "net.decoder", ["w"]),
    "beside the optimizer's": ({"G": {"w": 1.0}, "optimizer": {"w": 9.0}}, "G", ["w"]),
}


def saved(value: Any, factor: float) -> Any:
    """Return the nested dict with a tensor for each number."""
    if isinstance(value, dict):
        return {key: saved(inner, factor) for key, inner in value.items()}
    return torch.full((2,), value * factor)


@pytest.mark.parametrize(("root", "key", "names"), PLACES.values(), ids=list(PLACES))
def test_the_hint_names_the_place_and_works(cli: Cli, tmp_path: Path, root: dict[str, Any], key: str, names: list[str]):
    """Following it gives the average of the tensors there."""
    for step in (1, 2):
        torch.save(saved(root, step), tmp_path / f"step_{step}.pt")
    command = ("average", str(tmp_path), "--smoothing", "0.5", "-o", str(tmp_path / "out" / "x.safetensors"))
    (tmp_path / "out").mkdir()
    refused = cli(*command)
    assert refused.code == 3
    assert f"hint:  say which are the model's: --key {key}" in refused.err
    assert cli(*command, "--key", key).code == 0
    averaged = load_file(tmp_path / "out" / "x.safetensors")
    assert sorted(averaged) == names
    assert averaged["w"].tolist() == [1.5, 1.5]  # of 1 and 2


def test_parts_of_one_model_are_joined_under_the_key_around_them(cli: Cli, tmp_path: Path):
    """What stands under `net` is one model in several dicts."""
    for step in (1, 2):
        torch.save(saved(PLACES["several of one model"][0], step), tmp_path / f"step_{step}.pt")
    assert "or --key net for all of them" in cli("inspect", str(tmp_path)).err
    target = tmp_path / "x.safetensors"
    assert cli("average", str(tmp_path), "--smoothing", "0.5", "--key", "net", "-o", str(target)).code == 0
    averaged = load_file(target)
    assert {name: tensor.tolist() for name, tensor in averaged.items()} == {
        "decoder.w": [1.5, 1.5],
        "bert.w": [3.0, 3.0],
    }


def test_arrays_of_numpy_are_said_to_be_no_tensors(cli: Cli, tmp_path: Path):
    """No key leads to them."""
    torch.save({"model": {"w": np.ones(2, np.float32)}, "step": 1}, tmp_path / "step_1.pt")
    for key in ((), ("--key", "model")):
        refused = cli("inspect", str(tmp_path / "step_1.pt"), *key)
        assert refused.code == 3
        assert "hint:  save them as tensors: torch.from_numpy(array)" in refused.err


def test_optimizer_states_alone_have_no_hint_that_leads_nowhere(cli: Cli, tmp_path: Path):
    """There is nothing to name."""
    torch.save({"optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}, "step": 1}, tmp_path / "step_1.pt")
    refused = cli("inspect", str(tmp_path / "step_1.pt"))
    assert refused.code == 3
    assert "the state of an optimizer, and no model's weights beside it; it holds 'optimizer', 'step'" in refused.err
    assert "hint" not in refused.err


def test_flattened_parameters_of_one_rank_are_no_model(cli: Cli, tmp_path: Path):
    """OLMo has one flat tensor for each rank; under other names than its own, no hint leads to an average of it."""
    handle = {"flat_param.data": torch.ones(9), "flat_param._fqns": ("a", "b"), "flat_param._shapes": ((2, 3), (3,))}
    for step in (1, 2):
        folder = tmp_path / f"step{step}" / "model"
        folder.mkdir(parents=True)
        for rank in (0, 1):
            torch.save({"modules": [{"name": "", "handles": [handle]}]}, folder / f"model_rank_{rank}.pt")
    for path in (tmp_path, tmp_path / "step1" / "model" / "model_rank_0.pt"):
        done = cli("average", path, "--half-life", "1ba", "-o", tmp_path / "out.safetensors")
        assert done.code == 3, done
        assert "flattened of the parameters of one rank" in done.err
        assert "scripts/unshard.py" in done.err
        assert "--key" not in done.err
