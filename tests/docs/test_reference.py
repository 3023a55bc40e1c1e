"""The reference pages are complete: every field, exit code and public name is on them, and nothing else is."""

from __future__ import annotations

import json
import signal
from typing import Any

import ema_cli
from ema_cli import errors
from tests.docs.pages import DOCS, ROOT, table

REFERENCE = DOCS / "reference"
SCHEMAS = ROOT / "ema_cli" / "manifest" / "schemas"


def schema(name: str) -> dict[str, Any]:
    """Return one of the package's schemas."""
    parsed: dict[str, Any] = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
    return parsed


def test_every_field_of_the_manifest_has_a_row():
    """In the order of the schema."""
    rows = table(REFERENCE / "manifest-and-json.md", "field")
    assert [cells[0] for cells in rows] == list(schema("manifest")["properties"])


def test_every_field_that_json_prints_has_its_place():
    """For each command, the fields of its schema but the envelope's, which the text explains."""
    shapes = schema("output")["$defs"]
    names = {"average --dry-run": "average_dry_run", "tune --dry-run": "tune_dry_run"}
    rows = {cells[0]: cells[1].split(", ") for cells in table(REFERENCE / "manifest-and-json.md", "command")}
    commands = [ref["$ref"].removeprefix("#/$defs/") for ref in schema("output")["oneOf"]]
    assert {names.get(row, row) for row in rows} == set(commands) - {"failure"}
    for row, fields in rows.items():
        properties = shapes[names.get(row, row)]["properties"]
        assert fields == [name for name in properties if name not in ("schema_version", "command")], row


def test_every_exit_code_has_a_row():
    """Those of the error classes, and 128 + the number of each signal that ends the program."""
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)
    expected = {0} | {error.exit_code for error in classes} | {128 + number for number in signals}
    assert {int(cells[0]) for cells in table(REFERENCE / "exit-codes.md", "exit code")} == expected


def test_every_public_name_has_a_row():
    """All that `ema_cli.__all__` lists."""
    assert {cells[0] for cells in table(REFERENCE / "python.md", "name")} == set(ema_cli.__all__)
