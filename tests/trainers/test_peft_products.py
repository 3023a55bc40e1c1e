"""Products BA of adapters that PEFT wrote here and now, averaged exactly: as A and B again, and in the whole model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from tests.conftest import Cli
from tests.release.verified import vouch
from tests.trainers.conftest import names
from tests.trainers.test_peft import STEPS, make_adapter, make_base, save

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("ignore")]

Arrays = dict[str, NDArray[np.float64]]
TOKENS = torch.tensor([[1, 2, 3, 4]])
HALF_LIFE = ("--half-life", "10ba")
WEIGHTS = [0.25, 0.25, 0.5]  # of the three: each update keeps a half, the first stands for all before it

VARIANTS = [
    {},
    {"use_rslora": True},
    {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    {"alpha_pattern": {"layers.1.self_attn.q_proj": 5}},
    {"modules_to_save": ["lm_head"]},
    {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
]


def deltas(folder: Path) -> Arrays:
    """Return what PEFT itself adds to each weight for the adapter in a folder, by the module's name."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(make_base(), folder)
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").double().numpy()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


def mean(arrays: list[Arrays]) -> Arrays:
    """Return the weighted mean, in float64."""
    return {name: sum(w * each[name] for w, each in zip(WEIGHTS, arrays, strict=True)) for name in arrays[0]}


def run_of(folder: Path, **options: Any) -> list[Path]:
    """Write a run of an adapter; return its checkpoints."""
    model = make_adapter(**options)
    for step in STEPS:
        save(model, folder, step)
    return [folder / f"checkpoint-{step}" for step in STEPS]


def assert_near(ours: Arrays, theirs: Arrays, tolerance: float = 1e-5) -> None:
    """Check that arrays agree, beside the largest element of each."""
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        np.testing.assert_allclose(ours[name], expected, rtol=0, atol=tolerance * np.abs(expected).max(), err_msg=name)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_factors_of_full_rank_are_the_average(cli: Cli, tmp_path: Path, options: dict[str, Any]):
    """With the rank of all products together PEFT adds to the weights what the average of the products is."""
    checkpoints = run_of(tmp_path / "run", **options)
    done = cli("average", "run", *HALF_LIFE, "--exact-lora", "12", "-o", "out")
    assert done.code == 0, done
    assert "not the average of their products" not in done.err
    assert "rank 12 come within 0.00%" in done.err
    assert_near(deltas(tmp_path / "out"), mean([deltas(checkpoint) for checkpoint in checkpoints]))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"], config["use_rslora"]) == (12, 12, {}, False)
    if "modules_to_save" in options:
        saved = [load_file(each / "adapter_model.safetensors") for each in checkpoints]
        whole = load_file(tmp_path / "out" / "adapter_model.safetensors")
        name = next(name for name in whole if "lm_head" in name)
        expected = sum(w * each[name].double() for w, each in zip(WEIGHTS, saved, strict=True))
        torch.testing.assert_close(whole[name].double(), expected, rtol=1e-6, atol=1e-6)
    assert cli("verify", "out", "--against", "run").code == 0


@pytest.mark.parametrize("name", ["relative_error", "furthest", "furthest_error"])
def test_how_far_a_smaller_rank_is_off_is_computed_anew(name: str, cli: Cli, tmp_path: Path):
    """What a manifest says of it is not believed."""
    run_of(tmp_path / "run")
    assert cli("average", "run", *HALF_LIFE, "--exact-lora", "2", "-o", "out").code == 0
    assert cli("verify", "out", "--against", "run").code == 0
    vouch(tmp_path / "out", lambda manifest: manifest["exact_lora"].update({name: {"furthest": "w"}.get(name, 1e-9)}))
    done = cli("verify", "out", "--against", "run")
    assert done.code == 6
    assert f"says exact_lora.{name}" in done.err


