"""Averages that a training stored: found, read and checked to belong together."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ema_cli import EMA, EmaError, Recipe, Time, average, parse_target
from ema_cli.errors import CheckpointError, RunError, UsageError
from ema_cli.formats.mark import METADATA_KEY
from ema_cli.planning.stored_plan import make_stored_plan
from ema_cli.runs.stored import StoredRun, open_stored
from tests.conftest import OWN_FILES
from tests.runs.stored_run import Wanderer, train


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what a stored average says of itself."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    record = json.loads(header["__metadata__"][METADATA_KEY])
    change(record["stored"])
    header["__metadata__"][METADATA_KEY] = json.dumps(record)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"clock": "x"}, {"clock": 3}, {"clock": "0ba"}, {"clock": "200ep"}, {"updates": -1}, {"updates": 2.5},
        {"types": {"F64": "all"}}, {"types": {"C64": "all"}}, {"half_life": "2ep"}, {"average": "first"},
        {"updates": True}, {"began": "9999ba"}, {"half_life": None}, {"update_interval": "0ba"},
        {"update_interval": "1ep"}, {"update_interval": "infba"}, {"clock": "infba"}, {"types": 3},
        {"types": {"X": "all"}}, {"clocks": {"zz": "1"}}, {"clocks": {"ba": "x"}},
    ],
    ids=str,
)  # fmt: skip
def test_a_description_that_is_damaged_is_refused(change: dict[str, Any], stored: Path) -> None:
    """What a file says of itself is checked before it is believed; the error names the file."""
    edit(stored / "200ba/100ba.safetensors", lambda told: told.update(change))
    with pytest.raises(CheckpointError, match=r"100ba\.safetensors"):
        open_stored([stored])


def test_a_law_out_of_range_is_refused(stored: Path) -> None:
    """A smoothing above 1 or a width of 0 is none."""
    for law in ({"smoothing": "1.5"}, {"sigma_rel": "0.0"}, {"smoothing": "nan"}):
        edit(stored / "200ba/100ba.safetensors", lambda told, law=law: (told.pop("half_life", None), told.update(law)))
        with pytest.raises(CheckpointError, match=r"100ba\.safetensors"):
            open_stored([stored])


def as_an_earlier_version(folder: Path) -> None:
    """Take out of the stored averages what versions did not write that knew no branches, and no norms."""
    for path in folder.rglob("*.safetensors"):
        edit(path, lambda told: [told.pop(name, None) for name in ("branches", "norm", "spread")])


def test_two_trainings_are_not_mixed(stored: Path, tmp_path: Path) -> None:
    """Averages of two trainings are refused with the folders of both: exit 4."""
    train(tmp_path / "other", at=[150], update_interval="5ba")
    with pytest.raises(RunError, match="2 trainings stored: ema, other"):
        open_stored([tmp_path])


def test_two_trainings_of_an_earlier_version_are_not_mixed(stored: Path, tmp_path: Path) -> None:
    """Averages that say nothing of their training are of two where they count otherwise, or stand twice at a clock."""
    train(tmp_path / "other", at=[150], update_interval="5ba")
    as_an_earlier_version(tmp_path)
    with pytest.raises(RunError, match="update interval"):
        open_stored([tmp_path])
    shutil.rmtree(tmp_path / "other")
    train(tmp_path / "other", at=[200])
    as_an_earlier_version(tmp_path)
    with pytest.raises(RunError, match=", too"):
        open_stored([tmp_path])
    shutil.rmtree(tmp_path / "other")
    train(tmp_path / "other", at=[150])
    as_an_earlier_version(tmp_path)
    (tmp_path / "other/first.safetensors").unlink()
    with pytest.raises(RunError, match="2 trainings stored: ema, other"):
        open_stored([tmp_path])


def test_updates_that_contradict_clocks_are_refused(stored: Path) -> None:
    """One number of updates has one clock, and more updates a later one."""
    edit(stored / "200ba/100ba.safetensors", lambda told: told.update(updates=99))
    with pytest.raises(RunError, match="after 99 updates"):
        make_stored_plan(open_stored([stored]), Recipe(half_life=Time.parse("20ba")), allow_approximate=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "error"),
    [
        (Recipe(half_life=Time.parse("2ep")), RunError),
        (Recipe(half_life=Time.parse("20ba"), update_interval=Time.parse("5ba")), RunError),
        (Recipe(half_life=Time.parse("20ba"), start=Time.parse("10ba")), UsageError),
        (Recipe(half_life=Time.parse("20ba"), last=3), UsageError),
        (Recipe(half_life=Time.parse("20ba"), bias_correction=True), UsageError),
        (Recipe(half_life=Time.parse("20ba"), stop=Time.parse("10ba")), RunError),
        (Recipe(half_life=Time.parse("20ba"), stop=Time.parse("10ep")), RunError),
        (Recipe(profile="uniform"), UsageError),
    ],
    ids=str,
)
def test_unit_interval_and_start_of_stored_averages_are_settled(
    recipe: Recipe, error: type[EmaError], stored: Path
) -> None:
    """Unit, interval and beginning are those of the averages; the error says so."""
    with pytest.raises(error):
        make_stored_plan(open_stored([stored]), recipe, allow_approximate=True)


def test_other_files_of_ours_are_not_taken(stored: Path) -> None:
    """A file that only has such a name is no stored average."""
    save_file({"weight": np.zeros((8, 8), dtype=np.float32)}, stored / "200ba/notes.safetensors")
    run: StoredRun = open_stored([stored])
    assert [each.checkpoint.name for each in run.averages] == [
        "first.safetensors", "100ba/25ba.safetensors", "100ba/100ba.safetensors",
        "200ba/25ba.safetensors", "200ba/100ba.safetensors",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("where", ["", "checkpoint-200"])
def test_the_model_s_configuration_comes_along(where: str, stored: Path) -> None:
    """Beside, or above, a Hugging Face model the result is a folder that from_pretrained loads."""
    for name, text in (("config.json", '{"architectures": ["X"]}'), ("tokenizer.json", "{}")):
        (stored.parent / where).mkdir(exist_ok=True)
        (stored.parent / where / name).write_text(text)
    (stored.parent / "checkpoint-9").mkdir()
    (stored.parent / "checkpoint-9" / "config.json").write_text("older")
    plan = make_stored_plan(open_stored([stored.parent]), Recipe(half_life=Time.parse("50ba")), allow_approximate=False)
    average(plan, parse_target(stored.parent / "out"))
    assert {path.name for path in (stored.parent / "out").iterdir()} == {
        "config.json", "tokenizer.json", "model.safetensors", *OWN_FILES
    }  # fmt: skip
    assert json.loads((stored.parent / "out" / "config.json").read_text())["architectures"] == ["X"]


def test_a_training_that_went_back_gives_up_what_it_stored_later(tmp_path: Path) -> None:
    """Stored again from an earlier state, later averages are moved aside, and are not taken for this training's."""
    wanderer = Wanderer()
    ema = EMA(wanderer.model, half_life=("25ba", "100ba"))
    for step in range(1, 301):
        wanderer()
        ema.update()
        if step == 150:
            state = copy.deepcopy(ema.state_dict())
        if step % 100 == 0:
            ema.store(tmp_path / "ema")
    ema.load_state_dict(state)
    for _ in range(50):
        wanderer()
        ema.update()
    ema.store(tmp_path / "ema")
    assert {path.name for path in (tmp_path / "ema").iterdir()} == {
        "first.safetensors", "100ba", "200ba", "200ba.given-up", "300ba.given-up"
    }  # fmt: skip
    assert str(open_stored([tmp_path]).averages[-1].clock) == "200ba"


