"""Averages that a training stored: found, checked, and made into any other half-life."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from ema_cli import EMA, EmaError, Recipe, Time, average, parse_target
from ema_cli.errors import CheckpointError, NoWeights, RunError, UsageError
from ema_cli.formats.mark import METADATA_KEY
from ema_cli.law.time import Unit
from ema_cli.planning import stored_plan
from ema_cli.planning.stored_plan import make_stored_plan
from ema_cli.runs.stored import StoredRun, find_stored, open_stored
from tests.conftest import OWN_FILES, Outcome

Cli = Callable[..., Outcome]

STEPS = 400


class Wanderer:
    """A model whose weights drift and shake, as those of a training do; the same ones each time."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(1)
        self.drift = torch.randn(64, generator=generator)
        self.shaking = torch.zeros(64)
        self.generator = generator
        self.model = torch.nn.Linear(8, 8, bias=False, dtype=dtype)
        self.step = 0

    def __call__(self) -> None:
        """Take one step."""
        self.step += 1
        self.shaking = self.shaking * 0.95 + torch.randn(64, generator=self.generator) * 0.3
        with torch.no_grad():
            self.model.weight.copy_((self.drift * (self.step / STEPS) ** 0.5 * 3 + self.shaking).reshape(8, 8))


def train(
    folder: Path,
    half_life: Any = ("25ba", "100ba"),
    at: Sequence[int] = range(50, STEPS + 1, 50),
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> list[np.ndarray]:
    """Train for `STEPS` batches, storing averages at some of them; return the weights at each step, in float64."""
    wanderer = Wanderer(dtype)
    ema = EMA(wanderer.model, half_life=half_life, **options)
    seen = []
    for step in range(1, STEPS + 1):
        wanderer()
        ema.update()
        seen.append(wanderer.model.weight.detach().double().numpy().copy())
        if step in at:
            ema.store(folder)
    return seen


def dense(seen: Sequence[np.ndarray], half_life: float) -> np.ndarray:
    """Return the average over every step, in float64."""
    kept = 0.5 ** (1 / half_life)
    found = seen[0]
    for each in seen[1:]:
        found = kept * found + (1 - kept) * each
    return found


def rebuild(folder: Path, half_life: str, output: Path, **options: Any) -> np.ndarray:
    """Average what is stored, and return the weights."""
    plan = make_stored_plan(
        open_stored([folder]), Recipe(half_life=Time.parse(half_life), **options), allow_approximate=False
    )
    average(plan, parse_target(output), force=True)
    return load_file(output)["weight"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray]]:
    """A training that stored two averages at irregular moments, and its weights at every step."""
    folder = tmp_path_factory.mktemp("run") / "ema"
    return folder, train(folder, at=[30, 50, 90, 140, 150, 210, 280, 330, 345, 400])


@pytest.mark.parametrize("half_life", [20, 25, 30, 50, 70, 100, 150, 400, 1000, 100_000])
def test_any_half_life_comes_near_the_dense_average(
    half_life: int, trained: tuple[Path, list[np.ndarray]], tmp_path: Path
) -> None:
    """Between and beyond the stored ones, within 1 % of the dense average's distance from the last weights."""
    folder, seen = trained
    expected = dense(seen, half_life)
    found = rebuild(folder, f"{half_life}ba", tmp_path / "x.safetensors")
    assert np.linalg.norm(found - expected) < 0.01 * np.linalg.norm(seen[-1] - expected)


def test_a_rebuilt_average_ends_at_stop(trained: tuple[Path, list[np.ndarray]], tmp_path: Path) -> None:
    """With --stop the average is that of the training up to there."""
    folder, seen = trained
    expected = dense(seen[:210], 50)
    found = rebuild(folder, "50ba", tmp_path / "x.safetensors", stop=Time.parse("250ba"))
    assert np.linalg.norm(found - expected) < 0.01 * np.linalg.norm(seen[209] - expected)


