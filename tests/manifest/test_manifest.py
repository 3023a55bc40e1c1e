"""What is written beside an average: sums for sha256sum, and a manifest of which equal runs give equal bytes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ema_cli.errors import CheckpointError
from ema_cli.manifest.manifest import read_manifest
from ema_cli.manifest.sums import parse_sums, sums_text
from tests.conftest import write_hf_run, write_torch_run
from tests.inprocess import InProcess

# What a name of a file may be: any bytes but a slash and a NUL.
NAMES = st.binary(min_size=1, max_size=20).filter(lambda name: not set(name) & set(b"/\0")).map(os.fsdecode)
HEX = st.binary(min_size=32, max_size=32).map(bytes.hex)
ODD = [
    "plain.txt", "with space", " lead", "trail ", "*star", "-dash", "back\\slash", "new\nline", "re\rturn", "both\\\n",
    "\\", "tab\t", "\u2028", "\x0b", "\x0c", "\x1c", "\x85", "\u00e9", "\udcff\udcfe", "\\n", "#", "a  b", "0" * 64,
]  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> InProcess:
    """The command line, in a folder with two runs."""
    monkeypatch.chdir(tmp_path)
    write_hf_run(tmp_path / "ckpts", [500, 1000, 1500])
    write_torch_run(tmp_path / "files", [10, 20, 30])
    return InProcess(tmp_path, capsys)


def average(run: InProcess, *arguments: object) -> Path:
    """Return what an average was written to."""
    code, out = run("average", *arguments)
    assert code == 0, run.err
    return run.folder / out.strip()


@pytest.mark.slow
@pytest.mark.parametrize("name", ODD)
def test_sha256sum_checks_odd_names(tmp_path: Path, name: str):
    """It finds the file, and finds that it has changed; and what it writes itself, we read."""
    path = tmp_path / "in" / name
    path.parent.mkdir()
    path.write_bytes(b"content")
    sha256 = hashlib.sha256(b"content").hexdigest()
    (tmp_path / "SUMS").write_bytes(sums_text({name: sha256}))
    check = ["sha256sum", "--check", "--strict", "--status", "../SUMS"]
    assert subprocess.run(check, cwd=path.parent).returncode == 0
    theirs = subprocess.run(["sha256sum", "--", os.fsencode(name)], cwd=path.parent, capture_output=True).stdout
    assert parse_sums(theirs, "theirs") == {name: sha256}
    path.write_bytes(b"contents")
    assert subprocess.run(check, cwd=path.parent).returncode == 1


@given(st.dictionaries(NAMES, HEX))
def test_sums_read_back(sums: dict[str, str]):
    """Whatever the names, the text is parsed to what it was made of, one line for each, by name."""
    text = sums_text(sums)
    assert parse_sums(text, "sums") == dict(sorted(sums.items()))
    assert text.count(b"\n") == len(sums)


@pytest.mark.parametrize(
    "line", [b"", b"x", b"0" * 63 + b"  a", b"0" * 64 + b" a", b"0" * 64 + b"  ", b"G" * 64 + b"  a"]
)
def test_a_line_that_is_no_sum_is_refused_with_its_number(line: bytes):
    """With the number of its line; and so is a name that stands twice, however it is written."""
    good = b"0" * 64 + b"  a\n"
    with pytest.raises(CheckpointError, match="sums: line 2 is no sum of a file of its own"):
        parse_sums(good + line + b"\n", "sums")
    with pytest.raises(CheckpointError, match="line 2"):
        parse_sums(good + b"\\" + good, "sums")
    with pytest.raises(CheckpointError, match="line 2"):
        parse_sums(good + good.replace(b"  ", b" *"), "sums")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["ckpts", "-o", "out"],
        ["ckpts", "-o", "out", "--max-shard-size", "20B", "--checksum"],
        ["files", "-o", "out.safetensors"],
        ["files", "-o", "out.pt", "--checksum"],
        ["files", "-o", "out/{half_life}.safetensors", "--half-life", "20ba"],
    ],
)
def test_sums_of_every_file(run: InProcess, arguments: list[str]):
    """sha256sum finds all files of an average right, and there is none without a sum but the sums themselves."""
    written = average(run, *arguments, "--half-life", "10ba")
    for sums in [*run.folder.rglob("SHA256SUMS"), *run.folder.rglob("*.sha256")]:
        done = subprocess.run(["sha256sum", "--check", "--strict", sums.name], cwd=sums.parent, capture_output=True)
        assert done.returncode == 0, done.stderr
        listed = parse_sums(sums.read_bytes(), "sums")
        if sums.name == "SHA256SUMS":
            inside = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
            assert listed.keys() == inside - {"SHA256SUMS"}
        else:
            name = sums.name.removesuffix(".sha256")
            assert listed.keys() == {name, f"{name}.manifest.json"}
    assert len([*run.folder.rglob("SHA256SUMS"), *run.folder.rglob("*.sha256")]) == (2 if "{" in arguments[2] else 1)


def contents(path: Path) -> dict[str, bytes]:
    """Return what was written for an average: in its folder, or beside its file."""
    files = path.rglob("*") if path.is_dir() else path.parent.glob(f"{path.name}*")
    return {file.relative_to(path.parent).as_posix(): file.read_bytes() for file in files if file.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("output", ["out", "out.safetensors", "out.pt"])
def test_equal_runs_give_equal_bytes(run: InProcess, monkeypatch: pytest.MonkeyPatch, output: str):
    """In another folder, on more threads, with the files listed otherwise: all bytes, the manifest's too."""
    options = ["--half-life", "1000ba", "--checksum", "-o", output]
    first = contents(average(run, "ckpts", *options, "--threads", "1"))
    (run.folder / "elsewhere").mkdir()
    (run.folder / "ckpts").rename(run.folder / "elsewhere/named")
    monkeypatch.chdir(run.folder / "elsewhere")
    monkeypatch.setattr(os, "listdir", lambda path=".", listdir=os.listdir: listdir(path)[::-1])
    second = InProcess(run.folder / "elsewhere", run.capsys)
    named = [f"named/checkpoint-{step}" for step in (1000, 1500, 500)]
    assert contents(average(second, *named, *options, "--threads", "8")) == first
    assert len(first) == (6 if output == "out" else 3)


