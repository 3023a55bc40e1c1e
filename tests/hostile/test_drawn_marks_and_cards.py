"""Marks and model cards of which one field is a lie: whatever `verify` says was compared, was.

The liar is an ema-cli of somebody's own, so that sums, sizes, layouts and manifest fit.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from ema_cli.cli import app
from ema_cli.errors import EmaError
from ema_cli.formats.mark import METADATA_KEY, asked_for
from ema_cli.manifest.schema import read_schema
from ema_cli.writing import layout, like_input
from tests.conftest import write_hf_run, write_torch_run
from tests.hostile.drawn import TEXTS, places, put, values
from tests.inprocess import write_stored_run
from tests.release.verified import against, check

pytestmark = pytest.mark.slow

QUIET = settings(
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
    deadline=None,
    max_examples=settings().max_examples // 3,
)
_TEXT = {"type": "string"}
_TEXT_OR_LIST = {"type": ["string", "array", "number", "boolean", "null"], "items": _TEXT}
RECIPE = read_schema("manifest")["properties"]["recipe"]["properties"]
ASKED = asked_for({**dict.fromkeys(RECIPE, "x"), "from": "stored"})
MARK: dict[str, Any] = {
    "type": "object",
    "properties": {
        **dict.fromkeys(ASKED, _TEXT_OR_LIST),
        "version": _TEXT_OR_LIST,
        "like_input": {"type": ["boolean", "string"]},
        "copied": {"type": "array", "items": _TEXT},
        "files": {"type": "array", "items": _TEXT},
        "checkpoints": {"type": "array", "items": {"type": "array", "items": {"type": ["string", "number"]}}},
        "more": _TEXT_OR_LIST,
    },
}
# Each part of a card that says something; a line of a card is one of these.
CARD = {
    "edge of the front matter": "---",
    "base model": "base_model: .+",
    "library": "library_name: .+",
    "tags": "tags:",
    "tag": "- .+",
    "title": "#+ .+",
    "summary": "These weights are .+ made them[.]",
    "table": r"\| \w+ \| clock \| weight \|",
    "rule": "[|:-]+",
    "checkpoint": r"\| .+ \| .+ \| .+ \|",
    "classes": "Loading all of it runs the code of .+[.]",
    "how to reproduce": "(`ema-manifest.json` says|bytes again, from).+",
    "fence": "```(bash)?",
    "command": "ema-cli .+",
    "nothing": "",
}
OPTIONS: dict[str, tuple[str, ...]] = {  # how each form is made: the run first
    "folder": ("hf",),
    "shards": ("hf", "--max-shard-size", "50B", "--copy", "layer.bias"),
    "one.safetensors": ("pt", "--dtype", "bfloat16", "--start", "20ba", "--copy", "*.bias"),
    "one.pt": ("pt", "--last", "2", "--stop", "30ba"),
    "like.pt": ("pt", "--like-input"),
    "like": ("hf", "--like-input"),
    "dcp": ("pt",),
    "from.safetensors": ("stored", "--from", "stored"),
}
CARDS = ("folder", "shards", "like")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with averages of every form, and the runs that they are of."""
    root = tmp_path_factory.mktemp("lies")
    write_hf_run(root / "hf", [10, 20, 30])
    for path in (root / "hf").glob("*/config.json"):
        config = json.loads(path.read_text())
        path.write_text(json.dumps({**config, "_name_or_path": "owner/model", "model_type": "x"}))
    write_torch_run(root / "pt", [10, 20, 30])
    write_stored_run(root / "stored/ema", ("20ba", "60ba"), steps=100)
    for out in OPTIONS:
        assert average(root, out) == 0
    return root


def average(root: Path, out: str) -> int:
    """Make the average of one form anew."""
    run, *more = OPTIONS[out]
    shutil.rmtree(root / out) if (root / out).is_dir() else (root / out).unlink(missing_ok=True)
    target = f"{'dcp:' if out == 'dcp' else ''}{root / out}"
    return app.run(["average", str(root / run), "--half-life", "30ba", "-o", target, "-q", *more])


