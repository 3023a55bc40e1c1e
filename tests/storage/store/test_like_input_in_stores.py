"""What is written like its input goes into a store as plain averages do: sent while it is made, the bytes of a disk."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ema_cli.storage.names import StorePath
from tests.conftest import Cli
from tests.docs.table.runs import READ
from tests.formats.dcp_folders import save_folder
from tests.storage.staging.test_in_store import local, present

_numbers = count()
UNIFORM = ("--profile", "uniform", "--like-input")
SOME = ("Hugging Face Trainer", "torch.save, zip", "Composer", "torch.distributed.checkpoint", "Lightning")


@pytest.fixture
def models() -> StorePath:
    """Return an address in an empty store in memory."""
    return StorePath(f"memory://like-{next(_numbers)}/models")


def no_room(monkeypatch: pytest.MonkeyPatch, free: int = 100_000) -> None:
    """Leave so little on the disk for temporary files, and let little wait in memory."""
    monkeypatch.setattr("ema_cli.storage.staging.in_store.free_temporary_bytes", lambda: free)
    monkeypatch.setattr("ema_cli.storage.store.store_stream.EARLY_BYTES", 1 << 20)


def check(row: str, number: int, cli: Cli, tmp_path: Path, models: StorePath) -> bool:
    """Write a run of the table like its input, to a disk and into a store; return whether that can be done."""
    case = READ[row][number](tmp_path / "run")
    (tmp_path / "models").mkdir()
    for name in ("out", "out.safetensors", "out.pt", "out.ckpt"):
        arguments = ("average", tmp_path / "run", *UNIFORM, *case.arguments)
        if cli(*arguments, "-o", tmp_path / "models" / name, "-q").code == 0:
            done = cli(*arguments, "-o", models / name, "-q")
            assert done.code == 0, done
            assert present(models) == local(tmp_path / "models")
            return True
    return False


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("row", SOME)
def test_a_run_is_written_over_again_into_a_store(row: str, cli: Cli, tmp_path: Path, models: StorePath):
    """Byte for byte what is on a disk."""
    assert check(row, 0, cli, tmp_path, models)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize(("row", "number"), [(row, number) for row in READ for number in range(len(READ[row]))])
def test_every_run_of_the_table_is_written_over_again(
    row: str, number: int, cli: Cli, tmp_path: Path, models: StorePath
):
    """Whatever the trainer, if it can be at all."""
    check(row, number, cli, tmp_path, models)


def large_model(step: int) -> dict[str, torch.Tensor]:
    """Return tensors of 12 MB."""
    generator = torch.Generator().manual_seed(step)
    return {f"w{number}": torch.randn(1000, 500, generator=generator) for number in range(6)}


def with_optimizer(step: int) -> dict[str, object]:
    """Return a training's state: the moments of its optimizer are as large as its weights."""
    moments = {number: {"exp_avg": torch.full((1000, 500), float(step))} for number in range(6)}
    return {"step": step, "model": large_model(step), "optimizer": {"state": moments, "param_groups": []}}


def save_hf(folder: Path, step: int) -> None:
    """Save what the Hugging Face Trainer does: the optimizer in a file of its own."""
    folder.mkdir()
    save_file(large_model(step), folder / "model.safetensors", {"format": "pt"})
    torch.save(with_optimizer(step)["optimizer"], folder / "optimizer.pt")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))


def save_dcp(folder: Path, step: int) -> None:
    """Save a folder of torch.distributed.checkpoint's."""
    save_folder(folder, with_optimizer(step))


def save_torch(path: Path, step: int) -> None:
    """Save a file of torch's, the optimizer behind the weights."""
    torch.save(with_optimizer(step), path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("more", [(), ("--drop", "optimizer")], ids=["all", "dropped"])
@pytest.mark.parametrize(
    ("save", "name", "output"),
    [(save_hf, "checkpoint-{}", "out"), (save_dcp, "step-{}", "out"), (save_torch, "step-{}.pt", "out.pt")],
)
def test_what_is_large_is_not_made_on_the_disk(
    save: Callable[[Path, int], None], name: str, output: str, more: tuple[str, ...], tmp_path: Path,
    models: StorePath, cli: Cli, monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    """Neither averages nor optimizers, whose files are copied: there is room for small files alone."""
    (tmp_path / "run").mkdir()
    (tmp_path / "models").mkdir()
    for step in (100, 200):
        save(tmp_path / "run" / name.format(step), step)
    arguments = ("average", tmp_path / "run", *UNIFORM, *more)
    on_disk = cli(*arguments, "-o", tmp_path / "models" / output)
    assert on_disk.code == 0, on_disk
    no_room(monkeypatch)
    done = cli(*arguments, "-o", models / output, "--threads", "4")
    assert done.code == 0, done
    assert present(models) == local(tmp_path / "models")
    assert cli("verify", models / output, "--against", tmp_path / "run").code == 0


def test_several_are_sent_at_once(tmp_path: Path, models: StorePath, cli: Cli, monkeypatch: pytest.MonkeyPatch):
    """Each half-life's in its own folder."""
    (tmp_path / "run").mkdir()
    for step in (100, 200):
        torch.save(
            {"step": step, "model": {"w": torch.full((300_000,), float(step))}}, tmp_path / f"run/step-{step}.pt"
        )
    laws = ("--half-life", "50ba", "--half-life", "100ba", "--like-input")
    assert cli("average", tmp_path / "run", *laws, "-o", tmp_path / "several").code == 0
    no_room(monkeypatch)
    assert cli("average", tmp_path / "run", *laws, "-o", models / "several").code == 0
    assert present(models / "several") == local(tmp_path / "several")


def test_what_does_not_lie_in_order_is_made_on_the_disk_first(
    tmp_path: Path, models: StorePath, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    """As a tensor that was transposed: its elements are all over its place. Without room that is said before."""
    (tmp_path / "run").mkdir()
    for step in (100, 200):
        tensors = {"w": torch.full((300, 200), float(step)).t(), "b": torch.ones(9)}
        torch.save({"step": step, "model": tensors}, tmp_path / f"run/step-{step}.pt")
    arguments = ("average", tmp_path / "run", *UNIFORM, "-o", models / "r.pt")
    assert cli(*arguments).code == 0
    assert cli("verify", models / "r.pt", "--against", tmp_path / "run").code == 0
    dry = cli(*arguments, "--force", "--dry-run")
    assert f"are free in {tempfile.gettempdir()}, where it is made first" in dry.err
    no_room(monkeypatch)
    assert cli(*arguments, "--force", "--dry-run", "--json").code == 5
    refused = cli(*arguments, "--force")
    assert refused.code == 5
    assert "bytes, but 100000 are free" in refused.err
    assert "TMPDIR" in refused.err
