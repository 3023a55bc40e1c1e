"""Check values against the schemas of the package, by the part of JSON Schema that these use."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from fractions import Fraction
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
_NUMBERS = (int, float, Fraction)


def read_schema(name: str) -> Mapping[str, Any]:
    """Return the schema called `name`."""
    path = Path(__file__).parent / "schemas" / f"{name}.schema.json"
    schema: Mapping[str, Any] = json.loads(path.read_text("utf-8"))
    return schema


def mismatch(value: Any, schema: Mapping[str, Any]) -> str | None:
    """Return in words the first mismatch between a value and a schema, with its place; None if the value fits."""
    first = _mismatch(value, schema)
    if first is None:
        return None
    parts, fact = first
    where = "".join(part if part.startswith("[") else f".{part}" for part in reversed(parts)).removeprefix(".")
    return f"{where[:200] or 'it'} {fact}"


def _mismatch(value: Any, schema: Mapping[str, Any]) -> tuple[list[str], str] | None:
    """Return the place of the first mismatch, the innermost part first, and the fact in words; None if none."""
    if "const" in schema and (value != schema["const"] or isinstance(value, bool)):  # True is 1 to Python
        return [], f"is not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        return [], f"is none of {', '.join(map(repr, schema['enum']))}"
    types = schema.get("type", [])
    if types and not _has_type(value, [types] if isinstance(types, str) else types):
        return [], f"is no {types if isinstance(types, str) else ' or '.join(types)}"
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        return [], "is not as it is written"
    if isinstance(value, _NUMBERS) and not isinstance(value, bool):
        if value < schema.get("minimum", value):
            return [], f"is less than {schema['minimum']}"
        if value > schema.get("maximum", value):
            return [], f"is more than {schema['maximum']}"
    if isinstance(value, dict):
        return _object_mismatch(value, schema)
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            return [], "is empty"
        if len(value) > schema.get("maxItems", len(value)):
            return [], f"has more than {schema['maxItems']} items"
        for number, item in enumerate(value):
            first = _mismatch(item, schema["items"])
            if first:
                first[0].append(f"[{number}]")
                return first
    return None


def _object_mismatch(value: Mapping[str, Any], schema: Mapping[str, Any]) -> tuple[list[str], str] | None:
    properties, others = schema.get("properties", {}), schema.get("additionalProperties", {})
    missing = [name for name in schema.get("required", ()) if name not in value]
    if missing:
        return [], f"has no '{missing[0]}'"
    for name, member in value.items():
        known = properties.get(name, others)
        if known is False:
            return [], f"has '{name[:60]}', which is unknown"
        first = _mismatch(member, known)
        if first:
            first[0].append(name)
            return first
    return None


def _has_type(value: object, names: list[str]) -> bool:
    if isinstance(value, bool):
        return "boolean" in names
    return any(isinstance(value, _TYPES[name]) for name in names)
