"""What a training stored before and after it was resumed, and what others stored in the same folder."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ema_cli import EMA, Recipe, Time, average, parse_target
from ema_cli.errors import CheckpointError, OutputError, RunError
from ema_cli.planning.stored_plan import make_stored_plan
from ema_cli.runs.stored import open_stored
from tests.conftest import Cli
from tests.runs.stored_run import Wanderer, train
from tests.runs.test_stored import as_an_earlier_version, edit
from tests.runs.test_stored_half_lives import dense

pytestmark = pytest.mark.slow

PAIR = ("25ba", "100ba")


class Training:
    """A training whose state can be saved, and gone back to; `seen` are the weights of its life, in float64."""

    def __init__(self, folder: Path, half_life: Any = PAIR, **options: Any) -> None:
        self.folder, self.asked = folder, {"half_life": half_life, **options}
        self.wanderer = Wanderer()
        self.ema = EMA(self.wanderer.model, **self.asked)
        self.seen: list[np.ndarray] = []

    def go_on(self, until: int, at: tuple[int, ...] = ()) -> None:
        """Train until a step, storing at some."""
        while len(self.seen) < until:
            self.wanderer()
            self.ema.update()
            self.seen.append(self.wanderer.model.weight.detach().double().numpy().copy())
            if len(self.seen) in at:
                self.ema.store(self.folder)

    def state(self) -> dict[str, Any]:
        """Return the state, as a checkpoint would have it."""
        return copy.deepcopy({"ema": self.ema.state_dict(), "seen": list(self.seen), "step": self.wanderer.step})

    def resume(self, state: dict[str, Any], seed: int) -> Training:
        """Return the training as another process resumes it: other data from here on."""
        again = Training(self.folder, **self.asked)
        again.ema.load_state_dict(copy.deepcopy(state["ema"]))
        again.wanderer.step, again.seen = state["step"], list(state["seen"])
        again.wanderer.generator.manual_seed(seed)
        again.wanderer.drift = again.wanderer.drift * -3
        return again


def names(folder: Path) -> set[str]:
    """Return what is in a folder."""
    return {path.name for path in folder.iterdir()}


def rebuilt(folder: Path, half_life: str, output: Path) -> tuple[np.ndarray, float]:
    """Return what is made of the stored averages, and the error that is told."""
    plan = make_stored_plan(open_stored([folder]), Recipe(half_life=Time.parse(half_life)), allow_approximate=False)
    average(plan, parse_target(output), force=True)
    assert plan.approximation is not None
    return load_file(output)["weight"], plan.approximation.error


def left_branch(folder: Path, tmp_path: Path) -> Training:
    """Train to 300, go back to 225, store at 310; put back what was set aside. Return the training that went on."""
    lost = Training(folder)
    lost.go_on(225, at=(50, 100, 150, 200))
    state = lost.state()
    lost.go_on(300, at=(250, 300))
    went_on = lost.resume(state, seed=7)
    went_on.go_on(310, at=(310,))
    return went_on


def test_a_branch_that_was_given_up_is_set_aside(tmp_path: Path) -> None:
    """Resumed from 225, what was stored at 250 and 300 is renamed; what is older is this training's own past."""
    left_branch(tmp_path / "ema", tmp_path)
    assert names(tmp_path / "ema") == {
        "first.safetensors", "50ba", "100ba", "150ba", "200ba", "310ba", "250ba.given-up", "300ba.given-up"
    }  # fmt: skip


def test_a_branch_that_was_given_up_does_not_enter(cli: Cli, tmp_path: Path) -> None:
    """Where it is there all the same, it is passed over with a warning, and the average is the dense one."""
    went_on = left_branch(tmp_path / "ema", tmp_path)
    for clock in ("250ba", "300ba"):
        (tmp_path / "ema" / f"{clock}.given-up").rename(tmp_path / "ema" / clock)
    for half_life in (30, 50, 100):
        found, told = rebuilt(tmp_path / "ema", f"{half_life}ba", tmp_path / "x.safetensors")
        expected = dense(went_on.seen, half_life)
        true = np.linalg.norm(found - expected) / np.linalg.norm(went_on.seen[-1] - expected)
        assert true < max(2 * told, 0.01)
    done = cli("average", tmp_path, "--from", "stored", "--half-life", "50ba", "-o", tmp_path / "y.safetensors")
    assert done.code == 0, done
    assert "250ba" in done.err
    assert "resumed from 225ba" in done.err
    assert cli("verify", tmp_path / "y.safetensors", "--against", tmp_path).code == 0


