"""--clock-key: counters under names that are not known, and how they are offered."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file

from ema_cli.errors import CheckpointError, UsageError
from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import ReadOptions
from ema_cli.runs.run import open_run
from tests.conftest import Cli
from tests.formats.dcp_folders import save_folder
from tests.formats.trainers.state import plain_clocks

META = ""  # the key of what lies in a file of its own
WEIGHTS = {"w": torch.ones(2)}


def written(path: Path, content: dict[str, Any]) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("content", "key", "clocks"),
    [
        ({"model": WEIGHTS, "steps": 300}, "steps=ba", {"ba": 300}),
        ({"model": WEIGHTS, "it": 300, "epoch": 2}, "it=batches", {"ba": 300, "ep": 2}),
        ({"model": WEIGHTS, "trainer": {"step": 300}}, "trainer.step=ba", {"ba": 300}),
        ({"model": WEIGHTS, "trainer.step": 300}, "trainer.step=ba", {"ba": 300}),
        ({"model": WEIGHTS, "args": argparse.Namespace(seen=7)}, "args.seen=sp", {"sp": 7}),
        ({"model": WEIGHTS, "n": torch.tensor(300)}, "n=tok", {"tok": 300}),
        ({**WEIGHTS, "updates": 300}, "updates=ba", {"ba": 300}),
        ({"model": WEIGHTS, "step": 5, "real_step": 300}, "real_step=ba", {"ba": 300}),
        ({"model": WEIGHTS, "progress": 0.5}, "progress=ep", {"ep": 0.5}),
    ],
)
def test_a_counter_is_taken_where_the_user_says(
    content: dict[str, Any], key: str, clocks: dict[str, float], tmp_path: Path
) -> None:
    """Dots descend unless they are part of a name; the user's place wins over a known one of that unit."""
    checkpoint = open_checkpoint(written(tmp_path / "a.pt", content), ReadOptions(clock_key=(key,)))
    assert plain_clocks(checkpoint.progress) == clocks
    assert {clock.source for clock in checkpoint.progress.clocks.values()} == {"file"}


def test_several_counters(tmp_path: Path) -> None:
    """The option is repeatable, for one unit each; a whole epoch may have been counted from 0."""
    path = written(tmp_path / "a.pt", {"model": WEIGHTS, "it": 300, "ep": 2})
    progress = open_checkpoint(path, ReadOptions(clock_key=("it=ba", "ep=ep"))).progress
    assert (plain_clocks(progress), progress.epoch_origin_unknown) == ({"ba": 300, "ep": 2}, True)


def test_from_python_one_text_is_one_counter(tmp_path: Path) -> None:
    """Not a sequence of letters; the same goes for the patterns of `copy`."""
    written(tmp_path / "a.pt", {"model": WEIGHTS, "it": 300})
    (checkpoint,) = open_run(tmp_path / "a.pt", clock_key="it=ba", copy="w").checkpoints
    assert plain_clocks(checkpoint.progress) == {"ba": 300}
    assert open_run(tmp_path / "a.pt", copy="w").options.read.copy == ("w",)


def test_a_header_has_counters_too(tmp_path: Path) -> None:
    """Under the names that a dict's have they are read without a word; others where the user says."""
    metadata = {"format": "pt", "step": "300", "epoch": "2", "images": "9000"}
    save_file(WEIGHTS, tmp_path / "a.safetensors", metadata=metadata)
    assert plain_clocks(open_checkpoint(tmp_path / "a.safetensors").progress) == {"ba": 300, "ep": 2}
    options = ReadOptions(clock_key=("images=sp",))
    assert plain_clocks(open_checkpoint(tmp_path / "a.safetensors", options).progress) == {
        "ba": 300,
        "ep": 2,
        "sp": 9000,
    }


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_folder_of_shards_has_counters_too(tmp_path: Path) -> None:
    """As the keys of the nested dict that was saved."""
    dcp.save({"model": WEIGHTS, "loop": {"it": 300}}, checkpoint_id=tmp_path / "a", no_dist=True)
    assert plain_clocks(open_checkpoint(tmp_path / "a", ReadOptions(clock_key=("loop.it=ba",))).progress) == {"ba": 300}
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(tmp_path / "a", ReadOptions(clock_key=("it=ba",)))
    assert "loop.it = 300" in (raised.value.hint or "")


