"""Diffusers' folders of several models: one is read, never mixed with its averages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import EmaError, RunError, UsageError
from ema_cli.formats import is_checkpoint_folder, open_checkpoint
from ema_cli.formats.folders import diffusers as pipeline
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.trainers.choice import AVERAGED_AGAIN
from ema_cli.formats.trainers.folders import COMPONENTS
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


def test_one_of_several_is_named(tmp_path: Path) -> None:
    """Of several models the user says which; the error lists them."""
    folder = write(tmp_path / "checkpoint-5", unet=1.0, text_encoder=2.0, vae=3.0)
    error = refusal(folder)
    assert type(error) is UsageError
    assert "holds several models: unet, vae, text_encoder" in str(error)
    assert error.hint == "say which: component='unet'"
    for component, number in (("unet", 1.0), ("text_encoder", 2.0), ("vae", 3.0)):
        assert value(open_checkpoint(folder, ReadOptions(component=component))) == number


def test_a_component_that_is_not_there(tmp_path: Path) -> None:
    """A name that no model has is an error that lists those there are."""
    error = refusal(write(tmp_path / "checkpoint-5", unet=1.0), component="transformer")
    assert type(error) is UsageError
    assert "has no component 'transformer'" in str(error)
    assert error.hint == "it has unet"


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
    assert (value(checkpoint), checkpoint.averaged is not None, checkpoint.notes) == CHOICES[component, weights]


def test_nothing_but_averages(tmp_path: Path) -> None:
    """A folder whose raw weights are missing holds averages, and says so."""
    folder = write(tmp_path / "checkpoint-5", unet_ema=2.0)
    checkpoint = open_checkpoint(folder)
    assert value(checkpoint) == 2.0
    assert checkpoint.averaged
    error = refusal(folder, weights="raw")
    assert (type(error), error.hint) == (RunError, "leave out weights='raw'")


def test_averages_that_are_not_there(tmp_path: Path) -> None:
    """Asking for averages of a model that has none is an error, even where another model has some."""
    folder = write(tmp_path / "checkpoint-5", unet=1.0, transformer=2.0, transformer_ema=3.0)
    error = refusal(folder, component="unet", weights="ema")
    assert type(error) is RunError
    assert "holds no averages of 'unet'" in str(error)


def test_averages_that_lost_their_name(tmp_path: Path) -> None:
    """What Diffusers' EMAModel saved is known by its configuration, in a component's folder, too."""
    folder = write(tmp_path / "checkpoint-5", unet=1.0)
    (folder / "unet" / "config.json").write_text('{"optimization_step": 5}')
    assert "EMAModel" in (open_checkpoint(folder).averaged or "")


def test_other_folders_are_no_pipelines(tmp_path: Path) -> None:
    """Names of components without models in them, and models under other names, are none."""
    (tmp_path / "unet").mkdir()
    write(tmp_path, adapter=1.0)
    assert not pipeline.matches(tmp_path)
    assert not pipeline.matches(tmp_path / "missing")
