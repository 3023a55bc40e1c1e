"""Averages in the form of the checkpoints: the newest is kept as a whole, as it may be gone when one is written.

The oracle is `average` on all files, and torch, which loads both.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ema_cli import Recipe, average, make_plan, open_run, watch
from ema_cli.errors import OutputError, UsageError
from ema_cli.manifest.manifest import read_manifest
from ema_cli.manifest.sums import manifest_path
from ema_cli.release.published import find_averages
from ema_cli.release.recompute import verify_against
from ema_cli.release.verify import verify
from ema_cli.runs.stored import open_stored
from ema_cli.watching import whole
from ema_cli.watching.telling import Listener
from ema_cli.writing.output_options import OutputKeywords
from tests.conftest import Cli, make_tensors, write_hf_run, write_torch_run
from tests.formats.dcp_folders import load_folder, save_folder
from tests.watching.test_watch import ONCE, contents
from tests.writing.test_like_input import save_lightning

STEPS = range(10, 60, 10)
LAWS = [Recipe(half_life="20ba", update_interval="every"), Recipe(half_life="40ba", update_interval="every")]
LIKE: OutputKeywords = {"like_input": True}


def save_hf(folder: Path) -> None:
    """Save as the Hugging Face Trainer does, with what its optimizer needs."""
    write_hf_run(folder, STEPS)


def save_torch(folder: Path) -> None:
    """Save as a plain loop does."""
    write_torch_run(folder, STEPS)


def save_ckpt(folder: Path) -> None:
    """Save as Lightning does, with tied weights."""
    folder.mkdir()
    for step in STEPS:
        save_lightning(folder / f"step={step}.ckpt", step // 10)


def save_dcp(folder: Path) -> None:
    """Save as torch.distributed.checkpoint does."""
    folder.mkdir()
    for step in STEPS:
        state = {"model": make_tensors(step), "optimizer": {"exp_avg": torch.full((3,), float(step))}, "step": step}
        save_folder(folder / f"step-{step}", state)


def load(path: Path) -> Any:
    """Return all that torch, or safetensors, loads of a file or a folder."""
    if path.is_file():
        return torch.load(path, weights_only=False)
    if (path / ".metadata").is_file():
        return load_folder(path)
    return {name: content for name, content in contents(path).items() if name in KEPT} | {
        "model": load_file(path / "model.safetensors")
    }


KEPT = ("optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json", "config.json", "training_args.bin")
FORMS: dict[str, tuple[Callable[[Path], None], str, OutputKeywords]] = {
    "a folder of the Trainer's": (save_hf, "out", LIKE),
    "a plain file": (save_torch, "out.pt", LIKE),
    "a file of Lightning's": (save_ckpt, "out.ckpt", LIKE),
    "without its optimizer": (save_ckpt, "out.ckpt", {**LIKE, "drop": "optimizer"}),
    "a distributed folder": (save_dcp, "out", LIKE),
    "Lightning's from scratch": (save_ckpt, "out.ckpt", {}),
    "distributed from scratch": (save_torch, "dcp:out", {}),
}


def assert_alike(one: Any, other: Any) -> None:
    """Compare two values, nested as they may be: floating tensors within 1e-6 of their largest, all else equal."""
    assert type(one) is type(other)
    if isinstance(one, Mapping):
        assert list(one) == list(other)
        for key in one:
            assert_alike(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_alike(left, right)
    elif isinstance(one, torch.Tensor) and (one.is_floating_point() or one.is_complex()) and one.numel():
        assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
        step = 2**-7 if one.dtype == torch.bfloat16 else 1e-6
        assert (one - other).abs().max() <= step * other.abs().max()
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def one_by_one(run: Path, target: str, form: OutputKeywords) -> None:
    """Watch each checkpoint by itself, in the folder `now`, and delete it then."""
    now = run.parent / "now"
    for path in sorted(run.iterdir()):
        now.mkdir(exist_ok=True)
        path.rename(now / path.name)
        assert len(watch(now, target, LAWS[:1], waiting=ONCE, **form).entered) == 1
        (now / path.name).rename(path)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_what_average_writes_though_each_checkpoint_is_gone(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Averages in the place of the weights, all else the newest's; it verifies, also against all checkpoints."""
    monkeypatch.chdir(tmp_path)
    save, target, options = FORMS[form]
    save(tmp_path / "run")
    one_by_one(tmp_path / "run", target, options)
    out = Path(target.removeprefix("dcp:"))
    average(make_plan(open_run("run"), LAWS[0]), target.replace("out", "alone"), **options)
    assert_alike(load(out), load(Path(f"alone{out.suffix}")))
    (found,) = find_averages([out])
    may_name = "like_input" in options
    checked = verify(found, may_name_classes=may_name)
    assert checked.problems == ()
    compared = verify_against(checked, [Path("run")])
    assert compared.problems == ()
    assert compared.against is not None
    assert compared.against.checkpoints == len(STEPS)
    shutil.rmtree("run")
    assert verify_against(checked, [Path("now")]).problems == ()


