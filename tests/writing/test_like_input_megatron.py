"""Averages in the form of Megatron's folders, whose optimizers keep the weights in float32, too.

Names and shapes are those that Megatron-Core 0.16.1 wrote; in tests/libraries it writes and loads them itself.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from ema_cli.formats.copies import apart
from tests.formats.dcp_folders import Pieces, load_folder
from tests.inprocess import InProcess

STEPS = (2, 4)
LIKE = ("--profile", "uniform", "--like-input")
MASTERS = (
    "optimizer.state.param.",  # of a distributed optimizer, fully_reshardable
    "optimizer.state.fp32_param.",  # of one that is not
    "chained_0.optimizer.state.param.",  # of several
)
BUCKET = "optimizer.distributed.dp_group_idx_0.gbuf_idx_0.dtype_(torch.bfloat16, torch.float32).bucket_idx_0.param"
HALVES = [((0, 0), (4, 3)), ((0, 3), (4, 2))]  # of both tensors, between two ranks


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> InProcess:
    """Return the command line, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return InProcess(tmp_path, capsys)


def weights(step: int) -> dict[str, torch.Tensor]:
    """Return the float32 weights; the model has them in bfloat16."""
    generator = torch.Generator().manual_seed(step)
    return {name: torch.randn(4, 5, generator=generator) for name in ("decoder.fc1.weight", "output_layer.weight")}


def next_to(data: memoryview) -> memoryview:
    """Return numbers of bfloat16, each one step off."""
    bits = torch.frombuffer(bytearray(data), dtype=torch.int16)
    return memoryview((bits ^ 1).numpy().tobytes())


def save(folder: Path, step: int, masters: str | None, extra: dict[str, Any] | None = None) -> None:
    """Save model and optimizer as Megatron does; `masters`: what the names of the float32 weights begin with."""
    pieces = Pieces(folder)
    for name, tensor in weights(step).items():
        pieces.add(name, tensor.bfloat16(), HALVES)
        if masters is not None:
            pieces.add(f"{masters}{name}", tensor, HALVES[::-1])
        pieces.add(f"optimizer.state.exp_avg.{name}", tensor + step, HALVES)
    for name, value in (extra or {}).items():
        (pieces.add if isinstance(value, torch.Tensor) else pieces.add_item)(name, value)
    pieces.add_item("common_state/shard_0_1", {"iteration": step})
    pieces.metadata.all_local_plans = [{"rank": 0}]  # which Megatron adds to torch's own
    pieces.write()


@pytest.mark.parametrize("masters", MASTERS)
def test_model_and_float32_weights_are_both_the_average(run: InProcess, masters: str):
    """Those are averaged in float32, and the model's is that rounded; without --masters nothing is written."""
    for step in STEPS:
        save(run.folder / f"run/iter_{step:07}", step, masters)
    assert run("average", "run", "-o", "out", *LIKE)[0] == 5
    assert f"{masters}decoder.fc1.weight" in run.err
    assert "--masters" in run.err
    assert run("average", "run", "-o", "out", *LIKE, "--masters")[0] == 0, run.err
    loaded, newest = load_folder(Path("out")), load_folder(run.folder / "run/iter_0000004")
    for name, tensor in weights(4).items():
        exact = (weights(2)[name].double() + tensor.double()) / 2
        master = loaded[f"{masters}{name}"]
        torch.testing.assert_close(master.double(), exact, rtol=1e-7, atol=1e-7)
        assert torch.equal(loaded[name], master.bfloat16())
        moments = f"optimizer.state.exp_avg.{name}"
        assert torch.equal(loaded[moments], newest[moments])
    assert Path("out/.metadata").read_bytes() == (run.folder / "run/iter_0000004/.metadata").read_bytes()
    assert run("verify", "out", "--against", "run", "--like-input")[0] == 0, run.err


def test_a_copy_that_is_no_average_is_found(run: InProcess, monkeypatch: pytest.MonkeyPatch):
    """verify compares each piece of the model's own weights with what the float32 average rounds to."""
    for step in STEPS:
        save(run.folder / f"run/iter_{step:07}", step, MASTERS[0])
    rounded = apart.rounded
    with monkeypatch.context() as patch:
        patch.setattr(apart, "rounded", lambda one, to, data: next_to(rounded(one, to, data)))
        assert run("average", "run", "-o", "out", *LIKE, "--masters")[0] == 0, run.err
    assert run("verify", "out", "--against", "run", "--like-input")[0] == 6
    assert "'decoder.fc1.weight' is not the average that lies elsewhere, too" in run.err