def test_a_power_profile_from_stored_power_profiles(tmp_path: Path) -> None:
    """From profiles of width 0.05 and 0.10 one of 0.15 is made, as in post-hoc EMA; and a half-life too."""
    seen = train(tmp_path / "ema", half_life=None, sigma_rel=(0.05, 0.10), at=range(25, STEPS + 1, 25))
    gamma = max(np.roots([1, 7, 16 - 0.15**-2, 12 - 0.15**-2]).real)
    found = seen[0]
    for number, each in enumerate(seen[1:], 2):
        kept = ((number - 1) / number) ** (gamma + 1)
        found = kept * found + (1 - kept) * each
    plan = make_stored_plan(open_stored([tmp_path]), Recipe(profile="power", sigma_rel=0.15), allow_approximate=False)
    average(plan, parse_target(tmp_path / "x.safetensors"))
    rebuilt = load_file(tmp_path / "x.safetensors")["weight"]
    assert np.linalg.norm(rebuilt - found) < 0.01 * np.linalg.norm(seen[-1] - found)


def test_the_model_s_own_types_are_written(tmp_path: Path) -> None:
    """A bfloat16 model is averaged and stored in float32; what is made of it is bfloat16 again, rounded once."""
    train(tmp_path / "ema", dtype=torch.bfloat16)
    plan = make_stored_plan(open_stored([tmp_path]), Recipe(half_life=Time.parse("20ba")), allow_approximate=False)
    average(plan, parse_target(tmp_path / "x.safetensors"))
    average(plan, parse_target(tmp_path / "wide.safetensors"), dtype=None)
    from safetensors.torch import load_file as load_torch

    assert load_torch(tmp_path / "x.safetensors")["weight"].dtype == torch.bfloat16
    assert load_file(tmp_path / "ema/first.safetensors")["weight"].dtype == np.float32


def test_a_half_life_out_of_reach_is_refused_with_those_within(
    cli: Cli, trained: tuple[Path, list[np.ndarray]], tmp_path: Path
) -> None:
    """A half-life far below those that were stored is exit 4, says what is within reach, and can be insisted on."""
    folder, _ = trained
    arguments = [
        "average",
        str(folder),
        "--from",
        "stored",
        "--half-life",
        "1ba",
        "-o",
        str(tmp_path / "x.safetensors"),
    ]
    refused = cli(*arguments)
    assert refused.code == 4
    assert "1ba is out of reach" in refused.err
    assert "within 5% are" in refused.err
    assert not (tmp_path / "x.safetensors").exists()
    assert cli(*arguments, "--allow-approximate").code == 0


def test_weights_sum_to_one_and_the_profile_is_told(
    cli: Cli, trained: tuple[Path, list[np.ndarray]], tmp_path: Path
) -> None:
    """`--json` tells weights, the error, what is within reach, and the shares of training time, which sum to 1."""
    folder, _ = trained
    done = cli(
        "average",
        str(folder),
        "--from",
        "stored",
        "--half-life",
        "25ba",
        "-o",
        str(tmp_path / "x.safetensors"),
        "--json",
    )
    (plan,) = done.json["plans"]
    assert plan["from"] == "stored"
    assert sum(each["weight"] for each in plan["entries"]) == pytest.approx(1)
    told = plan["approximation"]
    assert told["relative_error"] < 0.02
    for kind in ("asked", "reached"):
        assert sum(each[kind] for each in told["stretches"]) == pytest.approx(1, abs=1e-6)


def test_several_half_lives_from_what_is_stored(
    cli: Cli, trained: tuple[Path, list[np.ndarray]], tmp_path: Path
) -> None:
    """One pass makes several, into one folder."""
    folder, seen = trained
    half_lives = ["--half-life", "40ba", "--half-life", "200ba"]
    done = cli("average", str(folder), "--from", "stored", *half_lives, "-o", str(tmp_path / "out"))
    assert done.code == 0, done.err
    for half_life in (40, 200):
        found = load_file(tmp_path / f"out/ema-{half_life}ba.safetensors")["weight"]
        expected = dense(seen, half_life)
        assert np.linalg.norm(found - expected) < 0.01 * np.linalg.norm(seen[-1] - expected)


