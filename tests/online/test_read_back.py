"""`--weights ema` takes the averages that our EMA left in checkpoints: in callbacks, in one's own file, in `ema/`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ema_cli import EMA
from tests.conftest import Cli
from tests.online.models import held, small_model, walk

pytestmark = pytest.mark.slow

STEPS = (20, 40, 60)


def lightning(folder: Path, step: int, model: nn.Module, ema: EMA) -> None:
    """Save a checkpoint as Lightning does with our callback."""
    content = {
        "epoch": 0, "global_step": step, "pytorch-lightning_version": "2.5.0", "loops": {}, "optimizer_states": [],
        "lr_schedulers": [], "state_dict": model.state_dict(), "callbacks": {"EMACallback": ema.state_dict()},
    }  # fmt: skip
    torch.save(content, folder / f"epoch=0-step={step}.ckpt")


def one_s_own(folder: Path, step: int, model: nn.Module, ema: EMA) -> None:
    """Save a checkpoint as the page on live training does."""
    torch.save({"model": model.state_dict(), "ema": ema.state_dict(), "step": step}, folder / f"step-{step}.pt")


def nested(folder: Path, step: int, model: nn.Module, ema: EMA) -> None:
    """Save a checkpoint with the state one level down, under a name that says nothing."""
    state = {"slow": ema.state_dict(), "steps": step}
    torch.save({"model": model.state_dict(), "extra": state, "step": step}, folder / f"step-{step}.pt")


def hugging_face(folder: Path, step: int, model: nn.Module, ema: EMA) -> None:
    """Save a checkpoint as the Trainer does with our callback."""
    checkpoint = folder / f"checkpoint-{step}"
    (checkpoint / "ema").mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step, "epoch": step / 100}))
    for place in (checkpoint, checkpoint / "ema"):
        (place / "config.json").write_text('{"architectures": ["X"], "model_type": "x"}')
    save_file(model.state_dict(), checkpoint / "model.safetensors", {"format": "pt"})
    with ema.applied(ema.names[0]):
        save_file(model.state_dict(), checkpoint / "ema/model.safetensors", {"format": "pt"})
    torch.save(ema.state_dict(), checkpoint / "ema_state.pt")


def saved_beside(folder: Path, step: int, model: nn.Module, ema: EMA) -> None:
    """Save a checkpoint of the weights alone, and the average in a folder beside all of them."""
    torch.save({"model": model.state_dict(), "step": step}, folder / f"step-{step}.pt")
    (folder / "ema").mkdir(exist_ok=True)
    ema.save(folder / f"ema/step-{step}.safetensors", ema.names[0])


def train(folder: Path, save: Callable[[Path, int, nn.Module, EMA], None], asked: Any) -> list[dict[str, Tensor]]:
    """Train, saving at some steps; return the first average at these, in float64."""
    folder.mkdir()
    model = small_model()
    ema, seen = EMA(model, asked), []
    move = walk(model)
    for step in range(1, STEPS[-1] + 1):
        move()
        ema.update()
        if step in STEPS:
            save(folder, step, model, ema)
            seen.append({name: tensor.double() for name, tensor in held(ema, ema.names[0]).items()})
    return seen


@pytest.mark.parametrize("asked", ["5ba", ("5ba", "20ba")], ids=str)
@pytest.mark.parametrize("save", [lightning, one_s_own, nested, hugging_face, saved_beside])
def test_our_own_averages_are_taken(
    cli: Cli, tmp_path: Path, save: Callable[[Path, int, nn.Module, EMA], None], asked: Any
) -> None:
    """The result is the average of the averages, summed here in float64; counters are the newest's."""
    seen = train(tmp_path / "run", save, asked)
    done = cli("average", "run", "--weights", "ema", "--half-life", "20ba", "-o", "out")
    assert done.code == 0, done
    assert "averaged again" in done.err
    found = load_file(tmp_path / "out/model.safetensors")
    for name, tensor in found.items():
        expected = 0.25 * seen[0][name] + 0.25 * seen[1][name] + 0.5 * seen[2][name]
        if not tensor.is_floating_point():
            expected = seen[2][name]
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-6)
    assert cli("verify", "out", "--against", "run").code == 0


@pytest.mark.parametrize("save", [lightning, one_s_own, hugging_face, saved_beside])
def test_raw_weights_are_taken_as_before(
    cli: Cli, tmp_path: Path, save: Callable[[Path, int, nn.Module, EMA], None]
) -> None:
    """Without the option, the raw weights are averaged; where averages lie in the same file, that is said."""
    seen = train(tmp_path / "run", save, "5ba")
    done = cli("inspect", "run", "--half-life", "20ba")
    assert save in (hugging_face, saved_beside) or "averages lie beside them" in done.out
    assert cli("average", "run", "--half-life", "20ba", "-o", "out").code == 0
    found = load_file(tmp_path / "out/model.safetensors")
    average = {name: 0.25 * seen[0][name] + 0.25 * seen[1][name] + 0.5 * seen[2][name] for name in seen[0]}
    assert not torch.allclose(found["0.weight"].double(), average["0.weight"], atol=1e-4)


def test_averages_that_have_not_begun_are_none(cli: Cli, tmp_path: Path) -> None:
    """A state from before the first update holds copies of the model: the error says that they have not begun."""
    (tmp_path / "run").mkdir()
    model = small_model()
    ema = EMA(model, "5ba", ema_start="1000ba")
    for step in (1, 2):
        ema.update()
        one_s_own(tmp_path / "run", step, model, ema)
    done = cli("average", "run", "--weights", "ema", "--half-life", "20ba", "-o", "out")
    assert done.code == 4
    assert "no averages" in done.err


def test_a_folder_of_saved_averages_is_a_run_of_them(cli: Cli, tmp_path: Path) -> None:
    """Named itself, with the option; without it they are averages that ema-cli made, and no checkpoints."""
    train(tmp_path / "run", saved_beside, "5ba")
    assert cli("average", "run/ema", "--weights", "ema", "--half-life", "20ba", "-o", "out").code == 0
    assert cli("verify", "out", "--against", "run/ema").code == 0
    assert cli("average", "run/ema", "--half-life", "20ba", "-o", "again").code == 3


def test_what_ema_cli_averaged_is_no_average_of_the_training(cli: Cli, tmp_path: Path) -> None:
    """An average of checkpoints that lies in `ema/` does not enter: it holds some of them already."""
    train(tmp_path / "run", one_s_own, "5ba")
    (tmp_path / "run/ema").mkdir()
    given = ("average", "run", "--weights", "ema", "--half-life", "20ba", "-o")
    assert cli(*given, "run/ema/step-80.safetensors").code == 0
    assert cli(*given, "out").code == 0
    inputs = json.loads((tmp_path / "out/ema-manifest.json").read_text())["inputs"]
    assert [row["name"] for row in inputs] == [f"step-{step}.pt" for step in STEPS]


def test_stored_averages_beside_raw_checkpoints_are_named(cli: Cli, tmp_path: Path) -> None:
    """They are no checkpoints to average as such: the hint gives the option that combines them, and it works."""

    def stored(folder: Path, step: int, model: nn.Module, ema: EMA) -> None:
        torch.save({"model": model.state_dict(), "step": step}, folder / f"step-{step}.pt")
        ema.store(folder / "ema")

    train(tmp_path / "run", stored, ("5ba", "20ba"))
    done = cli("average", "run", "--weights", "ema", "--half-life", "10ba", "-o", "out")
    assert done.code == 4
    assert "--from stored" in done.err
    assert cli("average", "run", "--from", "stored", "--half-life", "10ba", "-o", "out").code == 0