def test_a_copy_that_is_another_tensor_is_not_published(run: InProcess, monkeypatch: pytest.MonkeyPatch):
    """The output is read back as the run is: model and float32 weights have to be one."""
    for step in STEPS:
        save(run.folder / f"run/iter_{step:07}", step, MASTERS[0])
    with monkeypatch.context() as patch:
        patch.setattr(apart, "rounded", lambda _from, to, data: memoryview(bytes(to.nbytes(len(data) // 4))))
        assert run("average", "run", "-o", "out", *LIKE, "--masters")[0] == 6
    assert "does not read back: 'decoder.fc1.weight' is not its float32 weight" in run.err
    assert not Path("out").exists()


def test_float32_weights_are_averaged_alone(run: InProcess):
    """Without --like-input they are written in float32; without --masters, that they are there is said."""
    from safetensors.torch import load_file

    for step in STEPS:
        save(run.folder / f"run/iter_{step:07}", step, MASTERS[0])
    assert run("average", "run", "-o", "out.safetensors", "--profile", "uniform", "--masters")[0] == 0, run.err
    for name, tensor in load_file("out.safetensors").items():
        exact = (weights(2)[name].double() + weights(4)[name].double()) / 2
        torch.testing.assert_close(tensor.double(), exact, rtol=1e-7, atol=1e-7)
        assert tensor.dtype == torch.float32
    _, told = run("inspect", "run")
    assert "--masters takes those" in " ".join(told.split())


@pytest.mark.parametrize("extra", [{BUCKET: torch.ones(40)}, {"optimizer.distributed.dp_group_idx_0.param_state": [1]}])
def test_weights_in_an_optimizer_s_buffers_are_refused_and_can_be_dropped(run: InProcess, extra: dict[str, Any]):
    """The files do not say whose elements are whose. Without the optimizer the average is what is left to load."""
    for step in STEPS:
        save(run.folder / f"run/iter_{step:07}", step, None, extra)
    assert run("average", "run", "-o", "out", *LIKE)[0] == 5
    assert "optimizer.distributed.dp_group_idx_0" in run.err
    assert "--drop optimizer" in run.err
    assert "--masters" not in run.err
    assert run("average", "run", "-o", "out", *LIKE, "--masters")[0] == 4
    assert "hint:  load it with Megatron, and save it with --dist-ckpt-optim-fully-reshardable" in run.err
    assert run("average", "run", "-o", "out", *LIKE, "--drop", "optimizer")[0] == 0, run.err
    loaded = load_folder(Path("out"))
    assert loaded.keys() == {*weights(2), "common_state/shard_0_1"}
    assert not hasattr(pickle.loads(Path("out/.metadata").read_bytes()), "all_local_plans")
    assert run("verify", "out", "--against", "run", "--like-input")[0] == 0, run.err


def test_float32_weights_in_rows_are_refused(run: InProcess):
    """An older Megatron-Core cut them to rows, with the parameter's name: neither taken nor left there."""
    flat = {f"optimizer.state.fp32_param.{name}": tensor.reshape(1, 1, -1) for name, tensor in weights(4).items()}
    for step in STEPS:
        save(run.folder / f"run/iter_{step:07}", step, None, flat)
    assert run("average", "run", "-o", "out", *LIKE, "--masters")[0] == 3
    assert "which of its elements is which, only Megatron knows" in run.err
    assert run("average", "run", "-o", "out", *LIKE)[0] == 5
    assert "--drop optimizer" in run.err
    assert "--masters" not in run.err, "they would be refused"
    assert "--masters takes those" not in " ".join(run("inspect", "run")[1].split())


@pytest.mark.parametrize("dtype", [torch.int16, torch.float16, torch.bfloat16])
def test_what_is_no_float32_is_no_copy_of_the_weights(run: InProcess, dtype: torch.dtype):
    """A precision-aware optimizer may keep the rest of float32, in 16 bits: no weights, whatever their name."""
    rest = {f"{MASTERS[0]}{name}": (100 * tensor).to(dtype) for name, tensor in weights(4).items()}
    for step in STEPS:
        save(run.folder / f"run/iter_{step:07}", step, None, rest)
    for like in ((), ("--like-input",)):
        assert run("average", "run", "-o", "out", "--profile", "uniform", *like, "--masters")[0] == 3
        assert f"'{MASTERS[0]}decoder.fc1.weight' is" in run.err
        assert "these are not the weights in float32" in run.err
    assert run("average", "run", "-o", "out", *LIKE)[0] == 5
    assert "--masters" not in run.err, "they would be refused"
    assert "--masters takes those" not in " ".join(run("inspect", "run")[1].split())


def test_what_has_no_float32_weights_is_named(run: InProcess):
    """Frozen tensors have none: their own are averaged, and a note says so; of tensors in float32 nothing is said."""
    frozen = {"vision.weight": torch.ones(3).bfloat16(), "router.weight": torch.ones(3)}
    for step in STEPS:
        save(run.folder / f"run/iter_{step:07}", step, MASTERS[0], frozen)
    assert run("average", "run", "-o", "out", *LIKE, "--masters")[0] == 0, run.err
    assert "no float32 weights of vision.weight: the model's own are taken" in run.err


def test_float32_weights_in_a_file_beside_the_shards_are_seen(run: InProcess):
    """A folder may have its optimizer in a file of torch's own: it is refused, and can be dropped, as anywhere."""
    for step in STEPS:
        folder = run.folder / f"run/iter_{step:07}"
        save(folder, step, None)
        torch.save({"fp32_from_fp16_groups": [list(weights(step).values())]}, folder / "optimizer.pt")
    assert run("average", "run", "-o", "out", *LIKE)[0] == 5
    assert "optimizer.pt: fp32_from_fp16_groups: copies of the weights" in run.err
    assert "--masters" not in run.err
    assert run("average", "run", "-o", "out", *LIKE, "--drop", "optimizer")[0] == 0, run.err
    assert not Path("out/optimizer.pt").exists()


def test_an_average_without_the_optimizer_is_passed_over_when_float32_weights_are_taken(run: InProcess):
    """It lies in the run's folder, and is no checkpoint of the run that lacks what is asked for."""
    for step in STEPS:
        save(run.folder / f"run/iter_{step:07}", step, MASTERS[0])
    assert run("average", "run", "-o", "run/average", *LIKE, "--drop", "optimizer")[0] == 0, run.err
    assert run("average", "run", "-o", "run/plain", "--profile", "uniform")[0] == 0, run.err
    assert run("average", "run", "-o", "out", *LIKE, "--masters")[0] == 0, run.err
    assert run("verify", "out", "--against", "run", "--like-input")[0] == 0, run.err