def test_ties_that_ended_before_are_no_ties(tmp_path: Path):
    """Two averages that differ cannot have one place, though the checkpoints in which they differ are gone."""
    (tmp_path / "run").mkdir()
    shared = torch.ones(4)
    for step, tied in ((10, True), (20, False), (30, True)):
        model = {"a": shared * step, "b": shared.clone()}
        model["b"] = model["a"] if tied else model["b"]
        torch.save({"model": model, "step": step}, tmp_path / "run" / f"step-{step}.pt")
        if step < 30:
            watch(tmp_path / "run", tmp_path / "out.pt", LAWS[:1], waiting=ONCE, **LIKE)
            (tmp_path / "run" / f"step-{step}.pt").unlink()
    with pytest.raises(OutputError, match="share bytes"):
        watch(tmp_path / "run", tmp_path / "out.pt", LAWS[:1], waiting=ONCE, **LIKE)


def test_several_go_into_one_folder_and_what_is_kept_stays_readable(tmp_path: Path):
    """Each as the input is; the moments hold stored averages, and no checkpoint that anybody would take for one."""
    write_torch_run(tmp_path / "run", STEPS)
    watch(tmp_path / "run", tmp_path / "run" / "out", LAWS, waiting=ONCE, store_every="20ba", **LIKE)
    assert sorted(path.name for path in (tmp_path / "run" / "out").glob("*.pt")) == ["ema-20ba.pt", "ema-40ba.pt"]
    assert open_stored([tmp_path / "run" / "out.watch"]).clocks == ["20ba", "40ba", "50ba"]
    assert [one.name for one in open_run(tmp_path / "run").checkpoints] == [f"step-{step}.pt" for step in STEPS]
    newest = tmp_path / "run" / "out.watch" / "50ba" / ".newest" / "step-50.pt"
    assert newest.read_bytes() == (tmp_path / "run" / "step-50.pt").read_bytes()


def test_one_that_is_deleted_while_it_is_copied_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its weights were read, and its optimizer is gone: a gap, and what was there before stays."""
    write_hf_run(tmp_path / "run", [10])
    watch(tmp_path / "run", tmp_path / "out", LAWS[:1], waiting=ONCE, **LIKE)
    before = contents(tmp_path)
    write_hf_run(tmp_path / "run", [20])

    def keep(inside: Path, checkpoint: Any, options: Any) -> None:
        shutil.rmtree(checkpoint.path)
        kept(inside, checkpoint, options)

    kept = whole.keep
    monkeypatch.setattr("ema_cli.watching.keeping.keep", keep)
    told: list[str] = []
    watched = watch(
        tmp_path / "run", tmp_path / "out", LAWS[:1], waiting=ONCE, listener=Listener(told=told.append), **LIKE
    )
    assert (watched.entered, told) == ((), ["checkpoint-20 (20ba) was deleted while it was read"])
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth"])
def test_one_of_which_a_side_file_changes_meanwhile_enters_as_it_is_then(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """All that its trainer needs is of one moment."""
    write_hf_run(tmp_path / "run", [10])

    def keep(inside: Path, checkpoint: Any, options: Any) -> None:
        kept(inside, checkpoint, options)
        if not changed:
            changed.append(name)
            (checkpoint.path / name).write_bytes(b"another")

    kept, changed = whole.keep, list[str]()
    monkeypatch.setattr("ema_cli.watching.keeping.keep", keep)
    for _ in range(2):
        watch(tmp_path / "run", tmp_path / "out", LAWS[:1], waiting=ONCE, **LIKE)
    assert (tmp_path / "out" / name).read_bytes() == b"another"


def test_it_goes_back_to_a_moment_with_the_checkpoint_of_then(tmp_path: Path):
    """What is published then is that moment's as a whole."""
    write_torch_run(tmp_path / "run", STEPS)
    watch(tmp_path / "run", tmp_path / "out.pt", LAWS[:1], waiting=ONCE, store_every="20ba", **LIKE)
    for path in (tmp_path / "run").iterdir():
        path.unlink()
    write_torch_run(tmp_path / "run", [20])
    watch(
        tmp_path / "run", tmp_path / "out.pt", LAWS[:1], waiting=ONCE, store_every="20ba", restart_from="20ba", **LIKE
    )
    assert torch.load(tmp_path / "out.pt")["step"] == 20
    manifest = read_manifest(manifest_path(tmp_path / "out.pt", is_folder=False))
    assert (manifest["inputs"][-1]["clock"], manifest["recipe"]["like_input"]) == ("20ba", True)


