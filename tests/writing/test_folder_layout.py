"""Outputs of several models: each is written where it was, sharded as it was; the whole verifies, and is replaced."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import Cli, oracle

STEPS = (100, 200, 300)
LAW = ("--half-life", "100ba")
WEIGHTS = (0.25, 0.25, 0.5)

Files = Mapping[str, Mapping[str, torch.Tensor]]


def values(step: int, *names: str) -> dict[str, torch.Tensor]:
    """Return tensors of these names with random values."""
    random = torch.Generator().manual_seed(step + sum(map(ord, "".join(names))))
    return {name: torch.randn(4, 3, generator=random) for name in names}


def write_run(run: Path, layout: Mapping[str, tuple[str, ...]], texts: Mapping[str, object] | None = None) -> None:
    """Write the checkpoints of a run: files with tensors of the given names, and JSON files."""
    for step in STEPS:
        folder = run / f"checkpoint-{step}"
        for name, tensors in layout.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            saved = values(step, *tensors)
            save_file(saved, path, {"format": "pt"}) if path.suffix == ".safetensors" else torch.save(saved, path)
        for name, value in {"trainer_state.json": {"global_step": step, "epoch": 1}, **(texts or {})}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(json.dumps(value))


def average_of(layout: Mapping[str, tuple[str, ...]]) -> dict[str, dict[str, torch.Tensor]]:
    """Return the average of each file in float64, by the file's name."""
    return {name: oracle([values(step, *tensors) for step in STEPS], WEIGHTS) for name, tensors in layout.items()}


def load(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file as its own library loads it."""
    if path.suffix == ".safetensors":
        return load_file(path)
    loaded: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return loaded


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Return whether two state dicts are equal to float32's rounding."""
    return one.keys() == other.keys() and all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


MODULES = {"modules.json": [{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}], "1_Pooling/config.json": {}}
PIPELINE = {
    "model_index.json": {"unet": ["d", "U"], "text_encoder": ["t", "C"], "scheduler": ["d", "S"]},
    "scheduler/scheduler_config.json": {"steps": 3},
    "unet/config.json": {},
    "text_encoder/config.json": {"dtype": "float32"},
}
ROUTER = {"modules.json": [{"path": ""}], "router_config.json": {"types": {"query_0_T": "", "document_0_T": ""}}}
ADAPTER = {"adapter_config.json": {"r": 8}, "second/adapter_config.json": {"r": 4}}
LORA = ("q.lora_A.weight", "q.lora_B.weight")
# What a checkpoint holds: the names in each file of tensors, and its JSON files.
LAYOUTS: dict[str, tuple[dict[str, tuple[str, ...]], dict[str, object]]] = {
    "modules": ({"model.safetensors": ("a", "b"), "2_Dense/model.safetensors": ("linear.weight",)}, MODULES),
    "a module with the names of another": (
        {"model.safetensors": ("a",), "2_Dense/model.safetensors": ("a",)},
        MODULES,
    ),
    "modules, none in its own folder": ({"2_Dense/model.safetensors": ("a",)}, MODULES),
    "a router": ({"query_0_T/model.safetensors": ("a",), "document_0_T/model.safetensors": ("a",)}, ROUTER),
    "a pipeline": (
        {"unet/diffusion_pytorch_model.safetensors": ("a", "b"), "text_encoder/model.safetensors": ("a",)},
        PIPELINE,
    ),
    "components": ({"unet/diffusion_pytorch_model.safetensors": ("a",), "vae/model.safetensors": ("a",)}, {}),
    "adapters": (
        {"adapter_model.safetensors": LORA, "second/adapter_model.safetensors": LORA},
        ADAPTER,
    ),
    "a value head": ({"model.safetensors": ("a", "b"), "value_head.safetensors": ("v_head.weight",)}, {}),
    "a projector": ({"adapter_model.safetensors": LORA, "mm_projector.bin": ("p.0.weight", "p.2.weight")}, ADAPTER),
}


@pytest.mark.slow
@pytest.mark.parametrize("label", LAYOUTS)
def test_each_model_is_written_where_it_was(label: str, cli: Cli, tmp_path: Path) -> None:
    """Every file holds its own average under its own names; the whole verifies, reads back and is replaced."""
    layout, texts = LAYOUTS[label]
    write_run(tmp_path / "run", layout, texts)
    done = cli("average", "run", *LAW, "-o", "out")
    assert done.code == 0, done
    written = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*")}
    expected = average_of(layout)
    assert {name for name in written if name.endswith((".safetensors", ".bin"))} == expected.keys()
    assert {name for name in texts if not name.startswith("second/") or label == "adapters"} <= written
    for name, tensors in expected.items():
        assert same(load(tmp_path / "out" / name), tensors), name
    assert cli("verify", "out", "--against", "run").code == 0
    assert cli("average", "run", *LAW, "-o", "out", "--force").code == 0
    again = cli("average", "out", *LAW, "-o", "again")
    assert (again.code, "averaged already" in again.err) == (4, True), again


@pytest.mark.slow
@pytest.mark.parametrize("label", ["modules", "a pipeline", "adapters"])
@pytest.mark.parametrize("target", ["one.safetensors", "one.pt"])
def test_one_file_has_no_place_for_several_models(label: str, target: str, cli: Cli, tmp_path: Path) -> None:
    """The error says which folder is in the way; both ways on that its hint gives are ways on."""
    write_run(tmp_path / "run", *LAYOUTS[label])
    done = cli("average", "run", *LAW, "-o", target)
    assert done.code == 5, done
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]
    assert "write a folder: -o one; or take one of the models with --component" in done.err
    component = done.err.rpartition("--component ")[2].split()[0]
    assert cli("average", "run", *LAW, "-o", target, "--component", component).code == 0
    assert cli("average", "run", *LAW, "-o", "one").code == 0


