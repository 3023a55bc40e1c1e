"""What tells a file from what it was: also where it is written in place, and its size and its time stay the same."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ema_cli import Recipe, watch
from ema_cli.errors import NonFiniteError, RunError
from ema_cli.runs.options import OpenOptions
from ema_cli.watching import keeping, looking
from ema_cli.watching.looking import Lookout
from tests.conftest import make_tensors, write_torch_run
from tests.watching.test_loop import RECIPE, Training, saves
from tests.watching.test_watch import ONCE


def overwrite(path: Path, step: int, seed: int) -> None:
    """Write other contents into the same file, and give it back the time that it had."""
    before = path.stat()
    other = path.parents[1] / "other" / path.name
    other.parent.mkdir(exist_ok=True)
    torch.save({"model": make_tensors(seed), "step": step}, other)  # whose size its name is part of
    path.write_bytes(other.read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)


def test_a_file_that_is_written_in_place_is_another_one(tmp_path: Path):
    """With the size and the time that it had: a new clock enters, and other contents at a clock are an error."""
    run = tmp_path / "run"
    write_torch_run(run, [100])
    path = run / "step-100.pt"
    training = Training(path, lambda: overwrite(path, 200, 2), lambda: None, lambda: overwrite(path, 300, 3))
    training.watch(until="300ba")
    assert training.entered == ["100ba", "200ba", "300ba"]
    overwrite(path, 300, 4)
    with pytest.raises(RunError, match=r"is at 300ba, where step-100\.pt was folded, and has other contents"):
        Training(path).watch(once=True)


def renamed(path: Path) -> None:
    """Give a file another name, and its own again."""
    path.rename(path.with_name("aside.tmp")).rename(path)


@pytest.mark.parametrize(
    "touch",
    [
        lambda path: path.chmod(0o600),
        lambda path: os.utime(path),
        lambda path: os.link(path, path.with_name("backup.tmp")),
        renamed,
    ],
    ids=["chmod", "touch", "link", "renamed"],
)
def test_what_is_only_touched_is_the_same(touch: Callable[[Path], object], tmp_path: Path):
    """Rights, times, links and names change how a file looks: its contents are compared, and nothing happens."""
    run = tmp_path / "run"
    write_torch_run(run, [100, 200])
    saves_next = saves(run, 300)
    training = Training(run, lambda: touch(run / "step-200.pt"), lambda: None, saves_next)
    training.watch(until="300ba")
    assert training.entered == ["100ba", "200ba", "300ba"]
    assert training.told == []


@pytest.mark.parametrize("read", ["numbers", "not finite"])
def test_one_that_is_written_in_place_while_it_is_read_enters_as_it_is_then(
    read: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What was read of it before leaves no trace, nonsense or not: the average is that of what is there in the end."""
    run = tmp_path / "run"
    write_torch_run(run, [100, 200])
    fold, calls = keeping.fold, []

    def disturbed(*arguments: object, **words: object) -> object:
        folded = fold(*arguments, **words)  # type: ignore[arg-type]
        calls.append(1)
        if len(calls) == 2:
            overwrite(run / "step-200.pt", 200, 7)
            if read == "not finite":
                raise NonFiniteError("'layer.bias' is not finite", subject=run / "step-200.pt")
        return folded

    monkeypatch.setattr(keeping, "fold", disturbed)
    training = Training(run)
    training.watch(until="200ba")
    assert training.entered == ["100ba", "200ba"]
    assert len(calls) == 3
    monkeypatch.undo()
    watch(run, tmp_path / "alone", RECIPE, waiting=ONCE)
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "alone/model.safetensors").read_bytes()


def test_a_copy_of_the_state_and_the_run_elsewhere_goes_on(tmp_path: Path):
    """Files that were copied look otherwise, and are the same: none enters again, and nothing is wrong."""
    write_torch_run(tmp_path / "here/run", [100, 200])
    watch(tmp_path / "here/run", tmp_path / "here/out", Recipe(half_life="200ba"), waiting=ONCE)
    shutil.copytree(tmp_path / "here", tmp_path / "there", copy_function=shutil.copyfile)
    watched = watch(tmp_path / "there/run", tmp_path / "there/out", Recipe(half_life="200ba"), waiting=ONCE)
    assert (watched.folded, watched.entered, watched.gaps) == (2, (), ())


def test_a_look_is_that_of_names_sizes_and_changes(tmp_path: Path):
    """It is the same until something is changed, and says how old the files are."""
    write_torch_run(tmp_path / "run", [100])
    lookout = Lookout(tmp_path / "run", OpenOptions())
    path = tmp_path / "run" / "step-100.pt"
    assert lookout.look()
    look = lookout.look_of(path)
    assert not lookout.look()
    assert lookout.look_of(path) == look
    os.utime(path, (1000.0, 1000.0))
    assert lookout.look()
    assert lookout.look_of(path) != look
    assert lookout.age_of(path) > 10**9


def test_quiet_is_what_two_looks_have_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """However long the headers took to be read after a single look."""
    write_torch_run(tmp_path / "run", [100])
    lookout, now = Lookout(tmp_path / "run", OpenOptions()), [50.0]
    monkeypatch.setattr(looking.time, "monotonic", lambda: now[0])
    lookout.look()
    now[0] = 70.0
    assert lookout.quiet_for(tmp_path / "run") == 0.0
    lookout.look()
    assert lookout.quiet_for(tmp_path / "run") == 20.0
