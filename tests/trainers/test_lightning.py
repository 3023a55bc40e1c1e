"""Runs that Lightning's Trainer wrote here and now: every way ModelCheckpoint fills a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.conftest import Cli
from tests.trainers.conftest import Tensors, assert_rounds, names, recurrence

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("ignore")]

EPOCH_LENGTH = 12
EVERY_FOURTH = list(range(4, 37, 4))


class Settings:
    """Someone's own class, as it lands in hyper_parameters; only its own code may load it."""

    def __init__(self) -> None:
        self.width = 8


def make_model() -> Any:
    """Return a LightningModule with BatchNorm, whose network sits in the attribute `net`."""
    lightning = pytest.importorskip("lightning")

    class Model(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, settings: Settings) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = nn.Sequential(nn.Linear(4, settings.width), nn.BatchNorm1d(settings.width), nn.Linear(8, 1))

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.net(batch)
            return result

        def training_step(self, batch: Sequence[torch.Tensor], _index: int) -> torch.Tensor:
            loss = (self(batch[0]) - batch[0].sum(dim=1, keepdim=True)).pow(2).mean()
            self.log("train/loss", loss)
            return loss

        def validation_step(self, batch: Sequence[torch.Tensor], _index: int) -> None:
            self.log("val/loss", self(batch[0]).pow(2).mean())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.05)

    return Model(Settings())


def fit(folder: Path, *callbacks: Any, epochs: int = 3, **options: Any) -> Path:
    """Train for some epochs of 12 batches; `options` go to ModelCheckpoint, `val_check_interval` to the Trainer."""
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch.callbacks import ModelCheckpoint

    torch.manual_seed(1)
    loader = DataLoader(TensorDataset(torch.randn(48, 4)), batch_size=4)
    interval = options.pop("val_check_interval", None)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        callbacks=[ModelCheckpoint(folder, save_top_k=-1, **options), *callbacks],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        val_check_interval=interval,
        num_sanity_val_steps=0,
    )
    trainer.fit(make_model(), loader, loader if interval else None)
    return folder


def saved(folder: Path, key: str = "state_dict") -> list[Tensors]:
    """Return the weights of a run's numbered checkpoints, oldest first."""
    files = [torch.load(path, weights_only=False) for path in folder.rglob("*.ckpt") if path.name != "last.ckpt"]
    return [file[key] for file in sorted(files, key=lambda file: file["global_step"])]


def clocks(cli: Cli, folder: Path) -> list[tuple[str, int, int]]:
    """Return name, steps and epochs of each checkpoint as `inspect` tells them, all of them from the file."""
    told = cli("inspect", folder, "--json").json["run"]["checkpoints"]
    assert {clock["from"] for each in told for clock in each["clocks"].values()} == {"file"}
    assert {each["trainer"] for each in told} == {"Lightning"}
    return [(each["name"], each["clocks"]["ba"]["value"], each["clocks"]["ep"]["value"]) for each in told]


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint every fourth step, and last.ckpt, a copy of the newest."""
    return fit(tmp_path_factory.mktemp("steps"), every_n_train_steps=4, save_last=True)


@pytest.fixture(scope="module")
def epochs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint at each of five epoch ends."""
    return fit(tmp_path_factory.mktemp("epochs"), epochs=5, every_n_epochs=1)


@pytest.fixture(scope="module")
def ema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with Lightning's own EMA on."""
    pytest.importorskip("lightning")
    from lightning.pytorch.callbacks import EMAWeightAveraging

    return fit(tmp_path_factory.mktemp("ema") / "run", EMAWeightAveraging(decay=0.9), every_n_train_steps=4)


