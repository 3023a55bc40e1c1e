"""What an average says of itself chooses no check: what can be compared is, and what is not is named."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ema_cli._version import __version__
from ema_cli.manifest.schema import read_schema
from tests.conftest import Cli
from tests.release.verified import SINGLE, Edit, against, check, edit_header, edit_mark, say_version, vouch

_WORDS = "warnings, notes and descriptions in the manifest"


def _with_file(folder: Path) -> None:
    (folder / "code.py").write_text("x")
    edit_mark(folder / "model.safetensors", lambda mark: mark["files"].insert(1, "code.py"))
    vouch(folder, lambda manifest: manifest["outputs"].append({"name": "code.py", "bytes": 0, "sha256": ""}))


def _with_config(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({**json.loads((folder / "config.json").read_text()), "x": 1}))


def _with_header(folder: Path) -> None:
    edit_header(folder / "model.safetensors", lambda header: header["__metadata__"].update(more="x"))


def _saying(edit: Edit) -> Callable[[Path], None]:
    return lambda folder: vouch(folder, edit)


FORGERIES: dict[str, Callable[[Path], None]] = {
    "a file more": _with_file,
    "another configuration": _with_config,
    "another tokenizer": lambda folder: (folder / "tokenizer.json").write_text("[]") and None,
    "more in the header": _with_header,
    "effective checkpoints": _saying(lambda manifest: manifest.update(effective_checkpoints=9.5)),
    "mean age": _saying(lambda manifest: manifest.update(mean_age="1ba")),
    "size of an input": _saying(lambda manifest: manifest["inputs"][1].update(bytes=1)),
    "a tensor as copied": _saying(lambda manifest: manifest["tensors"][0].update(averaged=False, why="integer")),
    "samples of fingerprints": _saying(lambda manifest: manifest["fingerprint"].update(samples=3)),
}


@pytest.mark.parametrize("version", [__version__, "0.0.9"])
@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forgery_is_found_whatever_version_it_names(copy: Path, forgery: str, version: str):
    """Numbers, tensors, headers, copied files and names of files are compared for any version."""
    folder = copy / "folder"
    FORGERIES[forgery](folder)
    say_version(folder, version)
    assert check(folder).problems == ()
    assert against(folder, copy / "hf").problems


@pytest.mark.parametrize(
    ("name", "run", "words"),
    [("folder", "hf", f"README.md, {_WORDS}"), (SINGLE, "pt", _WORDS), ("one.pt", "pt", _WORDS)],
)
def test_words_of_another_version_are_named_as_not_compared(copy: Path, cli: Cli, name: str, run: str, words: str):
    """The card and the warnings of another version are its own: the sentence is narrower, and --strict fails."""
    say_version(copy / name)
    done = cli("verify", name, "--against", run, cwd=copy)
    assert done.code == 0, done
    claim = "tensors, and all files that were copied, are those of 3 checkpoints averaged anew"
    assert done.out.endswith(f"; {claim}; not compared: {words}\n")
    strict = cli("verify", name, "--against", run, "--strict", cwd=copy)
    assert strict.code == 6
    assert f"not compared, as ema-cli 0.0.9 wrote it, and this is {__version__}: {words} (--strict)" in strict.err


RECIPE = read_schema("manifest")["properties"]["recipe"]


@pytest.mark.parametrize("name", sorted(RECIPE["properties"].keys() - {*RECIPE["required"]}))
def test_a_manifest_from_before_an_option(copy: Path, cli: Cli, name: str):
    """What was no option yet was not given: such an average is verified, repeated and reported."""
    manifest = copy / f"{SINGLE}.manifest.json"
    vouch(copy / SINGLE, lambda manifest: manifest["recipe"].pop(name, None))
    assert cli("verify", SINGLE, "--against", "pt", cwd=copy).code == 0
    assert cli("average", "pt", "--recipe", manifest, "-o", "again.safetensors", "-q", cwd=copy).code == 0
    assert cli("report", SINGLE, "-o", "page.html", cwd=copy).code == 0


@pytest.mark.parametrize("sample", [False, True])
@pytest.mark.parametrize(("name", "run"), [(SINGLE, "pt"), ("one.pt", "pt"), ("folder", "hf"), ("shards", "hf")])
def test_a_form_that_no_output_can_have_is_a_problem(copy: Path, name: str, run: str, sample: bool):
    """Nothing is written here, so nothing can fail as an output: the manifest is not true."""
    vouch(copy / name, lambda manifest: manifest["recipe"].update(like_input=True))
    assert against(copy / name, copy / run, sample=sample).problems


def test_words_of_this_version_are_compared(copy: Path):
    """A card that says something else is a problem; so are warnings."""
    (copy / "folder/README.md").write_text("x")
    vouch(copy / "folder")
    vouch(copy / SINGLE, lambda manifest: manifest.update(warnings=["x"]))
    assert (
        against(copy / "folder", copy / "hf").problems[0].endswith("README.md: is not what the newest checkpoint gives")
    )
    assert "does not say in its warnings what the checkpoints give" in against(copy / SINGLE, copy / "pt").problems[0]


def _archive(path: Path, edit: Callable[[dict[str, bytes]], dict[str, bytes]]) -> None:
    """Write the records of an archive anew, some of them changed, where torch and we find them again."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in edit(records).items():
            archive.writestr(name, content)
    path.write_bytes(out.getvalue())
    vouch(path)


