"""Folders that diffusers' training scripts leave: a model and its EMA in each checkpoint, written here and now."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import OWN_FILES, Cli
from tests.trainers.conftest import Tensors, assert_rounds, names, recurrence

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("ignore")]

STEPS = [10, 20, 30]
WEIGHTS = "diffusion_pytorch_model.safetensors"


def make_unet() -> Any:
    """Return a UNet of 17,609 parameters."""
    diffusers = pytest.importorskip("diffusers")
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as the scripts save it: Accelerate's state, its model written by hooks as unet/ and unet_ema/."""
    unet = make_unet()
    import accelerate
    from diffusers import UNet2DModel
    from diffusers.training_utils import EMAModel

    torch.manual_seed(12)
    folder = tmp_path_factory.mktemp("diffusers") / "run"
    accelerator = accelerate.Accelerator(cpu=True)
    averages = EMAModel(unet.parameters(), decay=0.5, model_cls=UNet2DModel, model_config=unet.config)

    def save_models(_models: Any, weights: list[Any], output: str) -> None:
        averages.save_pretrained(str(Path(output) / "unet_ema"))
        unet.save_pretrained(str(Path(output) / "unet"))
        weights.pop()  # so that Accelerate does not save it too

    accelerator.register_save_state_pre_hook(save_models)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-2)
    unet, optimizer = accelerator.prepare(unet, optimizer)
    for step in range(1, STEPS[-1] + 1):
        accelerator.backward(unet(torch.randn(2, 1, 8, 8), torch.tensor([1, 2])).sample.pow(2).mean())
        optimizer.step()
        optimizer.zero_grad()
        averages.step(unet.parameters())
        if step in STEPS:
            accelerator.save_state(str(folder / f"checkpoint-{step}"))
    accelerator.free_memory()
    return folder


def saved(run: Path, part: str) -> list[Tensors]:
    """Return the weights of a part of the checkpoints, oldest first."""
    return [load_file(run / f"checkpoint-{step}" / part / WEIGHTS) for step in STEPS]


def test_folder_is_diffusers(run: Path):
    """Each checkpoint holds the model, its averages, and Accelerate's state without a model."""
    for step in STEPS:
        assert {"unet", "unet_ema", "optimizer.bin"} <= names(run / f"checkpoint-{step}")
        assert "model.safetensors" not in names(run / f"checkpoint-{step}")
    raw, averages = saved(run, "unet")[-1], saved(run, "unet_ema")[-1]
    assert sorted(raw) == sorted(averages)
    assert not all(torch.equal(tensor, averages[name]) for name, tensor in raw.items())


@pytest.mark.parametrize("component", [[], ["--component", "unet"]])
def test_raw_model_averages_to_a_folder_that_loads(cli: Cli, run: Path, tmp_path: Path, component: list[str]):
    """The only component needs no name; the raw weights are taken, that is said, and diffusers loads the result."""
    from diffusers import UNet2DModel

    done = cli("average", run, "--half-life", "15ba", *component)
    assert (done.code, done.out) == (0, "ema-15ba\n"), done
    assert "unet_ema" in done.err
    written = tmp_path / "ema-15ba"
    assert names(written) == {WEIGHTS, "config.json", *OWN_FILES}
    exact = recurrence(saved(run, "unet"), STEPS, 15)
    assert_rounds(load_file(written / WEIGHTS), exact)
    model, told = UNet2DModel.from_pretrained(written, output_loading_info=True)
    assert not any(told.values()), told
    assert_rounds(model.state_dict(), exact)


def test_clocks_are_in_the_names(cli: Cli, run: Path):
    """No file records a step; the folder's name does."""
    told = cli("inspect", run, "--json").json["run"]
    assert [(each["name"], each["clocks"]) for each in told["checkpoints"]] == [
        (f"checkpoint-{step}", {"ba": {"value": step, "from": "name"}}) for step in STEPS
    ]
    assert {each["trainer"] for each in told["checkpoints"]} == {"diffusers"}


def test_averages_when_asked_for(cli: Cli, run: Path, tmp_path: Path):
    """--weights ema averages diffusers' averages and says so; --component unet_ema by itself is refused as averages."""
    done = cli("average", run, "--half-life", "15ba", "--component", "unet", "--weights", "ema", "-o", "again")
    assert done.code == 0, done
    assert "these are averages, which are averaged again" in done.err
    assert_rounds(load_file(tmp_path / "again" / WEIGHTS), recurrence(saved(run, "unet_ema"), STEPS, 15))
    refused = cli("average", run, "--half-life", "15ba", "--component", "unet_ema", "-o", "refused")
    assert refused.code == 4, refused
    assert "averaged already" in refused.err


def test_component_that_is_not_there(cli: Cli, run: Path, tmp_path: Path):
    """A component of another name is a usage error that lists those there are."""
    done = cli("average", run, "--half-life", "15ba", "--component", "transformer")
    assert done.code == 2, done
    assert "unet" in done.err
    assert names(tmp_path) == set()


def test_several_components_are_averaged_together_or_by_name(cli: Cli, run: Path, tmp_path: Path):
    """Where two models are in a checkpoint, both are averaged, each where it was; named, one alone."""
    copied = shutil.copytree(run, tmp_path / "run")
    for step in STEPS:
        make_unet().save_pretrained(copied / f"checkpoint-{step}" / "controlnet")
    done = cli("average", "run", "--half-life", "15ba", "-o", "both")
    assert done.code == 0, done
    for component in ("unet", "controlnet"):
        assert cli("average", "run", "--half-life", "15ba", "--component", component, "-o", component).code == 0
        exact = recurrence(saved(copied, component), STEPS, 15)
        assert_rounds(load_file(tmp_path / component / WEIGHTS), exact)
        assert_rounds(load_file(tmp_path / "both" / component / WEIGHTS), exact)
