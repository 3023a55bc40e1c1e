"""Compare the metadata inside an average with its manifest. No numpy."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ema_cli.formats.mark import DROP, EXACT_LORA, LIKE_INPUT, MERGED, asked_for
from ema_cli.manifest.types import Manifest
from ema_cli.runs.tensor_rules import copied_names

_MISSING = object()


def mark_differences(
    mark: Mapping[str, object] | None, manifest: Manifest, manifest_name: str, copied_files: Collection[str] = ()
) -> Iterator[str]:
    """Yield in words each difference between the mark of an average, which is its own metadata, and its manifest.

    Args:
        mark: that of the average.
        manifest: that of the average.
        manifest_name: the name of its file.
        copied_files: files with tensors that are side files.
    """
    if not mark:
        yield "has no metadata that say how it was averaged"
        return
    expected = _expected_mark(manifest, copied_files)
    for name in sorted({*expected, *mark} - {"checkpoints", "copied"}):
        ours, theirs = mark.get(name, _MISSING), expected.get(name, _MISSING)
        if ours != theirs:
            yield f"its metadata say {_setting_text(name, ours)}, but {manifest_name} {_setting_text(name, theirs)}"
    yield from _checkpoint_differences(mark["checkpoints"], expected["checkpoints"], manifest_name)
    if not _same_copied(mark.get("copied", []), manifest):
        yield f"its metadata say that other tensors were copied than {manifest_name}"


def _expected_mark(manifest: Manifest, copied_files: Collection[str]) -> dict[str, Any]:
    """Return the mark that an average with this manifest has, without the list of copied tensors."""
    recipe = manifest["recipe"]
    mark: dict[str, Any] = dict(asked_for(recipe))
    mark["version"] = manifest["tool"]["version"]
    mark["checkpoints"] = [
        [row["name"], row["clock"], row["weight"]] for row in manifest["inputs"] if row["weight"] != 0
    ]
    names = sorted(row["name"] for row in manifest["outputs"])
    side_files = [name for name in names if name in copied_files or not _holds_tensors(name)]
    if recipe.get("like_input"):
        mark[LIKE_INPUT], side_files = True, names
    if "drop" in recipe:
        mark[DROP] = recipe["drop"]
    if "exact_lora" in recipe:
        mark[EXACT_LORA] = recipe["exact_lora"]
    if recipe.get("merge_into"):
        mark[MERGED] = True
    if recipe["folder"] and side_files:
        mark["files"] = side_files
    return mark


def _holds_tensors(name: str) -> bool:
    return name.lower().endswith((".safetensors", ".safetensors.index.json", ".bin", ".distcp"))


def _checkpoint_differences(ours: Any, theirs: Any, manifest_name: str) -> Iterator[str]:
    """Yield the first difference between two lists of checkpoints, clocks and weights."""
    if len(ours) != len(theirs):
        yield f"its metadata name {len(ours)} checkpoints, but {manifest_name} {len(theirs)}"
        return
    for (name, clock, weight), (its_name, its_clock, its_weight) in zip(ours, theirs, strict=True):
        if name != its_name:
            yield f"its metadata name the checkpoint {name}, but {manifest_name} {its_name}"
        elif clock != its_clock:
            yield f"its metadata say that {name} was at {clock}, but {manifest_name} {its_clock}"
        elif weight != its_weight:
            yield f"its metadata give {name} the weight {weight!r}, but {manifest_name} {its_weight!r}"
        else:
            continue
        return


def _same_copied(names: object, manifest: Manifest) -> bool:
    """Return whether these are the copied tensors, as far as the manifest shows it: some may have been renamed."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return False
    patterns = manifest["recipe"]["copy"]
    written = {row["name"] for row in manifest["tensors"]}
    if all(name in written for name in names):
        return names == sorted(copied_names(written, patterns))
    return copied_names(names, patterns) == frozenset(names)


def _setting_text(name: str, value: object) -> str:
    if value is _MISSING:
        return f"no {name}"
    return f"{name} {', '.join(map(str, value)) if isinstance(value, list) else value}"[:200]
