"""Folders that timm's CheckpointSaver filled here and now, as its training script drives it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Cli
from tests.trainers.conftest import Tensors, assert_rounds, names, recurrence

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("ignore")]

EPOCHS = 5
METRICS = [10.0, 30.0, 20.0, 25.0, 15.0]  # the best is that of epoch 1


def make_model() -> Any:
    """Return one of timm's own small models, with BatchNorm."""
    timm = pytest.importorskip("timm")
    return timm.create_model("test_byobnet", num_classes=3)


def train(folder: Path, ema: bool = False, kept: int = 10) -> Path:
    """Train five epochs of three batches as timm's train.py does, with a recovery file in the middle of each."""
    from timm.utils import CheckpointSaver, ModelEmaV3

    torch.manual_seed(5)
    folder.mkdir()
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    averages = ModelEmaV3(model, decay=0.5) if ema else None
    saver = CheckpointSaver(
        model=model,
        optimizer=optimizer,
        args=argparse.Namespace(model="test_byobnet", lr=0.05),
        model_ema=averages,
        checkpoint_dir=str(folder),
        recovery_dir=str(folder),
        max_history=kept,
    )
    for epoch in range(EPOCHS):
        for batch in range(3):
            inputs = torch.randn(4, 3, 16, 16)
            torch.nn.functional.cross_entropy(model(inputs), torch.randint(3, (4,))).backward()
            optimizer.step()
            optimizer.zero_grad()
            if averages is not None:
                averages.update(model)
            if batch == 1:
                saver.save_recovery(epoch, batch_idx=batch)
        saver.save_checkpoint(epoch, metric=METRICS[epoch])
    # What train.py puts beside them.
    (folder / "args.yaml").write_text("model: test_byobnet\n")
    (folder / "summary.csv").write_text("epoch,eval_top1\n0,10.0\n")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without EMA."""
    make_model()
    return train(tmp_path_factory.mktemp("timm") / "run")


@pytest.fixture(scope="module")
def ema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with timm's EMA on."""
    make_model()
    return train(tmp_path_factory.mktemp("timm-ema") / "run", ema=True)


def saved(folder: Path, key: str = "state_dict") -> list[Tensors]:
    """Return the weights of the numbered checkpoints, oldest first."""
    files = sorted(folder.glob("checkpoint-*.pth.tar"))
    return [torch.load(file, weights_only=False)[key] for file in files]


def test_folder_is_timm_s(run: Path):
    """Numbered from 0; last and model_best are hard links; the last two recovery files are there."""
    assert names(run) == {
        *(f"checkpoint-{epoch}.pth.tar" for epoch in range(EPOCHS)),
        "last.pth.tar",
        "model_best.pth.tar",
        "recovery-3-1.pth.tar",
        "recovery-4-1.pth.tar",
        "args.yaml",
        "summary.csv",
    }
    assert (run / "last.pth.tar").samefile(run / "checkpoint-4.pth.tar")
    assert (run / "model_best.pth.tar").samefile(run / "checkpoint-1.pth.tar")


@pytest.mark.parametrize(("half_life", "interval"), [(2, 1), (1, 2)])
def test_a_timm_run_averages_without_links_and_recovery_files(
    cli: Cli, run: Path, tmp_path: Path, half_life: int, interval: int
):
    """checkpoint-0 is one completed epoch; links, and recovery files of the middle of an epoch, do not enter."""
    done = cli("average", run, "--half-life", f"{half_life}ep", "--update-interval", f"{interval}ep", "--json")
    assert done.code == 0, done
    exact = recurrence(saved(run), range(1, EPOCHS + 1), half_life, interval)
    assert_rounds(load_file(tmp_path / f"ema-{half_life}ep.safetensors"), exact)
    entered = [each["name"] for each in done.json["plans"][0]["entries"]]
    expected = range(EPOCHS) if interval == 1 else (0, 1, 3)  # the first copy, then every second
    assert entered == [f"checkpoint-{epoch}.pth.tar" for epoch in expected]


def test_timm_s_completed_epochs_are_clocks(cli: Cli, run: Path):
    """Completed epochs come from the file; the links are passed over as what they are."""
    told = cli("inspect", run, "--json").json["run"]
    numbered = [each for each in told["checkpoints"] if each["name"].startswith("checkpoint-")]
    assert [(each["name"], each["clocks"]) for each in numbered] == [
        (f"checkpoint-{epoch}.pth.tar", {"ep": {"value": epoch + 1, "from": "file"}}) for epoch in range(EPOCHS)
    ]
    assert {each["trainer"] for each in told["checkpoints"]} == {"timm"}
    reasons = {each["name"]: each["reason"] for each in told["passed_over"]}
    assert reasons["last.pth.tar"] == "the same file as checkpoint-4.pth.tar"
    assert reasons["model_best.pth.tar"] == "the same file as checkpoint-1.pth.tar"


def test_average_loads_into_the_model(cli: Cli, run: Path, tmp_path: Path):
    """timm takes the average as a checkpoint: strictly, and with finite numbers."""
    from timm.models import load_checkpoint

    assert cli("average", run, "--half-life", "2ep").code == 0
    model = make_model()
    load_checkpoint(model, str(tmp_path / "ema-2ep.safetensors"), strict=True)
    assert torch.isfinite(model.eval()(torch.ones(1, 3, 16, 16))).all()


def test_gaps_left_by_the_best_ones_kept(cli: Cli, tmp_path: Path):
    """timm keeps the best by metric: with epochs missing in between, the half-life stays true."""
    make_model()
    run = train(tmp_path / "run", kept=2)
    kept = sorted(int(path.name.split("-")[1].split(".")[0]) for path in run.glob("checkpoint-*"))
    assert kept == [1, 3]
    told = cli("inspect", run, "--json").json["run"]["checkpoints"]
    assert "last.pth.tar" in {each["name"] for each in told}  # its own file by now
    last = torch.load(run / "last.pth.tar", weights_only=False)["state_dict"]
    done = cli("average", run, "--half-life", "2ep")
    assert done.code == 0, done
    assert_rounds(load_file(tmp_path / "ema-2ep.safetensors"), recurrence([*saved(run), last], [2, 4, 5], 2))


@pytest.mark.parametrize(
    ("choice", "key", "said"),
    [
        ([], "state_dict", "state_dict_ema"),
        (["--weights", "raw"], "state_dict", ""),
        (["--weights", "ema"], "state_dict_ema", "these are averages, which are averaged again"),
    ],
)
def test_averages_beside_the_raw_weights(cli: Cli, ema: Path, tmp_path: Path, choice: list[str], key: str, said: str):
    """With timm's EMA on, the raw weights are averaged and that is said; --weights ema takes timm's averages."""
    raw, averages = saved(ema), saved(ema, "state_dict_ema")
    name = next(name for name, tensor in raw[-1].items() if tensor.is_floating_point())
    assert not torch.equal(raw[-1][name], averages[-1][name])
    done = cli("average", ema, "--half-life", "2ep", *choice)
    assert done.code == 0, done
    assert said in done.err
    exact = recurrence(saved(ema, key), range(1, EPOCHS + 1), 2)
    assert_rounds(load_file(tmp_path / "ema-2ep.safetensors"), exact)
