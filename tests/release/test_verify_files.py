"""Files of an average, checked by their sums and manifests: each check fails for its own reason."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import Cli
from tests.release.verified import (
    MANIFEST,
    SINGLE,
    SINGLE_MANIFEST,
    SINGLE_SUMS,
    SUMS,
    begin_of,
    flip,
    problems,
)


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors", "tokenizer.json"])
def test_one_bit_of_a_file_in_a_folder(copy: Path, name: str):
    """A bit that turned in any file of a folder is found by both lists, and told once."""
    flip(copy / "folder" / name)
    (found,) = problems(copy / "folder")
    assert found.startswith(f"folder/{name}: its sha256 is ")
    assert found.endswith(f"... in {SUMS} and {MANIFEST}")


@pytest.mark.parametrize("name", [SINGLE, "one.pt"])
def test_one_bit_of_a_single_file(copy: Path, name: str):
    """Damage is not taken for a stale manifest."""
    flip(copy / name, begin_of(copy / name, "layer.weight"))
    found = problems(copy / name)
    assert [each.partition(" is ")[0] for each in found if "sha256" in each] == [f"{name}: its sha256"]
    assert not any("is of another" in each for each in found)


def test_one_bit_of_a_manifest(copy: Path):
    """The sums vouch for the manifest, too."""
    path = copy / "folder" / MANIFEST
    path.write_text(path.read_text().replace('"warnings"', '"warnings" '))
    (found,) = problems(copy / "folder")
    assert found.startswith(f"folder/{MANIFEST}: its sha256 is ")


def test_one_bit_of_the_sums(copy: Path):
    """A sum that was changed is not that of the manifest, nor of the file."""
    path = copy / "folder" / SUMS
    path.write_text(re.sub(r"^\w{64}  model", f"{'0' * 64}  model", path.read_text(), flags=re.MULTILINE))
    found = problems(copy / "folder")
    assert f"folder/model.safetensors: has other sums in {SUMS} and in {MANIFEST}" in found
    assert any(each.endswith(f"but 000000000000... in {SUMS}") for each in found)


def test_sums_that_are_none(copy: Path):
    """What sha256sum would not read is named with its line."""
    (copy / "folder" / SUMS).write_text("not a sum\n")
    assert f"folder/{SUMS}: line 1 is no sum of a file of its own" in problems(copy / "folder")


def test_sums_of_nothing(copy: Path):
    """Sums that were emptied vouch for nothing, whatever the manifest says."""
    (copy / "folder" / SUMS).write_text("")
    assert problems(copy / "folder") == [f"folder/{SUMS}: lists nothing"]


@pytest.mark.parametrize("name", ["folder/model.safetensors", SINGLE, "one.pt"])
def test_a_file_cut_short(copy: Path, name: str):
    """Of a file that was cut short, size and sum are wrong, and its reader says so."""
    path = copy / name
    size = path.stat().st_size
    os.truncate(path, size - 4)
    found = problems(path if path.parent == copy else path.parent)
    assert any(f"holds {size - 4} bytes, but {size} in" in each for each in found)
    assert any("sha256" in each for each in found)
    assert any("cut short" in each or "zip" in each for each in found)
    assert not any("in no file" in each for each in found)


@pytest.mark.parametrize("name", ["extra.bin", "model-00001-of-00002.safetensors", "deep/er/code.py"])
def test_a_file_that_is_not_listed(copy: Path, name: str):
    """Nothing that could be loaded may lie in a folder without being listed."""
    (copy / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
    (copy / "folder" / name).write_text("x")
    assert problems(copy / "folder") == [f"folder/{name}: is not listed in {SUMS}"]


def test_a_link_that_is_not_listed(copy: Path):
    """A link to a folder is no way around that."""
    (copy / "folder" / "linked").symlink_to(copy / "hf")
    assert problems(copy / "folder") == [f"folder/linked: is not listed in {SUMS}"]


def test_what_git_the_hub_and_a_signer_keep_is_named(copy: Path, cli: Cli):
    """They keep files of their own in a folder: these are named, and are no part of the average."""
    names = (".gitattributes", ".git/config", ".cache/huggingface/x.lock", "model.sig")
    for name in names:
        (copy / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / "folder" / name).write_text("x")
    assert problems(copy / "folder") == []
    done = cli("verify", "folder", cwd=copy)
    assert done.out.endswith("; no part of it: .cache/huggingface, .git, .gitattributes, model.sig\n")


@pytest.mark.parametrize(
    "name", [".hidden", ".github/workflows/x.yml", ".cache/other", "a/.git/config", ".git2/x", "model.sig2"]
)
def test_other_hidden_files_are_not_left_alone(copy: Path, name: str):
    """A dot before a name makes a file no less one that may be loaded."""
    (copy / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
    (copy / "folder" / name).write_text("x")
    assert problems(copy / "folder") == [f"folder/{name}: is not listed in {SUMS}"]


def test_an_empty_folder_is_not_left_alone(copy: Path):
    """`average` makes none."""
    (copy / "folder" / "a" / "b").mkdir(parents=True)
    assert problems(copy / "folder") == ["folder/a/b: is an empty folder, which nothing lists"]


@pytest.mark.parametrize(
    ("pattern", "is_covered"),
    [("notes/*", True), ("notes", True), ("notes/a.txt", True), ("*", True), ("a.txt", False), ("note", False)],
)
def test_the_user_allows_more_files(copy: Path, cli: Cli, pattern: str, is_covered: bool):
    """A pattern covers a file by its whole name, or by that of a folder around it; it is named as no part."""
    (copy / "folder/notes").mkdir()
    (copy / "folder/notes/a.txt").write_text("x")
    done = cli("verify", "folder", "--allow-extra", pattern, cwd=copy)
    assert done.code == (0 if is_covered else 6)
    assert ("; no part of it: notes/a.txt\n" in done.out) == is_covered


def test_the_user_allows_an_edited_card(copy: Path, cli: Cli):
    """On the Hub people edit the card: it may be another where the user says so, and is then named as not compared."""
    (copy / "folder/README.md").write_text("edited")
    assert cli("verify", "folder", cwd=copy).code == 6
    allowed = ("verify", "folder", "--allow-extra", "README.md")
    for more in ((), ("--against", "hf"), ("--against", "hf", "--strict")):
        done = cli(*allowed, *more, cwd=copy)
        assert (done.code, done.out.endswith("; not compared: README.md\n")) == (0, True), done
    assert cli(*allowed, "--json", cwd=copy).json["outputs"][0]["not_compared"] == ["README.md"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", MANIFEST])
def test_the_user_allows_no_other_edits(copy: Path, cli: Cli, name: str):
    """Everything else that is listed is compared, whatever patterns say."""
    flip(copy / "folder" / name)
    assert cli("verify", "folder", "--allow-extra", "*", cwd=copy).code == 6


@pytest.mark.parametrize(("name", "lister"), [("tokenizer.json", SUMS), ("model.safetensors", SUMS)])
def test_a_missing_file(copy: Path, name: str, lister: str):
    """What is listed must be there."""
    (copy / "folder" / name).unlink()
    assert problems(copy / "folder") == [f"folder/{name}: is missing, but {lister} lists it"]


def test_manifest_and_sums_without_weights(copy: Path):
    """A manifest beside no file is said to list what is missing."""
    (copy / SINGLE).unlink()
    assert problems(copy / SINGLE) == [f"{SINGLE}: is missing, but {SINGLE_SUMS} lists it"]


@pytest.mark.parametrize("name", [SINGLE_MANIFEST, SINGLE_SUMS])
def test_only_one_of_manifest_and_sums(copy: Path, name: str):
    """Both belong to an average."""
    (copy / name).unlink()
    fact = ": this is no whole average" if name == SINGLE_MANIFEST else ""
    assert f"{name}: is missing{fact}" in problems(copy / SINGLE)


def test_names_lead_nowhere_else(copy: Path):
    """A name in the sums that leads out of the folder is never opened: it is missing."""
    (copy / "secret").write_text("x")
    sums = copy / "folder" / SUMS
    sums.write_text(sums.read_text() + f"{hashlib.sha256(b'x').hexdigest()}  ../secret\n")
    assert problems(copy / "folder") == [f"folder/../secret: is missing, but {SUMS} lists it"]


def test_swapped_shards(copy: Path):
    """Two shards that changed their names are both named, and so is the index."""
    one, other = sorted((copy / "shards").glob("model-*.safetensors"))[:2]
    one.rename(copy / "swap")
    other.rename(one)
    (copy / "swap").rename(other)
    found = problems(copy / "shards")
    for each in (one, other):
        assert any(text.startswith(f"shards/{each.name}: its sha256 is ") for text in found)
    assert any(re.search("is in the (shard|index) only", text) for text in found)


def test_swapped_averages(copy: Path):
    """Of two averages that changed places, manifest and sums are those of another file."""
    one, other = copy / "several" / "ema-20ba.safetensors", copy / "several" / "ema-50ba.safetensors"
    one.rename(copy / "swap")
    other.rename(one)
    (copy / "swap").rename(other)
    found = problems(one)
    assert found[0] == (
        f"{one.name}: {one.name}.manifest.json and {one.name}.sha256 are of another {one.name}; "
        "write it again with --force"
    )
    assert any("half_life 50ba" in each and "half_life 20ba" in each for each in found)


def test_a_manifest_of_another_file(copy: Path):
    """What a killed run leaves is named: a new manifest beside the old file and its sums."""
    shutil.copy(copy / "several" / "ema-20ba.safetensors.manifest.json", copy / SINGLE_MANIFEST)
    text = (copy / SINGLE_MANIFEST).read_text().replace("ema-20ba.safetensors", SINGLE)
    (copy / SINGLE_MANIFEST).write_text(text)
    assert problems(copy / SINGLE)[0] == (
        f"{SINGLE}: {SINGLE_MANIFEST} is of another {SINGLE}; write it again with --force"
    )


def test_sums_of_another_file(copy: Path):
    """Old sums beside a new file and its manifest are named, too."""
    text = (copy / SINGLE_SUMS).read_text()
    (copy / SINGLE_SUMS).write_text(re.sub(r"^\w{64}(?=  one.safetensors$)", "0" * 64, text, flags=re.MULTILINE))
    assert problems(copy / SINGLE)[0] == f"{SINGLE}: {SINGLE_SUMS} is of another {SINGLE}; write it again with --force"
