"""Manifests that the schema allows, whatever stands in them: each command ends with a result or one clear error."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ema_cli.cli import app
from ema_cli.manifest.schema import read_schema
from tests.conftest import write_hf_run, write_torch_run
from tests.hostile.drawn import places, put, values
from tests.inprocess import write_stored_run

pytestmark = pytest.mark.slow

SCHEMA = read_schema("manifest")
QUIET = settings(
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
)
COMMANDS: Sequence[Sequence[str]] = (
    ("verify", "{out}"),
    ("verify", "{out}", "--json"),
    ("verify", "{out}", "--against", "{run}"),
    ("report", "{out}", "-o", "page.html", "-f"),
    ("average", "{run}", "--recipe", "{manifest}", "-o", "again", "-f", "-q", "--summary", "summary.md"),
)


@pytest.fixture(scope="module")
def averages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with averages of three kinds, and the runs that they are of."""
    root = tmp_path_factory.mktemp("drawn")
    write_hf_run(root / "hf", [100, 200])
    write_torch_run(root / "pt", [10, 20])
    write_stored_run(root / "stored/ema", ("20ba", "60ba"), steps=100)
    for run, out, more in (
        ("hf", "folder", ()),
        ("pt", "one.safetensors", ("--checksum",)),
        ("stored", "from.safetensors", ("--from", "stored")),
    ):
        assert app.run(["average", str(root / run), "--half-life", "30ba", "-o", str(root / out), "-q", *more]) == 0
    return root


KINDS = {"folder": "hf", "one.safetensors": "pt", "from.safetensors": "stored"}


@pytest.mark.parametrize("out", KINDS)
@QUIET
@given(data=st.data())
def test_one_field_is_drawn(
    averages: Path, out: str, data: st.DataObject, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Any field of a true manifest, and any value that the schema allows in it."""
    monkeypatch.chdir(averages)
    path = averages / out
    manifest = path / "ema-manifest.json" if path.is_dir() else path.with_name(f"{out}.manifest.json")
    honest = manifest.read_text()
    drawn = copy.deepcopy(json.loads(honest))
    at, schema = data.draw(st.sampled_from(places(drawn, SCHEMA)))
    put(drawn, at, data.draw(values(schema)))
    _try(averages, out, manifest, honest, drawn, data, capsys)


@QUIET
@given(data=st.data())
def test_a_whole_manifest_is_drawn(
    averages: Path, data: st.DataObject, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """A manifest in which nothing is true."""
    monkeypatch.chdir(averages)
    manifest = averages / "one.safetensors.manifest.json"
    _try(averages, "one.safetensors", manifest, manifest.read_text(), data.draw(values(SCHEMA)), data, capsys)


def _try(averages: Path, out: str, manifest: Path, honest: str, drawn: Any, data: st.DataObject, capsys: Any) -> None:
    """Run a command on a drawn manifest, and put the honest one back."""
    command = data.draw(st.sampled_from(COMMANDS))
    names = {"out": out, "run": KINDS[out], "manifest": str(manifest)}
    try:
        manifest.write_text(json.dumps(drawn))
        capsys.readouterr()
        code = app.run([each.format(**names) for each in command])
        printed = capsys.readouterr()
        assert code in (0, 2, 3, 4, 5, 6), (command, printed)
        shown = printed.out + printed.err
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", shown), shown
        assert not re.search(r"(?m)^\s*::|##\[", shown), shown
        if command[0] == "report" and code == 0:
            page = (averages / "page.html").read_text()
            assert not re.search(r'="[^"]*\b(nan|inf)\b[^"]*"', page)
            assert "<script" not in page
    finally:
        manifest.write_text(honest)
