"""Runs that Composer's Trainer wrote here and now, in files and in folders of shards, against Composer's own EMA."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import Cli
from tests.trainers.conftest import Tensors, assert_rounds, load_dcp, names, recurrence, require
from tests.trainers.ranks import launch
from tests.trainers.write_composer import BATCH, EPOCH_LENGTH, EPOCHS, HALF_LIFE, INTERVAL

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("ignore")]

RANKS = 2
EVERY_FOURTH = [4, 8, 12, 16]
NAMES = ["ep0-ba4", "ep0-ba8", "ep1-ba12", "ep1-ba16"]
EMA_WAS_ON = "is averaged already: Composer's EMA was on"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One training in two processes, done with and without EMA and shards."""
    require("composer")
    return launch("write_composer", tmp_path_factory.mktemp("composer") / "written", ranks=RANKS)


def load_files(folder: Path) -> list[Tensors]:
    """Return `state.model` of a folder's files at every fourth batch, oldest first."""
    return [torch.load(folder / f"{name}-rank0.pt", weights_only=False)["state"]["model"] for name in NAMES]


def load_shards(folder: Path) -> list[Tensors]:
    """Return `state.model` of the folders of shards that are there, oldest first."""
    return [load_dcp(folder / name)["state"]["model"] for name in NAMES if (folder / name).exists()]


def test_average_is_what_composer_s_ema_held(cli: Cli, written: Path, tmp_path: Path):
    """From files that Composer wrote without EMA comes the average that its EMA held in the same training.

    Values are around 1, and Composer rounds to float32 at each update. It averages counters, too, which we do not.
    """
    law = ["--half-life", f"{HALF_LIFE}ba", "--update-interval", f"{INTERVAL}ba"]
    done = cli("average", written / "raw", *law)
    assert (done.code, done.out) == (0, f"ema-{HALF_LIFE}ba.safetensors\n"), done
    averaged, theirs = (load_file(path) for path in (tmp_path / done.out.strip(), written / "ema.safetensors"))
    assert sorted(averaged) == sorted(theirs)
    for name, tensor in averaged.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=3e-7, msg=name)
    assert averaged["net.1.num_batches_tracked"] == EPOCHS * EPOCH_LENGTH


def test_averages_are_refused(cli: Cli, written: Path, tmp_path: Path):
    """A run with the EMA on is refused; --weights raw gives the average of what the training held."""
    done = cli("average", written / "averages", "--half-life", "6ba")
    assert done.code == 4
    assert EMA_WAS_ON in done.err
    assert names(tmp_path) == set()
    assert cli("average", written / "averages", "--half-life", "6ba", "--weights", "raw").code == 0
    raw = load_files(written / "raw")
    assert not torch.equal(raw[-1]["net.0.weight"], load_files(written / "averages")[-1]["net.0.weight"])
    assert_rounds(load_file(tmp_path / "ema-6ba.safetensors"), recurrence(raw, EVERY_FOURTH, 6))


def test_shards_are_what_the_training_held(written: Path):
    """Both processes wrote a file, and torch's own loader finds in the newest what the training held at its end."""
    assert names(written / "sharded") == {*NAMES, "latest-rank0.pt"}
    assert names(written / "sharded" / "ep1-ba16") == {".metadata", "__0_0.distcp", "__1_0.distcp"}
    newest, last = load_shards(written / "sharded")[-1], load_file(written / "last.safetensors")
    assert sorted(newest) == sorted(last)
    assert all(torch.equal(newest[name], tensor) for name, tensor in last.items())


@pytest.mark.parametrize(
    ("law", "clocks", "half_life"),
    [
        (["--half-life", "6ba"], EVERY_FOURTH, 6),
        (["--half-life", "1ep"], [0, 1, 1, 2], 1),
        (["--half-life", "50sp", "--update-interval", "8sp"], [8 * batch for batch in EVERY_FOURTH], 50),
    ],
)
def test_average_of_shards(cli: Cli, written: Path, tmp_path: Path, law: list[str], clocks: list[int], half_life: int):
    """Folders of shards average as files do, in batches, epochs and samples, to one file with the model's own names."""
    done = cli("average", written / "sharded", *law)
    assert (done.code, done.out) == (0, f"ema-{law[1]}.safetensors\n"), done
    interval = 8 if law[-1] == "8sp" else 1
    exact = recurrence(load_shards(written / "sharded"), clocks, half_life, interval)
    assert_rounds(load_file(tmp_path / f"ema-{law[1]}.safetensors"), exact)


@pytest.mark.parametrize("kind", ["averages", "sharded"])
def test_composer_s_batches_samples_and_epochs_are_clocks(cli: Cli, written: Path, kind: str):
    """Batches, samples and completed epochs come from the file or from the shards; the link counts for nothing."""
    told = cli("inspect", written / kind, "--json").json["run"]
    suffix = "" if kind == "sharded" else "-rank0.pt"
    assert [each["name"] for each in told["checkpoints"]] == [f"{name}{suffix}" for name in NAMES]
    assert {each["trainer"] for each in told["checkpoints"]} == {"Composer"}
    clocks = [{unit: each["value"] for unit, each in one["clocks"].items()} for one in told["checkpoints"]]
    assert clocks == [{"ep": batch // EPOCH_LENGTH, "ba": batch, "sp": batch * BATCH * RANKS} for batch in EVERY_FOURTH]
    assert {each["from"] for one in told["checkpoints"] for each in one["clocks"].values()} == {"file"}
    assert [each["name"] for each in told["passed_over"]] == ["latest-rank0.pt"]


def test_sharded_averages_are_refused(cli: Cli, written: Path, tmp_path: Path):
    """Shards written with the EMA on are refused as files are; the raw weights, which no process saved whole, too."""
    run = written / "sharded-averages"
    done = cli("average", run, "--half-life", "6ba")
    assert done.code == 4
    assert EMA_WAS_ON in done.err
    raw = cli("average", run, "--half-life", "6ba", "--weights", "raw")
    assert raw.code in (3, 4), raw
    assert names(tmp_path) == set()


def test_sharded_averages_averaged_again(cli: Cli, written: Path, tmp_path: Path):
    """--weights ema averages the averages that lie in shards, and says so."""
    run = written / "sharded-averages"
    done = cli("average", run, "--half-life", "6ba", "--weights", "ema")
    assert done.code == 0, done
    assert "averages, which are averaged again" in done.err
    assert_rounds(load_file(tmp_path / "ema-6ba.safetensors"), recurrence(load_shards(run), [8, 16], 6))


def test_training_goes_on_from_an_average(cli: Cli, written: Path, tmp_path: Path):
    """Composer's Trainer loads a file and a folder of shards in its own form, finds the average, and trains on."""
    every = range(1, EPOCHS * EPOCH_LENGTH + 1)
    files = [written / "raw" / f"ep{(batch - 1) // EPOCH_LENGTH}-ba{batch}-rank0.pt" for batch in every]
    raw = [torch.load(file, weights_only=False)["state"]["model"] for file in files]
    for name, exact in (
        ("raw.pt", recurrence(raw, every, 6)),
        ("sharded", recurrence(load_shards(written / "sharded"), EVERY_FOURTH, 6)),
    ):
        output, run = tmp_path / name, written / name.removesuffix(".pt")
        done = cli("average", run, "--half-life", "6ba", "-o", output, "--like-input")
        assert done.code == 0, done
        verify = cli("verify", output, "--against", run, "--like-input")
        assert verify.code == 0, verify
        save_file(exact, tmp_path / f"{run.name}.safetensors")
    launch("load_composer", tmp_path, ranks=RANKS)