def texts(value: Any) -> list[str]:
    """Return every text in an object, keys too."""
    if isinstance(value, dict):
        return [each for key, inner in value.items() for each in [key, *texts(inner)]]
    if isinstance(value, list):
        return [each for inner in value for each in texts(inner)]
    return [value] if isinstance(value, str) else []


def test_nothing_of_the_machine_is_told(run: InProcess):
    """No absolute path, no name of the host or the user, no date and no time."""
    written = average(run, run.folder / "ckpts", "--half-life", "10ba", "--checksum", "-o", run.folder / "out")
    found = texts(json.loads((written / "ema-manifest.json").read_text()))
    for text in found:
        assert not text.startswith(("/", "~"))
        assert str(run.folder) not in text
        assert socket.gethostname() not in text
        assert not re.search(r"\d\d:\d\d|\b20\d\d-\d\d", text)


def test_keys_and_lists_are_in_order(run: InProcess):
    """Keys sorted everywhere; inputs by clock, outputs and tensors by name; one line ends the text."""
    written = average(run, "ckpts", "--half-life", "1000ba", "--max-shard-size", "20B", "-o", "out")
    text = (written / "ema-manifest.json").read_text()
    assert (text[:2], text[-3:]) == ("{\n", "\n}\n")

    def ordered(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert [name for name, _ in pairs] == sorted(name for name, _ in pairs)
        return dict(pairs)

    manifest = json.loads(text, object_pairs_hook=ordered)
    for kind in ("outputs", "tensors"):
        names = [each["name"] for each in manifest[kind]]
        assert names == sorted(names)
    assert [each["clock"] for each in manifest["inputs"]] == ["500ba", "1000ba", "1500ba"]
    assert len(manifest["outputs"]) > 4


def test_a_manifest_reads_back_as_it_was_written(run: InProcess):
    """As it was written: numbers that are weights are the same floats."""
    written = average(run, "ckpts", "--half-life", "700ba", "-o", "out", "--checksum", "--dtype", "bfloat16")
    plain = json.loads((written / "ema-manifest.json").read_text())
    read = read_manifest(written / "ema-manifest.json")
    assert read.keys() == plain.keys()
    assert [each["weight"] for each in read["inputs"]] == [each["weight"] for each in plain["inputs"]]
    for name in set(plain) - {"inputs", "effective_checkpoints"}:
        assert read[name] == plain[name]
    assert float(read["effective_checkpoints"]) == plain["effective_checkpoints"]


def test_sizes_sums_dtypes_and_weights_of_a_manifest_are_true(run: InProcess):
    """Sizes and sums of the outputs, dtypes and shapes of the tensors, why one was copied, weights that sum to 1."""
    written = average(run, "ckpts", "--half-life", "1000ba", "-o", "out", "--dtype", "float16", "--copy", "*.bias")
    manifest = read_manifest(written / "ema-manifest.json")
    for each in manifest["outputs"]:
        data = (written / each["name"]).read_bytes()
        assert (each["bytes"], each["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    told = {each["name"]: (each["dtype"], each["shape"], each["averaged"], each["why"]) for each in manifest["tensors"]}
    assert told == {
        "layer.bias": ("F32", [4], False, "--copy '*.bias'"),
        "layer.weight": ("F16", [4, 3], True, None),
        "norm.num_batches_tracked": ("I64", [], False, "integer"),
    }
    assert sum(each["weight"] for each in manifest["inputs"]) == pytest.approx(1, abs=1e-15)
    assert [each["clocks"]["ep"] for each in manifest["inputs"]] == [
        {"value": value, "from": "sidecar"} for value in ("5", "10", "15")
    ]


def test_a_checkpoint_without_weight_has_no_fingerprint(run: InProcess):
    """A checkpoint of weight 0 enters the manifest, with neither a fingerprint nor sums."""
    written = average(run, "files", "--half-life", "0ba", "--checksum", "-o", "out.pt")
    manifest = read_manifest(written.with_name("out.pt.manifest.json"))
    assert [(each["weight"], each["fingerprint"] is None, each["blocks"] == []) for each in manifest["inputs"]] == [
        (0.0, True, True),
        (0.0, True, True),
        (1.0, False, False),
    ]


@pytest.mark.parametrize(
    ("text", "fact"),
    [("{}", "has no 'schema_version'"), ("[]", "it is no object"), ("{", "not valid JSON"), ('{"a":1,"a":1}', "twice")],
)
def test_a_file_that_is_no_manifest_is_refused_with_its_path(tmp_path: Path, text: str, fact: str):
    """With the path, and what is wrong."""
    path = tmp_path / "x.manifest.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=f"x.manifest.json: .*{fact}"):
        read_manifest(path)


def test_no_manifest(run: InProcess):
    """--no-manifest writes neither of the two."""
    average(run, "files", "--half-life", "10ba", "-o", "out.pt", "--no-manifest")
    assert [path.name for path in run.folder.glob("out*")] == ["out.pt"]
