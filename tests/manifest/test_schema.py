"""The schemas that come with the package: what is printed and written is as they say."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ema_cli.errors import CheckpointError
from ema_cli.manifest.manifest import read_manifest
from ema_cli.manifest.schema import mismatch, read_schema
from tests.conftest import write_hf_run, write_torch_run
from tests.inprocess import InProcess, write_stored_run

OUTPUT = jsonschema.Draft202012Validator(read_schema("output"))
MANIFEST = jsonschema.Draft202012Validator(read_schema("manifest"))


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> InProcess:
    """The command line, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return InProcess(tmp_path, capsys)


def assert_output(told: Any, command: str | None, kind: str) -> None:
    """Check that an object is as the schema says of just this kind of output."""
    assert told["command"] == command
    jsonschema.Draft202012Validator({**read_schema("output"), "oneOf": [{"$ref": f"#/$defs/{kind}"}]}).validate(told)
    OUTPUT.validate(told)


def manifests(folder: Path) -> list[Any]:
    """Return every manifest in a folder."""
    found = [*folder.rglob("ema-manifest.json"), *folder.rglob("*.manifest.json")]
    return [json.loads(path.read_text()) for path in found]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["output", "manifest"])
def test_schemas_are_schemas(name: str):
    """They are of JSON Schema's draft 2020-12, and nothing that they refer to is missing."""
    schema = read_schema(name)
    jsonschema.Draft202012Validator.check_schema(schema)
    references = {part for part in json.dumps(schema).split('"') if part.startswith("#/$defs/")}
    assert {each.rpartition("/")[2] for each in references} == set(schema.get("$defs", {}))


@pytest.mark.slow
def test_average_and_its_manifest(run: InProcess):
    """Of one, of several, as .pt, with NaN, copied tensors and all sums; and what would be done."""
    write_hf_run(run.folder / "ckpts", [500, 1000, 1500])
    saved = write_torch_run(run.folder / "files", [1, 2, 3])
    saved[1]["layer.bias"][0] = math.nan
    torch.save({"model": saved[1], "step": 2}, run.folder / "files/step-2.pt")
    for arguments in (
        ["ckpts", "--half-life", "1000ba", "--max-shard-size", "20B"],
        ["ckpts", "--half-life", "10ba", "--half-life", "infba", "--half-life", "0ba", "--checksum"],
        ["ckpts", "--smoothing", "0.5", "--bias-correction", "--start", "1ep", "-o", "shards"],
        ["files", "--profile", "uniform", "-o", "x.pt", "--allow-non-finite", "--dtype", "float16"],
        ["files", "--profile", "power", "--sigma-rel", "0.2", "-o", "y.pt", "--copy", "layer.b*", "--no-manifest"],
    ):
        code, told = run.json("average", *arguments, "--dry-run")
        assert code == 0, told
        assert_output(told, "average", "average_dry_run")
        code, told = run.json("average", *arguments)
        assert code == 0, told
        assert_output(told, "average", "average")
    found = manifests(run.folder)
    assert len(found) == 6
    for each in found:
        MANIFEST.validate(each)
    assert {each["checksum"] is None for each in found} == {True, False}
    assert any(tensor["non_finite"] for each in found for tensor in each["tensors"])


def test_average_of_stored_ones(run: InProcess):
    """Its approximation is told in the plan and in the manifest."""
    write_stored_run(run.folder / "run/ema")
    for flags in (["--dry-run"], []):
        code, told = run.json("average", "run", "--from", "stored", "--half-life", "50ba", *flags)
        assert code == 0, told
        assert_output(told, "average", "average_dry_run" if flags else "average")
        assert told["plans"][0]["approximation"]["stretches"]
    (manifest,) = manifests(run.folder)
    MANIFEST.validate(manifest)
    assert manifest["approximation"] is not None


