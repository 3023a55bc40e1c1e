"""Folders of several models: all are read as one, or one that is named; raw weights are never mixed with averages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import CheckpointError, EmaError, NoSuchWeights, UsageError
from ema_cli.formats import is_checkpoint_folder, open_checkpoint
from ema_cli.formats.folders import several
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.trainers.choice import AVERAGED_AGAIN
from ema_cli.formats.trainers.folders import COMPONENTS
from ema_cli.law.time import Unit
from tests.formats.reading import read_all, stored_bytes


def write(folder: Path, **components: float) -> Path:
    """Write models that are filled with a number each, under their names."""
    for component, value in components.items():
        where = folder / component
        where.mkdir(parents=True)
        base = "model" if component.startswith("text_encoder") else "diffusion_pytorch_model"
        save_file({"w": torch.full((2,), value)}, where / f"{base}.safetensors")
        config = {"_class_name": "Net"} | ({"optimization_step": 5, "decay": 0.9} if component.endswith("_ema") else {})
        (where / "config.json").write_text(json.dumps(config))
    return folder


def full(number: float) -> bytes:
    """Return the bytes of weights that are filled with a number."""
    return stored_bytes(torch.full((2,), number))


def value(checkpoint: Checkpoint) -> float:
    """Return the number that the weights are filled with."""
    data = read_all(checkpoint.tensors)["w"]
    (found,) = {number for number in (1.0, 2.0, 3.0) if data == stored_bytes(torch.full((2,), number))}
    return found


def refusal(path: Path, **options: Any) -> EmaError:
    """Return the error that opening the folder gives, which names it."""
    with pytest.raises(EmaError) as caught:
        open_checkpoint(path, ReadOptions(**options))
    assert str(caught.value).startswith(f"{path}: ")
    return caught.value


def refusal_of_any(path: Path) -> EmaError:
    """Return the error that opening the folder gives, whatever in it that is about."""
    with pytest.raises(EmaError) as caught:
        open_checkpoint(path)
    return caught.value


@pytest.mark.parametrize("component", COMPONENTS)
def test_the_only_component_is_taken(component: str, tmp_path: Path) -> None:
    """Where there is one model, nobody need name it; folder, configuration and base name are its own."""
    folder = write(tmp_path / "checkpoint-5", **{component: 1.0})
    assert is_checkpoint_folder(folder)
    checkpoint = open_checkpoint(folder)
    assert (value(checkpoint), checkpoint.name, checkpoint.trainer) == (1.0, "checkpoint-5", "diffusers")
    assert checkpoint.pretrained is not None
    assert (checkpoint.path, checkpoint.pretrained.folder) == (folder, folder / component)
    assert checkpoint.pretrained.base in ("diffusion_pytorch_model", "model")
    assert (checkpoint.averaged, checkpoint.notes) == (None, ())


def test_several_are_one_checkpoint_and_one_may_be_named(tmp_path: Path) -> None:
    """The names of tensors begin with the folders that they lie in; a component that is named keeps its own names."""
    folder = write(tmp_path / "checkpoint-5", unet=1.0, text_encoder=2.0, vae=3.0)
    checkpoint = open_checkpoint(folder)
    assert read_all(checkpoint.tensors) == {
        "unet/w": full(1.0),
        "vae/w": full(3.0),
        "text_encoder/w": full(2.0),
    }
    assert {checkpoint.tensors.shard(name) for name in checkpoint.tensors.specs} == {
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    }
    for component, number in (("unet", 1.0), ("text_encoder", 2.0), ("vae", 3.0)):
        assert value(open_checkpoint(folder, ReadOptions(component=component))) == number


def test_averages_of_one_of_several(tmp_path: Path) -> None:
    """On request they are taken where there are some; a model without any is taken as it is."""
    folder = write(tmp_path / "checkpoint-5", unet=1.0, unet_ema=2.0, vae=3.0)
    raw, averages = open_checkpoint(folder), open_checkpoint(folder, ReadOptions(weights="ema"))
    assert read_all(raw.tensors) == {"unet/w": full(1.0), "vae/w": full(3.0)}
    assert read_all(averages.tensors) == {"unet/w": full(2.0), "vae/w": full(3.0)}
    assert (raw.notes, raw.warnings, averages.notes, averages.warnings) == ((BESIDE,), (), (), (AVERAGED_AGAIN,))
    assert refusal(write(tmp_path / "none", unet=1.0, vae=3.0), weights="ema").hint == "leave out weights='ema'"


def test_a_component_that_is_not_there(tmp_path: Path) -> None:
    """A name that no model has is an error that lists those there are."""
    error = refusal(write(tmp_path / "checkpoint-5", unet=1.0), component="transformer")
    assert type(error) is UsageError
    assert "has no component 'transformer'" in str(error)
    assert error.hint == "say which: component='unet'"


# For each choice of component and weights: the number, whether averages nobody asked for, and the note.
BESIDE = "raw weights taken; averages lie beside them, in 'unet_ema' (--weights ema)"
CHOICES = {
    (None, None): (1.0, False, (BESIDE,)),
    ("unet", None): (1.0, False, (BESIDE,)),
    (None, "raw"): (1.0, False, ()),
    (None, "ema"): (2.0, False, (AVERAGED_AGAIN,)),
    ("unet_ema", None): (2.0, True, ()),
    ("unet_ema", "ema"): (2.0, False, (AVERAGED_AGAIN,)),
}


@pytest.mark.parametrize(("component", "weights"), CHOICES)
def test_averages_lie_beside(component: str | None, weights: Any, tmp_path: Path) -> None:
    """Raw weights are taken, averages on request; a component that is named as averages is refused later."""
    folder = write(tmp_path / "checkpoint-5", unet=1.0, unet_ema=2.0)
    checkpoint = open_checkpoint(folder, ReadOptions(component=component, weights=weights))
    said = (*checkpoint.warnings, *checkpoint.notes)
    assert (value(checkpoint), checkpoint.averaged is not None, said) == CHOICES[component, weights]


def test_nothing_but_averages(tmp_path: Path) -> None:
    """A folder whose raw weights are missing holds averages, and says so."""
    folder = write(tmp_path / "checkpoint-5", unet_ema=2.0)
    checkpoint = open_checkpoint(folder)
    assert value(checkpoint) == 2.0
    assert checkpoint.averaged
    error = refusal(folder, weights="raw")
    assert (type(error), error.hint) == (NoSuchWeights, "average the averages once more: weights='ema'")


def test_averages_that_are_not_there(tmp_path: Path) -> None:
    """Asking for averages of a model that has none is an error, even where another model has some."""
    folder = write(tmp_path / "checkpoint-5", unet=1.0, transformer=2.0, transformer_ema=3.0)
    error = refusal(folder, component="unet", weights="ema")
    assert type(error) is NoSuchWeights
    assert "holds no averages of 'unet'" in str(error)


def test_averages_that_lost_their_name(tmp_path: Path) -> None:
    """What Diffusers' EMAModel saved is known by its configuration, in a component's folder, too."""
    folder = write(tmp_path / "checkpoint-5", unet=1.0)
    (folder / "unet" / "config.json").write_text('{"optimization_step": 5}')
    assert "EMAModel" in (open_checkpoint(folder).averaged or "")


def models(folder: Path, *places: str) -> Path:
    """Write a model into each of the places below a folder, filled with 1, 2 and so on."""
    for number, place in enumerate(places, 1):
        (folder / place).mkdir(parents=True, exist_ok=True)
        save_file({"w": torch.full((2,), float(number))}, folder / place / "model.safetensors")
    return folder


def modules(folder: Path, *paths: object) -> None:
    """Write the list of a sentence-transformers model's modules."""
    (folder / "modules.json").write_text(json.dumps([{"idx": i, "path": path} for i, path in enumerate(paths)]))


