"""Headers of stored averages in which any field is drawn: each command ends with a result or one clear error."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from ema_cli import EMA
from ema_cli.cli import app
from ema_cli.errors import EmaError
from tests.hostile.drawn import HOSTILE
from tests.inprocess import write_stored_run
from tests.release.verified import against, edit_header

pytestmark = pytest.mark.slow

VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from(HOSTILE),
        st.sampled_from([0, -1, 1, 2**63, 10**400, 0.5, 1e300, -1e300, float("nan"), float("inf"), "1e400", "0x1"]),
        st.integers(-3, 120).map(str),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["ba", "ep", "name", *HOSTILE]), inner, max_size=3)
    ),
    max_leaves=4,
)


# What an object in a mark can have: the mark itself, what is stored, and one of its branches.
FIELDS = (
    {"version", "stored", "checkpoints"},
    {"average", "half_life", "smoothing", "sigma_rel", "update_interval", "start", "clock", "began", "updates",
     "clocks", "branches", "types", "norm", "spread"},
    {"id", "since"},
)  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return every place in a value, those that it lacks and might have, and one that none has."""
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found: list[tuple[Any, ...]] = []
    if isinstance(value, dict):
        known = next((fields for fields in FIELDS if value and value.keys() <= fields), set())
        found = [(*at, name) for name in sorted({"more", *known} - value.keys())]
    return found + [path for name, member in members for path in [(*at, name), *places(member, (*at, name))]]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run of stored averages."""
    root = tmp_path_factory.mktemp("stored")
    write_stored_run(root / "run/ema", ("20ba", "60ba"), steps=100)
    return root


QUIET = settings(
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
)


def test_every_field_that_a_stored_header_can_have_is_drawn(tmp_path: Path):
    """With each law, a start, a model in a narrow type, and a resume: nothing is stored that is not in the list."""
    laws: list[dict[str, Any]] = [{"half_life": "20ba"}, {"smoothing": 0.9}, {"sigma_rel": 0.1}]
    for number, law in enumerate(laws):
        model = torch.nn.Linear(4, 2).bfloat16()
        ema = EMA(model, **law, ema_start="2ba", update_interval="every" if "sigma_rel" in law else "1ba")
        for _ in range(6):
            ema.update()
        ema.store(tmp_path / str(number))
        again = EMA(model, **law, ema_start="2ba", update_interval="every" if "sigma_rel" in law else "1ba")
        again.load_state_dict(ema.state_dict())
        again.update()
        again.store(tmp_path / str(number))
    found = [set[str](), set[str](), set[str]()]
    for file in tmp_path.rglob("*.safetensors"):
        with safe_open(file, "np") as header:
            mark = json.loads(header.metadata()["ema_cli"])
        record = mark["stored"]
        found[0] |= mark.keys()
        found[1] |= record.keys()
        found[2] |= set().union(*record["branches"])
        assert all(isinstance(record[name], dict) for name in ("clocks", "types"))
    assert found == list(FIELDS)


def draw_field(file: Path, data: st.DataObject) -> None:
    """Draw another value for one field of the header of a stored average, or add one."""

    def edit(header: dict[str, Any]) -> None:
        mark = json.loads(header["__metadata__"]["ema_cli"])
        at = data.draw(st.sampled_from(places(mark)))
        owner = mark
        for step in at[:-1]:
            owner = owner[step]
        owner[at[-1]] = data.draw(VALUES)
        header["__metadata__"]["ema_cli"] = json.dumps(mark)

    edit_header(file, edit)


@QUIET
@given(data=st.data())
def test_one_field_is_drawn(
    stored: Path, data: st.DataObject, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Any field of any stored header, or one more; nothing that it holds reaches a terminal raw."""
    monkeypatch.chdir(stored)
    shutil.rmtree("drawn", ignore_errors=True)
    shutil.copytree("run", "drawn")
    draw_field(data.draw(st.sampled_from(sorted(Path("drawn").rglob("*.safetensors")))), data)
    command = data.draw(
        st.sampled_from(
            [
                ["inspect", "drawn", "--from", "stored", "--half-life", "30ba"],
                ["inspect", "drawn", "--from", "stored", "--half-life", "30ba", "--json"],
                ["inspect", "drawn"],
                ["average", "drawn", "--from", "stored", "--half-life", "30ba", "-o", "x.safetensors", "-f"],
            ]
        )
    )
    capsys.readouterr()
    code = app.run(command)
    printed = capsys.readouterr()
    assert code in (0, 2, 3, 4, 6), (command, printed)
    shown = printed.out + printed.err
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", shown), shown
    assert not re.search(r"(?m)^\s*::|##\[", shown), shown


def profile(mark: dict[str, Any], updates: int) -> Any:
    """Return the share of each update in a stored average, by the update's number; number 0 is the first copy."""
    stored = mark["stored"]
    has_law = stored.get("average") != "first"  # of the first copy nothing else is read
    smoothing = 2 ** (-1 / float(stored["half_life"].removesuffix("ba"))) if has_law else 1.0
    numbers = np.arange(updates + 1, dtype=np.float64)
    ages = stored["updates"] - numbers
    share = np.where(ages >= 0, (1 - smoothing) * smoothing**ages, 0.0)
    share[0] = smoothing ** stored["updates"]
    return share


def least_error(release: Path, run: Path) -> float | None:
    """Return how far off the profile of a release is by what stands in the stored headers; None where that is unclear.

    Rounding comes to it.
    """
    manifest = json.loads(release.with_name(f"{release.name}.manifest.json").read_text())
    marks = {}
    for row in manifest["inputs"]:
        with safe_open(run / row["name"], "np") as file:
            marks[row["name"]] = json.loads(file.metadata()["ema_cli"])
    stored = [mark["stored"] for mark in marks.values()]
    if any(float(each["clock"][:-2]) - float(each["began"][:-2]) != each["updates"] for each in stored):
        return None
    last = max(each["updates"] for each in stored)
    total = sum(row["weight"] * profile(marks[row["name"]], last) for row in manifest["inputs"])
    wanted = profile({"stored": {"half_life": manifest["recipe"]["half_life"], "updates": last}}, last)
    return float(np.linalg.norm(total - wanted) / np.linalg.norm(wanted))


@QUIET
@given(data=st.data())
def test_a_header_that_is_another_now(stored: Path, data: st.DataObject, monkeypatch: pytest.MonkeyPatch):
    """Where an average still holds, the error that it tells is at least that of the headers as they are."""
    monkeypatch.chdir(stored)
    if not Path("out.safetensors").exists():
        assert (
            app.run(["average", "run", "--from", "stored", "--half-life", "30ba", "-o", "out.safetensors", "-q"]) == 0
        )
    shutil.rmtree("drawn", ignore_errors=True)
    shutil.copytree("run", "drawn")
    draw_field(data.draw(st.sampled_from(sorted(Path("drawn").rglob("*.safetensors")))), data)
    try:
        problems = against(Path("out.safetensors"), Path("drawn")).problems
    except EmaError:
        return
    manifest = json.loads(Path("out.safetensors.manifest.json").read_text())
    least = least_error(Path("out.safetensors"), Path("drawn")) if not problems else None
    assert least is None or manifest["approximation"]["relative_error"] >= least * 0.999 - 1e-6
