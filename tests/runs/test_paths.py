"""Words in the place of a path: patterns in quotes, and values of options that take one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ema_cli.storage import alike
from ema_cli.storage.names import StorePath
from tests.conftest import Cli, write_torch_run
from tests.storage.stores import obstore, put

LAW = ("--half-life", "100ba")


@pytest.mark.parametrize("pattern", ["run/*.pt", "run/step-?00.pt", "{}/run/step-[1-3]*"])
def test_a_pattern_in_quotes_says_what_fits_it(cli: Cli, tmp_path: Path, pattern: str) -> None:
    """The shell would have put the files in its place; both ways that the hint names give the same weights."""
    write_torch_run(tmp_path / "run", [100, 200, 300])
    done = cli("average", pattern.format(tmp_path), *LAW)
    assert done.code == 2
    assert "does not exist" in done.err
    assert "3 paths fit this pattern: write it without quotes, or name the folder" in done.err
    files = sorted((tmp_path / "run").iterdir())
    named, folder = (cli("average", *paths, *LAW, "--dry-run", "--json") for paths in (files, ["run"]))
    assert named.json["plans"][0]["entries"] == folder.json["plans"][0]["entries"]


def test_a_pattern_that_nothing_fits_says_so(cli: Cli, tmp_path: Path) -> None:
    """No file is said to fit where none does."""
    write_torch_run(tmp_path / "run", [100])
    assert "hint:  no path fits this pattern" in cli("average", "run/*.ckpt", *LAW).err


@pytest.mark.parametrize(
    ("words", "hint", "again"),
    [
        (("--half-life", "10ba", "100ba"), "--half-life 100ba", ("--half-life", "10ba", "--half-life", "100ba")),
        (
            (*LAW, "--exclude", "step-1*", "step-3*"),
            "--exclude 'step-3*'",
            (*LAW, "--exclude", "step-1*", "--exclude", "step-3*"),
        ),
    ],
)
def test_a_second_value_of_an_option_is_no_path(
    cli: Cli, tmp_path: Path, words: tuple[str, ...], hint: str, again: tuple[str, ...]
) -> None:
    """The hint gives the option again, and so it works."""
    write_torch_run(tmp_path / "run", [100, 200, 300])
    done = cli("average", "run", *words)
    assert done.code == 2
    assert done.err.endswith(f"hint:  an option takes one value; give it again for another: {hint}\n")
    assert cli("average", "run", *again, "--dry-run").code == 0


def test_other_paths_have_no_hint(cli: Cli, tmp_path: Path) -> None:
    """Nothing is guessed of a path that may be anything."""
    assert cli("average", "nowhere", *LAW).err == "error: nowhere: does not exist\n"


@pytest.mark.parametrize("command", ["average", "verify"])
@pytest.mark.parametrize(
    ("written", "meant"),
    [("dem", "demo"), ("Demo/step-100.pt", "demo/step-100.pt"), ("demo/step100.pt", "demo/step-100.pt")],
)
def test_a_name_that_is_like_the_written_one_is_hinted_at(
    cli: Cli, tmp_path: Path, command: str, written: str, meant: str
):
    """In a store as on a disk, and of a folder around it, too; nothing that is named otherwise is."""
    write_torch_run(tmp_path / "demo", [100])
    (tmp_path / "others").mkdir()
    bucket = StorePath("memory://alike/runs")
    for place in (bucket / "demo" / "step-100.pt", bucket / "others" / "a"):
        put(place, b"")
    law = LAW if command == "average" else ()
    for folder in (Path(), bucket):
        done = cli(command, folder / written, *law)
        assert (done.code, done.err) == (
            2,
            f"error: {folder / written}: does not exist\nhint:  did you mean {folder / meant}?\n",
        )


def test_a_space_after_the_last_slash_is_hinted_at(cli: Cli, tmp_path: Path):
    """It hardly shows in the error; and of a folder that is not there nothing is meant."""
    write_torch_run(tmp_path / "demo", [100])
    assert cli("average", "demo/ ", *LAW).err == "error: demo/ : does not exist\nhint:  did you mean demo?\n"
    assert cli("average", "nowhere/ ", *LAW).err == "error: nowhere/ : does not exist\n"
    assert cli("average", "demo", " ", *LAW).err == "error:  : does not exist\n", "a word too much"


def test_of_many_names_those_are_compared_that_begin_alike(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whatever order the system lists them in; and what is there is not taken for mistyped."""
    write_torch_run(tmp_path / "demo", range(100, 1100, 100))
    monkeypatch.setattr(alike, "_MOST_NAMES", 1)
    hint = "did you mean demo/step-700.pt?"
    assert cli("average", "demo/step-700.tp", *LAW).err == f"error: demo/step-700.tp: does not exist\nhint:  {hint}\n"
    for number in range(100, 1100, 100):
        inside = f"demo/step-{number}.pt/x"
        assert cli("average", inside, *LAW).err == f"error: {inside}: does not exist\n"


