"""Values that a schema allows, drawn at random: numbers at the ends of their ranges, texts with all that is odd."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

HOSTILE = (
    "", "x", "\n", "\r::error::x", "::warning::x", "##[error]x", "\x1b[31mred", "\x1b]0;title\x07", "\u202egnp.exe",
    "\u2066x\u2069", "\x00", "\x9b31m", "a" * 5000, "<script>x</script>", "| x |", "[x](y)", "`x`", "\ud800",
    "../../outside", "/outside", "-rf", "infba", "nanba", "0ba", "1e30ba", "9" * 40 + "ba", "1/0", "--x",
)  # fmt: skip
TEXTS = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=40))
_EDGE = 10**400


def values(schema: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """Return what draws values that a schema allows."""
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "anyOf" in schema or "oneOf" in schema:
        return st.one_of([values(each) for each in schema.get("anyOf", schema.get("oneOf"))])
    types = schema["type"]
    return st.one_of([_of_type(each, schema) for each in ([types] if isinstance(types, str) else types)])


def _of_type(kind: str, schema: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    least, most = schema.get("minimum", -_EDGE), schema.get("maximum", _EDGE)
    match kind:
        case "null":
            return st.none()
        case "boolean":
            return st.booleans()
        case "integer":
            return st.one_of(st.sampled_from([least, most]), st.integers(int(least), int(most)))
        case "number":
            edges = [least, most, *(each for each in (0, 0.5, 1, 1e-300, 1e300, -1e300) if least <= each <= most)]
            return st.sampled_from(edges)
        case "string":
            return st.from_regex(schema["pattern"], fullmatch=True) if "pattern" in schema else TEXTS
        case "array":
            return st.lists(values(schema["items"]), min_size=schema.get("minItems", 0), max_size=3)
    properties, others = schema.get("properties", {}), schema.get("additionalProperties", False)
    required = {name: values(properties[name]) for name in schema.get("required", ())}
    optional = {name: values(each) for name, each in properties.items() if name not in required}
    known = st.fixed_dictionaries(required, optional=optional)
    if not others:
        return known
    more = st.dictionaries(TEXTS.filter(lambda name: name not in properties), values(others), max_size=2)
    return st.tuples(known, more).map(lambda pair: {**pair[1], **pair[0]})


def places(value: Any, schema: Mapping[str, Any], at: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Any]]:
    """Return every place in a value, with the schema of what stands there, or might."""
    found = [(at, schema)] if at else []
    if isinstance(value, dict):
        found += [((*at, name), inner) for name, inner in schema.get("properties", {}).items() if name not in value]
        for name, member in value.items():
            inner = schema.get("properties", {}).get(name, schema.get("additionalProperties"))
            if isinstance(inner, Mapping):
                found += places(member, inner, (*at, name))
    elif isinstance(value, list):
        for number, member in enumerate(value):
            found += places(member, schema["items"], (*at, number))
    return found


def fields(schema: Mapping[str, Any], at: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """Return every field that a schema names, by its path; items of lists and members of any name are `*`."""
    inner = dict(schema.get("properties", {}))
    several = schema.get("items") or schema.get("additionalProperties")
    if several:
        inner["*"] = several
    return ({at} if at else set()).union(*(fields(each, (*at, name)) for name, each in inner.items()))


def fields_of(value: Any, schema: Mapping[str, Any], at: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """Return the fields that `places` gives for a value: those in it, and all of what it lacks and might have."""
    found = {at} if at else set()
    if isinstance(value, dict):
        known = schema.get("properties", {})
        found = found.union(*(fields(inner, (*at, name)) for name, inner in known.items() if name not in value))
        for name, member in value.items():
            inner = known.get(name, schema.get("additionalProperties"))
            found |= fields_of(member, inner, (*at, name if name in known else "*"))
    elif isinstance(value, list):
        items = schema["items"]
        found = found.union(*(fields_of(member, items, (*at, "*")) for member in value))
        found |= set() if value else fields(items, (*at, "*"))
    return found


def put(value: Any, at: tuple[Any, ...], new: Any) -> None:
    """Put something at a place in a value."""
    for step in at[:-1]:
        value = value[step]
    value[at[-1]] = new