def test_modules_that_are_named_are_one_model(tmp_path: Path) -> None:
    """All that modules.json names, whether the checkpoint's own folder has a model or not."""
    folder = models(tmp_path / "checkpoint-5", "", "2_Dense", "3_Dense")
    (folder / "1_Pooling").mkdir()
    modules(folder, "", "1_Pooling", "2_Dense", "3_Dense")
    checkpoint = open_checkpoint(folder)
    assert read_all(checkpoint.tensors) == {"w": full(1.0), "2_Dense/w": full(2.0), "3_Dense/w": full(3.0)}
    assert len(checkpoint.files) == 3
    (folder / "model.safetensors").unlink()
    assert read_all(open_checkpoint(folder).tensors) == {"2_Dense/w": full(2.0), "3_Dense/w": full(3.0)}
    (folder / "3_Dense" / "model.safetensors").unlink()
    assert read_all(open_checkpoint(folder).tensors) == {"2_Dense/w": full(2.0)}


def test_a_router_leads_to_more_modules(tmp_path: Path) -> None:
    """Its file names folders in its own folder, and a router in a router again."""
    folder = models(tmp_path, "query_0_Model", "document_0_Router/text_0_Dense")
    modules(folder, "")
    (folder / "router_config.json").write_text('{"types": {"query_0_Model": "", "document_0_Router": "", "gone": ""}}')
    (folder / "document_0_Router" / "router_config.json").write_text('{"types": {"text_0_Dense": ""}}')
    assert read_all(open_checkpoint(folder).tensors) == {
        "query_0_Model/w": full(1.0),
        "document_0_Router/text_0_Dense/w": full(2.0),
    }


