"""Outputs in the form of their input without the optimizer's state: all else is loaded as it was saved."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from tests.conftest import write_hf_run
from tests.formats.dcp_folders import save_folder
from tests.inprocess import InProcess

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
DROP = ("--profile", "uniform", "--like-input", "--drop", "optimizer")
STEPS = (1, 2, 3)


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> InProcess:
    """Return the command line, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return InProcess(tmp_path, capsys)


def model(step: int) -> dict[str, torch.Tensor]:
    """Return a state dict with a view and tied tensors."""
    whole, other = torch.full((6, 4), float(step)), torch.full((6, 4), float(step))
    number = torch.tensor(step)
    return {"rows": whole[1:3], "columns": other[:, 1:3].t(), "head": whole[4], "tied": whole[4], "n": number}


def adam(step: int) -> dict[str, Any]:
    """Return an optimizer's state, with a constant that others may share."""
    state = {"step": torch.tensor(step), "exp_avg": torch.randn(2000), "master_param": torch.full((8,), float(step))}
    return {"state": {0: state}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "name": "a constant"}]}


def file(step: int) -> dict[str, dict[str, Any]]:
    """Return what trainers save in one file, by a name for each; the optimizer's part first, where it can be."""
    rest = {"betas": (0.9, 0.999), "name": "a constant", "random": torch.arange(5)}
    return {
        "plain": {"optimizer": adam(step), "model": model(step), "step": step, "rest": rest},
        "lightning": {
            "epoch": step, "global_step": step, "pytorch-lightning_version": "2.6.6", "state_dict": model(step),
            "optimizer_states": [adam(step)], "lr_schedulers": [{"last": 1}], "hyper_parameters": rest,
        },
        "composer": {
            "state": {"model": model(step), "optimizers": {"Adam": adam(step)}, "rest": rest,
                      "timestamp": {"Timestamp": {"epoch": 1, "batch": step, "sample": step, "token": 0}}},
            "rng": [rest],
        },
        "fastai": {"model": model(step), "opt": {"state": [torch.randn(3000)], "hypers": [{"lr": 1}]}, "step": step},
        "fairseq": {
            "args": argparse.Namespace(lr=1), "model": model(step), "last_optimizer_state": adam(step),
            "optimizer_history": [{"num_updates": step}], "extra_state": {"train_iterator": {"epoch": step}},
        },
    }  # fmt: skip