@pytest.mark.parametrize("half_life", [PAIR, "25ba"], ids=str)
def test_ones_own_past_is_never_set_aside(half_life: Any, tmp_path: Path) -> None:
    """A state that was saved before the averages of its step were stored knows them for its own; so does the next."""
    training = Training(tmp_path / "ema", half_life)
    training.go_on(50, at=())
    for until in (100, 150, 200):
        state = training.state()  # before the store of this step, as some trainers save
        training.ema.store(tmp_path / "ema")
        training = training.resume(state, seed=until)
        training.go_on(until)
    training.ema.store(tmp_path / "ema")
    first = {"first.safetensors"} if half_life is PAIR else set()
    assert names(tmp_path / "ema") == {"50ba", "100ba", "150ba", "200ba", *first}
    run = open_stored([tmp_path])
    assert run.clocks == ["50ba", "100ba", "150ba", "200ba"]
    assert run.has_first_copy is bool(first)
    assert not run.run.passed_over


def test_a_start_anew_sets_the_first_copy_aside_too(tmp_path: Path) -> None:
    """The first copy of an earlier training is none of the one that keeps none."""
    train(tmp_path, at=[40])
    train(tmp_path, half_life="25ba", at=[60])
    assert names(tmp_path) == {"40ba.given-up", "first.safetensors.given-up", "60ba"}
    assert not open_stored([tmp_path]).has_first_copy


def test_two_trainings_in_one_folder_are_two(cli: Cli, tmp_path: Path) -> None:
    """Put together by hand, they are refused; the hint says how to choose, and works."""
    train(tmp_path / "a", half_life="25ba", at=[100, 200])
    train(tmp_path / "b", half_life="25ba", at=[150, 250])
    for clock in ("150ba", "250ba"):
        (tmp_path / "b" / clock).rename(tmp_path / "a" / clock)
    asked = ["average", tmp_path / "a", "--from", "stored", "--half-life", "25ba", "-o", tmp_path / "x.safetensors"]
    refused = cli(*asked)
    assert refused.code == 4
    assert "2 trainings stored" in refused.err
    assert "(100ba to 200ba)" in refused.err
    identity = refused.err.partition("--component ")[2].split()[0].strip("'\"`")
    done = cli(*asked, "--component", identity)
    assert done.code == 0, done
    chosen = {
        path.parent.name for path in (tmp_path / "a").rglob("*.safetensors") if identity in path.read_text("latin-1")
    }
    assert chosen in ({"100ba", "200ba"}, {"150ba", "250ba"})
    entered = load_file(tmp_path / "x.safetensors")["weight"]
    newest = max(chosen, key=lambda name: int(name[:-2]))
    assert np.allclose(entered, load_file(tmp_path / "a" / newest / "25ba.safetensors")["weight"], atol=1e-5)
    assert cli("verify", tmp_path / "x.safetensors", "--against", tmp_path / "a").code == 0
    wrong = cli(*asked, "--component", "zzz", "--force")
    assert wrong.code == 4
    assert identity in wrong.err


def test_branches_that_got_further_than_the_newest_are_a_choice(tmp_path: Path) -> None:
    """Resumed from 225 and stored at 230, with 300 of the branch before still there: nobody knows which is meant."""
    lost = Training(tmp_path / "ema")
    lost.go_on(225, at=(100, 200))
    state = lost.state()
    lost.go_on(300, at=(300,))
    lost.resume(state, seed=3).ema.store(tmp_path / "ema")
    again = lost.resume(state, seed=3)
    again.go_on(230)
    again.ema.store(tmp_path / "ema")
    assert open_stored([tmp_path]).clocks == ["100ba", "200ba", "230ba"]
    (tmp_path / "ema/300ba.given-up").rename(tmp_path / "ema/300ba")
    with pytest.raises(RunError, match="branches of one training") as raised:
        open_stored([tmp_path])
    assert "300ba" in str(raised.value)
    first, last = lost.ema.averages.lineage[0].identity, again.ema.averages.lineage[-1].identity
    assert open_stored([tmp_path], component=first).clocks == ["100ba", "200ba", "300ba"]
    assert open_stored([tmp_path], component=last).clocks == ["100ba", "200ba", "230ba"]


