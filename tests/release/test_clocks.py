"""The clocks of an average are those that its checkpoints give, whatever its manifest says of their source."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Cli, write_hf_run
from tests.release.verified import SINGLE, against, check, edit_mark, vouch

pytestmark = pytest.mark.slow


def write_names(folder: Path, *names: str, **more: int) -> None:
    """Write files of torch's under these names, with the same counters in each."""
    folder.mkdir(exist_ok=True)
    for value, name in enumerate(names):
        torch.save({"model": {"w": torch.full((3,), float(value))}, **more}, folder / name)


def made(cli: Cli, *arguments: str) -> Path:
    """Make an average, and return it."""
    done = cli("average", *arguments, "-o", SINGLE, "-q")
    assert done.code == 0, done
    return Path(done.out.strip())


def forge(path: Path, edit: Any) -> None:
    """Edit the manifest, and let everything in it fit together."""
    vouch(path, edit)
    assert check(path).problems == ()


@pytest.mark.parametrize(
    "source", ["name", "spacing", "epoch length", "order of names", "file", "sidecar", "name clock over sidecar", "x"]
)
@pytest.mark.parametrize("version", ["0.1.0", "0.0.9"])
def test_a_clock_that_the_checkpoint_does_not_give_is_a_problem(cli: Cli, tmp_path: Path, source: str, version: str):
    """An old checkpoint that is given a late clock would hold most of the average; where from is never believed."""
    write_hf_run(tmp_path / "run", [1000, 2000, 3000])
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    state = tmp_path / "other/checkpoint-1000/trainer_state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "global_step": 2990}))
    out = tmp_path / made(cli, "other", "--half-life", "100ba")
    edit_mark(out, lambda mark: mark.update(version=version))

    def edit(manifest: dict[str, Any]) -> None:
        manifest["tool"]["version"] = version
        row = next(row for row in manifest["inputs"] if row["clocks"]["ba"]["value"] == "2990")
        row["clocks"]["ba"]["from"] = source

    forge(out, edit)
    (problem,) = against(out, tmp_path / "run").problems
    assert "checkpoint-1000: its clock is 1000ba, but was 2990ba when it was averaged" in problem
    done = cli("verify", SINGLE, "--against", "run")
    assert done.code == 6


def test_a_source_that_is_not_true_is_a_problem(cli: Cli, tmp_path: Path):
    """The value may be right: where it is from is compared, too."""
    write_hf_run(tmp_path / "run", [1000, 2000, 3000])
    out = tmp_path / made(cli, "run", "--half-life", "100ba")
    forge(out, lambda manifest: manifest["inputs"][0]["clocks"]["ba"].update({"from": "name clock"}))
    assert 'says inputs[0].clocks.ba.from "name clock", but' in against(out, tmp_path / "run").problems[0]


def test_a_clock_that_the_manifest_leaves_out_is_a_problem(cli: Cli, tmp_path: Path):
    """Nor may a clock be hidden."""
    write_hf_run(tmp_path / "run", [1000, 2000, 3000])
    out = tmp_path / made(cli, "run", "--half-life", "100ba")
    forge(out, lambda manifest: manifest["inputs"][0]["clocks"].pop("ep"))
    assert "but was none when it was averaged" in against(out, tmp_path / "run").problems[0]


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        (("--half-life", "200ba", "--spacing", "200ba"), "spacing", "100ba"),
        (("--half-life", "200ba", "--spacing", "200ba"), "spacing", "0ba"),
        (("--half-life", "200ba", "--spacing", "200ba"), "spacing", "infba"),
        (("--half-life", "200ba", "--spacing", "200ba"), "spacing", "200tok"),
        (("--half-life", "200ba", "--spacing", "200ba"), "spacing", None),
    ],
)
def test_a_distance_that_gives_other_clocks_is_a_problem(
    cli: Cli, tmp_path: Path, options: tuple[str, ...], name: str, value: str | None
):
    """What the recipe says of the distance must give the clocks, and be one."""
    write_names(tmp_path / "run", "a.pt", "b.pt", "c.pt")
    out = tmp_path / made(cli, "run", *options)
    assert against(out, tmp_path / "run").problems == ()
    forge(out, lambda manifest: manifest["recipe"].update({name: value}))
    assert against(out, tmp_path / "run").problems


