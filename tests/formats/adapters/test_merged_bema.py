"""BEMA of adapters that are merged: the training began with the base model, as a new adapter changes nothing in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import Cli
from tests.formats.adapters.adapters import BEGIN, adapter_tensors, base_tensors, dense, write_base, write_run

BEMA = ("--profile", "bema", "--merge-into", "base")
STEPS = (1, 2, 3)


def callback(models: list[torch.Tensor], base: torch.Tensor) -> torch.Tensor:
    """Return what TRL's callback holds after the last step, in float64; the base is the model of step 0."""
    ema = running = base
    for step, model in zip(STEPS, models, strict=True):
        beta, alpha = (10 + step) ** -0.5, (10 + step) ** -0.2
        ema = (1 - beta) * ema + beta * model
        running = ema + alpha * (model - base)
    return running


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_is_that_of_the_whole_models(cli: Cli, tmp_path: Path, dtype: torch.dtype) -> None:
    """The recurrence over W + scale x BA, from W on, rounded once; it is verified and made again with both named."""
    base = base_tensors(dtype)
    write_base(tmp_path / "base", dtype)
    checkpoints = write_run(tmp_path / "run")
    done = cli("average", "run", *BEMA, "--base", "base", "-o", "out")
    assert done.code == 0, done
    ours, added = load_file(tmp_path / "out/model.safetensors"), [dense(each) for each in checkpoints]
    for name in added[0]:
        begin = base[name].double()
        exact = callback([begin + torch.from_numpy(each[name]) for each in added], begin)
        torch.testing.assert_close(ours[name].double(), exact, rtol=2**-8 if dtype == torch.bfloat16 else 1e-6, atol=0)
    heads = [adapter_tensors(step)[f"{BEGIN}head.weight"].double() for step in STEPS]
    exact = callback(heads, base["head.weight"].double())
    torch.testing.assert_close(ours["head.weight"].double(), exact, rtol=2**-7, atol=1e-5)
    for name in ("layer.q.bias", "steps"):
        assert torch.equal(ours[name], base[name])
    recipe = json.loads((tmp_path / "out/ema-manifest.json").read_text())["recipe"]
    assert (recipe["base"], recipe["merge_into"]) == ("base", True)
    named = ("--against", "run", "--against", "base", "--merge-into", "base")
    checked = cli("verify", "out", *named, "--strict")
    assert (checked.code, "all bytes are those of 4 checkpoints" in checked.out) == (0, True), checked
    again = cli("average", "run", "base", "--recipe", "out/ema-manifest.json", "--merge-into", "base", "-o", "again")
    assert again.code == 0, again
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "out/model.safetensors").read_bytes()


def test_it_may_begin_with_an_adapter_of_the_run(cli: Cli, tmp_path: Path) -> None:
    """At the clock of that one, merged as all are; what is older does not enter."""
    base = base_tensors()
    write_base(tmp_path / "base")
    checkpoints = write_run(tmp_path / "run")
    done = cli("average", "run", *BEMA, "--base", "run/checkpoint-2", "-o", "out.safetensors")
    assert done.code == 0, done
    ours = load_file(tmp_path / "out.safetensors")
    beta, alpha = 13**-0.5, 13**-0.2
    for name, begin in dense(checkpoints[1]).items():
        exact = base[name].double() + torch.from_numpy(begin)
        exact += (alpha + beta) * torch.from_numpy(dense(checkpoints[2])[name] - begin)
        torch.testing.assert_close(ours[name].double(), exact, rtol=1e-6, atol=1e-6)
    assert cli("verify", "out.safetensors", "--against", "run", "--merge-into", "base", "--strict").code == 0


def test_another_model_is_none_that_their_training_began_with(cli: Cli, tmp_path: Path) -> None:
    """The error says why, and the command that it names works; without a base the law is refused as ever."""
    write_base(tmp_path / "base")
    write_run(tmp_path / "run")
    save_file({name: tensor * 2 for name, tensor in base_tensors().items()}, tmp_path / "other.safetensors")
    done = cli("average", "run", *BEMA, "--base", "other.safetensors", "-o", "out")
    assert done.code == 4
    assert (
        "other.safetensors: is no adapter, and another model than base, into which the adapters are merged" in done.err
    )
    assert "hint:  name that one, --base base, or an adapter of the run" in done.err
    assert cli("average", "run", *BEMA, "--base", "base", "-o", "out", "--dry-run").code == 0
    assert cli("average", "run", *BEMA, "-o", "out").code == 2


def test_a_base_of_adapters_is_what_they_are_merged_into(cli: Cli, tmp_path: Path) -> None:
    """Without that a whole model is no beginning of adapters; the option that the hint names works."""
    write_base(tmp_path / "base")
    write_run(tmp_path / "run")
    law = ("average", "run", "--profile", "bema", "--base", "base", "-o", "out")
    done = cli(*law)
    assert (done.code, "merged into that: --merge-into base" in done.err) == (4, True), done
    assert cli(*law, "--merge-into", "base").code == 0