def test_inspect_suggests_what_is_stored(cli: Cli, trained: tuple[Path, list[np.ndarray]], tmp_path: Path) -> None:
    """Beside raw checkpoints, `inspect` tells of stored averages, how near they come, and draws both profiles."""
    folder, seen = trained
    (tmp_path / "ema").symlink_to(folder)
    for step in (200, 400):
        save_file({"weight": seen[step - 1].astype(np.float32)}, tmp_path / f"step-{step}.safetensors")
    done = cli("inspect", str(tmp_path), str(folder.parent), "--half-life", "50ba")
    assert done.code == 2  # a folder that is no checkpoint beside another
    (tmp_path / "ema").unlink()
    (tmp_path / "ema").mkdir()
    for path in find_stored([folder]):
        there = tmp_path / "ema" / path.relative_to(folder)
        there.parent.mkdir(exist_ok=True)
        there.write_bytes(path.read_bytes())
    done = cli("inspect", str(tmp_path), "--half-life", "50ba")
    assert "Stored averages: 25ba, 100ba, at 10 clocks up to 400ba (--from stored)" in done.out
    assert "asked for, and reached" in done.out
    assert "Within 1%:" in done.out
    only = cli("inspect", str(tmp_path), "--from", "stored", "--half-life", "50ba")
    assert "ema/400ba/25ba.safetensors" in only.out


def test_inspect_says_what_to_store(cli: Cli, tmp_path: Path) -> None:
    """Where raw checkpoints are too far apart for a half-life and nothing is stored, `inspect` says what would do."""
    for step in (1000, 2000, 3000):
        save_file({"weight": np.full(3, step, dtype=np.float32)}, tmp_path / f"step-{step}.safetensors")
    done = cli("inspect", str(tmp_path), "--half-life", "50ba")
    assert "Raw checkpoints alone cannot do it" in done.out
    assert 'EMA(model, half_life=("25ba", "100ba"))' in done.out


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


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A small stored run that a test may damage."""
    train(tmp_path / "ema", at=[100, 200])
    return tmp_path / "ema"


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


def test_two_trainings_are_not_mixed(stored: Path, tmp_path: Path) -> None:
    """Averages that began elsewhere, count otherwise, or stand twice at one clock, are of another training: exit 4."""
    train(tmp_path / "other", at=[150], update_interval="5ba")
    with pytest.raises(RunError, match="update interval"):
        open_stored([tmp_path])
    shutil.rmtree(tmp_path / "other")
    train(tmp_path / "other", at=[200])
    with pytest.raises(RunError, match=", too"):
        open_stored([tmp_path])


def test_updates_that_contradict_clocks_are_refused(stored: Path) -> None:
    """One number of updates has one clock, and more updates a later one."""
    edit(stored / "200ba/100ba.safetensors", lambda told: told.update(updates=99))
    with pytest.raises(RunError, match="after 99 updates"):
        make_stored_plan(open_stored([stored]), Recipe(half_life=Time.parse("20ba")), allow_approximate=True)


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


def test_a_folder_without_stored_averages(cli: Cli, tmp_path: Path) -> None:
    """Nothing stored is exit 3, with how to store some."""
    done = cli("average", str(tmp_path), "--from", "stored", "--half-life", "20ba")
    assert done.code == 3
    assert "ema.store" in done.err
    with pytest.raises(NoWeights):
        open_stored([tmp_path])


def test_options_for_raw_checkpoints_are_refused(cli: Cli, stored: Path) -> None:
    """How to read clocks and files of trainers has no place where averages say what they are."""
    done = cli("average", str(stored), "--from", "stored", "--half-life", "20ba", "--spacing", "100ba")
    assert done.code == 2
    assert "--spacing" in done.err
    assert cli("average", str(stored), "--from", "x", "--half-life", "20ba").code == 2
    assert cli("average", str(stored), "--half-life", "20ba", "--allow-approximate").code == 2


@pytest.mark.parametrize("columns", ["80", "200"])
def test_profiles_fit_the_width(columns: str, cli: Cli, stored: Path) -> None:
    """No line of the drawing is wider than the terminal, however long the clocks are."""
    done = cli("inspect", stored, "--from", "stored", "--half-life", "50ba", env={"COLUMNS": columns})
    drawn = done.out[done.out.index("asked for, and reached") :]
    assert max(map(len, drawn.splitlines())) <= int(columns)


def test_other_files_of_ours_are_not_taken(stored: Path) -> None:
    """A file that only has such a name is no stored average."""
    save_file({"weight": np.zeros((8, 8), dtype=np.float32)}, stored / "200ba/notes.safetensors")
    run: StoredRun = open_stored([stored])
    assert [each.checkpoint.name for each in run.averages] == [
        "first.safetensors", "100ba/25ba.safetensors", "100ba/100ba.safetensors",
        "200ba/25ba.safetensors", "200ba/100ba.safetensors",
    ]  # fmt: skip


def test_more_than_can_be_solved_for_is_thinned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of very many stored averages the newest are all kept, and of the older ones fewer the older they are."""
    seen = train(tmp_path / "ema", at=range(10, STEPS + 1, 10))
    monkeypatch.setattr(stored_plan, "_MAX_STORED", 30)
    plan = make_stored_plan(open_stored([tmp_path]), Recipe(half_life=Time.parse("50ba")), allow_approximate=False)
    assert len(plan.entries) <= 30
    average(plan, parse_target(tmp_path / "x.safetensors"))
    expected = dense(seen, 50)
    found = load_file(tmp_path / "x.safetensors")["weight"]
    assert np.linalg.norm(found - expected) < 0.01 * np.linalg.norm(seen[-1] - expected)


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


