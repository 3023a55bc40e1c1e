"""Which averages are verified, and how many: each check names what it is about."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ema_cli.errors import UsageError, VerificationError
from ema_cli.release.published import Published, find_averages
from ema_cli.release.verify import verify
from tests.conftest import Cli
from tests.release.verified import (
    MANIFEST,
    SINGLE,
    SINGLE_MANIFEST,
    SINGLE_SUMS,
    SUMS,
    check,
    problems,
)


@pytest.mark.parametrize(
    ("name", "files", "tensors"),
    [("folder", 5, 3), ("shards", 7, 3), (SINGLE, 2, 3), ("one.pt", 2, 3)],
)
def test_an_average_is_verified_as_it_was_written(made: Path, name: str, files: int, tensors: int):
    """An average is verified as it was written: a folder, shards, a single file of either container."""
    found = check(made / name)
    assert found.problems == ()
    assert (found.files, found.tensors) == (files, tensors)


def test_several_are_verified_one_by_one(made: Path):
    """A folder of several averages is all of them."""
    found = find_averages([made / "several", made / SINGLE])
    assert [each.path.name for each in found] == ["ema-20ba.safetensors", "ema-50ba.safetensors", SINGLE]
    assert not any(verify(each).problems for each in found)


def test_one_without_a_manifest_among_several_is_named(copy: Path):
    """What lies among averages that are vouched for, is none unless it is vouched for, too."""
    shutil.copy(copy / SINGLE, copy / "several" / "other.safetensors")
    found = [verify(each) for each in find_averages([copy / "several"])]
    assert [bool(each.problems) for each in found] == [False, False, True]


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "model.py", "folder/config.json", "empty"])
def test_what_else_lies_among_several_is_named(copy: Path, cli: Cli, name: str):
    """A foreign file or folder among averages is a problem, unless the user allows it; what git keeps is none."""
    path = copy / "several" / name
    path.parent.mkdir(exist_ok=True)
    if name == "empty":
        path.mkdir()
    else:
        path.write_text("x")
    (copy / "several/.gitattributes").write_text("x")
    done = cli("verify", "several", cwd=copy)
    assert (done.code, done.out.count(": verified: ")) == (6, 2)
    assert f"error: several/{name.partition('/')[0]}: " in done.err
    assert cli("verify", "several", "--allow-extra", name.partition("/")[0], cwd=copy).code == 0


def test_an_average_that_is_missing_among_several_is_named(copy: Path, cli: Cli):
    """Its manifest and its sums say that it was there; so does one of them alone."""
    (copy / "several/ema-20ba.safetensors").unlink()
    assert "ema-20ba.safetensors: is missing" in cli("verify", "several", cwd=copy).err
    (copy / "several/ema-20ba.safetensors.sha256").unlink()
    done = cli("verify", "several", cwd=copy)
    assert done.code == 6
    assert "ema-20ba.safetensors: is missing" in done.err


def test_a_name_of_the_manifest_stands_for_the_average(made: Path):
    """Whoever names the manifest or the sums of a file, means the file."""
    for name in (SINGLE, SINGLE_MANIFEST, SINGLE_SUMS):
        assert [each.path.name for each in find_averages([made / name])] == [SINGLE]


@pytest.mark.parametrize("name", [MANIFEST, SUMS, "model.safetensors"])
def test_a_file_of_a_folder_stands_for_it(made: Path, name: str):
    """What is vouched for is the folder, whichever of its files is named."""
    assert find_averages([made / "folder" / name, made / "folder"]) == [Published(made / "folder", is_folder=True)]


def test_without_manifest_and_sums_nothing_is_verified(copy: Path):
    """An average without a manifest says so, and how to get one."""
    (copy / SINGLE_MANIFEST).unlink()
    (copy / SINGLE_SUMS).unlink()
    (found,) = problems(copy / SINGLE)
    assert f"{SINGLE}: has neither a manifest ({SINGLE_MANIFEST}) nor sums" in found
    assert "--no-manifest" in found
    with pytest.raises(VerificationError, match="hf: is no average of ema-cli's, but a run of 3 raw checkpoints"):
        find_averages([copy / "hf"])


@pytest.mark.parametrize(
    ("name", "fact"), [("empty", "is an empty folder"), ("note.txt", "is no average of ema-cli's")]
)
def test_what_holds_no_weights_is_named_for_that(tmp_path: Path, name: str, fact: str):
    """It was said to lie among averages, or to lack a manifest."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("hello")
    with pytest.raises(VerificationError, match=fact):
        find_averages([tmp_path / name])


def test_nothing_at_all_is_a_usage_error(tmp_path: Path):
    """A path at which there is nothing is not an average that does not hold."""
    with pytest.raises(UsageError, match="does not exist"):
        find_averages([tmp_path / "nothing"])