def _pickle_more(instructions: bytes) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    """Put instructions before the end of the description. Those here are harmless: they push something and drop it."""

    def edit(records: dict[str, bytes]) -> dict[str, bytes]:
        pickle = records["archive/data.pkl"]
        assert pickle.endswith(b".")
        return {**records, "archive/data.pkl": pickle[:-1] + instructions + b"."}

    return edit


@pytest.mark.parametrize("version", [__version__, "0.0.9"])
@pytest.mark.parametrize(
    "edit",
    [
        _pickle_more(b"cbuiltins\nlen\n0"),
        _pickle_more(b"cbuiltins\nlen\n)R0"),
        _pickle_more(b"K\x010"),
        _pickle_more(b"ctorch._utils\n_rebuild_tensor_v2\n0"),
        lambda records: {"x/y/data.pkl": b"N.", **records},
        lambda records: {**records, "archive/more": b"x"},
        lambda records: {"x/version": b"3\n", **records},
        lambda records: records,  # no record more, but not where ema-cli puts them
    ],
)
def test_a_torch_file_holds_only_what_is_written(copy: Path, version: str, edit: Any):
    """No instruction, no record and no second description more, without the checkpoints too, for any version."""
    say_version(copy / "one.pt", version)
    assert check(copy / "one.pt").problems == ()
    _archive(copy / "one.pt", edit)
    assert any(
        "holds something around its tensors that ema-cli does not write" in problem
        for problem in check(copy / "one.pt").problems
    )


@pytest.mark.parametrize("where", ["before", "behind"])
def test_bytes_before_and_behind_an_archive(copy: Path, where: str):
    """A reader may look for an archive's directory at another place than we do."""
    data = (copy / "one.pt").read_bytes()
    (copy / "one.pt").write_bytes(b"x" * 64 + data if where == "before" else data + b"\0" * 64)
    vouch(copy / "one.pt")
    assert check(copy / "one.pt").problems


def test_a_sample_compares_the_end_of_an_archive_too(copy: Path):
    """Sums in the directory of an archive are compared whole, however few elements are."""
    data = bytearray((copy / "one.pt").read_bytes())
    with zipfile.ZipFile(copy / "one.pt") as archive:
        crc = next(entry.CRC for entry in archive.infolist() if entry.filename == "archive/data/0")
    for at in (at for at in range(len(data) - 4) if data[at : at + 4] == crc.to_bytes(4, "little")):
        data[at] ^= 1
    (copy / "one.pt").write_bytes(data)
    vouch(copy / "one.pt")
    (problem,) = against(copy / "one.pt", copy / "pt", sample=True).problems
    assert "something else around them" in problem


@pytest.mark.parametrize(
    ("option", "value"), [("skip_damaged", True), ("keep_prefix", True), ("allow_non_finite", True)]
)
def test_an_option_that_changes_no_byte_is_followed(copy: Path, option: str, value: object):
    """The same bytes are made with it: nobody can tell whether it was given."""
    vouch(copy / SINGLE, lambda manifest: manifest["recipe"].update({option: True}))
    assert against(copy / SINGLE, copy / "pt").problems == ()


def test_how_a_manifest_is_spaced_and_ordered_is_free(copy: Path):
    """What it says is compared, not its text; `vouch` spaces it otherwise than `average`."""
    before = (copy / f"{SINGLE}.manifest.json").read_bytes()
    vouch(copy / SINGLE, lambda manifest: manifest["tensors"].reverse())
    assert (copy / f"{SINGLE}.manifest.json").read_bytes() != before
    assert against(copy / SINGLE, copy / "pt").problems == ()


def test_a_recipe_by_which_nothing_is_averaged_is_a_problem(copy: Path, cli: Cli):
    """No adapter is among the checkpoints: that is the manifest's fault, and no hint is for its options."""
    vouch(copy / SINGLE, lambda manifest: manifest["recipe"].update(exact_lora=2))
    done = cli("verify", str(copy / SINGLE), "--against", str(copy / "pt"))
    assert done.code == 6
    assert "is nothing that averaging gives" in done.err