def profile_model() -> torch.nn.Module:
    """A model of one number for each step, of which an average is its own profile."""
    return torch.nn.Linear(STEPS, 1, bias=False, dtype=torch.float64)


POWER = {"profile": "power", "sigma_rel": 0.2}


@pytest.mark.parametrize(
    ("kept", "asked"),
    [
        ({"smoothing": (0.997, 0.999)}, {"smoothing": 0.998}),
        ({"half_life": ("250ba", "1000ba")}, {"smoothing": 0.998}),
        ({"smoothing": (0.997, 0.999)}, {"half_life": Time.parse("400ba")}),
        ({"half_life": ("250ba", "1000ba"), "update_interval": "7ba"}, {"half_life": Time.parse("500ba")}),
        (
            {"sigma_rel": (0.05, 0.1), "update_interval": "500ba", "ema_start": "999ba"},
            {"profile": "power", "sigma_rel": 0.2},
        ),
        ({"half_life": ("250ba", "1000ba"), "ema_start": "999ba"}, {"profile": "power", "sigma_rel": 0.2}),
    ],
    ids=str,
)
def test_the_error_that_is_told_is_the_true_one(kept: dict[str, Any], asked: dict[str, Any], tmp_path: Path) -> None:
    """Where ten batches pass from one update to the next, told and true profile agree: each tensor is its profile."""
    model, true = profile_model(), profile_model()
    interval = {"update_interval": kept.get("update_interval", "1ba"), "ema_start": kept.get("ema_start", "0ba")}
    law = {name: str(value) if isinstance(value, Time) else value for name, value in asked.items() if name != "profile"}
    ema, dense_average = EMA(model, **kept), EMA(true, **law, **interval)
    for step in range(STEPS):
        for each in (model, true):
            with torch.no_grad():
                each.weight.zero_()
                each.weight[0, step] = 1
        ema.update(batch=10 * (step + 1))
        dense_average.update(batch=10 * (step + 1))
        if (step + 1) % 50 == 0 and ema.started:
            ema.store(tmp_path / "ema")
    plan = make_stored_plan(open_stored([tmp_path]), Recipe(**asked), allow_approximate=True)
    average(plan, parse_target(tmp_path / "x.safetensors"))
    found = load_file(tmp_path / "x.safetensors")["weight"]
    with dense_average.applied():
        wanted = true.weight.detach().numpy().copy()
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    assert plan.approximation is not None
    assert plan.approximation.error == pytest.approx(error, rel=0.03, abs=1e-4)
    assert plan.recipe.update_interval == Time.parse(interval["update_interval"])


def test_leaving_out_small_weights_refuses_no_half_life_within_reach(tmp_path: Path) -> None:
    """Leaving out small weights never lifts the error over what is refused, nor over what is called near."""
    train(tmp_path / "ema", at=[53, 107, 264, 361])
    stored = open_stored([tmp_path])
    for half_life in np.geomspace(15, 400, 40):
        recipe = Recipe(half_life=Time(float(f"{half_life:.3g}"), Unit.BATCH))
        plan = make_stored_plan(stored, recipe, allow_approximate=True)
        assert plan.approximation is not None
        profiles_error = plan.approximation.least_error
        for within in (0.01, 0.05):
            assert (plan.approximation.error <= within) == (profiles_error <= within)


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
        "first.safetensors", "100ba", "200ba", "300ba.given-up"
    }  # fmt: skip
    assert str(open_stored([tmp_path]).averages[-1].clock) == "200ba"


