"""The manifest of an average: what was done, as data that equal runs give equal bytes of; and the sums of its files.

In a folder `ema-manifest.json` and `SHA256SUMS`; beside a single file its name with `.manifest.json` and `.sha256`. No
times, hosts or absolute paths. Sums are in the form that `sha256sum -c` reads. No numpy.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ema_cli._version import __version__
from ema_cli.checkpoint import TensorSpec
from ema_cli.errors import CheckpointError
from ema_cli.fingerprint import CHECKSUM, FINGERPRINT
from ema_cli.formats.json_text import read_json
from ema_cli.input_file import InputFile
from ema_cli.plan import Entry, Plan
from ema_cli.schema import mismatch, read_schema

SCHEMA_VERSION = 1
FOLDER_NAME = "ema-manifest.json"
SUMS_NAME = "SHA256SUMS"
FILE_SUFFIX = ".manifest.json"
SUMS_SUFFIX = ".sha256"
_MAX_BYTES = 1 << 30
_MAX_SUMS_BYTES = 1 << 20  # beside one file; longer ones are somebody else's
_STEP = 1 << 20
_ROWS = 1024  # of a manifest, in one block
_TOOL = b'\n "tool": {\n  "name": "ema-cli",'
_SUM_LINE = re.compile(r"(\\?)([0-9a-f]{64}) [ *](.+)")
_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}

Manifest = Mapping[str, Any]


def manifest_path(path: Path, *, is_folder: bool) -> Path:
    """Return where the manifest of the average at `path` lies."""
    return path / FOLDER_NAME if is_folder else path.with_name(path.name + FILE_SUFFIX)


def sums_path(path: Path, *, is_folder: bool) -> Path:
    """Return where the sums of the average at `path` lie."""
    return path / SUMS_NAME if is_folder else path.with_name(path.name + SUMS_SUFFIX)


def sidecars(path: Path) -> tuple[Path, Path]:
    """Return where the manifest and the sums of the single file at `path` lie."""
    return manifest_path(path, is_folder=False), sums_path(path, is_folder=False)


def is_own_sidecar(path: Path, name: str) -> bool:
    """Return whether what lies at `path`, beside a file called `name`, is a manifest or sums as ema-cli writes them.

    Sums of that file alone are not: anybody may have made those, to compare with. No manifest is read whole.

    Raises:
        CheckpointError: where it cannot be read.
    """
    if path.is_symlink() or not path.is_file():
        return False
    file = InputFile(path)
    if path.name.endswith(SUMS_SUFFIX):
        text = file.read(0, min(file.size, _MAX_SUMS_BYTES))
        try:
            return set(parse_sums(text, str(path))) == {name, name + FILE_SUFFIX}
        except CheckpointError:
            return False
    # Near the end it tells whose it is.
    for begin in range(file.size - _STEP, -_STEP, -_STEP):
        begin, end = max(begin, 0), min(begin + _STEP + len(_TOOL), file.size)
        if _TOOL in file.read(begin, end - begin):
            return file.read(file.size - 3, 3) == b"\n}\n"
    return False


def make_manifest(
    plan: Plan,
    options: Mapping[str, Any],
    fingerprints: Mapping[int, str],
    blocks: Mapping[int, Sequence[str]] | None,
    outputs: Mapping[str, tuple[int, str]],
    warnings: Sequence[str],
) -> dict[str, Any]:
    """Return the manifest of one average, less its tensors.

    `options` are those of the output. `fingerprints` and, where all was summed up, `blocks` are by the id of the
    checkpoint; `outputs`: name -> size in bytes and sha256.
    """
    import numpy as np  # not for what only reads one
    import safetensors

    return {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "ema-cli", "version": __version__},
        # Not by importlib.metadata: what it looks up may have been changed since the averaging began.
        "libraries": {
            "numpy": np.__version__,
            "python": sys.version.partition(" ")[0],
            "safetensors": safetensors.__version__,
        },
        "recipe": {**recipe_facts(plan), **options},
        "inputs": [_input(each, fingerprints, blocks) for each in plan.entries],
        "fingerprint": FINGERPRINT,
        "checksum": None if blocks is None else CHECKSUM,
        "outputs": [
            {"name": name, "bytes": nbytes, "sha256": sha256} for name, (nbytes, sha256) in sorted(outputs.items())
        ],
        "effective_checkpoints": plan.effective_count,
        "mean_age": str(plan.mean_age),
        "approximation": {"relative_error": plan.approximation.error, "least_error": plan.approximation.least_error}
        if plan.approximation
        else None,
        "warnings": list(warnings),
    }


def recipe_facts(plan: Plan) -> dict[str, Any]:
    """Return everything that was asked for and decides which checkpoints enter, with which weight, resolved."""
    recipe, run = plan.recipe, plan.run

    def text(value: object) -> str | None:
        return None if value is None else str(value)

    return {
        "law": recipe.law,
        "half_life": text(recipe.half_life),
        "smoothing": recipe.smoothing,
        "profile": recipe.profile,
        "sigma_rel": recipe.sigma_rel,
        "update_interval": str(recipe.interval or "every"),
        "start": text(recipe.start),
        "stop": text(recipe.stop),
        "last": recipe.last,
        "bias_correction": recipe.bias_correction,
        "from": "raw" if plan.approximation is None else "stored",
        "epoch_length": text(run.epoch_length),
        "spacing": text(run.spacing),
        "key": run.options.key,
        "weights": run.options.weights,
        "component": run.options.component,
        "keep_prefix": run.options.keep_prefix,
    }


def _input(entry: Entry, fingerprints: Mapping[int, str], blocks: Mapping[int, Sequence[str]] | None) -> dict[str, Any]:
    checkpoint = entry.checkpoint
    found = {
        "name": checkpoint.name,
        "clock": str(entry.clock),
        "clocks": {
            str(unit): {"value": str(clock.value), "from": clock.source}
            for unit, clock in checkpoint.progress.clocks.items()
        },
        "format": checkpoint.format,
        "trainer": checkpoint.trainer,
        "bytes": checkpoint.nbytes,
        "weight": entry.weight,
        "fingerprint": fingerprints.get(id(checkpoint)),  # none where its weight is 0: it is not read
    }
    return found if blocks is None else {**found, "blocks": list(blocks.get(id(checkpoint), ()))}


def tensor_row(name: str, spec: TensorSpec, newest: TensorSpec, why: str | None, *, non_finite: bool) -> dict[str, Any]:
    """Return what is told of a tensor that is written, and is in the newest checkpoint as `newest`.

    `why`: why it is copied if it would else be averaged.
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


