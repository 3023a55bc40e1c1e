"""An average as a checkpoint of Lightning's: what `load_from_checkpoint` needs, and nothing that runs code."""

from __future__ import annotations

import argparse
import collections
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import write_torch_run
from tests.inprocess import InProcess

UNIFORM = ("--profile", "uniform")
SHARED = "a text that comes again"
PLAIN: dict[str, Any] = {
    "width": 8, "rate": 1e-3, "sizes": (1, 2, (3, "x")), "names": [SHARED, None, True], "nested": {"a": {"b": -9}},
    "order": collections.OrderedDict(x=1), SHARED: torch.Size([2, 3]),
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> InProcess:
    """Return the command line, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return InProcess(tmp_path, capsys)


def write(folder: Path, hyper_parameters: object) -> list[dict[str, torch.Tensor]]:
    """Write three checkpoints as Lightning does; return their weights."""
    folder.mkdir()
    weights = []
    for step in (10, 20, 30):
        generator = torch.Generator().manual_seed(step)
        state = {
            "net._orig_mod.0.weight": torch.randn(3, 4, generator=generator),
            "net._orig_mod.0.bias": torch.randn(3, generator=generator).bfloat16(),
            "seen": torch.tensor(step),
        }
        saved = {
            "epoch": step // 10 - 1,
            "global_step": step,
            "pytorch-lightning_version": "2.6.6",
            "state_dict": collections.OrderedDict(state),
            "loops": {"fit_loop": {"state_dict": {}, SHARED: 1}},
            "callbacks": {},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3, 4)}}, "param_groups": [{"lr": 0.1}]}],
            "lr_schedulers": [],
            "hparams_name": "kwargs",
            "hyper_parameters": hyper_parameters,
        }
        torch.save(saved, folder / f"epoch={step // 10 - 1}-step={step}.ckpt")
        weights.append(state)
    return weights


def test_it_holds_what_a_module_is_loaded_from(run: InProcess):
    """Weights under the module's own names, clocks, version and hyper-parameters, read by weights_only."""
    weights = write(run.folder / "run", PLAIN)
    assert run("average", "run", "-o", "out.ckpt", *UNIFORM)[0] == 0, run.err
    loaded = torch.load("out.ckpt", weights_only=True)
    assert loaded["hyper_parameters"] == PLAIN
    assert list(map(type, loaded["hyper_parameters"].values())) == list(map(type, PLAIN.values()))
    assert [loaded[key] for key in ("epoch", "global_step", "pytorch-lightning_version")] == [2, 30, "2.6.6"]
    assert loaded["hparams_name"] == "kwargs"
    assert loaded.keys() == {"state_dict", "epoch", "global_step", "pytorch-lightning_version", "hparams_name",
                             "hyper_parameters"}  # fmt: skip
    assert loaded["state_dict"].keys() == weights[0].keys()
    for name, tensor in loaded["state_dict"].items():
        exact = torch.stack([each[name].double() for each in weights]).mean(0) if name != "seen" else weights[-1][name]
        torch.testing.assert_close(tensor, exact.to(tensor.dtype), rtol=1e-6, atol=1e-7)
    assert run("verify", "out.ckpt", "--against", "run")[0] == 0, run.err
    assert run("average", "run", "-o", "run/again.ckpt", *UNIFORM)[0] == 0, run.err
    assert Path("run/again.ckpt").read_bytes() == Path("out.ckpt").read_bytes()
    code, out = run("inspect", "run", *UNIFORM)
    assert (code, out.count("again.ckpt")) == (0, out.count("again.ckpt"))
    assert run("average", "run", "-o", "run/again.ckpt", *UNIFORM, "--force")[0] == 0, run.err
    assert run("average", "--recipe", "out.ckpt.manifest.json", "run", "-o", "third.ckpt")[0] == 0, run.err
    assert Path("third.ckpt").read_bytes() == Path("out.ckpt").read_bytes()


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (argparse.Namespace(width=8), "argparse.Namespace"),
        ({"model": torch.nn.Linear(2, 2)}, "torch.nn.modules.linear.Linear"),
        ({"kind": collections.Counter}, "collections.Counter"),
        ({"tensor": torch.ones(2)}, "a tensor"),
        ({"names": {"a", "b"}}, "set"),
    ],
)
def test_hyper_parameters_that_are_not_plain_are_left_out(run: InProcess, value: object, named: str):
    """What they name is said, with what to do; the file names nothing of it."""
    write(run.folder / "run", value)
    assert run("average", "run", "-o", "out.ckpt", *UNIFORM)[0] == 0, run.err
    assert named in run.err
    assert "give them to load_from_checkpoint" in " ".join(run.err.split())
    loaded = torch.load("out.ckpt", weights_only=True)
    assert loaded.keys() == {"state_dict", "epoch", "global_step", "pytorch-lightning_version"}
    assert run("verify", "out.ckpt", "--against", "run")[0] == 0, run.err


def test_a_class_that_somebody_puts_in_is_a_problem(run: InProcess):
    """Sums made anew would not hide it: the description is compared byte by byte."""
    write(run.folder / "run", PLAIN)
    assert run("average", "run", "-o", "out.ckpt", *UNIFORM)[0] == 0, run.err
    with zipfile.ZipFile("out.ckpt") as archive:
        entry = archive.getinfo("archive/data.pkl")
        description = archive.read(entry)
    at = description.rindex(b"ccollections\nOrderedDict")  # that of the hyper-parameters
    evil = description[:at] + b"ccollections\nXrderedDict" + description[at + 24 :]
    assert len(evil) == len(description)
    whole = Path("out.ckpt").read_bytes()
    Path("out.ckpt").write_bytes(whole.replace(description, evil))
    assert run("verify", "out.ckpt")[0] == 6
    assert "around its tensors that ema-cli does not write" in run.err


def test_other_trainers_have_no_such_file(run: InProcess):
    """A usage error, whose ways on work."""
    write_torch_run(run.folder / "run", [1, 2, 3])
    assert run("average", "run", "-o", "x.ckpt", *UNIFORM)[0] == 2
    assert "is a name for a checkpoint of Lightning's" in run.err
    for output in re.findall(r"-o (\S+?)[,;]? ", " ".join(run.err.split())):
        assert run("average", "run", "-o", output.rstrip(",;"), *UNIFORM)[0] == 0, run.err


def test_one_object_in_two_places_is_refused(run: InProcess):
    """A list that the hyper-parameters share with what stands before them cannot be taken out; the hint works."""
    shared = [1, 2]
    write(run.folder / "run", {"x": shared})
    for path in sorted((run.folder / "run").iterdir()):
        saved = torch.load(path, weights_only=False)
        saved["loops"]["x"] = saved["hyper_parameters"]["x"]
        torch.save(saved, path)
    assert run("average", "run", "-o", "x.ckpt", *UNIFORM)[0] == 5
    assert "share an object" in run.err
    assert run("average", "run", "-o", "x.ckpt", *UNIFORM, "--like-input")[0] == 0, run.err
    assert pickle.dumps(torch.load("x.ckpt")["hyper_parameters"]) == pickle.dumps({"x": shared})