@pytest.mark.parametrize(("half_life", "interval"), [(8, 1), (10, 6), (3, 4)])
def test_average_in_batches(cli: Cli, steps: Path, tmp_path: Path, half_life: int, interval: int):
    """The average is the recurrence over the steps; last.ckpt, a copy, does not count twice."""
    done = cli("average", steps, "--half-life", f"{half_life}ba", "--update-interval", f"{interval}ba")
    assert (done.code, done.out) == (0, f"ema-{half_life}ba.safetensors\n"), done
    written = load_file(tmp_path / f"ema-{half_life}ba.safetensors")
    assert_rounds(written, recurrence(saved(steps), EVERY_FOURTH, half_life, interval))


def test_average_in_epochs(cli: Cli, epochs: Path, tmp_path: Path):
    """2ep/1ep over epoch ends: Lightning's epoch 0 is one completed epoch, and enters."""
    done = cli("average", epochs, "--half-life", "2ep", "--update-interval", "1ep")
    assert (done.code, done.out) == (0, "ema-2ep.safetensors\n"), done
    assert_rounds(load_file(tmp_path / "ema-2ep.safetensors"), recurrence(saved(epochs), [1, 2, 3, 4, 5], 2))


def test_average_in_epochs_of_a_run_saved_in_steps(cli: Cli, steps: Path, tmp_path: Path):
    """The step that ends an epoch counts it: of nine checkpoints the third, sixth and ninth enter."""
    done = cli("average", steps, "--half-life", "2ep", "--json")
    assert done.code == 0, done
    assert [(each["name"], each["clock"]) for each in done.json["plans"][0]["entries"]] == [
        ("epoch=0-step=12.ckpt", "1ep"),
        ("epoch=1-step=24.ckpt", "2ep"),
        ("epoch=2-step=36.ckpt", "3ep"),
    ]
    assert_rounds(load_file(tmp_path / "ema-2ep.safetensors"), recurrence(saved(steps)[2::3], [1, 2, 3], 2))


def test_result_loads_into_the_module(cli: Cli, steps: Path, tmp_path: Path):
    """The attribute's name stays in front of every tensor's; the module takes all strictly, and runs."""
    assert cli("average", steps, "--half-life", "8ba").code == 0
    written = load_file(tmp_path / "ema-8ba.safetensors")
    assert sorted(written) == sorted(f"net.{name}" for name in make_model().net.state_dict())
    assert written["net.1.num_batches_tracked"] == 36
    model = make_model()
    model.load_state_dict(written, strict=True)
    model.eval()
    assert torch.isfinite(model(torch.ones(2, 4))).all()
    assert torch.equal(model.net[0].weight, written["net.0.weight"])


def test_own_class_in_hyper_parameters(program: Cli, steps: Path):
    """Files that torch's weights_only refuses for someone's own class are read, and the class is not imported."""
    path = steps / "epoch=0-step=4.ckpt"
    with pytest.raises(Exception, match="Settings"):
        torch.load(path, weights_only=True)
    # From a folder where the module of the class does not exist.
    told = program("inspect", path, "--json", env={"PYTHONPATH": ""}).json
    assert {each["name"]: each["shape"] for each in told["tensors"]} == {
        name: list(tensor.shape) for name, tensor in saved(steps)[0].items()
    }


