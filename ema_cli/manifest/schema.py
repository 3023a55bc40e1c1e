"""The schemas that come with the package, and whether a value is as one says: as much of JSON Schema as they use."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from numbers import Rational, Real
from pathlib import Path
from typing import Any

_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (Real, Rational),
    "boolean": (bool,),
    "null": (type(None),),
}


def read_schema(name: str) -> Mapping[str, Any]:
    """Return the schema called `name`."""
    path = Path(__file__).parent / "schemas" / f"{name}.schema.json"
    found: Mapping[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def mismatch(value: Any, schema: Mapping[str, Any]) -> str | None:
    """Return in words the first thing in which `value` is not as `schema` says, None where all is."""
    found = _mismatch(value, schema)
    if found is None:
        return None
    parts, fact = found
    where = "".join(part if part.startswith("[") else f".{part}" for part in reversed(parts)).removeprefix(".")
    return f"{where[:200] or 'it'} {fact}"


def _mismatch(value: Any, schema: Mapping[str, Any]) -> tuple[list[str], str] | None:
    """Return where the first thing is that does not fit, the innermost part first, and what."""
    if "const" in schema and (value != schema["const"] or isinstance(value, bool)):  # True is 1 to Python
        return [], f"is not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        return [], f"is none of {', '.join(map(repr, schema['enum']))}"
    types = schema.get("type", [])
    if types and not _is_one(value, [types] if isinstance(types, str) else types):
        return [], f"is no {types if isinstance(types, str) else ' or '.join(types)}"
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        return [], "is not as it is written"
    if isinstance(value, int) and value < schema.get("minimum", value):
        return [], f"is less than {schema['minimum']}"
    if isinstance(value, dict):
        return _object_mismatch(value, schema)
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            return [], "is empty"
        for number, each in enumerate(value):
            found = _mismatch(each, schema["items"])
            if found:
                found[0].append(f"[{number}]")
                return found
    return None


def _object_mismatch(value: Mapping[str, Any], schema: Mapping[str, Any]) -> tuple[list[str], str] | None:
    properties, others = schema.get("properties", {}), schema.get("additionalProperties", {})
    missing = [name for name in schema.get("required", ()) if name not in value]
    if missing:
        return [], f"has no '{missing[0]}'"
    for name, each in value.items():
        known = properties.get(name, others)
        if known is False:
            return [], f"has '{name[:60]}', which is unknown"
        found = _mismatch(each, known)
        if found:
            found[0].append(name)
            return found
    return None


def _is_one(value: object, names: list[str]) -> bool:
    if isinstance(value, bool):
        return "boolean" in names
    return any(isinstance(value, _TYPES[name]) for name in names)
