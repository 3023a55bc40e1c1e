"""The names of outputs, for one average and for several."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ema_cli.errors import UsageError
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time
from ema_cli.planning.plan import Plan, make_plan
from ema_cli.runs.run import open_run
from ema_cli.writing.target import Target, assign_targets, default_target, parse_target, published_target
from tests.conftest import write_hf_run, write_torch_run


@pytest.mark.parametrize(
    ("path", "is_folder"),
    [
        ("a.safetensors", False),
        ("A.SAFETENSORS", False),
        ("a.pt", False),
        ("ema-0.5ep.PT", False),
        ("v1.pth", False),
        ("v1.ckpt", False),
        ("out", True),
        ("ema-0.5ep", True),
        ("v1.0", True),
        ("x/", True),
        (".averages", True),
        (".averages.pt", False),
        (".averages/v1.pt", False),
    ],
)
def test_the_suffix_says_what_is_written(path: str, is_folder: bool):
    """A name that ends in .safetensors, .pt, .pth or .ckpt is one file, any other a folder; a number is no suffix."""
    assert parse_target(Path(path)).is_folder is is_folder


@pytest.mark.parametrize("path", ["x.bin", "x.tar.gz", "safetensors.json", "x.safetensors.index"])
def test_other_suffixes_are_refused(path: str):
    """Any other suffix is a usage error that names it."""
    with pytest.raises(UsageError, match=r"which is not written") as raised:
        parse_target(Path(path))
    assert raised.value.exit_code == 2
    hint = str(raised.value.hint)
    named = [parse_target(name) for name in re.findall(r"target='([^']*)'", hint)]
    assert [target.is_folder for target in named] == [False, False, True]


@pytest.mark.parametrize("path", ["", ".", "..", "x/..", "-"])
def test_what_names_nothing_new_is_refused(path: str):
    """Nor is `-` standard output: only the name of the result goes there."""
    with pytest.raises(UsageError, match="is no name for something new"):
        parse_target(Path(path))


@pytest.mark.parametrize("path", ["x.safetensors ", " x", "folder/x "])
def test_a_space_at_an_end_is_refused(path: str):
    """Of a script's variable, as a rule: `x.safetensors ` was a folder of that name."""
    with pytest.raises(UsageError, match="begins or ends with a space"):
        parse_target(Path(path))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("ema-{step}.safetensors", "{step} is no placeholder"),
        ("sweep/ema-{half_life}-{}", "{} is no placeholder"),
        ("sweep/{{half_life}}", "{} is no placeholder"),
        ("ema-{half_life}/x.safetensors", "{half_life} is not in the last part"),
    ],
)
def test_placeholders_are_one_word_in_the_last_part(path: str, message: str):
    """Any other word in braces is a slip that would name a file; the hint shows one that is right."""
    with pytest.raises(UsageError, match=re.escape(message)) as raised:
        parse_target(Path(path))
    assert "averages/ema-{half_life}.safetensors" in (raised.value.hint or "")


def plans_of(folder: Path, *half_lives: str) -> list[Plan]:
    run = open_run([folder])
    return [make_plan(run, Recipe(half_life=Time.parse(half_life))) for half_life in half_lives]


def assigned(path: str, plans: list[Plan]) -> list[str]:
    return [str(target.path) for target in assign_targets(parse_target(Path(path)), plans)]


def test_several_averages_go_into_one_folder(tmp_path: Path):
    """By a pattern, or under their default names; what is published is the folder."""
    write_torch_run(tmp_path / "pt", [1, 2])
    write_hf_run(tmp_path / "hf", [1, 2])
    plans = plans_of(tmp_path / "pt", "2ba") + plans_of(tmp_path / "hf", "0.5ep")
    assert assigned("a/b/x-{half_life}.safetensors", plans) == ["a/b/x-2ba.safetensors", "a/b/x-0.5ep.safetensors"]
    assert assigned("a/{half_life}", plans) == ["a/2ba", "a/0.5ep"]
    assert assigned("a/{half_life}-{half_life}", plans) == ["a/2ba-2ba", "a/0.5ep-0.5ep"]
    assert assigned("a/x}{", plans) == ["a/x}{/ema-2ba.safetensors", "a/x}{/ema-0.5ep"]
    assert published_target(assign_targets(Target(Path("a/b"), is_folder=True), plans)) == Target(
        Path("a/b"), is_folder=True
    )
    assert default_target(plans) == Target(Path("ema-2ba-0.5ep"), is_folder=True)


def test_one_average_goes_where_the_target_says(tmp_path: Path):
    """The placeholder is filled in, anywhere; nothing else changes."""
    write_torch_run(tmp_path, [1, 2])
    plans = plans_of(tmp_path, "2ba")
    assert assigned("x-{half_life}.safetensors", plans) == ["x-2ba.safetensors"]
    assert assigned("a/x", plans) == ["a/x"]
    assert published_target(assign_targets(Target(Path("a/x"), is_folder=False), plans)) == Target(
        Path("a/x"), is_folder=False
    )
    with pytest.raises(UsageError, match="there is no half-life to fill in"):
        assigned("x-{half_life}", [make_plan(plans[0].run, Recipe(smoothing=0.5))])


@pytest.mark.parametrize("path", ["x.safetensors", "ema-{half_life}.safetensors", "./{half_life}", "../x-{half_life}"])
def test_several_averages_need_a_folder_of_their_own(tmp_path: Path, path: str):
    """One file, and a pattern that would fill the folder that is there already, are usage errors that say how."""
    write_torch_run(tmp_path, [1, 2])
    with pytest.raises(UsageError, match=r"^target=") as raised:
        assigned(path, plans_of(tmp_path, "2ba", "3ba"))
    assert raised.value.hint == "as target='averages/ema-{half_life}.safetensors', or target='averages'"


def test_several_averages_have_names_of_their_own(tmp_path: Path):
    """Two plans with one half-life cannot share a file."""
    write_torch_run(tmp_path, [1, 2])
    with pytest.raises(UsageError, match="two of the averages would have one name"):
        assigned("a", plans_of(tmp_path, "2ba", "2ba"))