def test_a_place_without_a_number_is_an_error_that_lists_the_integers(tmp_path: Path) -> None:
    """Negative numbers, texts and what is the optimizer's are none."""
    content = {"model": WEIGHTS, "steps": 300, "trainer": {"step": 7, "name": "x"}, "optimizer": {"n": 5}, "lr": -1}
    path = written(tmp_path / "a.pt", content)
    for key in ("step=ba", "trainer.name=ba", "trainer=ba", "lr=ba"):
        with pytest.raises(CheckpointError, match="has no number under clock_key=") as raised:
            open_checkpoint(path, ReadOptions(clock_key=(key,)))
        assert raised.value.hint == "integers in it: steps = 300, trainer.step = 7"


@pytest.mark.parametrize("key", ["steps", "steps=", "=ba", "steps=hours"])
def test_a_counter_needs_a_place_and_a_unit(key: str) -> None:
    """Anything else is a usage error."""
    with pytest.raises(UsageError, match="is no place with a unit") as raised:
        ReadOptions(clock_key=(key,))
    assert raised.value.option == "clock_key"
    assert "clock_key='trainer.step=ba'" in str(raised.value.hint)


@pytest.mark.parametrize(
    ("content", "offered"),
    [
        (lambda n: {"steps": n, "seed": 5}, "steps = 300: --clock-key steps=ba"),
        (lambda n: {"it": n, "config": {"batch_size": 64}}, "it = 300: --clock-key it=ba"),
        (lambda n: {"trainer": {"seen": 9 * n, "step": n}},
         "trainer.seen = 2700, trainer.step = 300: --clock-key trainer.step=ba"),
    ],
)  # fmt: skip
def test_the_error_offers_the_integer_that_grows(content: Any, offered: str, cli: Cli, tmp_path: Path) -> None:
    """Settings are the same in all files; what the hint says can be pasted, and is in the manifest's recipe."""
    (tmp_path / "run").mkdir()
    for name, step in (("alpha", 100), ("beta", 200), ("gamma", 300)):
        written(tmp_path / "run" / f"{name}.pt", {"model": {"w": torch.full((2,), float(step))}, **content(step)})
    command = ("average", "run", "--half-life", "100ba", "-o", "out.safetensors")
    refused = cli(*command)
    assert (refused.code, f"integers in it: {offered}" in refused.err) == (4, True)
    assert cli(*command, "--clock-key", offered.rpartition(" ")[2]).code == 0
    assert load_file(tmp_path / "out.safetensors")["w"].tolist() == [225.0, 225.0]
    assert cli("verify", "out.safetensors", "--against", "run").code == 0


@pytest.mark.parametrize(
    ("content", "offered"),
    [
        (lambda n: {"model": {"w": torch.full((2,), float(n))}, "done": n, "seed": 5},
         "done = 300: --clock-key done=ba"),
        (lambda n: {"app": {"model": {"w": torch.full((2,), float(n))}, "loop": {"done_steps": n}}},
         "app.loop.done_steps = 300: --clock-key app.loop.done_steps=ba"),
        (lambda n: {"model": {"w": torch.full((2,), float(n))}, "seen": torch.tensor(n)},
         "seen = 300: --clock-key seen=ba"),
        (lambda n: {"w": torch.full((2,), float(n)), META: {"loop": {"it": n}}},
         "loop.it = 300: --clock-key loop.it=ba"),
    ],
)  # fmt: skip
def test_the_error_offers_what_a_folder_of_pieces_holds(content: Any, offered: str, cli: Cli, tmp_path: Path) -> None:
    """Items of torch.distributed.checkpoint, a tensor of one number, and the meta.pt that Fabric writes beside them."""
    for name, step in (("alpha", 100), ("beta", 200), ("gamma", 300)):
        state = content(step)
        meta = state.pop(META, None)
        save_folder(tmp_path / "run" / name, state)
        if meta is not None:
            torch.save(meta, tmp_path / "run" / name / "meta.pt")
    command = ("average", "run", "--half-life", "100ba", "-o", "out.safetensors")
    refused = cli(*command)
    assert (refused.code, f"integers in it: {offered}" in refused.err) == (4, True), refused
    assert cli(*command, "--clock-key", offered.rpartition(" ")[2]).code == 0
    assert load_file(tmp_path / "out.safetensors")["w"].tolist() == [225.0, 225.0]


def test_an_average_of_ours_among_the_checkpoints_needs_no_counter(cli: Cli, tmp_path: Path) -> None:
    """It is passed over, as without the option, in both formats."""
    (tmp_path / "run").mkdir()
    for name, step in (("alpha", 100), ("beta", 200)):
        written(tmp_path / "run" / f"{name}.pt", {"model": WEIGHTS, "it": step})
    command = ("average", "run", "--half-life", "100ba", "--clock-key", "it=ba")
    for target in ("run/out.safetensors", "run/out.pt", "again.safetensors"):
        assert cli(*command, "-o", target).code == 0