def test_a_new_training_in_the_same_folder_gives_up_what_is_there(tmp_path: Path) -> None:
    """What an earlier training stored, before or after, is moved aside when another stores for the first time."""
    train(tmp_path, at=[40, 100, 300])
    train(tmp_path, at=[60, 100])
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {"first.safetensors", "60ba", "100ba", "40ba.given-up", "100ba.given-up", "300ba.given-up"}
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


def test_a_half_written_average_is_passed_over(cli: Cli, stored: Path) -> None:
    """Met in the search it is left out, with a warning; named, it is exit 3."""
    path = stored / "200ba/100ba.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    (stored / "200ba/gone.safetensors").symlink_to(stored / "nowhere")
    asked = ["--from", "stored", "--half-life", "50ba", "-o", "x.safetensors"]
    done = cli("average", stored, *asked, "--allow-approximate")
    assert done.code == 0, done
    assert "200ba/100ba.safetensors is passed over: half-written" in done.err
    assert cli("average", path, *asked).code == 3


def test_absolute_and_relative_paths_go_together(cli: Cli, stored: Path) -> None:
    """Folders may be named as one likes."""
    done = cli(
        "inspect", stored / "100ba", "ema/200ba", "ema/first.safetensors", "--from", "stored", "--half-life", "100ba"
    )
    assert done.code == 0, done


def test_only_a_model_s_configuration_is_one(stored: Path) -> None:
    """A file that is only called config.json belongs to somebody else, and so does what lies beside it."""
    (stored.parent / "config.json").write_text('{"learning_rate": 1}')
    (stored.parent / "train.py").write_text("print()")
    plan = make_stored_plan(open_stored([stored]), Recipe(half_life=Time.parse("50ba")), allow_approximate=False)
    average(plan, parse_target(stored.parent / "out"))
    assert {path.name for path in (stored.parent / "out").iterdir()} == {"model.safetensors", *OWN_FILES}


def test_a_power_profile_may_be_named(tmp_path: Path) -> None:
    """profile="power" goes with a width, and nothing else is kept as a model trains."""
    model = torch.nn.Linear(2, 2)
    assert EMA(model, profile="power", sigma_rel=(0.05, 0.1)).names == ["power-0.05", "power-0.1"]
    for wrong in ({"profile": "power"}, {"profile": "uniform", "sigma_rel": 0.1}):
        with pytest.raises(UsageError):
            EMA(model, **wrong)


@pytest.mark.slow
def test_a_real_training_gives_any_half_life(tmp_path: Path) -> None:
    """A small network, trained by Adam on noisy data, stored at irregular moments: within 1 % of the dense average."""
    random = torch.Generator().manual_seed(4)
    torch.manual_seed(4)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.BatchNorm1d(16), torch.nn.Linear(16, 1)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    ema = EMA(model, half_life=("25ba", "100ba"))
    half_lives = [20, 30, 50, 100, 150, 400, 2000]
    wide: dict[int, dict[str, np.ndarray]] = {half_life: {} for half_life in half_lives}
    for step in range(1, STEPS + 1):
        inputs = torch.randn(16, 4, generator=random)
        target = inputs.sum(1, keepdim=True).sin() + torch.randn(16, 1, generator=random)
        loss = (model(inputs) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update()
        for half_life, averages in wide.items():
            kept = 0.5 ** (1 / half_life)
            for name, value in model.state_dict().items():
                new = value.double().numpy()
                averages[name] = new if step == 1 else kept * averages[name] + (1 - kept) * new
        if step in (17, 60, 95, 150, 155, 230, 290, 340, 385, 400):
            ema.store(tmp_path / "ema")
    last = {name: value.double().numpy() for name, value in model.state_dict().items()}
    for half_life, expected in wide.items():
        plan = make_stored_plan(
            open_stored([tmp_path]), Recipe(half_life=Time.parse(f"{half_life}ba")), allow_approximate=False
        )
        average(plan, parse_target(tmp_path / "x.safetensors"), force=True)
        found = load_file(tmp_path / "x.safetensors")
        names = [name for name in expected if "num_batches" not in name]
        off = sum(np.square(found[name] - expected[name]).sum() for name in names)
        distance = sum(np.square(last[name] - expected[name]).sum() for name in names)
        assert off < 0.01**2 * distance, half_life
        assert found["2.num_batches_tracked"] == STEPS