@pytest.mark.slow
def test_every_json_of_inspect_fits_the_schema(run: InProcess):
    """Of a run with all that is odd, of one file, of an average, of stored averages, with a gate that fails."""
    write_hf_run(run.folder / "ckpts", [500, 1000, 1500, 4000])
    (run.folder / "ckpts/checkpoint-1500/model.safetensors").write_bytes(b"")
    write_torch_run(run.folder / "files", [1, 2])
    torch.save({"model": {"other": torch.zeros(2)}, "step": 2}, run.folder / "files/again.pt")
    write_stored_run(run.folder / "run/ema")
    write_torch_run(run.folder / "run", [50, 100, 200])
    assert run("average", "ckpts", "--half-life", "2000ba", "--skip-damaged", "-o", "x.safetensors")[0] == 0
    for arguments, expected in (
        (["ckpts"], 0),
        (["ckpts", "--half-life", "10ba", "--half-life", "1ep"], 0),
        (["ckpts", "--half-life", "10ba", "--max-share", "0.5", "--strict"], 6),
        (["files"], 0),
        (["files/step-1.pt"], 0),
        (["x.safetensors"], 0),
        (["run", "--half-life", "50ba", "--half-life", "5ep"], 4),
        (["run", "--half-life", "50ba", "--half-life", "1ba"], 0),
        (["run", "--from", "stored"], 0),
        (["run", "--from", "stored", "--half-life", "50ba", "--half-life", "infba"], 0),
    ):
        code, told = run.json("inspect", *arguments)
        assert code == expected, told
        assert_output(told, "inspect", "failure" if code == 4 else "inspect")
        assert ("error" in told) == (code != 0)


def test_every_json_of_verify_fits_the_schema(run: InProcess):
    """One that holds, several, one that was made again, one that is damaged, one without a manifest."""
    write_torch_run(run.folder / "files", [10, 20])
    assert run("average", "files", "--half-life", "10ba", "-o", "a.pt")[0] == 0
    assert run("average", "files", "--half-life", "10ba", "--half-life", "20ba", "-o", "all/{half_life}.pt")[0] == 0
    assert run("average", "files", "--half-life", "10ba", "-o", "bare.pt", "--no-manifest")[0] == 0
    (run.folder / "damaged.pt").write_bytes(b"x")
    for suffix in (".manifest.json", ".sha256"):
        (run.folder / f"damaged.pt{suffix}").write_bytes((run.folder / f"a.pt{suffix}").read_bytes())
    for arguments, expected in (
        (["a.pt"], 0),
        (["a.pt", "all"], 0),
        (["a.pt", "--against", "files"], 0),
        (["a.pt", "--against", "files", "--sample"], 0),
        (["damaged.pt", "a.pt"], 6),
        (["bare.pt"], 6),
    ):
        code, told = run.json("verify", *arguments)
        assert code == expected, told
        assert_output(told, "verify", "verify")
        assert ("error" in told) == (code != 0)


def test_compare_and_report(run: InProcess):
    """Checkpoints that are far apart, equal, unlike each other, and not finite; and a page."""
    first, _ = write_torch_run(run.folder / "files", [10, 20])
    other = {**first, "layer.bias": torch.full((4,), math.inf), "layer.weight": torch.zeros(2), "more": torch.ones(1)}
    torch.save({"model": other, "step": 30}, run.folder / "other.pt")
    for pair in (["files/step-10.pt", "files/step-20.pt"], ["files/step-10.pt"] * 2, ["files/step-10.pt", "other.pt"]):
        code, told = run.json("compare", *pair)
        assert code == 0, told
        assert_output(told, "compare", "compare")
    assert run("average", "files", "--half-life", "10ba", "-o", "a.pt")[0] == 0
    (run.folder / "files/step-10.pt").unlink()
    for arguments in (["a.pt"], ["a.pt", "--against", "files", "-o", "with.html"]):
        code, told = run.json("report", *arguments)
        assert code == 0, told
        assert_output(told, "report", "report")


