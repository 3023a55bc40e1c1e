"""A report on an average: its manifest, and how far it is from the checkpoints it was made of, as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ema_cli.checkpoint import Checkpoint
from ema_cli.comparing.comparison import measure_layers
from ema_cli.comparing.distance import Distance, comparable
from ema_cli.comparing.layers import group_layers
from ema_cli.errors import OutputError, RunError, UsageError, option
from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import ReadOptions
from ema_cli.manifest.fingerprint import fingerprints
from ema_cli.manifest.manifest import Manifest
from ema_cli.storage.output_stream import OutputStream
from ema_cli.storage.staging import Staging
from ema_cli.system.progress import ProgressCallback, no_progress
from ema_cli.writing.target import Target, check_target

MOST_LAYERS = 100  # rows that can be told apart
_SUFFIXES = (".html", ".htm")


@dataclass(frozen=True, slots=True)
class Distances:
    """How far an average is from checkpoints: a value for each, in all and by layer.

    `inputs`: which of the manifest's inputs they are; `missing`: those that are not there. `together`: whether layers
    were put together. `left_out`: tensors that cannot be compared with every checkpoint, or not as numbers.
    """

    inputs: Sequence[int]
    total: Sequence[Distance]
    layers: dict[str, list[Distance]]
    missing: Sequence[str]
    together: bool
    left_out: int


def measure_distances(
    output: Path,
    manifest: Manifest,
    against: Path,
    *,
    threads: int = 1,
    report: ProgressCallback = no_progress,
) -> tuple[Distances, list[Checkpoint]]:
    """Return how far the average is from each of its inputs in the folder `against`, all in one pass; and the inputs.

    Raises:
        RunError: where none of them is there, or one is not what was averaged.
        CheckpointError: where one cannot be read, or changes meanwhile.
    """
    recipe = manifest["recipe"]
    options = ReadOptions(recipe["key"], recipe["weights"], recipe["component"], recipe["keep_prefix"])
    checkpoints: list[Checkpoint] = []
    inputs, missing = [], []
    for number, each in enumerate(manifest["inputs"]):
        path = _inside(against, each["name"])
        if not path.exists():
            missing.append(each["name"])
            continue
        checkpoint = open_checkpoint(path, options)
        if checkpoints:
            checkpoint.tensors.share(checkpoints[0].tensors)
        checkpoints.append(checkpoint)
        inputs.append(number)
    if not checkpoints:
        raise RunError(
            f"holds none of the checkpoints that were averaged, as '{missing[0]}'",
            subject=against,
            hint="name the folder that their names in the manifest are relative to",
        )
    _check_same(manifest, inputs, checkpoints, threads)
    average = open_checkpoint(output, ReadOptions(keep_prefix=recipe["keep_prefix"]))
    names = [name for name in comparable(average, checkpoints) if average.tensors.specs[name].dtype.averaged]
    if not names:
        raise RunError(f"has no tensor that can be compared with those in {against}", subject=output)
    layers, together = group_layers(names, MOST_LAYERS)
    total, parts = measure_layers(average, checkpoints, layers, threads=threads, report=report)
    left_out = len(average.tensors.specs) - len(names)
    return Distances(inputs, total, parts, missing, together, left_out), [average, *checkpoints]


def _inside(folder: Path, name: str) -> Path:
    """Return where an input of that name is; a manifest may come from anywhere, and must not lead out of the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise RunError(f"'{name}' in the manifest is no name of a checkpoint in a folder", subject=folder)
    return folder / path


def _check_same(manifest: Manifest, inputs: Sequence[int], checkpoints: Sequence[Checkpoint], threads: int) -> None:
    """Check that these are the checkpoints that were averaged, as far as sizes and fingerprints tell."""
    for number, checkpoint, found in zip(inputs, checkpoints, fingerprints(checkpoints, threads), strict=True):
        told = manifest["inputs"][number]
        if told["fingerprint"] not in (None, found) or told["bytes"] != checkpoint.nbytes:
            raise RunError(
                "is not the checkpoint that was averaged: its fingerprint is another",
                subject=checkpoint.path,
                hint="distances from other checkpoints would say nothing about this average",
            )


def report_target(output: Path, path: Path | None) -> Target:
    """Return where the page goes: by default beside nothing, under the name of the average.

    Raises:
        UsageError: for a name that no browser would open as a page.
    """
    path = path or Path(f"{Path(output.absolute().name)}.html")
    if path.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"'{path}' is no name of a page", option="output", hint=f"as {option('o', 'report.html')}")
    return Target(path, is_folder=False)


def check_report_target(target: Target, output: Path, checkpoints: Sequence[Checkpoint], *, force: bool) -> None:
    """Raise an OutputError unless the page may be written there: never over what it tells of, nor into its folder."""
    if output.is_dir() and output.resolve() in target.path.resolve().parents:
        raise OutputError(
            f"is inside {output}, where verify would find a file that its sums do not list",
            subject=target.path,
            hint=f"write it elsewhere: {option('o', f'{target.path.name}')}",
        )
    check_target(target, [file for each in checkpoints for file in each.files], force=force)


def write_page(target: Target, page: str, *, force: bool) -> int:
    """Write the page, all of it or nothing; return its size in bytes.

    Raises:
        OutputError: where that is not possible.
    """
    content = page.encode()
    with Staging(target.path) as staging:
        stream = OutputStream(staging.folder / target.path.name)
        try:
            stream.write(0, content)
            stream.sync()
        finally:
            stream.close()
        staging.publish_file(target.path.name, force=force)
    return len(content)
