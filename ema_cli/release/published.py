"""An average as it was published: where its files, its manifest and its sums lie; and which there are. No numpy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ema_cli.errors import CheckpointError, UsageError, option
from ema_cli.formats.trainers.names import WEIGHT_SUFFIXES
from ema_cli.manifest.manifest import read_manifest
from ema_cli.manifest.sums import FILE_SUFFIX, SUMS_SUFFIX, manifest_path, sums_path
from ema_cli.manifest.types import Manifest
from ema_cli.storage.location import location

_WEIGHTS = ".safetensors"  # in a folder


@dataclass(frozen=True, slots=True)
class Published:
    """One average: a folder, or one file with its manifest and its sums beside it."""

    path: Path
    is_folder: bool

    @property
    def manifest(self) -> Path:
        """Return where its manifest lies."""
        return manifest_path(self.path, is_folder=self.is_folder)

    @property
    def sums(self) -> Path:
        """Return where its sums lie."""
        return sums_path(self.path, is_folder=self.is_folder)

    @property
    def folder(self) -> Path:
        """Return the folder that its files are in."""
        return self.path if self.is_folder else self.path.parent

    @property
    def vouched(self) -> bool:
        """Return whether there are a manifest, or sums."""
        return any(location(path).info(follow=False).exists for path in (self.manifest, self.sums))


def find_averages(paths: Iterable[Path]) -> list[Published]:
    """Return the averages that are named: each a file, a folder, or one of several in a folder.

    Raises:
        UsageError: for a path at which there is nothing.
    """
    found: dict[Path, Published] = {}
    for path in paths:
        for each in _find(path):
            found.setdefault(each.path, each)
    return list(found.values())


def _find(path: Path) -> list[Published]:
    if location(path).info().is_folder:
        whole = Published(path, is_folder=True)
        return [whole] if whole.vouched else _inside(path) or [whole]
    for suffix in (FILE_SUFFIX, SUMS_SUFFIX):
        if path.name.endswith(suffix) and path.name != suffix:
            path = path.with_name(path.name.removesuffix(suffix))
    single = Published(path, is_folder=False)
    if not (location(path).info(follow=False).exists or single.vouched):
        raise UsageError("does not exist", subject=path)
    whole = Published(path.parent, is_folder=True)  # a file of it stands for it, its manifest and sums too
    return [whole if whole.vouched and not single.vouched else single]


def _inside(folder: Path) -> list[Published]:
    """Return the averages in a folder of several; with one that is vouched for, others of weights are taken for such.

    None where none is: then it is a folder of something else.
    """
    found: dict[str, Published] = {}
    for entry in sorted(location(folder).entries(), key=lambda entry: entry.name):
        name = entry.name if entry.is_folder else entry.name.removesuffix(FILE_SUFFIX).removesuffix(SUMS_SUFFIX)
        weights = name.lower().endswith(WEIGHT_SUFFIXES)
        if not name.startswith(".") and (entry.is_folder or weights):
            found[name] = Published(folder / name, entry.is_folder)
    vouched = {name for name, each in found.items() if each.vouched}
    if not vouched:
        return []
    return [each for name, each in found.items() if name in vouched or not each.is_folder or _holds_weights(each.path)]


def _holds_weights(folder: Path) -> bool:
    return any(entry.name.lower().endswith(_WEIGHTS) for entry in location(folder).entries())


def read_output(output: Path) -> Manifest:
    """Return the manifest of the average at `output`.

    Raises:
        UsageError: where nothing is there.
        CheckpointError: where it has no manifest, or one that cannot be read.
    """
    info = location(output).info()
    if not info.exists:
        raise UsageError("does not exist", subject=output)
    path = manifest_path(output, is_folder=info.is_folder)
    if location(path).info().exists:
        return read_manifest(path)
    inside = [published for published in _inside(output) if published.vouched] if info.is_folder else []
    if inside:
        raise UsageError("holds several averages", subject=output, hint=f"name one of them: {inside[0].path}")
    raise CheckpointError(
        f"has no manifest, {path.name}",
        subject=output,
        hint=f"ema-cli average writes one beside the weights, unless {option('manifest', False)} is given",
    )