def test_clocks_of_steps(cli: Cli, steps: Path):
    """Epochs are completed ones, in the middle of one and at its end; last.ckpt has the newest one's clock."""
    numbered = [(f"epoch={(step - 1) // EPOCH_LENGTH}-step={step}.ckpt", step, step // 12) for step in EVERY_FOURTH]
    assert clocks(cli, steps) == [*numbered, ("last.ckpt", 36, 3)]
    told = cli("inspect", steps, "--json").json["run"]
    assert told["same_clock"] == [["epoch=2-step=36.ckpt", "last.ckpt"]]


def test_clocks_of_epochs(cli: Cli, epochs: Path):
    """A checkpoint at an epoch's end has completed that epoch."""
    assert clocks(cli, epochs) == [(f"epoch={n}-step={12 * n + 12}.ckpt", 12 * n + 12, n + 1) for n in range(5)]


def test_clocks_of_validations(cli: Cli, tmp_path: Path):
    """Saved at each validation, twice an epoch: half an epoch is not a completed one."""
    run = fit(tmp_path / "run", epochs=2, monitor="val/loss", val_check_interval=0.5)
    assert clocks(cli, run) == [
        ("epoch=0-step=6.ckpt", 6, 0),
        ("epoch=0-step=12.ckpt", 12, 1),
        ("epoch=1-step=18.ckpt", 18, 1),
        ("epoch=1-step=24.ckpt", 24, 2),
    ]
    assert cli("average", "run", "--half-life", "1ep").code == 0
    assert_rounds(load_file(tmp_path / "ema-1ep.safetensors"), recurrence(saved(run)[1::2], [1, 2], 1))


def test_last_as_a_link(cli: Cli, tmp_path: Path):
    """save_last='link' leaves a link to the newest, which is passed over."""
    run = fit(tmp_path / "run", epochs=2, every_n_train_steps=5, save_last="link")
    assert (run / "last.ckpt").is_symlink()
    told = cli("inspect", run, "--json").json["run"]
    assert told["passed_over"] == [{"name": "last.ckpt", "reason": "the same file as epoch=1-step=20.ckpt"}]
    assert cli("average", "run", "--half-life", "5ba").code == 0
    assert_rounds(load_file(tmp_path / "ema-5ba.safetensors"), recurrence(saved(run), [5, 10, 15, 20], 5))


def test_metric_that_makes_folders(cli: Cli, tmp_path: Path):
    """A '/' in a metric's name spreads one run over a folder for each checkpoint: still one run."""
    name = "{epoch:02d}-{step:06d}-{train/loss:.2f}"
    run = fit(tmp_path / "run", epochs=1, every_n_train_steps=4, filename=name)
    assert [(found.rpartition("=")[0], step, epoch) for found, step, epoch in clocks(cli, run)] == [
        ("epoch=00-step=000004-train/loss", 4, 0),
        ("epoch=00-step=000008-train/loss", 8, 0),
        ("epoch=00-step=000012-train/loss", 12, 1),
    ]
    assert cli("average", "run", "--half-life", "4ba").code == 0
    assert_rounds(load_file(tmp_path / "ema-4ba.safetensors"), recurrence(saved(run), [4, 8, 12], 4))


def test_averages_are_refused(cli: Cli, ema: Path, tmp_path: Path):
    """A run with Lightning's EMA on holds averages: exit 4, what was found, and both ways on; nothing is written."""
    done = cli("average", ema, "--half-life", "8ba")
    assert done.code == 4
    assert "is averaged already: Lightning's weight averaging was on: 'state_dict' holds averages" in done.err
    assert "--weights raw" in done.err
    assert "--weights ema" in done.err
    assert names(tmp_path) == set()
    assert {each["averaged_already"] for each in cli("inspect", ema, "--json").json["run"]["checkpoints"]} == {
        "Lightning's weight averaging was on: 'state_dict' holds averages"
    }


@pytest.mark.parametrize(
    ("choice", "warning"),
    [
        ("raw", "raw weights taken from beside the averages"),
        ("ema", "these are averages, which are averaged again"),
    ],
)
def test_choice_between_raw_and_averages(cli: Cli, ema: Path, tmp_path: Path, choice: str, warning: str):
    """--weights raw averages what training held, --weights ema the averages; each says so."""
    done = cli("average", ema, "--half-life", "8ba", "--weights", choice)
    assert done.code == 0, done
    assert warning in done.err
    raw, averages = saved(ema, "current_model_state"), saved(ema, "state_dict")
    assert not torch.equal(raw[-1]["net.0.weight"], averages[-1]["net.0.weight"])
    written = load_file(tmp_path / "ema-8ba.safetensors")
    assert_rounds(written, recurrence(raw if choice == "raw" else averages, EVERY_FOURTH, 8))
    make_model().load_state_dict(written, strict=True)
