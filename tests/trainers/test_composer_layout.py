"""A folder as Composer fills it, links included, against what Composer's own EMA held."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import COMPOSER, Cli
from tests.trainers.conftest import names

pytestmark = pytest.mark.trainers

NEWEST = "ep1-ba24-rank0.pt"


def lay_out(name: str, newest: str, folder: Path) -> Path:
    """Copy a run of Composer's to `folder`, with the link that Composer keeps to the newest checkpoint."""
    shutil.copytree(COMPOSER / name, folder, ignore=shutil.ignore_patterns("latest*"))
    (folder / "latest-rank0.pt").symlink_to(newest)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The run that saved every batch."""
    return lay_out("every-batch", NEWEST, tmp_path / "run")


def state_of(path: Path) -> dict[str, torch.Tensor]:
    """Return `state.model` of a file from this repository."""
    model: dict[str, torch.Tensor] = torch.load(path, weights_only=False)["state"]["model"]
    return model


def assert_composer_s(written: Path, expected: str) -> None:
    """Check a file against Composer's own average, and that integers are those of the newest checkpoint.

    Values are around 1. Composer rounds to float32 at each update, and is up to 2.2e-7 off the exact average.
    """
    tensors, theirs = load_file(written), load_file(COMPOSER / "expected" / f"{expected}.safetensors")
    assert sorted(tensors) == sorted(theirs)
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=3e-7, msg=name)
    counted = state_of(COMPOSER / "every-batch" / NEWEST)["norm.num_batches_tracked"]
    assert torch.equal(tensors["norm.num_batches_tracked"], counted)


@pytest.mark.parametrize(
    ("law", "expected"),
    [
        (["--half-life", "10ba"], "10ba-1ba"),
        (["--half-life", "8ba", "--update-interval", "4ba"], "8ba-4ba"),
        (["--half-life", "6ba", "--start", "12ba"], "6ba-1ba-start12ba"),
        (["--half-life", "1ep"], "1ep-1ep"),
        (["--half-life", "1ep", "--update-interval", "1ep"], "1ep-1ep"),
    ],
)
def test_average_is_composer_s(cli: Cli, run: Path, tmp_path: Path, law: list[str], expected: str):
    """For each setting that Composer ran with, its own average comes out of its checkpoints."""
    done = cli("average", run, *law)
    name = f"ema-{law[1]}.safetensors"
    assert (done.code, done.out) == (0, f"{name}\n"), done
    assert_composer_s(tmp_path / name, expected)


def test_epoch_checkpoints_give_the_same_epoch_average(cli: Cli, tmp_path: Path):
    """A run that saved only at epoch ends holds all that an epoch half-life needs."""
    lay_out("every-epoch", "ep2-ba24-rank0.pt", tmp_path / "run")
    assert cli("average", "run", "--half-life", "1ep", "-o", "out.safetensors").code == 0
    assert_composer_s(tmp_path / "out.safetensors", "1ep-1ep")


def test_savers_of_batches_and_epochs_in_one_folder(cli: Cli, run: Path, tmp_path: Path):
    """ep0-ba12 and ep1-ba12 are one state, saved by two savers: it counts once, in batches and in epochs."""
    for name in ("ep1-ba12-rank0.pt", "ep2-ba24-rank0.pt"):
        shutil.copy(COMPOSER / "every-epoch" / name, run)
    for law, expected in ((["--half-life", "10ba"], "10ba-1ba"), (["--half-life", "1ep"], "1ep-1ep")):
        done = cli("average", run, *law, "-o", f"{expected}.safetensors")
        assert done.code == 0, done
        assert_composer_s(tmp_path / f"{expected}.safetensors", expected)
    told = cli("inspect", run, "--json").json["run"]
    assert sorted(map(sorted, told["same_clock"])) == [
        ["ep0-ba12-rank0.pt", "ep1-ba12-rank0.pt"],
        ["ep1-ba24-rank0.pt", "ep2-ba24-rank0.pt"],
    ]


def test_inspect_reads_composer_s_clocks(cli: Cli, run: Path):
    """Epochs are completed ones: batch 12, saved in epoch 0, ends the first. The link counts once."""
    told = cli("inspect", run, "--json").json["run"]
    assert [each["name"] for each in told["checkpoints"]] == [
        f"ep{(batch - 1) // 12}-ba{batch}-rank0.pt" for batch in range(1, 25)
    ]
    assert {each["trainer"] for each in told["checkpoints"]} == {"Composer"}
    clocks = [{unit: each["value"] for unit, each in one["clocks"].items()} for one in told["checkpoints"]]
    assert clocks == [{"ep": batch // 12, "ba": batch, "sp": 4 * batch} for batch in range(1, 25)]
    assert {each["from"] for one in told["checkpoints"] for each in one["clocks"].values()} == {"file"}
    assert told["passed_over"] == [{"name": "latest-rank0.pt", "reason": f"the same file as {NEWEST}"}]
    assert (told["units"][0], told["spacing"]) == ("ba", {"usual": "1ba", "regular": True, "gaps": []})


def test_inspect_draws_the_epoch_plan(cli: Cli, run: Path):
    """With a half-life in epochs two of the 24 checkpoints enter; the others say why not."""
    plan = cli("inspect", run, "--half-life", "1ep", "--json").json["plans"][0]
    assert [(each["name"], each["clock"]) for each in plan["entries"]] == [
        ("ep0-ba12-rank0.pt", "1ep"),
        ("ep1-ba24-rank0.pt", "2ep"),
    ]
    assert [each["weight"] for each in plan["entries"]] == [0.5, 0.5]
    reasons = {each["name"]: each["reason"] for each in plan["skipped"]}
    assert len(reasons) == 22
    assert reasons["ep0-ba11-rank0.pt"] == "its clock is still 0ep"
    assert reasons["ep1-ba23-rank0.pt"] == "no update event since 1ep"


def test_pointer_file_in_place_of_a_link(cli: Cli, run: Path, tmp_path: Path):
    """Where Composer cannot link, it writes the name into a small file: no checkpoint, and not a broken one."""
    (run / "latest-rank0.pt").unlink()
    (run / "latest-rank0.pt").write_text(NEWEST)
    assert cli("average", run, "--half-life", "10ba", "-o", "out.safetensors").code == 0
    assert_composer_s(tmp_path / "out.safetensors", "10ba-1ba")
    assert cli("inspect", run, "--json").json["run"]["passed_over"] == [
        {"name": "latest-rank0.pt", "reason": f"points to {NEWEST}"}
    ]


def test_ema_was_on(cli: Cli, tmp_path: Path):
    """A run with Composer's EMA on is refused; --weights raw takes what training held, --weights ema the averages."""
    lay_out("ema-was-on", "ep0-ba12-rank0.pt", tmp_path / "run")
    done = cli("average", "run", "--half-life", "0ba")
    assert done.code == 4
    assert "is averaged already: Composer's EMA was on" in done.err
    assert "--weights raw" in done.err
    assert names(tmp_path) == {"run"}
    # Half-life 0 is the newest checkpoint; the raw weights are those of the same training with the EMA off.
    newest = {
        "raw": state_of(COMPOSER / "every-batch" / "ep0-ba12-rank0.pt"),
        "ema": state_of(tmp_path / "run" / "ep0-ba12-rank0.pt"),
    }
    for choice, theirs in newest.items():
        assert cli("average", "run", "--half-life", "0ba", "--weights", choice, "-o", f"{choice}.safetensors").code == 0
        written = load_file(tmp_path / f"{choice}.safetensors")
        assert sorted(written) == sorted(theirs)
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in written.items())
    assert not torch.equal(newest["raw"]["inp.weight"], newest["ema"]["inp.weight"])


def test_average_loads_into_the_model(cli: Cli, run: Path, tmp_path: Path):
    """The names are the model's own: it loads strictly, and its forward pass gives finite numbers."""
    assert cli("average", run, "--half-life", "10ba", "-o", "out.safetensors").code == 0
    model = torch.nn.ModuleDict(
        {"inp": torch.nn.Linear(5, 12), "norm": torch.nn.BatchNorm1d(12), "out": torch.nn.Linear(12, 3)}
    )
    model.load_state_dict(load_file(tmp_path / "out.safetensors"), strict=True)
    model.eval()
    out = model["out"](torch.relu(model["norm"](model["inp"](torch.ones(2, 5)))))
    assert out.shape == (2, 3)
    assert torch.isfinite(out).all()