def weights_at(saved: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the weights in what a trainer saved."""
    inner = saved.get("state", saved)
    return inner.get("model", inner.get("state_dict"))  # type: ignore[no-any-return]


def without_optimizer(value: dict[str, Any]) -> dict[str, Any]:
    """Return what is to be left."""
    keys = ("opt", "optimizer", "optimizer_states", "last_optimizer_state", "optimizers")
    return {key: without_optimizer(item) if key == "state" else item for key, item in value.items() if key not in keys}


def assert_same(one: Any, other: Any) -> None:
    """Compare two values, tensors bit by bit."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert (one.dtype, one.stride(), torch.equal(one, other)) == (other.dtype, other.stride(), True)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    else:
        assert one == other


@pytest.mark.parametrize("kind", list(file(1)))
def test_a_file_is_written_without_its_optimizer(run: InProcess, kind: str):
    """All else is loaded as it was, weights as means; storages that nothing names any more are gone."""
    suffix = ".ckpt" if kind == "lightning" else ".pt"
    (run.folder / "run").mkdir()
    for step in STEPS:
        torch.save(file(step)[kind], run.folder / f"run/step-{step}{suffix}")
    assert run("average", "run", "-o", f"out{suffix}", *DROP)[0] == 0, run.err
    assert "left out: " in run.err
    newest = run.folder / f"run/step-3{suffix}"
    expected = without_optimizer(torch.load(newest, weights_only=False))
    loaded = torch.load(f"out{suffix}", weights_only=False)
    for name, tensor in weights_at(loaded).items():
        assert torch.equal(tensor, torch.full_like(tensor, 3 if name == "n" else 2))
        weights_at(loaded)[name] = weights_at(expected)[name]
    assert_same(loaded, expected)
    if kind != "fairseq":
        assert torch.load(f"out{suffix}", weights_only=True).keys() == expected.keys()
    assert Path(f"out{suffix}").stat().st_size < newest.stat().st_size - 8000
    assert weights_at(torch.load(f"out{suffix}", weights_only=False, mmap=True))["head"][0] == 2
    assert run("verify", f"out{suffix}", "--against", "run", "--like-input")[0] == 0, run.err
    changed = bytearray(Path(f"out{suffix}").read_bytes())
    changed[-60] ^= 1
    Path(f"out{suffix}").write_bytes(changed)
    assert run("verify", f"out{suffix}", "--against", "run", "--like-input")[0] == 6


def test_copies_of_the_weights_are_refused_where_they_would_stay(run: InProcess):
    """A trainer that resumes would put them over the average; the hint leaves them out."""
    (run.folder / "run").mkdir()
    for step in STEPS:
        torch.save(file(step)["plain"], run.folder / f"run/step-{step}.pt")
    assert run("average", "run", "-o", "out.pt", *DROP[:3])[0] == 5
    assert "master_param" in run.err
    assert "--drop optimizer" in run.err
    assert run("average", "run", "-o", "out.pt", *DROP)[0] == 0, run.err


@pytest.mark.parametrize("name", ["global_step300/mp_rank_00_model_states.pt", "pytorch_model_fsdp_0/__0_0.distcp"])
def test_weights_that_are_there_once_more_are_refused(run: InProcess, name: str):
    """The Hugging Face Trainer resumes from DeepSpeed's and FSDP's files, where they lie beside its model."""
    write_hf_run(run.folder / "run", [100, 200, 300])
    for step in (100, 200, 300):
        path = run.folder / f"run/checkpoint-{step}" / name.replace("300", str(step))
        path.parent.mkdir()
        torch.save({"module": model(step)}, path)
    for options in (DROP, DROP[:3]):
        assert run("average", "run", "-o", "out", *options)[0] == 5
        assert f"holds the weights once more, in {name}" in run.err
    assert run("average", "run", "-o", "out", *DROP[:2])[0] == 0, run.err


def test_tensors_of_composer_s_shards_are_left_out(run: InProcess):
    """Its optimizer stands within `state`, and its copies of the weights are none where they are gone."""
    for step in STEPS:
        clock = {"Timestamp": {"batch": step}}
        inner = {"model": model(step), "optimizers": {"Adam": adam(step)}, "timestamp": clock}
        save_folder(run.folder / f"run/step-{step}", {"state": inner})
    assert run("average", "run", "-o", "out", *DROP[:3])[0] == 5
    assert run("average", "run", "-o", "out", *DROP)[0] == 0, run.err
    assert "left out: state.optimizers" in run.err
    dcp_to_torch_save("out", "out.pt")
    assert torch.load("out.pt", weights_only=False)["state"].keys() == {"model", "timestamp"}
    assert run("verify", "out", "--against", "run", "--like-input")[0] == 0, run.err


@pytest.mark.parametrize("flat", [False, True])
def test_a_folder_of_distributed_checkpoint_is_written_without_its_optimizer(run: InProcess, flat: bool):
    """torch loads all else, from shards out of which records are gone, by metadata that are written anew."""
    for step in STEPS:
        state: dict[str, Any] = {"model": model(step), "optimizer": adam(step), "train_state": {"step": step}}
        if flat:
            names = {f"optimizer.state.{name}": tensor for name, tensor in adam(step)["state"][0].items()}
            state = {**model(step), **names, "train_state": {"step": step}}
        state |= {"sizes": torch.Size([1]), "list": [torch.ones(2), 5]}
        save_folder(run.folder / f"run/step-{step}", state)
    assert run("average", "run", "-o", "out", *DROP)[0] == 0, run.err
    assert "left out: optimizer" in run.err
    dcp_to_torch_save("out", "out.pt")
    dcp_to_torch_save("run/step-3", "newest.pt")
    loaded, expected = (torch.load(name, weights_only=False) for name in ("out.pt", "newest.pt"))
    expected = {key: value for key, value in expected.items() if not key.startswith("optimizer")}
    weights = loaded if flat else loaded["model"]
    for name in model(1):
        assert torch.equal(weights[name], torch.full_like(weights[name], 3 if name == "n" else 2))
        weights[name] = (expected if flat else expected["model"])[name]
    assert loaded.keys() == expected.keys()
    assert_same({key: loaded[key] for key in expected}, expected)
    part = {name: torch.zeros_like(tensor) for name, tensor in model(1).items()}
    dcp.load(part if flat else {"model": part}, checkpoint_id="out", no_dist=True)
    assert part["head"][0] == 2
    size, before = (sum(path.stat().st_size for path in Path(name).glob("*.distcp")) for name in ("out", "run/step-3"))
    assert size < before - 8000
    assert run("verify", "out", "--against", "run", "--like-input")[0] == 0, run.err
    assert run("average", "--recipe", "out/ema-manifest.json", "run", "-o", "again")[0] == 0, run.err
    for name in ("__0_0.distcp", ".metadata", "ema_cli.json"):
        assert Path("again", name).read_bytes() == Path("out", name).read_bytes()


def test_files_of_an_optimizer_s_are_left_out_of_a_folder(run: InProcess):
    """Those of the Hugging Face Trainer's; all others are copied."""
    write_hf_run(run.folder / "run", [100, 200, 300])
    newest = run.folder / "run/checkpoint-300"
    (newest / "optimizer.pt").write_bytes(b"")
    torch.save(adam(1), newest / "optimizer.pt")
    assert run("average", "run", "-o", "out", *DROP)[0] == 0, run.err
    assert "left out: optimizer.pt" in run.err
    assert not Path("out/optimizer.pt").exists()
    others = {path.name for path in newest.iterdir()} - {"optimizer.pt"}
    assert others < {path.name for path in Path("out").iterdir()}
    assert run("verify", "out", "--against", "run", "--like-input")[0] == 0, run.err


def test_what_cannot_be_left_out_is_refused(run: InProcess):
    """An object that both share, the old format, another word, an output of our own."""
    (run.folder / "run").mkdir()
    shared = [1, 2]
    for step in STEPS:
        saved = {"optimizer": {"x": shared, **adam(step)}, "model": model(step), "step": step, "shared": shared}
        torch.save(saved, run.folder / f"run/step-{step}.pt")
    assert run("average", "run", "-o", "out.pt", *DROP)[0] == 5
    assert "share an object" in run.err
    assert run("average", "run", "-o", "out.pt", *DROP[:3], "--drop", "all")[0] == 2
    assert run("average", "run", "-o", "out.pt", *DROP[:2], "--drop", "optimizer")[0] == 2
    for step in STEPS:
        torch.save(file(step)["plain"], run.folder / f"run/step-{step}.pt", _use_new_zipfile_serialization=False)
    assert run("average", "run", "-o", "out.pt", *DROP)[0] == 5
    assert "torch's old format" in run.err


def test_nothing_to_leave_out_is_said(run: InProcess):
    """A file of weights alone is written over again."""
    (run.folder / "run").mkdir()
    for step in STEPS:
        torch.save({"model": model(step), "step": step}, run.folder / f"run/step-{step}.pt")
    assert run("average", "run", "-o", "out.pt", *DROP)[0] == 0, run.err
    assert "of an optimizer nothing is left out" in run.err
    assert torch.load("out.pt")["model"]["head"][0] == 2