@pytest.fixture(scope="module")
def marks(root: Path) -> dict[str, dict[str, Any]]:
    """Return the honest mark of each form."""
    snapshots = {out: check(root / out).snapshot for out in OPTIONS}
    return {out: dict(next(iter(snapshot.opened.values())).mark or {}) for out, snapshot in snapshots.items()}


@pytest.fixture(scope="module")
def cards(root: Path) -> dict[str, str]:
    """Return the honest card of each form that has one."""
    return {out: (root / out / "README.md").read_text() for out in CARDS}


def write_lie(root: Path, out: str, *, mark: object = None, card: str | None = None) -> bool:
    """Let ema-cli make an average with this mark or card; return whether it does."""
    text = json.dumps(mark, separators=(",", ":"))
    with pytest.MonkeyPatch.context() as patch:
        if mark is not None:
            patch.setattr(layout, "_metadata", lambda *_: {"format": "pt", METADATA_KEY: text})
        if card is not None:
            patch.setattr(layout, "model_card", lambda *_, **__: card)
            patch.setattr(like_input, "model_card", lambda *_, **__: card)
        return average(root, out) == 0


def is_seen(average: Path, run: Path | None) -> bool:
    """Return whether something does not hold, by the checkpoints where they are given; or cannot be checked at all."""
    try:
        return bool((check(average) if run is None else against(average, run)).problems)
    except EmaError:
        return True


def test_every_field_that_a_mark_can_have_is_drawn(marks: dict[str, dict[str, Any]]):
    """Those of what was asked for come from the program; the others are in one of the honest marks."""
    assert set().union(*marks.values()) - ASKED.keys() == MARK["properties"].keys() - ASKED.keys() - {"more"}
    for mark in marks.values():
        assert {at[0] for at, _ in places(mark, MARK)} == MARK["properties"].keys()


@pytest.mark.parametrize("out", OPTIONS)
@QUIET
@given(data=st.data())
def test_any_field_of_a_mark(root: Path, marks: dict[str, Any], out: str, data: st.DataObject):
    """Without the checkpoints, too: it is compared with the manifest. Which tensors were copied, only these tell."""
    drawn = copy.deepcopy(marks[out])
    at, schema = data.draw(st.sampled_from(places(drawn, MARK)))
    if at[0] in drawn and data.draw(st.integers(0, 4)) == 0:
        del drawn[at[0]]
    else:
        put(drawn, at, data.draw(values(schema)))
    assume(drawn != marks[out])
    assume(write_lie(root, out, mark=drawn))
    assert is_seen(root / out, root / OPTIONS[out][0] if at[0] == "copied" else None), drawn


def test_every_line_of_a_card_is_a_field(cards: dict[str, str]):
    """And every field is in one of the cards, but the classes that only few forms of an input name."""
    lines = {line for card in cards.values() for line in card.splitlines()}
    assert [line for line in lines if not any(re.fullmatch(field, line) for field in CARD.values())] == []
    assert {name for name, field in CARD.items() if not any(re.fullmatch(field, line) for line in lines)} == {"classes"}


@pytest.mark.parametrize("out", CARDS)
@QUIET
@given(data=st.data())
def test_any_field_of_a_card(root: Path, cards: dict[str, str], out: str, data: st.DataObject):
    """Another word in a field, a line less, more or twice: it is none that the checkpoints give."""
    lines = cards[out].splitlines()
    fields = [field for field in CARD.values() if any(re.fullmatch(field, line) for line in lines)]
    field = data.draw(st.sampled_from(fields))
    at = data.draw(st.sampled_from([at for at, line in enumerate(lines) if re.fullmatch(field, line)]))
    line, words = lines[at], lines[at].split(" ")
    number = data.draw(st.integers(0, len(words) - 1))
    text = data.draw(TEXTS).encode(errors="replace").decode()
    word = " ".join([*words[:number], text, *words[number + 1 :]])
    changed = data.draw(st.sampled_from([[], [line, line], [text], [word], [line, text]]))
    drawn = "\n".join([*lines[:at], *changed, *lines[at + 1 :]]) + "\n"
    assume(drawn != cards[out])
    assert write_lie(root, out, card=drawn)
    assert is_seen(root / out, root / OPTIONS[out][0]), drawn
