"""Hugging Face folders: one file or shards with an index, and the clock beside them."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ema_cli.errors import CheckpointError, EmaError, IncompleteCheckpoint
from ema_cli.formats import open_checkpoint
from ema_cli.units import Unit
from tests.formats.test_contract import read_all, stored_bytes

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"


def write_shards(folder: Path, **weight_map: Any) -> Path:
    """Write 'a' and 'b' into a shard each, and an index that says so, with changes."""
    folder.mkdir(exist_ok=True)
    for number, name in enumerate("ab"):
        save_file({name: torch.full((3,), number + 1.0)}, folder / SHARDS[number], metadata={"format": "pt"})
    index = {"metadata": {"total_size": 24}, "weight_map": {"a": SHARDS[0], "b": SHARDS[1], **weight_map}}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def write_model(folder: Path, state: object = None) -> Path:
    """Write a model of one tensor, and `trainer_state.json` where there is one (text as it is)."""
    folder.mkdir(exist_ok=True)
    save_file({"w": torch.ones(2)}, folder / "model.safetensors")
    if state is not None:
        text = state if isinstance(state, str) else json.dumps(state, indent=2)
        (folder / "trainer_state.json").write_text(text)
    return folder


def refusal(path: Path) -> EmaError:
    """Return the error that opening the folder gives."""
    with pytest.raises(EmaError) as caught:
        open_checkpoint(path)
    return caught.value


def clocks(path: Path) -> dict[Unit, Fraction]:
    """Return the folder's clocks, each of which must come from the sidecar."""
    found = open_checkpoint(path).progress.clocks
    assert {clock.source for clock in found.values()} <= {"sidecar"}
    return {unit: clock.value for unit, clock in found.items()}


def test_shards_are_one_model(tmp_path: Path) -> None:
    """Shards and index read as one set of tensors, under the folder's name."""
    checkpoint = open_checkpoint(write_shards(tmp_path / "checkpoint-5"))
    assert read_all(checkpoint.weights) == {
        "a": stored_bytes(torch.full((3,), 1.0)),
        "b": stored_bytes(torch.full((3,), 2.0)),
    }
    assert (checkpoint.name, checkpoint.trainer) == ("checkpoint-5", "transformers")
    assert sorted(file.path.name for file in checkpoint.files) == [*SHARDS, "model.safetensors.index.json"]


def test_a_missing_shard_is_incomplete(tmp_path: Path) -> None:
    """A shard that the index names and the folder lacks: its writer is not done."""
    folder = write_shards(tmp_path / "m")
    (folder / SHARDS[1]).unlink()
    error = refusal(folder)
    assert type(error) is IncompleteCheckpoint
    assert str(error) == f"{folder}: shard '{SHARDS[1]}' is missing"


def test_a_missing_index_is_incomplete(tmp_path: Path) -> None:
    """Shards without the index, which is written last: its writer is not done."""
    folder = write_shards(tmp_path / "m")
    (folder / INDEX).unlink()
    error = refusal(folder)
    assert type(error) is IncompleteCheckpoint
    assert str(error) == f"{folder}: holds shards, but no {INDEX}"


def test_a_shard_that_is_cut_short_is_incomplete(tmp_path: Path) -> None:
    """A shard without its last byte names itself."""
    folder = write_shards(tmp_path / "m")
    whole = (folder / SHARDS[1]).read_bytes()
    (folder / SHARDS[1]).write_bytes(whole[:-1])
    error = refusal(folder)
    assert type(error) is IncompleteCheckpoint
    assert f"{SHARDS[1]}: cut short" in str(error)


@pytest.mark.parametrize(
    "shard",
    ["../x.safetensors", "/etc/passwd", "sub/x.safetensors", ".hidden", "..", ".", "a/", "nul\0", "", 3, None, ["a"]],
)
def test_a_shard_outside_the_folder_is_refused(shard: Any, tmp_path: Path) -> None:
    """Only a plain file name in the index is followed; nothing leads out of the folder."""
    save_file({"b": torch.ones(1)}, tmp_path / "x.safetensors")
    error = refusal(write_shards(tmp_path / "m", b=shard))
    assert type(error) is CheckpointError
    assert str(error).startswith(str(tmp_path / "m"))


@pytest.mark.parametrize("shard", ["n" * 300, "\ud800"])
def test_a_shard_name_that_no_file_can_have_is_an_error(shard: str, tmp_path: Path) -> None:
    """A name too long for the file system, or not text, is an error that names the folder; not a crash."""
    error = refusal(write_shards(tmp_path / "m", b=shard))
    assert isinstance(error, CheckpointError)
    assert str(tmp_path / "m") in str(error)
    assert str(error).isprintable()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"c": SHARDS[0]}, f"{SHARDS[0]}: 'c' is in the index only"),
        ({"b": SHARDS[0]}, "'b' is in the index only"),
        ({"a": SHARDS[1]}, f"{SHARDS[1]}: 'a' is in the index only"),
    ],
)
def test_index_and_shards_must_agree(changes: dict[str, str], message: str, tmp_path: Path) -> None:
    """A tensor that the index puts into a shard that does not hold it is an error with both names."""
    error = refusal(write_shards(tmp_path / "m", **changes))
    assert message in str(error)
    assert error.hint == "index and shards are of different saves"


