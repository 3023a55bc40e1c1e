"""Measure the distances of an average from its checkpoints, and write the page of its report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ema_cli.checkpoint import Checkpoint
from ema_cli.comparing.comparison import measure_layers
from ema_cli.comparing.distance import Distance
from ema_cli.comparing.layers import group_layers
from ema_cli.comparing.measure import comparable_names
from ema_cli.dataclass import dataclass
from ema_cli.errors import OutputError, RunError, UsageError, option
from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import ReadOptions
from ema_cli.manifest.types import Manifest
from ema_cli.release.inputs import check_unchanged, find_inputs, open_inputs
from ema_cli.storage.location import location
from ema_cli.storage.publishing import stage_file
from ema_cli.system.progress import ProgressCallback, no_progress
from ema_cli.writing.replacing import check_target
from ema_cli.writing.target import Target

MOST_LAYERS = 100  # the most rows that a reader can distinguish
_SUFFIXES = (".html", ".htm")


@dataclass(frozen=True, slots=True)
class Distances:
    """The distances of an average from its checkpoints.

    Attributes:
        inputs: the positions of the measured checkpoints among the inputs of the manifest.
        total: the distance from each measured checkpoint, over all tensors.
        layers: the same by layer.
        missing: the names of the inputs that are missing.
        together: whether layers were merged.
        left_out: the number of tensors that cannot be compared with every checkpoint, or not as numbers.
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
    against: Sequence[Path],
    *,
    threads: int = 1,
    progress: ProgressCallback = no_progress,
) -> tuple[Distances, list[Checkpoint]]:
    """Measure the distances of an average from its inputs, all in one pass.

    Args:
        output: the path of the average.
        manifest: its manifest.
        against: the folders of its inputs, and a base elsewhere; missing ones are left out.
        threads: the number of threads that read and compare.
        progress: called with the bytes read so far and the total.

    Returns:
        The distances, and the opened checkpoints: the average first, then its inputs.

    Raises:
        UsageError: for an average of adapters that were merged into their base model.
        RunError: if all inputs are missing, or no tensor can be compared.
        CheckpointError: if one cannot be read, has changed since it was averaged, or changes meanwhile.
    """
    if manifest["recipe"].get("merge_into"):
        raise UsageError(
            "the average is of whole models, and the checkpoints are adapters: there is no distance",
            option="against",
            hint="leave it out",
        )
    found_inputs = find_inputs(manifest, against)
    if not found_inputs.paths:
        raise RunError(
            f"holds none of the checkpoints that were averaged, as '{found_inputs.missing[0]}'",
            subject=against[0],
            hint="name the folder that their names in the manifest are relative to",
        )
    checkpoints = open_inputs(manifest, found_inputs.paths)
    check_unchanged(manifest, checkpoints, threads)
    inputs = [number for number, entry in enumerate(manifest["inputs"]) if entry["name"] in found_inputs.paths]
    average = open_checkpoint(output, ReadOptions(keep_prefix=manifest["recipe"]["keep_prefix"]))
    names = [name for name in comparable_names(average, checkpoints) if average.tensors.specs[name].dtype.averaged]
    if not names:
        raise RunError(f"has no tensor that can be compared with those in {against[0]}", subject=output)
    layers, together = group_layers(names, MOST_LAYERS)
    total, parts = measure_layers(average, checkpoints, layers, threads=threads, progress=progress)
    left_out = len(average.tensors.specs) - len(names)
    return Distances(inputs, total, parts, found_inputs.missing, together, left_out), [average, *checkpoints]


def report_target(output: Path, path: Path | None) -> Target:
    """Return the path of the page; default: `<name of the average>.html` in the current directory.

    Raises:
        UsageError: for a name that no browser would open as a page.
    """
    path = path or Path(f"{Path(output.absolute().name)}.html")
    if path.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"'{path}' is no name of a page", option="output", hint=f"as {option('o', 'report.html')}")
    return Target(path, is_folder=False)


def check_report_target(target: Target, output: Path, checkpoints: Sequence[Checkpoint], *, force: bool) -> None:
    """Check that the page can be written: never over the average or its inputs, nor into the folder of the average.

    Args:
        target: the path of the page.
        output: the path of the average.
        checkpoints: the opened average and inputs.
        force: allow replacing an existing file.

    Raises:
        OutputError: if it cannot.
    """
    if location(output).info().is_folder and location(output).resolve() in location(target.path).resolve().parents:
        raise OutputError(
            f"is inside {output}, where verify would find a file that its sums do not list",
            subject=target.path,
            hint=f"write it elsewhere: {option('o', f'{target.path.name}')}",
        )
    check_target(target, [file for checkpoint in checkpoints for file in checkpoint.files], force=force)


def write_page(target: Target, page: str, *, force: bool) -> int:
    """Write the page, completely or not at all; return its size in bytes.

    Raises:
        OutputError: if it cannot be written.
    """
    content = page.encode()
    with stage_file(target.path, force=force) as stream:
        stream.write(0, content)
    return len(content)
