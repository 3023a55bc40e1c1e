"""Whatever `verify` says was compared, was: any one change of a release, with all sums made to fit, is a problem."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from ema_cli.cli import app
from ema_cli.errors import EmaError
from ema_cli.manifest.schema import read_schema
from tests.conftest import write_hf_run, write_torch_run
from tests.hostile.drawn import TEXTS, fields, fields_of, places, put, values
from tests.inprocess import write_stored_run
from tests.release.verified import against, edit_header, vouch

pytestmark = pytest.mark.slow

SCHEMA = read_schema("manifest")
QUIET = settings(
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
    deadline=None,
)
KINDS = {"folder": "hf", "one.safetensors": "pt", "from.safetensors": "stored"}
# Nobody can know libraries. The recipe is followed: an option with which the same bytes are made is as true. How a
# half-life was chosen is named as unknown, and so are warnings and notes that the checkpoints do not give.
NOT_COMPARED = ("libraries", "recipe", "tune")
BOUNDED = ("approximation", "least_error")  # a fit is not made again: it is no more than the error that is compared


@pytest.fixture(scope="module")
def averages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with averages of three kinds, and the runs that they are of."""
    root = tmp_path_factory.mktemp("compared")
    write_hf_run(root / "hf", [100, 200])
    write_torch_run(root / "pt", [10, 20])
    write_stored_run(root / "stored/ema", ("20ba", "60ba"), steps=100)
    for out, run in KINDS.items():
        more = {"pt": ("--checksum", "--copy", "layer.bias"), "stored": ("--from", "stored")}.get(run, ())
        assert app.run(["average", str(root / run), "--half-life", "30ba", "-o", str(root / out), "-q", *more]) == 0
    return root


def is_seen(averages: Path, out: str, change: Callable[[Path], bool], *, named: bool = True) -> bool:
    """Return whether a change of a release is a problem, or, with `named`, told as not compared; put the release back.

    A change that is none is not tried.
    """
    path = averages / out
    files = [*path.rglob("*")] if path.is_dir() else [*averages.glob(f"{out}*")]
    kept = {file: file.read_bytes() for file in files if file.is_file()}
    try:
        if not change(path):
            assume(False)
        verified = against(path, averages / KINDS[out])
        return bool(verified.problems or (named and verified.not_compared))
    except EmaError:
        return True
    finally:
        for file, content in kept.items():
            file.write_bytes(content)


def test_every_field_of_the_schema_is_drawn(averages: Path):
    """There is an honest manifest in which it stands, or may stand, and so it is changed."""
    manifests = [averages / "folder/ema-manifest.json", *averages.glob("*.manifest.json")]
    drawn = [fields_of(json.loads(path.read_text()), SCHEMA) for path in manifests]
    assert fields(SCHEMA) - set().union(*drawn) == set()


@pytest.mark.parametrize("out", KINDS)
@QUIET
@given(data=st.data())
def test_any_field_of_a_manifest(averages: Path, out: str, data: st.DataObject):
    """Any other value that the schema allows, in any place."""

    def change(path: Path) -> bool:
        manifest = path / "ema-manifest.json" if path.is_dir() else path.with_name(f"{out}.manifest.json")
        honest = json.loads(manifest.read_text())
        compared = [
            place for place in places(honest, SCHEMA) if place[0][0] not in NOT_COMPARED and place[0] != BOUNDED
        ]
        at, schema = data.draw(st.sampled_from(compared))
        drawn = copy.deepcopy(honest)
        put(drawn, at, data.draw(values(schema)))
        manifest.write_text(json.dumps(drawn))
        vouch(path)
        return bool(json.loads(manifest.read_text()) != honest)

    assert is_seen(averages, out, change)


@pytest.mark.parametrize("out", KINDS)
@QUIET
@given(data=st.data())
def test_no_field_switches_off_what_is_compared(averages: Path, out: str, data: st.DataObject):
    """Whatever a manifest says in any field, or in one that it may have besides: changed weights are a problem."""

    def change(path: Path) -> bool:
        manifest = path / "ema-manifest.json" if path.is_dir() else path.with_name(f"{out}.manifest.json")
        weights = path / "model.safetensors" if path.is_dir() else path
        weights.write_bytes(weights.read_bytes()[:-1] + bytes([weights.read_bytes()[-1] ^ 0x80]))
        drawn = json.loads(manifest.read_text())
        at, schema = data.draw(st.sampled_from(places(drawn, SCHEMA)))
        put(drawn, at, data.draw(values(schema)))
        manifest.write_text(json.dumps(drawn))
        vouch(path)
        return True

    assert is_seen(averages, out, change, named=False)