def test_a_tensor_the_index_does_not_know_is_an_error(tmp_path: Path) -> None:
    """A shard may not hold more than the index says; not even another shard's tensor."""
    folder = write_shards(tmp_path / "m")
    save_file({"b": torch.ones(3), "a": torch.ones(3)}, folder / SHARDS[1])
    assert f"{SHARDS[1]}: 'a' is in the shard only" in str(refusal(folder))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "has no 'weight_map'"),
        ("[]", "has no 'weight_map'"),
        ('{"weight_map": {}}', "has no 'weight_map'"),
        ('{"weight_map": ["a"]}', "has no 'weight_map'"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "'a' stands twice"),
        ('{"weight_map"', "not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_an_index_that_is_none_is_refused(text: str, message: str, tmp_path: Path) -> None:
    """A damaged index is an error with its path and the reason."""
    folder = write_shards(tmp_path / "m")
    (folder / INDEX).write_text(text)
    error = refusal(folder)
    assert isinstance(error, CheckpointError)
    assert str(error).startswith(f"{folder / INDEX}: ")
    assert message in str(error)


@pytest.mark.parametrize("length", [0, 1, 10, 80])
def test_an_index_that_is_cut_short_is_incomplete(length: int, tmp_path: Path) -> None:
    """An index whose end is missing is still being written: a search passes it over."""
    folder = write_shards(tmp_path / "m")
    (folder / INDEX).write_bytes((folder / INDEX).read_bytes()[:length])
    assert type(refusal(folder)) is IncompleteCheckpoint


def test_the_clock_comes_from_the_trainers_state(tmp_path: Path) -> None:
    """Step, epoch and tokens are read exactly: 0.3 is three tenths."""
    state = {"epoch": 0.3, "global_step": 30, "num_input_tokens_seen": 4096, "log_history": [{"loss": 1e-5}]}
    assert clocks(write_model(tmp_path / "m", state)) == {
        Unit.EPOCH: Fraction(3, 10),
        Unit.BATCH: Fraction(30),
        Unit.TOKEN: Fraction(4096),
    }


def test_tokens_that_were_not_counted_are_no_clock(tmp_path: Path) -> None:
    """The Trainer leaves its token counter at 0 unless asked to count."""
    state = {"epoch": 1.0, "global_step": 0, "num_input_tokens_seen": 0}
    assert clocks(write_model(tmp_path / "m", state)) == {Unit.EPOCH: 1, Unit.BATCH: 0}


@pytest.mark.parametrize("value", [-1, True, "3", None, [3]])
def test_what_is_no_counter_is_no_clock(value: Any, tmp_path: Path) -> None:
    """A step that is negative, a boolean or text is not taken for one."""
    assert clocks(write_model(tmp_path / "m", {"global_step": value, "epoch": 2})) == {Unit.EPOCH: 2}


def test_a_diverged_loss_does_not_hide_the_clock(tmp_path: Path) -> None:
    """NaN and Infinity in the log, which Python writes and JSON does not know, are passed over."""
    log = [{"loss": float("nan")}, {"loss": float("inf"), "grad_norm": float("-inf")}]
    assert clocks(write_model(tmp_path / "m", {"global_step": 7, "log_history": log})) == {Unit.BATCH: 7}


def test_a_model_without_a_state_has_no_clock(tmp_path: Path) -> None:
    """The folder's name is another module's business."""
    assert clocks(write_model(tmp_path / "checkpoint-5")) == {}


def test_a_state_that_is_cut_anywhere_is_incomplete(tmp_path: Path) -> None:
    """Whatever the length it was cut to, the state is said to be incomplete, and named."""
    whole = json.dumps({"global_step": 7, "log_history": [{"loss": 1.5}, {"loss": 0.5}], "x": {}}, indent=2)
    for length in range(len(whole)):
        error = refusal(write_model(tmp_path / "m", whole[:length]))
        assert type(error) is IncompleteCheckpoint, whole[:length]
        assert str(tmp_path / "m" / "trainer_state.json") in str(error)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"a": 1e999999999}', "{'a': 1}"])
def test_a_state_that_is_no_json_is_refused(text: str, tmp_path: Path) -> None:
    """A whole file that is not strict JSON is damaged."""
    error = refusal(write_model(tmp_path / "m", text))
    assert type(error) is CheckpointError
    assert "trainer_state.json: not valid JSON: " in str(error)


def test_a_pickled_model_has_the_folders_name_and_clock(tmp_path: Path) -> None:
    """`pytorch_model.bin` in a folder reads as its safetensors would."""
    folder = tmp_path / "checkpoint-9"
    folder.mkdir()
    torch.save({"w": torch.ones(2)}, folder / "pytorch_model.bin")
    (folder / "trainer_state.json").write_text('{"global_step": 9}')
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.name, checkpoint.format) == ("checkpoint-9", "torch zip")
    assert clocks(folder) == {Unit.BATCH: 9}


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    """Configuration alone is no checkpoint."""
    (tmp_path / "config.json").write_text("{}")
    error = refusal(tmp_path)
    assert (type(error), str(error)) == (CheckpointError, f"{tmp_path}: a folder without a checkpoint")