def test_an_empty_folder_is_not_hinted_at_itself(cli: Cli, tmp_path: Path):
    """That it is like what is written is no help."""
    (tmp_path / "empty").mkdir()
    assert cli("average", "empty/run", *LAW).err == "error: empty/run: does not exist\n"


def test_no_hint_takes_more_than_a_listing_of_the_folder_around(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    """Of a store: what lies deeper may be much. Where it refuses to be asked, the error is what it was."""
    bucket, asked = StorePath("memory://alike-once/runs"), list[str]()
    put(bucket / "demo" / "step-100.pt", b"")
    real = obstore.list_with_delimiter

    def noted(client: Any, prefix: str) -> Any:
        asked.append(prefix)
        if len(asked) > 1:
            raise obstore.exceptions.GenericError("no")
        return real(client, prefix)

    whole, real_list = list[str](), obstore.list
    monkeypatch.setattr(obstore, "list_with_delimiter", noted)
    monkeypatch.setattr(obstore, "list", lambda client, key, **how: whole.append(key) or real_list(client, key, **how))
    assert "did you mean" in cli("inspect", bucket / "dem", *LAW).err
    assert (asked, whole) == (["runs"], ["runs/dem"])
    assert cli("inspect", bucket / "dem", *LAW).err == f"error: {bucket / 'dem'}: does not exist\n"


@pytest.mark.parametrize("command", ["average", "inspect", "compare", "verify", "watch"])
def test_a_pattern_in_an_address_says_that_no_shell_fills_it_in(cli: Cli, tmp_path: Path, command: str) -> None:
    """What fits is counted, and the folder is named, by whichever command."""
    bucket = StorePath("memory://patterns/run")
    write_torch_run(tmp_path / "run", [100, 200, 300])
    for path in (tmp_path / "run").iterdir():
        put(bucket / path.name, path.read_bytes())
    law = () if command in ("compare", "verify") else LAW
    output = ("-o", tmp_path / "out") if command == "watch" else ()
    other = (bucket / "step-100.pt",) if command == "compare" else ()
    done = cli(command, bucket / "step-*", *other, *law, *output)
    assert done.code == 2
    assert f"{bucket}/step-*: does not exist" in done.err
    assert f"where 3 fit this pattern: name them, or the folder, {bucket}\n" in done.err
    assert f"no name in {bucket} fits" in cli(command, bucket / "checkpoint-*", *other, *law, *output).err


def test_an_object_whose_name_has_the_signs_of_a_pattern_is_read(cli: Cli, tmp_path: Path) -> None:
    """A name is first of all a name."""
    bucket = StorePath("memory://patterns/odd")
    write_torch_run(tmp_path / "run", [100, 200])
    for path in (tmp_path / "run").iterdir():
        put(bucket / "run[1]" / path.name, path.read_bytes())
    assert cli("inspect", bucket / "run[1]", *LAW).code == 0