def test_a_watch_that_kept_weights_alone_does_not_go_on_with_more(tmp_path: Path):
    """And the other way round; a form of the weights alone may change."""
    write_torch_run(tmp_path / "run", STEPS)
    watch(tmp_path / "run", tmp_path / "out.pt", LAWS[:1], waiting=ONCE)
    with pytest.raises(OutputError, match=r"is of another watch \(with no checkpoint kept as a whole"):
        watch(tmp_path / "run", tmp_path / "out.pt", LAWS[:1], waiting=ONCE, **LIKE)
    watch(tmp_path / "run", tmp_path / "like.pt", LAWS[:1], waiting=ONCE, **LIKE)
    with pytest.raises(OutputError, match=r"is of another watch \(with the checkpoint kept as a whole"):
        watch(tmp_path / "run", tmp_path / "like.pt", LAWS[:1], waiting=ONCE)


def test_what_cannot_be_written_over_again_is_refused_at_the_first(tmp_path: Path):
    """As by `average`, and nothing is kept; so is a name of another form, and a file for a run not of Lightning's."""
    write_torch_run(tmp_path / "run", STEPS)
    with pytest.raises(UsageError, match=r"is no name for what is written like step-10\.pt"):
        watch(tmp_path / "run", tmp_path / "out", LAWS[:1], waiting=ONCE, **LIKE)
    with pytest.raises(UsageError, match=r"a checkpoint of Lightning.s, and step-10\.pt is none"):
        watch(tmp_path / "run", tmp_path / "out.ckpt", LAWS[:1], waiting=ONCE)
    with pytest.raises(UsageError, match="like_input=True"):
        watch(tmp_path / "run", tmp_path / "out.pt", LAWS[:1], waiting=ONCE, dtype="bfloat16", **LIKE)
    masters = {"fp32_from_fp16_params": [[torch.ones(3)]]}
    torch.save(
        {"model": make_tensors(5), "step": 5, "optimizer": {"optimizer": {}, **masters}}, tmp_path / "run" / "5.pt"
    )
    with pytest.raises(OutputError, match="copies of the weights"):
        watch(tmp_path / "run" / "5.pt", tmp_path / "out.pt", LAWS[:1], waiting=ONCE, **LIKE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_the_command_takes_the_forms_of_average(cli: Cli, tmp_path: Path):
    """`--like-input` and `--drop`; said once more it does nothing."""
    write_torch_run(tmp_path / "run", STEPS)
    line = ["watch", "run", "--half-life", "20ba", "-o", "out.pt", "--like-input", "--once", "--settle", "0s"]
    assert cli(*line).code == 0
    before = (tmp_path / "out.pt").stat().st_ino  # who writes it anew puts another file in its place
    again = cli(*line)
    assert (again.code, again.out) == (0, "out.pt\n")
    assert (tmp_path / "out.pt").stat().st_ino == before
    assert cli(*line, "--drop", "optimizer").code == 0
    assert cli("watch", "run", "--half-life", "20ba", "--drop", "optimizer").code == 2