@pytest.mark.parametrize("name", ["watch", "tune", "classes", "exact_lora"])
@pytest.mark.parametrize("out", KINDS)
def test_no_section_switches_off_what_is_compared(averages: Path, out: str, name: str):
    """What only some averages have, in a manifest of another one, with changed weights."""
    row = {"relative_error": 0.0, "furthest": "w", "furthest_error": 0.0}
    tune = {"command": None, "metric": None, "maximize": False, "winner": "x", "candidates": []}
    section = {"watch": {"gaps": []}, "tune": tune, "classes": [], "exact_lora": row}[name]

    def change(path: Path) -> bool:
        weights = path / "model.safetensors" if path.is_dir() else path
        weights.write_bytes(weights.read_bytes()[:-1] + bytes([weights.read_bytes()[-1] ^ 0x80]))
        vouch(path, lambda manifest: manifest.update({name: section}))
        return True

    assert is_seen(averages, out, change, named=False)


@pytest.mark.parametrize("out", KINDS)
@QUIET
@given(data=st.data())
def test_any_text_in_a_header(averages: Path, out: str, data: st.DataObject):
    """Metadata more, less or others, and any field of the mark in them."""

    def change(path: Path) -> bool:
        file = path / "model.safetensors" if path.is_dir() else path
        before = file.read_bytes()

        def edit(header: dict[str, Any]) -> None:
            metadata = header["__metadata__"]
            mark = json.loads(metadata["ema_cli"])
            kind = data.draw(st.sampled_from(["metadata", "mark", "entry"]))
            text = data.draw(TEXTS).replace("\ud800", "")
            if kind == "metadata":
                metadata[data.draw(st.sampled_from([*metadata, "more", text]))] = text
            elif kind == "mark":
                mark[data.draw(st.sampled_from([*mark, "more", text]))] = data.draw(
                    st.one_of(st.just(text), st.lists(st.just(text), max_size=2), st.floats(), st.none())
                )
            else:
                data.draw(st.sampled_from(mark["checkpoints"]))[data.draw(st.integers(0, 1))] = text
            if kind != "metadata":
                metadata["ema_cli"] = json.dumps(mark, separators=(",", ":"))

        edit_header(file, edit)
        vouch(path)
        return file.read_bytes() != before

    assert is_seen(averages, out, change)


@QUIET
@given(data=st.data())
def test_any_side_file(averages: Path, data: st.DataObject):
    """Card, configuration and tokenizer with other bytes, and a file more, listed or not."""

    def change(path: Path) -> bool:
        name = data.draw(st.sampled_from(["README.md", "config.json", "tokenizer.json", "more.json", ".more"]))
        file = path / name
        before = file.read_bytes() if file.exists() else None
        file.write_bytes(data.draw(st.binary(max_size=40)))
        listed = {"name": name, "bytes": 0, "sha256": "0" * 64}

        def edit(manifest: dict[str, Any]) -> None:
            if before is None and data.draw(st.booleans()):
                manifest["outputs"].append(listed)

        vouch(path, edit)
        return file.read_bytes() != before

    try:
        assert is_seen(averages, "folder", change)
    finally:
        for name in ("more.json", ".more"):
            (averages / "folder" / name).unlink(missing_ok=True)


@QUIET
@given(data=st.data())
def test_any_text_in_sums(averages: Path, data: st.DataObject):
    """A line more, less or another is a problem."""

    def change(path: Path) -> bool:
        sums = path / "SHA256SUMS"
        lines = sums.read_text().splitlines()
        at = data.draw(st.integers(0, len(lines)))
        more = data.draw(st.one_of(TEXTS, TEXTS.map(lambda text: f"{'0' * 64}  {text}")))
        changed = [*lines[:at], *data.draw(st.sampled_from([[], [more]])), *lines[at + data.draw(st.integers(0, 1)) :]]
        sums.write_bytes("".join(f"{line}\n" for line in changed).encode(errors="replace"))
        return changed != lines

    assert is_seen(averages, "folder", change)


def test_an_honest_one_is_none(averages: Path, tmp_path: Path):
    """Put back, each holds; a copy elsewhere holds, too."""
    for out, run in KINDS.items():
        assert against(averages / out, averages / run).problems == ()
    shutil.copytree(averages / "folder", tmp_path / "copy")
    assert against(tmp_path / "copy", averages / "hf").problems == ()