@pytest.mark.parametrize("value", ["20ba", "0ba", "infba", "10tok", None])
def test_a_length_of_epochs_that_gives_other_clocks_is_a_problem(cli: Cli, tmp_path: Path, value: str | None):
    """What the recipe says of the length of an epoch must give the clocks, and be one."""
    write_names(tmp_path / "run", "epoch_1.pt", "epoch_2.pt", "epoch_3.pt")
    out = tmp_path / made(cli, "run", "--half-life", "20ba", "--epoch-length", "10ba")
    assert against(out, tmp_path / "run").problems == ()
    forge(out, lambda manifest: manifest["recipe"].update(epoch_length=value))
    assert against(out, tmp_path / "run").problems


@pytest.mark.parametrize("value", ["ep", "sp", "x{", None])
def test_a_clock_from_names_that_gives_other_clocks_is_a_problem(cli: Cli, tmp_path: Path, value: str | None):
    """What the recipe says of the numbers in names must give the clocks, and be possible."""
    write_names(tmp_path / "run", "m_10.pt", "m_20.pt", "m_40.pt")
    out = tmp_path / made(cli, "run", "--half-life", "20ba", "--name-clock", "ba")
    assert against(out, tmp_path / "run").problems == ()
    forge(out, lambda manifest: manifest["recipe"].update(name_clock=value))
    assert against(out, tmp_path / "run").problems


def test_what_follows_from_the_whole_run_is_looked_for_there(cli: Cli, tmp_path: Path):
    """The third file is at three distances, though the first two do not enter; later files change nothing."""
    write_names(tmp_path / "run", "a.pt", "b.pt", "c.pt", "d.pt")
    out = tmp_path / made(cli, "run", "--half-life", "200ba", "--spacing", "100ba", "--start", "300ba")
    write_names(tmp_path / "run", "e.pt")
    assert against(out, tmp_path / "run").problems == ()
    (tmp_path / "run/a.pt").unlink()
    assert "its clock is 200ba, but was 300ba" in against(out, tmp_path / "run").problems[0]


def test_epochs_that_are_counted_from_0_are_so_in_the_whole_run(cli: Cli, tmp_path: Path):
    """That the first epoch is 0 shows in a file that does not enter."""
    write_names(tmp_path / "run", *(f"epoch={number}.pt" for number in range(4)))
    out = tmp_path / made(cli, "run", "--half-life", "1ep", "--start", "3ep")
    assert against(out, tmp_path / "run").problems == ()


def test_inputs_that_were_named_stand_for_themselves(cli: Cli, tmp_path: Path):
    """Named files have distances among themselves, whatever else lies in their folder."""
    write_names(tmp_path / "run", "a.pt", "b.pt", "c.pt")
    out = tmp_path / made(cli, "run/a.pt", "run/c.pt", "--half-life", "200ba", "--spacing", "100ba")
    assert against(out, tmp_path / "run").problems == ()


def test_recorded_clocks_that_were_overruled_are_named_and_strict_fails(cli: Cli, tmp_path: Path):
    """A user's word over recorded clocks is in the sentence, by what the checkpoints record, and not for --strict."""
    write_names(tmp_path / "run", "m_10.pt", "m_20.pt", "m_40.pt", step=5)
    made(cli, "run", "--half-life", "20ba", "--name-clock", "ba")
    done = cli("verify", SINGLE, "--against", "run")
    assert (done.code, done.out.count("its clocks are not those that the checkpoints record (--name-clock ba)")) == (
        0,
        1,
    )
    strict = cli("verify", SINGLE, "--against", "run", "--strict")
    assert (strict.code, "record: --name-clock ba (--strict)" in strict.err) == (6, True)
    shutil.rmtree(tmp_path / "run")
    write_names(tmp_path / "run", "m_10.pt", "m_20.pt", "m_40.pt")
    assert cli("average", "run", "--half-life", "20ba", "--name-clock", "ba", "-o", SINGLE, "-q", "--force").code == 0
    done = cli("verify", SINGLE, "--against", "run", "--strict")
    assert (done.code, "record" in done.out) == (0, False), done
