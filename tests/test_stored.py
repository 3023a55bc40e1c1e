"""Averages that a training stored: found, checked, and made into any other half-life."""

from __future__ import annotations

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
from ema_cli import stored as module
from ema_cli.errors import CheckpointError, NoWeights, RunError, UsageError
from ema_cli.formats.safetensors_file import METADATA_KEY
from ema_cli.stored import StoredRun, find_stored, make_stored_plan, open_stored
from tests.conftest import Outcome

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


def test_what_is_out_of_reach_is_refused_with_what_is_not(
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
        {"updates": True}, {"began": "9999ba"}, {"half_life": None}, {"update_interval": "0ba"}, {"update_interval": "1ep"}, {"clock": "infba"}, {"types": 3},
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
def test_what_the_training_has_settled_cannot_be_asked_for(recipe: Recipe, error: type[EmaError], stored: Path) -> None:
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
    monkeypatch.setattr(module, "_MAX_STORED", 30)
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
        "config.json", "tokenizer.json", "model.safetensors"
    }  # fmt: skip
    assert json.loads((stored.parent / "out" / "config.json").read_text())["architectures"] == ["X"]