def test_a_new_training_in_the_same_folder_gives_up_what_is_there(tmp_path: Path) -> None:
    """What an earlier training stored, before or after, is moved aside when another stores for the first time."""
    train(tmp_path, at=[40, 100, 300])
    train(tmp_path, at=[60, 100])
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {
        "first.safetensors", "first.safetensors.given-up", "60ba", "100ba", "40ba.given-up", "100ba.given-up",
        "300ba.given-up",
    }  # fmt: skip
    assert len(open_stored([tmp_path]).averages) == 5


def test_averages_of_a_changed_half_life_are_not_stored(tmp_path: Path) -> None:
    """What was of another half-life before is neither: to store it would make other averages wrong."""
    wanderer = Wanderer()
    ema = EMA(wanderer.model, half_life="25ba")
    for _ in range(10):
        wanderer()
        ema.update()
    other = EMA(wanderer.model, half_life="50ba")
    other.load_state_dict(ema.state_dict(), change_half_life=True)
    again = EMA(wanderer.model, half_life="50ba")
    again.load_state_dict(other.state_dict())
    for each in (other, again):
        with pytest.raises(RunError, match="changed their half-life"):
            each.store(tmp_path)
    assert not list(tmp_path.iterdir())


def test_two_folders_of_stored_averages_are_refused(tmp_path: Path) -> None:
    """Averages of two trainings that differ in nothing but their names are not mixed."""
    train(tmp_path / "a", half_life="25ba", at=[100, 200])
    train(tmp_path / "b", half_life="25ba", at=[150, 250])
    with pytest.raises(RunError, match="2 trainings stored: a, b"):
        open_stored([tmp_path])


def test_only_a_model_s_configuration_is_one(stored: Path) -> None:
    """A file that is only called config.json belongs to somebody else, and so does what lies beside it."""
    (stored.parent / "config.json").write_text('{"learning_rate": 1}')
    (stored.parent / "train.py").write_text("print()")
    plan = make_stored_plan(open_stored([stored]), Recipe(half_life=Time.parse("50ba")), allow_approximate=False)
    average(plan, parse_target(stored.parent / "out"))
    assert {path.name for path in (stored.parent / "out").iterdir()} == {"model.safetensors", *OWN_FILES}
