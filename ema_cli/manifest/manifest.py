"""The manifest of an average: the record of its making, with equal bytes for equal runs, and checksums of its files.

In a folder it is `ema-manifest.json`, with `SHA256SUMS`; for a single file it stands next to it, under its name with
`.manifest.json`, with `.sha256`. It holds no times, hosts or absolute paths. Checksums are in the form that
`sha256sum -c` reads. No numpy.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ema_cli._version import __version__
from ema_cli.checkpoint import Checkpoint, TensorSpec
from ema_cli.errors import CheckpointError
from ema_cli.formats.json_text import read_json
from ema_cli.law.laws import LAW_KEYS
from ema_cli.law.time import Time
from ema_cli.manifest.fingerprint import CHECKSUM, FINGERPRINT
from ema_cli.manifest.recipe_record import RecipeRecord
from ema_cli.manifest.schema import mismatch, read_schema
from ema_cli.manifest.types import InputFacts, InputRow, Manifest, RecipeRow, TensorRow
from ema_cli.planning.entry import COUNTED, Entry
from ema_cli.planning.plan import Plan
from ema_cli.storage.location import location
from ema_cli.storage.output_stream import WrittenFile
from ema_cli.system.memory import give_back

if TYPE_CHECKING:
    from ema_cli.folding.fold import Factored

SCHEMA_VERSION = 1
_MAX_BYTES = 1 << 30
_ROWS = 1024  # rows of a manifest in one block of its text


def make_manifest(
    plan: Plan,
    *,
    options: Mapping[str, Any],
    fingerprints: Mapping[Checkpoint, str],
    blocks: Mapping[Checkpoint, Sequence[str]] | None,
    outputs: Mapping[str, WrittenFile],
    warnings: Sequence[str],
    notes: Sequence[str],
    libraries: Mapping[str, str],
    classes: Sequence[str] | None = None,
    factored: Factored | None = None,
    known: dict[Checkpoint, InputFacts] | None = None,
) -> Manifest:
    """Return the manifest of one average, still without its tensors.

    Args:
        plan: the plan that was carried out.
        options: the options of the output, as they stand in the recipe.
        fingerprints: checkpoint -> its fingerprint, for the checkpoints that were read.
        blocks: checkpoint -> the checksums of its blocks; None if no checksums were made.
        outputs: file name -> its size in bytes and its sha256.
        warnings: the warnings for the user.
        notes: what else is said of the run, where nothing is wrong.
        libraries: the versions of those that it was made with.
        classes: the classes and functions that loading the output runs; None where it is of a form of our own.
        factored: how near A and B come to the average of their products; None where that is not wanted.
        known: what manifests of other averages said of the checkpoints; this one shares it, and adds to it.
    """
    known = {} if known is None else known
    manifest: Manifest = {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "ema-cli", "version": __version__},
        "libraries": dict(libraries),
        "recipe": cast(RecipeRow, {**RecipeRecord.of(plan).to_dict(), **options}),  # each law knows its own keys
        "inputs": [_input(entry, fingerprints, blocks, known) for entry in plan.entries],
        "fingerprint": FINGERPRINT,
        "checksum": None if blocks is None else CHECKSUM,
        "outputs": [
            {"name": name, "bytes": file.size, "sha256": file.sha256} for name, file in sorted(outputs.items())
        ],
        "effective_checkpoints": plan.effective_count,
        "mean_age": str(plan.mean_age),
        "approximation": {"relative_error": plan.approximation.error, "least_error": plan.approximation.least_error}
        if plan.approximation
        else None,
        "warnings": list(warnings),
        "notes": list(notes),
    }
    if classes is not None:
        manifest["classes"] = list(classes)
    if factored is not None:
        module, error = factored.furthest
        manifest["exact_lora"] = {"relative_error": factored.error, "furthest": module, "furthest_error": error}
    return manifest


def _input(
    entry: Entry,
    fingerprints: Mapping[Checkpoint, str],
    blocks: Mapping[Checkpoint, Sequence[str]] | None,
    known: dict[Checkpoint, InputFacts],
) -> InputRow:
    checkpoint = entry.checkpoint
    if checkpoint not in known:
        known[checkpoint] = _facts(checkpoint)
    row = cast(
        InputRow,
        {
            **known[checkpoint],
            "clock": sys.intern(str(entry.clock)),
            "weight": entry.weight,
            "fingerprint": fingerprints.get(checkpoint),  # None if its weight is 0: it is not read
        },
    )
    return row if blocks is None else {**row, "blocks": list(blocks.get(checkpoint, ()))}


def _facts(checkpoint: Checkpoint) -> InputFacts:
    return {
        "name": checkpoint.name,
        "clocks": {
            str(unit): {"value": str(clock.value), "from": clock.source}
            for unit, clock in checkpoint.progress.clocks.items()
        },
        "format": checkpoint.format,
        "trainer": checkpoint.trainer,
        "bytes": checkpoint.nbytes,
    }


def tensor_row(name: str, spec: TensorSpec, newest: TensorSpec, why: str | None, *, non_finite: bool) -> TensorRow:
    """Return the row of a tensor of the output.

    Args:
        name: of the tensor in the output.
        spec: its dtype and shape in the output.
        newest: its spec in the newest checkpoint.
        why: the reason to copy a tensor that would otherwise be averaged, None for any other.
        non_finite: whether it holds NaN or infinity.
    """
    copied = why or (None if newest.dtype.averaged else newest.dtype.kind)
    return {
        "name": name,
        "dtype": spec.dtype.name,
        "shape": list(spec.shape),
        "bytes": spec.nbytes,
        "averaged": copied is None,
        "why": copied,
        "non_finite": non_finite,
    }


def manifest_text(manifest: Manifest, tensors: Iterator[TensorRow]) -> Iterator[bytes]:
    """Yield the text of a manifest in blocks, as with many tensors it is long.

    Keys are sorted; each member of a list or of an inner object has a line of its own.
    """
    begin = b"{"
    for name, value in sorted({**manifest, "tensors": tensors}.items()):
        yield b'%b\n "%b": ' % (begin, name.encode())
        begin = b","
        if isinstance(value, list | Iterator):
            yield from _rows(map(_json, value), b"[]")
        elif isinstance(value, Mapping):
            yield from _rows((f"{_json(key)}: {_json(member)}" for key, member in sorted(value.items())), b"{}")
        else:
            yield _json(value).encode()
    yield b"\n}\n"


def _rows(rows: Iterator[str], ends: bytes) -> Iterator[bytes]:
    begin = ends[:1] + b"\n"
    while block := list(islice(rows, _ROWS)):
        yield begin + ",\n".join(f"  {row}" for row in block).encode()
        begin = b",\n"
    yield ends if begin[:1] == ends[:1] else b"\n " + ends[1:]


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False, default=dict)


def shown_clock(row: InputRow) -> str:
    """Return the clock of an input; empty where none was recorded, and the checkpoints were only counted."""
    return "" if any(clock["from"] == COUNTED for clock in row["clocks"].values()) else row["clock"]


def recorded_age(manifest: Manifest) -> Time | None:
    """Return the mean age, None where no clock was recorded.

    Where weights are negative it may be below 0, beyond the newest checkpoint.
    """
    if not shown_clock(manifest["inputs"][-1]):
        return None
    text = manifest["mean_age"]
    age = Time.parse(text.removeprefix("-"), subject="the manifest")
    return Time(-age.value, age.unit) if text.startswith("-") else age


def read_manifest(path: Path) -> Manifest:
    """Return the manifest at `path`, checked as far as it is used.

    Numbers that are not integers are returned as the floats that they were when they were written.

    Raises:
        CheckpointError: if it cannot be read, or is not of the form that ema-cli writes.
    """
    manifest = read_json(location(path).open(), _MAX_BYTES)
    wrong = mismatch(manifest, read_schema("manifest"))
    if wrong:
        raise CheckpointError(f"is no manifest that this version of ema-cli reads: {wrong}", subject=path)
    errors, factored = manifest["approximation"] or {}, manifest.get("exact_lora", {})
    numbers = [(row, "weight") for row in manifest["inputs"]] + [(errors, name) for name in errors]
    numbers += [(factored, name) for name in factored if name != "furthest"]
    recipe = manifest["recipe"]
    coefficients = recipe.get("coefficients", {})
    numbers += [(recipe, name) for name in LAW_KEYS if not isinstance(recipe.get(name), str | bool | dict | None)]
    numbers += [(coefficients, name) for name in coefficients]
    candidates = manifest["tune"]["candidates"] if "tune" in manifest else []
    numbers += [(row["values"], number) for row in candidates for number in range(len(row["values"]))]
    for owner, name in (*numbers, (manifest, "effective_checkpoints")):
        try:
            owner[name] = float(owner[name])
        except OverflowError as error:
            what = name if isinstance(name, str) else "metric"
            raise CheckpointError(f"its {what} is too large for a number", subject=path) from error
    checked: Manifest = manifest
    shapes: dict[str, list[int]] = {}
    for row in checked["tensors"]:  # one copy of each name, as in headers, and of each shape
        row["name"], row["dtype"] = sys.intern(row["name"]), sys.intern(row["dtype"])
        row["shape"] = shapes.setdefault(str(row["shape"]), row["shape"])
    give_back(len(checked["tensors"]))
    return checked
