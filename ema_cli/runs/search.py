"""Search a folder for checkpoints the way trainers fill it; say what was passed over, and why. No tensors here."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from ema_cli.errors import CheckpointError, RunError
from ema_cli.formats import is_checkpoint_folder
from ema_cli.formats.trainers.layouts import (
    AVERAGES_FILE,
    AVERAGES_FOLDER,
    BASES,
    COPIES,
    DEEPSPEED_TAG,
    RECOVERY,
    SHARD,
    TRAINER_STATE,
)
from ema_cli.formats.trainers.names import is_unfinished_name, is_weights_name, name_clocks
from ema_cli.text import natural_key

_MAX_DEPTH = 16
_PARTS = tuple({*BASES, *BASES.values()})  # what the weights of a folder's own model are called
_POINTER_BYTES = 4096
_MAX_NAME_BYTES = 255


@dataclass(frozen=True, slots=True)
class PassedOver:
    """Something in the folder that does not enter. `warn`: the user may have wanted it."""

    name: str
    reason: str
    warn: bool = False


@dataclass(slots=True)
class Search:
    """What a folder holds: paths that look like checkpoints, in natural order, and what was passed over."""

    root: Path
    paths: list[Path] = field(default_factory=list)
    passed_over: list[PassedOver] = field(default_factory=list)
    _seen: set[tuple[int, int]] = field(default_factory=set)

    def visit(self, folder: Path, depth: int = 0, *, folders_only: bool = False) -> None:
        """Collect the checkpoints in `folder` and below it; with `folders_only` no single files."""
        try:
            status = folder.stat()
        except FileNotFoundError:
            return self.pass_over(folder, "disappeared while it was searched", warn=True)
        if (status.st_dev, status.st_ino) in self._seen:
            return self.pass_over(folder, "a link to a folder that is read already")
        if depth > _MAX_DEPTH:
            return self.pass_over(folder, "too deep in the folder that is searched", warn=True)
        self._seen.add((status.st_dev, status.st_ino))
        # Links last, so that the real folder gives the name.
        try:
            children = sorted(folder.iterdir(), key=lambda child: (child.is_symlink(), natural_key(child.name)))
        except OSError as error:
            raise CheckpointError(f"cannot be searched: {error.strerror}", subject=folder) from error
        is_checkpoint, found = is_checkpoint_folder(folder), len(self.paths)
        folders = [
            child
            for child in children
            # DeepSpeed's files in a folder of the Hugging Face Trainer are what it resumes from.
            if self._is_searched(child) and not (is_checkpoint and DEEPSPEED_TAG.search(child.name))
        ]
        if not folders_only:
            files = [child for child in children if self._is_checkpoint_file(child)]
            # Beside a model only what has a clock of its own; the rest are parts of it.
            for child in files:
                if not is_checkpoint or name_clocks(child.name).clocks:
                    self.paths.append(child)
                elif folder == self.root and re.search("[0-9]", child.name) and not child.name.startswith(_PARTS):
                    self.pass_over(child, "beside a model, and its name has no clock", warn=True)
        for child in folders:
            self.visit(child, depth + 1, folders_only=is_checkpoint or folders_only)
        if is_checkpoint and any(map(_has_clock, self.paths[found:])):
            self.pass_over(folder, "a model beside its own checkpoints")
        elif is_checkpoint:
            # What lies in it is a part of it, as the modules of a sentence-transformers model are.
            self.paths[found:] = [folder]
        elif not folders_only and folder != self.root and name_clocks(folder.name).clocks and len(self.paths) == found:
            self.pass_over(folder, "holds no weights", warn=True)
        return None

    def pass_over(self, path: Path, reason: str, *, warn: bool = False) -> None:
        """Note that `path` does not enter."""
        self.passed_over.append(PassedOver(self.name(path), reason, warn))

    def name(self, path: Path) -> str:
        """Return the path relative to the folder that is searched."""
        return path.relative_to(self.root).as_posix() if path != self.root else "(this folder)"

    def _is_searched(self, child: Path) -> bool:
        if not child.is_dir() or child.name.startswith("."):
            return False
        if child.is_symlink() and not self._is_within(child) and not is_checkpoint_folder(child):
            self.pass_over(child, "a link that leads out of the folder", warn=True)
            return False
        if is_unfinished_name(child.name):
            self.pass_over(child, "unfinished, as its name says", warn=True)
            return False
        if AVERAGES_FOLDER.search(child.name):
            self.pass_over(child, "averages, as its name says")
            return False
        return True

    def _is_within(self, child: Path) -> bool:
        return child.resolve().is_relative_to(self.root.resolve())

    def _is_checkpoint_file(self, child: Path) -> bool:
        name = child.name
        if name.startswith(".") or child.is_dir() or SHARD.search(name):
            return False
        if is_unfinished_name(name):
            self.pass_over(child, "unfinished, as its name says", warn=True)
            return False
        if not is_weights_name(name):
            return False
        if AVERAGES_FILE.search(child.name):
            self.pass_over(child, "averages, as its name says")
            return False
        if RECOVERY.search(name):
            self.pass_over(child, "saved in the middle of an epoch, for recovery")
            return False
        if not child.is_file():
            what = "a link that leads nowhere" if child.is_symlink() else "not a regular file"
            self.pass_over(child, what, warn=True)
            return False
        target = _pointer(child)
        if target is not None:
            self.pass_over(child, f"points to {target}")
            return False
        return True


def check_one_run(root: Path, paths: list[Path]) -> None:
    """Raise a RunError that lists them if the paths belong to several runs.

    A run is the folder above the first part of a path that carries a clock; without a clock, the parent.
    """
    runs: dict[str, list[Path]] = {}
    for path in paths:
        parts = path.relative_to(root).parts
        at = next((i for i, part in enumerate(parts) if name_clocks(part).clocks), len(parts) - 1)
        if at == len(parts) - 1 and COPIES.search(parts[at - 1] if at else ""):
            continue  # best/model.pt is a copy, beside step-10/model.pt
        runs.setdefault("/".join(parts[:at]), []).append(path)
    # a/model.pt, b/model.pt: one folder for each checkpoint, under names that say nothing.
    containers = all(len(group) == 1 for group in runs.values()) and len({path.name for path in paths}) == 1
    if len(runs) > 1 and not containers:
        listed = ", ".join(f"{run or '.'} ({len(group)})" for run, group in sorted(runs.items())[:8])
        raise RunError(
            f"holds the checkpoints of {len(runs)} runs: {listed}",
            subject=root,
            hint="name the folder of one run, or the checkpoints themselves",
        )


def _has_clock(path: Path) -> bool:
    return bool(name_clocks(path.name).clocks) or (path / TRAINER_STATE).is_file()


def _pointer(path: Path) -> str | None:
    """Return the sibling that a small text file names: how Composer links where there are no links."""
    try:
        if not 0 < path.stat().st_size <= _POINTER_BYTES:
            return None
        text = path.read_bytes().strip()
    except OSError:
        return None  # whoever opens it says why
    if not text or b"\0" in text or b"/" in text:
        return None
    name = os.fsdecode(text)
    if "\n" in name or len(text) > _MAX_NAME_BYTES or name == path.name:
        return None
    return name if (path.parent / name).is_file() else None