@pytest.mark.parametrize("command", ["average", "inspect", "verify", "compare", "report"])
def test_every_json_of_an_error_fits_the_schema(run: InProcess, command: str):
    """Usage errors, what is missing and what is damaged: an object with the error, and its exit code."""
    (run.folder / "damaged.safetensors").write_bytes(b"\x08" * 100)
    pair = ["damaged.safetensors"] * (2 if command == "compare" else 1)
    law = ["--half-life", "10ba"] if command == "average" else []
    for arguments in ([], ["--no-such"], ["nowhere"], [*pair, *law], [*pair, "--threads", "0"]):
        code, told = run.json(command, *arguments)
        if (command, arguments) in (("inspect", []), ("verify", pair)):
            continue
        assert code != 0
        assert_output(told, command, "failure")
        assert told["error"]["code"] == code
    code, told = run.json("--no-such")
    assert_output(told, None, "failure")


def test_the_schema_is_strict():
    """An object with another version, with a word more, or with one too little, is refused."""
    error = {"code": 2, "message": "x", "hint": None}
    right = {"schema_version": 1, "command": "average", "error": error}
    OUTPUT.validate(right)
    for wrong in (
        {**right, "schema_version": 2},
        {**right, "command": "other"},
        {**right, "more": 1},
        {"schema_version": 1, "command": "average"},
        {**right, "error": {**error, "code": 7}},
        {**right, "error": {"code": 2, "message": "x"}},
    ):
        assert not OUTPUT.is_valid(wrong), wrong


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A manifest with something in every list."""
    from ema_cli import Recipe, Time, average, make_plan, open_run, parse_target

    folder = tmp_path_factory.mktemp("manifest")
    write_torch_run(folder / "files", [10, 2000])
    plan = make_plan(open_run([folder / "files"], copy=["*.bias"]), Recipe(half_life=Time.parse("1ba")))
    average(plan, parse_target(folder / "x.pt"), checksum=True)
    return json.loads((folder / "x.pt.manifest.json").read_text())


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where anything in an object is."""
    yield path
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(each, (*path, key))


TEXTS = ["raw", "ema", "ema-cli", "BF16", "0" * 64, "0" * 63, "0" * 64 + "\n"]
SOME = [None, False, True, 0, 1, -1, 0.5, 10**20, *TEXTS, [], {}, [1], ["a"], {"a": "b"}]
LEAVES = st.one_of(
    st.sampled_from(SOME).map(copy.deepcopy),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False).filter(lambda number: not number.is_integer()),
    st.text(max_size=3),
)


@pytest.mark.slow
@given(data=st.data())
def test_our_check_agrees_with_jsonschema(manifest: Any, data: st.DataObject):
    """On manifests in which anything was replaced, left out or added, both find something wrong, or neither does.

    But 3.0, which ema-cli never writes for 3, is an integer to JSON Schema alone.
    """
    changed = copy.deepcopy(manifest)
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.sampled_from(list(places(changed))))
        kind = data.draw(st.sampled_from(["replace", "remove", "add"]))
        holder = changed
        for key in where[:-1]:
            holder = holder[key]
        inside = holder[where[-1]] if where else changed
        if kind == "add" and isinstance(inside, dict):
            inside[data.draw(st.sampled_from(["more", "name", "blocks"]))] = data.draw(LEAVES)
        elif kind == "add" and isinstance(inside, list):
            inside.append(data.draw(LEAVES))
        elif kind == "remove" and where:
            del holder[where[-1]]
        elif where:
            holder[where[-1]] = data.draw(LEAVES)
        else:
            changed = data.draw(LEAVES)
            break
    ours = mismatch(changed, read_schema("manifest"))
    assert (ours is None) == MANIFEST.is_valid(changed), ours


def test_a_misfit_names_the_place_and_the_file(manifest: Any, tmp_path: Path):
    """The message names the place, and the error the file."""
    changed = copy.deepcopy(manifest)
    changed["inputs"][1]["blocks"][0] = "x"
    path = tmp_path / "x.manifest.json"
    path.write_text(json.dumps(changed))
    with pytest.raises(CheckpointError, match=r"x.manifest.json: .*: inputs\[1\].blocks\[0\] is not as it is written"):
        read_manifest(path)