def manifest_text(manifest: Manifest, tensors: Iterator[dict[str, Any]]) -> Iterator[bytes]:
    """Yield the text of a manifest: keys sorted, one line for each member of a list or of an inner object.

    In blocks: with many tensors it is long.
    """
    begin = b"{"
    for name, value in sorted({**manifest, "tensors": tensors}.items()):
        yield b'%b\n "%b": ' % (begin, name.encode())
        begin = b","
        if isinstance(value, list | Iterator):
            yield from _rows(map(_json, value), b"[]")
        elif isinstance(value, Mapping):
            yield from _rows((f"{_json(key)}: {_json(each)}" for key, each in sorted(value.items())), b"{}")
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


def sums_text(sums: Mapping[str, str]) -> bytes:
    """Return the text of sums, by name, as `sha256sum` writes them: odd names escaped, with a backslash before."""
    lines = []
    for name, sha256 in sorted(sums.items()):
        escaped = "".join(_ESCAPES.get(char, char) for char in name)
        lines.append(f"{'' if escaped == name else chr(92)}{sha256}  {escaped}\n")
    return "".join(lines).encode(errors="surrogateescape")


def parse_sums(text: bytes, subject: str) -> dict[str, str]:
    """Return the sha256 of each name in a text that `sha256sum -c` reads.

    Raises:
        CheckpointError: naming the `subject`, where it is none.
    """
    found: dict[str, str] = {}
    lines = text.decode(errors="surrogateescape").split("\n")  # not splitlines(): other characters end lines there, too
    for number, line in enumerate(lines if lines[-1] else lines[:-1], 1):
        match = _SUM_LINE.fullmatch(line)
        name = match[3] if match else ""
        if match and match[1]:
            name = re.sub(r"\\([\\nr])", lambda each: {"\\": "\\", "n": "\n", "r": "\r"}[each[1]], name)
        if match is None or name in found:
            raise CheckpointError(f"{subject}: line {number} is no sum of a file of its own")
        found[name] = match[2]
    return found


def read_manifest(path: Path) -> Manifest:
    """Return the manifest at `path`, checked as far as it is used.

    Numbers that are no integers come as the floats that they were.

    Raises:
        CheckpointError: where it cannot be read, or is not as ema-cli writes it.
    """
    manifest = read_json(InputFile(path), _MAX_BYTES)
    wrong = mismatch(manifest, read_schema("manifest"))
    if wrong:
        raise CheckpointError(f"{path}: is no manifest that this version of ema-cli reads: {wrong}")
    errors = manifest["approximation"] or {}
    numbers = [(each, "weight") for each in manifest["inputs"]] + [(errors, name) for name in errors]
    numbers += [
        (manifest["recipe"], name) for name in ("smoothing", "sigma_rel") if manifest["recipe"][name] is not None
    ]
    for owner, name in (*numbers, (manifest, "effective_checkpoints")):
        try:
            owner[name] = float(owner[name])
        except OverflowError as error:
            raise CheckpointError(f"{path}: its {name} is too large for a number") from error
    found: Manifest = manifest
    return found