def test_two_trainings_that_store_at_once_lose_nothing(tmp_path: Path) -> None:
    """Of two that go on side by side in one folder, none overwrites what the other stored."""
    one = Training(tmp_path / "ema")
    one.go_on(200, at=(100, 200))
    state = one.state()
    other = one.resume(state, seed=2)
    other.go_on(300, at=(300,))
    before = (tmp_path / "ema/300ba/25ba.safetensors").read_bytes()
    one.go_on(300, at=(300,))
    assert (tmp_path / "ema/300ba.given-up/25ba.safetensors").read_bytes() == before


def test_one_training_may_store_in_several_folders(tmp_path: Path) -> None:
    """Resumed with another folder, its averages lie in two, and are one training's."""
    training = Training(tmp_path / "one")
    training.go_on(200, at=(100, 200))
    state = training.state()
    training.folder = tmp_path / "two"
    again = training.resume(state, seed=4)
    again.go_on(300, at=(250, 300))
    run = open_stored([tmp_path])
    assert run.clocks == ["100ba", "200ba", "250ba", "300ba"]
    found, _ = rebuilt(tmp_path, "50ba", tmp_path / "x.safetensors")
    expected = dense(again.seen, 50)
    assert np.linalg.norm(found - expected) < 0.01 * np.linalg.norm(again.seen[-1] - expected)


@pytest.mark.parametrize("name", ["100ba/model.safetensors", "100ba/notes.txt", "first.safetensors", "100ba"])
def test_what_store_did_not_make_is_not_touched(name: str, tmp_path: Path) -> None:
    """A file or folder of the user's that has the name of a clock stays; in its place nothing is stored."""
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    save_file({"mine": np.ones(3, np.float32)}, mine)
    before = mine.read_bytes()
    training = Training(tmp_path)
    if name == "first.safetensors":
        with pytest.raises(OutputError, match="did not make it"):
            training.go_on(50, at=(50,))
    else:
        training.go_on(60, at=(50,))
        training.go_on(99)
        with pytest.raises(OutputError, match="did not make it"):
            training.go_on(100, at=(100,))
        assert names(tmp_path) == {"50ba", "100ba", "first.safetensors"}
    assert mine.read_bytes() == before


def test_states_and_averages_of_an_earlier_version_go_on(tmp_path: Path) -> None:
    """A state that names no branch goes on; what lies in the folder without a name, up to its clock, is its past."""
    training = Training(tmp_path / "ema")
    training.go_on(225, at=(100, 200))
    state = training.state()
    training.go_on(300, at=(300,))
    as_an_earlier_version(tmp_path)
    assert open_stored([tmp_path]).clocks == ["100ba", "200ba", "300ba"]
    del state["ema"]["branches"]
    again = training.resume(state, seed=5)
    again.go_on(310, at=(310,))
    assert names(tmp_path / "ema") == {"first.safetensors", "100ba", "200ba", "300ba.given-up", "310ba"}
    assert open_stored([tmp_path]).clocks == ["100ba", "200ba", "310ba"]


@pytest.mark.parametrize(
    "branches",
    [[], 3, [{"id": "x"}], [{"id": 3}], [{"id": "0123abcd", "since": "5ba"}], [{"id": "0123abcd"}, {"id": "0123abce"}],
     [{"id": "0123abcd"}, {"id": "0123abce", "since": "5ep"}], [{}], ["0123abcd"], [{"id": "0123abcd"}, {"id": ""}]],
    ids=str,
)  # fmt: skip
def test_damaged_branches_are_refused(branches: Any, tmp_path: Path) -> None:
    """What is no lineage is not believed; the error names the file."""
    train(tmp_path, half_life="25ba", at=[10])
    edit(tmp_path / "10ba/25ba.safetensors", lambda told: told.update(branches=branches))
    with pytest.raises(CheckpointError, match=r"25ba\.safetensors"):
        open_stored([tmp_path])


def test_an_average_copied_elsewhere_is_one_of_its_training(tmp_path: Path) -> None:
    """The folder of a training may be copied whole, and be averaged there."""
    train(tmp_path / "ema", at=[50, 100])
    shutil.copytree(tmp_path / "ema", tmp_path / "copy")
    assert open_stored([tmp_path / "copy"]).clocks == ["50ba", "100ba"]