@pytest.mark.parametrize("path", ["..", "/etc", "a/../..", "a//b", ".hidden", 7, None, "", "."])
def test_a_module_that_lies_elsewhere_is_not_opened(path: object, tmp_path: Path) -> None:
    """Nothing that a checkpoint names leads out of its folder."""
    models(tmp_path, "", "run/a/b")
    folder = models(tmp_path / "run", "")
    modules(folder, path)
    assert read_all(open_checkpoint(folder).tensors) == {"w": full(1.0)}


def test_a_module_may_lie_deeper(tmp_path: Path) -> None:
    """A path of several parts is a folder in a folder."""
    modules(models(tmp_path, "", "parts/2_Dense"), "", "parts/2_Dense")
    assert list(open_checkpoint(tmp_path).tensors.specs) == ["w", "parts/2_Dense/w"]


def test_links_that_lead_back_are_no_endless_work(tmp_path: Path) -> None:
    """A router in whose folder each module is that folder again."""
    modules(models(tmp_path, ""), "")
    names = [f"query_{number}" for number in range(40)]
    for name in names:
        (tmp_path / name).symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "router_config.json").write_text(json.dumps({"types": dict.fromkeys(names, "")}))
    with pytest.raises(CheckpointError, match="names more than 1000 folders"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[", "- a: 1", '{"a": 1}', '["a"]', "null"])
def test_a_list_of_modules_that_is_none(text: str, tmp_path: Path) -> None:
    """In a folder that is a checkpoint a damaged one is an error; a search is not stopped by any file of that name."""
    folder = models(tmp_path / "checkpoint-5", "2_Dense")
    (tmp_path / "modules.json").write_text(text)
    (folder / "modules.json").write_text(text)
    assert not several.matches(tmp_path)
    if text in ('{"a": 1}', '["a"]', "null"):
        assert not several.matches(folder)
    else:
        assert "modules.json: not valid JSON" in str(refusal_of_any(folder))
    models(folder, "")
    if text in ('{"a": 1}', '["a"]', "null"):
        assert open_checkpoint(folder).warnings == ("not averaged, and not in the output: the weights in 2_Dense/",)
    else:
        assert "modules.json: not valid JSON" in str(refusal_of_any(folder))


def test_a_pipelines_models_by_its_index(tmp_path: Path) -> None:
    """Whatever they are called; what has no weights, and what is not there, is none."""
    folder = models(tmp_path, "unet", "safety_checker")
    (folder / "scheduler").mkdir()
    index = {"_class_name": "P", "unet": ["diffusers", "U"], "safety_checker": ["x", "Y"], "scheduler": ["d", "S"]}
    (folder / "model_index.json").write_text(json.dumps({**index, "vae": [None, None], "requires": True}))
    assert read_all(open_checkpoint(folder).tensors) == {"unet/w": full(1.0), "safety_checker/w": full(2.0)}


def adapter(folder: Path, number: float) -> None:
    """Write an adapter of PEFT's, filled with a number."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"q.lora_A.weight": torch.full((2,), number)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": int(number)}))


def test_adapters_in_folders_of_their_own(tmp_path: Path) -> None:
    """PEFT keeps all but the first in folders of their names; the settings of each must agree."""
    adapter(tmp_path, 1.0)
    adapter(tmp_path / "second", 2.0)
    adapter(tmp_path / "third", 3.0)
    checkpoint = open_checkpoint(tmp_path)
    name = "q.lora_A.weight"
    assert read_all(checkpoint.tensors) == {
        name: full(1.0),
        f"second/{name}": full(2.0),
        f"third/{name}": full(3.0),
    }
    assert {key: value for key, value in checkpoint.adapter.values.items() if key.endswith("r")} == {
        "r": "1",
        "second/r": "2",
        "third/r": "3",
    }
    assert read_all(open_checkpoint(tmp_path, ReadOptions(component="third")).tensors) == {name: full(3.0)}
    (tmp_path / "adapter_model.safetensors").unlink()
    assert not several.matches(tmp_path)  # a folder of adapters may be anything
    (tmp_path / "trainer_state.json").write_text('{"global_step": 3}')
    assert list(open_checkpoint(tmp_path).tensors.specs) == [f"second/{name}", f"third/{name}"]
    assert open_checkpoint(tmp_path).clock(Unit.BATCH) == 3


def test_parts_in_files_beside_a_model(tmp_path: Path) -> None:
    """A value head or a projector is a part of the model in whose folder it lies."""
    adapter(tmp_path, 1.0)
    torch.save({"v_head.weight": torch.full((2,), 2.0)}, tmp_path / "pytorch_model.bin")  # TRL's
    save_file({"value": torch.full((2,), 3.0)}, tmp_path / "value_head.safetensors")
    torch.save({"projector": torch.full((2,), 2.0)}, tmp_path / "mm_projector.bin")
    torch.save({}, tmp_path / "non_lora_trainables.bin")
    checkpoint = open_checkpoint(tmp_path)
    assert read_all(checkpoint.tensors) == {
        "v_head.weight": full(2.0),
        "q.lora_A.weight": full(1.0),
        "value": full(3.0),
        "projector": full(2.0),
    }
    assert checkpoint.adapter.values["r"] == "1"
    assert checkpoint.notes == ("non_lora_trainables.bin holds no weights, and is left out",)
    save_file({"projector": torch.ones(2)}, tmp_path / "value_head.safetensors")
    assert "'projector' is in value_head.safetensors and in mm_projector.bin" in str(refusal(tmp_path))


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    """Weights in files and folders that are not known; averages, checkpoints and what holds no model are not meant."""
    models(tmp_path, "", "speech", "ema", "unet_ema", "checkpoint-3", "sharded")
    models(tmp_path, "half")
    (tmp_path / "half" / "model.safetensors").rename(tmp_path / "half" / "model.fp16.safetensors")
    (tmp_path / "onnx").mkdir()
    torch.save({}, tmp_path / "optimizer.pt")
    torch.save({"w": torch.ones(2)}, tmp_path / "classifier.bin")
    assert open_checkpoint(tmp_path).warnings == (
        "not averaged, and not in the output: the weights in classifier.bin",
        "not averaged, and not in the output: the weights in half/, speech/",
    )


def test_other_folders_are_no_pipelines(tmp_path: Path) -> None:
    """Names of components without models in them, and models under other names, are none."""
    (tmp_path / "unet").mkdir()
    write(tmp_path, adapter=1.0)
    assert not several.matches(tmp_path)
    assert not several.matches(tmp_path / "missing")


MODULE = "sentence_transformers.models."


@pytest.mark.parametrize(
    ("modules", "missing"),
    [
        ({"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense"}, "2_Dense/"),
        ({"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}, None),
        ({"": "Transformer", "1_Own": "my_package.OwnLayer", "2_Dense": "Dense"}, "1_Own/, 2_Dense/"),
        ({"": "Transformer", "1_Dense": "Dense", "2_LayerNorm": "LayerNorm"}, "2_LayerNorm/"),
    ],
)
def test_a_module_whose_weights_are_missing_is_said(
    modules: dict[str, str], missing: str | None, tmp_path: Path
) -> None:
    """modules.json names it, and no checkpoint has it: that is said before anything is written."""
    folder = tmp_path / "checkpoint-5"
    for place in ("", "1_Dense", *(place for place in modules if "Pooling" in place)):
        (folder / place).mkdir(parents=True, exist_ok=True)
    save_file({"w": torch.ones(2)}, folder / "model.safetensors")
    save_file({"w": torch.ones(2)}, folder / "1_Dense" / "model.safetensors")
    entries = [{"path": path, "type": kind if "." in kind else f"{MODULE}{kind}"} for path, kind in modules.items()]
    (folder / "modules.json").write_text(json.dumps(entries))
    said = [warning for warning in open_checkpoint(folder).warnings if "no weights in" in warning]
    expected = f"no weights in {missing}, where its own files name a part of the model: the output has none either"
    assert said == ([expected] if missing else [])


def test_a_pipeline_whose_model_is_missing_is_said(tmp_path: Path) -> None:
    """model_index.json names a VAE without weights; schedulers and tokenizers have none, and null is left out."""
    folder = write(tmp_path / "step-5", unet=1.0, text_encoder=1.0)
    index = {
        "_class_name": "Pipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizerFast"],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "safety_checker": [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "vae").mkdir()
    (folder / "vae" / "config.json").write_text("{}")
    (warning,) = open_checkpoint(folder).warnings
    assert warning.startswith("no weights in vae/, where its own files name")


def test_the_own_model_of_a_folder_of_modules_may_be_missing(tmp_path: Path) -> None:
    """Only the module after the transformer was saved."""
    folder = tmp_path / "checkpoint-5"
    (folder / "2_Dense").mkdir(parents=True)
    save_file({"w": torch.ones(2)}, folder / "2_Dense" / "model.safetensors")
    entries = [{"path": path, "type": f"{MODULE}{kind}"} for path, kind in (("", "Transformer"), ("2_Dense", "Dense"))]
    (folder / "modules.json").write_text(json.dumps(entries))
    (warning,) = open_checkpoint(folder).warnings
    assert warning.startswith("no weights in this folder, where its own files name")