def test_shards_are_those_of_each_model(cli: Cli, tmp_path: Path) -> None:
    """Each model is cut as it was, with an index of its own; `--max-shard-size` cuts each anew."""
    layout = {
        "model-00001-of-00002.safetensors": ("a",),
        "model-00002-of-00002.safetensors": ("b",),
        "2_Dense/pytorch_model-00001-of-00002.bin": ("a",),
        "2_Dense/pytorch_model-00002-of-00002.bin": ("b", "c"),
    }
    maps = {"model.safetensors": ("", "model"), "pytorch_model.bin": ("2_Dense/", "pytorch_model")}
    indexes: dict[str, object] = {}
    for name, (prefix, base) in maps.items():
        shards = {file.removeprefix(prefix): names for file, names in layout.items() if file.startswith(prefix + base)}
        weight_map = {tensor: file for file, names in shards.items() for tensor in names}
        indexes[f"{prefix}{name}.index.json"] = {"metadata": {}, "weight_map": weight_map}
    write_run(tmp_path / "run", layout, {**MODULES, **indexes})
    assert cli("average", "run", *LAW, "-o", "out").code == 0
    expected = average_of(layout)
    for name, tensors in expected.items():
        written = name.replace("pytorch_model", "model").replace(".bin", ".safetensors")
        assert same(load(tmp_path / "out" / written), tensors), name
    index = json.loads((tmp_path / "out" / "2_Dense" / "model.safetensors.index.json").read_text())
    assert index["weight_map"]["c"] == "model-00002-of-00002.safetensors"
    assert cli("verify", "out", "--against", "run").code == 0
    assert cli("average", "run", *LAW, "-o", "cut", "--max-shard-size", "0.05kB").code == 0
    assert len(list((tmp_path / "cut" / "2_Dense").glob("model-0000?-of-00003.safetensors"))) == 3
    assert cli("verify", "cut", "--against", "run").code == 0
    (tmp_path / "cut" / "2_Dense" / "model.safetensors.index.json").unlink()
    assert "2_Dense/model.safetensors.index.json" in cli("verify", "cut").err


def test_a_change_in_a_folder_is_found(cli: Cli, tmp_path: Path) -> None:
    """`verify` names the file in the folder, and its tensor with the folder before it."""
    write_run(tmp_path / "run", *LAYOUTS["modules"])
    assert cli("average", "run", *LAW, "-o", "out").code == 0
    path = tmp_path / "out" / "2_Dense" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    done = cli("verify", "out", "--against", "run")
    assert done.code == 6
    assert f"{Path('out/2_Dense/model.safetensors')}: its sha256" in done.err
    assert "'2_Dense/linear.weight' is not what the checkpoints give" in done.err


def test_copy_takes_the_folder(cli: Cli, tmp_path: Path) -> None:
    """A pattern names tensors as the table of tensors does, their folder first."""
    write_run(tmp_path / "run", *LAYOUTS["a module with the names of another"])
    assert cli("average", "run", *LAW, "-o", "out", "--copy", "2_Dense/*").code == 0
    assert same(load(tmp_path / "out" / "model.safetensors"), average_of({"x": ("a",)})["x"])
    assert same(load(tmp_path / "out" / "2_Dense" / "model.safetensors"), values(300, "a"))
    manifest = json.loads((tmp_path / "out" / "ema-manifest.json").read_text())
    assert [(row["name"], row["why"]) for row in manifest["tensors"]] == [
        ("2_Dense/a", "--copy '2_Dense/*'"),
        ("a", None),
    ]


def test_each_configuration_names_the_dtype_of_its_own_model(cli: Cli, tmp_path: Path) -> None:
    """Where `--dtype` converts, that of each folder says so."""
    write_run(tmp_path / "run", *LAYOUTS["a pipeline"])
    assert cli("average", "run", *LAW, "-o", "out", "--dtype", "bfloat16").code == 0
    assert json.loads((tmp_path / "out" / "text_encoder" / "config.json").read_text())["dtype"] == "bfloat16"
    assert load(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")["a"].dtype == torch.bfloat16


def test_settings_of_the_second_adapter_must_agree(cli: Cli, tmp_path: Path) -> None:
    """The difference is told with the folder of the adapter."""
    write_run(tmp_path / "run", *LAYOUTS["adapters"])
    (tmp_path / "run" / "checkpoint-200" / "second" / "adapter_config.json").write_text('{"r": 2}')
    done = cli("average", "run", *LAW, "-o", "out")
    assert done.code == 4
    assert "its second/r is 2, but 4 in checkpoint-300" in done.err