def test_a_smaller_rank_is_the_nearest(cli: Cli, tmp_path: Path):
    """With fewer, the product is what the singular value decomposition of the dense average keeps, error told."""
    checkpoints = run_of(tmp_path / "run")
    assert cli("average", "run", *HALF_LIFE, "--exact-lora", "3", "-o", "out").code == 0
    exact, ours = mean([deltas(checkpoint) for checkpoint in checkpoints]), deltas(tmp_path / "out")
    lost = whole = 0.0
    for name, delta in exact.items():
        u, values, v = np.linalg.svd(delta)
        np.testing.assert_allclose(ours[name], (u[:, :3] * values[:3]) @ v[:3], rtol=0, atol=1e-4 * values[0])
        lost, whole = lost + float((values[3:] ** 2).sum()), whole + float((values**2).sum())
    told = json.loads((tmp_path / "out" / "ema-manifest.json").read_text())["exact_lora"]
    assert told["relative_error"] == pytest.approx((lost / whole) ** 0.5, rel=1e-5)
    assert told["furthest_error"] >= told["relative_error"] > 0.1


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_merged_model_is_the_base_with_the_average(cli: Cli, tmp_path: Path, options: dict[str, Any]):
    """What is merged loads as the base model, and its weights are the mean of those that PEFT merges."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    make_base().save_pretrained(tmp_path / "base")
    checkpoints = run_of(tmp_path / "run", **options)
    done = cli("average", "run", *HALF_LIFE, "--merge-into", "base", "-o", "out")
    assert done.code == 0, done
    merged = [
        {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
        for model in (PeftModel.from_pretrained(make_base(), each).merge_and_unload() for each in checkpoints)
    ]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert_near({name: tensor.double().numpy() for name, tensor in loaded.state_dict().items()}, mean(merged), 1e-6)
    assert {"config.json", "generation_config.json", "README.md"} <= names(tmp_path / "out")
    assert not {"adapter_config.json", "adapter_model.safetensors"} & names(tmp_path / "out")
    assert torch.isfinite(loaded(TOKENS).logits).all()
    assert cli("verify", "out", "--against", "run", "--merge-into", "base").code == 0
    assert cli("average", "run", "--recipe", "out/ema-manifest.json", "--merge-into", "base", "-o", "again").code == 0
    for name in ("model.safetensors", "README.md"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_adapters_of_other_ranks_and_scales_are_merged(cli: Cli, tmp_path: Path):
    """A run whose rank and scale changed on the way has one average of whole models."""
    make_base().save_pretrained(tmp_path / "base")
    save(make_adapter(), tmp_path / "run", 10)
    save(make_adapter(r=2, lora_alpha=5, target_modules=["q_proj", "k_proj"]), tmp_path / "run", 20)
    save(make_adapter(r=8), tmp_path / "run", 30)
    assert cli("average", "run", *HALF_LIFE, "--merge-into", "base", "-o", "out").code == 0
    dense = [deltas(tmp_path / "run" / f"checkpoint-{step}") for step in STEPS]
    base, ours = load_file(tmp_path / "base" / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    for name, before in base.items():
        module = name.removesuffix(".weight")
        change = sum(w * each[module] for w, each in zip(WEIGHTS, dense, strict=True) if module in each)
        np.testing.assert_allclose(ours[name].double(), before.double().numpy() + change, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}], ids=str)
@pytest.mark.parametrize("asked", [("--exact-lora", "4"), ("--merge-into", "base")], ids=lambda asked: asked[0])
def test_what_adds_more_than_a_product_is_refused(cli: Cli, tmp_path: Path, options: dict[str, Any], asked: Any):
    """DoRA, and biases beside B, are refused by name, and nothing is written."""
    make_base().save_pretrained(tmp_path / "base")
    if "lora_bias" in options:
        options = {**options, "target_modules": ["lm_head"]}
        make_base().save_pretrained(tmp_path / "base")
    try:
        run_of(tmp_path / "run", **options)
    except ValueError:
        pytest.skip("PEFT has no such adapter for this model")
    done = cli("average", "run", *HALF_LIFE, *asked, "-o", "out")
    assert done.code in (3, 4), done
    assert next(iter(options)) in done.err or "DoRA" in done.err
    assert names(tmp_path) == {"base", "run"}
