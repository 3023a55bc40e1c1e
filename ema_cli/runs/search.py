"""Search a folder for checkpoints as trainers fill it; list passed-over paths, with reasons. Reads no tensors."""

from __future__ import annotations

import re
from dataclasses import field
from pathlib import Path

from ema_cli.dataclass import dataclass
from ema_cli.errors import RunError
from ema_cli.formats import is_checkpoint_folder
from ema_cli.formats.arrays.reader import is_other_archive
from ema_cli.formats.folders.items import holds_items
from ema_cli.formats.folders.processors import processor_states
from ema_cli.formats.options import ReadOptions, no_component_error
from ema_cli.formats.trainers.folders import BASES, DEEPSPEED_TAG, EXTRAS, SHARD
from ema_cli.formats.trainers.names import (
    AVERAGES_FILE,
    AVERAGES_FOLDER,
    FOREIGN_SUFFIXES,
    RECOVERY,
    component_name,
    is_unfinished_name,
    is_weights_name,
    name_clocks,
)
from ema_cli.formats.trainers.part_names import is_called, parts_of
from ema_cli.runs.beside import Beside, by_kind
from ema_cli.runs.clues import has_clock, has_clock_in, names_below, pointer
from ema_cli.runs.members import component_of
from ema_cli.runs.passed_over import PassedOver
from ema_cli.storage.info import Entry, Identity
from ema_cli.storage.location import location, names_in
from ema_cli.text import natural_key

AS_ITS_NAME_SAYS = "averages, as its name says"
_MAX_DEPTH = 16
_PARTS = tuple({*BASES, *BASES.values(), *EXTRAS})  # the first parts of the file names of a folder's own model


@dataclass(slots=True)
class Search:
    """The contents of a folder: paths that look like checkpoints, in natural order, and paths that are passed over.

    Attributes:
        root: the folder.
        options: how files beside a model are read, where only their tensors tell what they are.
        paths: what looks like a checkpoint.
        passed_over: what does not enter.
        weightless: folders that have a clock in their name, as checkpoints have, and hold no weights.
        foreign: files of models in formats that are not read, by their suffixes.
        averages: files and folders that a name calls averages, with the checkpoints there: contents decide.
        final_models: folders of models beside their own checkpoints.
    """

    root: Path
    options: ReadOptions = field(default_factory=ReadOptions)
    paths: list[Path] = field(default_factory=list)
    passed_over: list[PassedOver] = field(default_factory=list)
    weightless: list[Path] = field(default_factory=list)
    foreign: list[Path] = field(default_factory=list)
    averages: dict[Path, list[Path]] = field(default_factory=dict)
    final_models: list[Path] = field(default_factory=list)
    _visited: set[Identity | None] = field(default_factory=set)

    def visit(self, folder: Path, depth: int = 0, *, around: Beside | None = None) -> None:
        """Collect the checkpoints in `folder` and below it.

        Args:
            folder: the root, or a folder below it.
            depth: the number of folders from the root to it.
            around: of the model in a folder around this one, if there is one: other single files are parts of it.

        Raises:
            CheckpointError: if a folder cannot be listed.
        """
        if not self._is_entered(folder, depth):
            return
        # Links last, so that the real folder gives the name.
        entries = sorted(location(folder).entries(), key=lambda entry: (entry.is_link, natural_key(entry.name)))
        is_checkpoint, first, first_weightless = is_checkpoint_folder(folder), len(self.paths), len(self.weightless)
        folders = [
            entry
            for entry in entries
            # In a folder of the Hugging Face Trainer, DeepSpeed's folder only serves to resume.
            if self._is_searched(entry) and not (is_checkpoint and DEEPSPEED_TAG.search(entry.name))
        ]
        folders = self._first_ranks(folders)
        called = [entry for entry in folders if AVERAGES_FOLDER.search(entry.name)]
        folders = [entry for entry in folders if entry not in called]
        beside = Beside(folder, self.options, is_root=folder == self.root) if is_checkpoint else around
        has_items = is_checkpoint and holds_items(folder, [entry.name for entry in entries])
        files = self._checkpoint_files(
            [entry for entry in entries if not has_items and (is_checkpoint or not around or has_clock_in(entry))]
        )
        called_files = [path for path in files if AVERAGES_FILE.search(path.name)]
        side_files = self._add_files([path for path in files if path not in called_files], beside)
        for entry in folders:
            self.visit(entry.path, depth + 1, around=beside)
        inside = self.paths[first:]
        self._add_averages(called_files, called, depth + 1, are_parts=beside is not None)
        self._pass_over_side_files(side_files, beside, is_asked=is_checkpoint and folder == self.root and not inside)
        if is_checkpoint and beside is not None and _are_checkpoints(inside, beside):
            self.pass_over(folder, "a model beside its own checkpoints")
            self.final_models.append(folder)
        elif is_checkpoint:
            # Checkpoints inside it are its parts, as the modules of a sentence-transformers model.
            self.paths[first:] = [folder]
            del self.weightless[first_weightless:]
            for path in filter(has_clock, inside):
                self.pass_over(path, "inside the folder of a checkpoint", warn=True)
        elif folder != self.root and name_clocks(folder.name).clocks and not inside:
            self.weightless.append(folder)

    def pass_over(self, path: Path, reason: str, *, warn: bool = False, unfinished: bool = False) -> None:
        """Add `path` to the paths that do not enter."""
        self.passed_over.append(PassedOver(self.name(path), reason, warn, unfinished=unfinished))

    def choose(self, component: str) -> None:
        """Keep one of several models of each moment, if a file or folder has the name; else a format may know it.

        Raises:
            UsageError: where no file has the name, and there are only files.
        """
        components = {path: component_of(self.root, path) for path in self.paths}
        # Beside each other, as G_1000.pth and D_1000.pth, files have the number of the moment in their names.
        by_name = {path: component_name(path.name) for path in self.paths if location(path).info().is_file}
        chosen = [path for path, name in components.items() if name == component]
        chosen = chosen or [path for path, name in by_name.items() if name == component]
        beside = {by_name.get(path) if path.parent == self.root else name for path, name in components.items()}
        known = sorted(filter(None, beside))
        if not chosen and len(known) > 1 and not any(location(path).info().is_folder for path in self.paths):
            raise no_component_error(self.root, component, known)
        for path in self.paths if chosen else ():
            if path not in chosen:
                self.pass_over(path, f"not '{component}'")
        self.paths = chosen or self.paths

    def name(self, path: Path) -> str:
        """Return the path relative to the folder that is searched."""
        return path.relative_to(self.root).as_posix() if path != self.root else "(this folder)"

    def _is_entered(self, folder: Path, depth: int) -> bool:
        """Return whether the folder exists, was not searched before, and is not too deep; if not, note the reason."""
        info = location(folder).info()
        if not info.exists:
            self.pass_over(folder, "disappeared while it was searched", warn=True)
        elif info.identity in self._visited:
            self.pass_over(folder, "a link to a folder that is read already")
        elif depth > _MAX_DEPTH:
            self.pass_over(folder, "too deep in the folder that is searched", warn=True)
        else:
            self._visited.add(info.identity)
            return True
        return False

    def _checkpoint_files(self, entries: list[Entry]) -> list[Path]:
        """Return the files that look like checkpoints: of the parts of one model the first."""
        names = {entry.name for entry in entries if not entry.is_folder}
        files = []
        for entry in entries:
            if self._is_checkpoint_file(entry):
                parts = parts_of(entry.name, names.__contains__)
                if entry.name == next(filter(names.__contains__, parts), entry.name):
                    files.append(entry.path)
        return files

    def _first_ranks(self, folders: list[Entry]) -> list[Entry]:
        """Return the folders without those of further ranks, whose parts of a model are read with the first one's."""
        names = {entry.name for entry in folders}
        kept = []
        for entry in folders:
            first = next(filter(names.__contains__, parts_of(entry.name, names.__contains__)), entry.name)
            is_alone = first == entry.name or is_called(entry.name, names_below(entry.path))
            if is_alone or names_in(entry.path).isdisjoint(names_in(entry.path.with_name(first))):
                kept.append(entry)
            else:
                self.pass_over(entry.path, f"read together with {first}, the folder of another part")
        return kept

    def _add_files(self, files: list[Path], beside: Beside | None) -> list[Path]:
        """Add single-file checkpoints; return those that are side files of the folder's model instead."""
        if beside is None:
            self.paths += files
            return []
        side_files = []
        has_known_name = any(file.name.startswith(_PARTS) for file in files)  # else they may be the model itself
        for kind in by_kind([file for file in files if re.search("[0-9]", file.name)]):
            if name_clocks(kind[0].name).clocks and beside.are_checkpoints(kind):
                self.paths += kind
            elif name_clocks(kind[0].name).clocks or (has_known_name and not kind[0].name.startswith(_PARTS)):
                side_files += kind
        return side_files

    def _pass_over_side_files(self, side_files: list[Path], beside: Beside | None, *, is_asked: bool) -> None:
        """Pass over the files beside a model that are no checkpoints of it.

        Raises:
            RunError: where `is_asked`, if some have growing clocks: then either they or the model may be meant.
        """
        folder = side_files[0].parent if side_files else self.root
        copied = processor_states(folder, names_in(folder)) if side_files else ()  # the output has them, too
        for kind in by_kind([file for file in side_files if file.name not in copied]):
            has_clock = bool(name_clocks(kind[0].name).clocks)
            if is_asked and has_clock and len(kind) > 1 and not (beside and beside.is_one_state):
                raise RunError(
                    f"holds a model, and {len(kind)} files with clocks in their names and other tensors than it: "
                    f"{kind[0].name}, ...",
                    subject=self.root,
                    hint="name the files of one of the two",
                )
            for file in kind:
                reason = "beside the folder's own model" if has_clock else "beside a model, and its name has no clock"
                self.pass_over(file, reason, warn=True)

    def _is_searched(self, entry: Entry) -> bool:
        """Return whether the entry is a folder to search; note the reason if a folder is not."""
        if not entry.is_folder or entry.name.startswith("."):
            return False
        if entry.is_link and not self._is_within(entry.path) and not is_checkpoint_folder(entry.path):
            self.pass_over(entry.path, "a link that leads out of the folder", warn=True)
            return False
        if is_unfinished_name(entry.name):
            self.pass_over(entry.path, "unfinished, as its name says", warn=True, unfinished=True)
            return False
        return True

    def _add_averages(self, files: list[Path], folders: list[Entry], depth: int, *, are_parts: bool) -> None:
        """Add what a name calls averages; in the folder of a checkpoint these are its own, and passed over.

        Args:
            files: files of such names.
            folders: folders of such names.
            depth: the number of folders from the root to them.
            are_parts: whether they are in the folder of a checkpoint.
        """
        for path in (*files, *(entry.path for entry in folders)):
            if are_parts:
                self.pass_over(path, AS_ITS_NAME_SAYS)
                continue
            inner = Search(self.root, self.options, _visited=self._visited)
            if path in files:
                inner.paths.append(path)
            else:
                inner.visit(path, depth)
            if inner.paths:
                self.averages[path] = inner.paths

    def _is_within(self, path: Path) -> bool:
        return location(path).resolve().is_relative_to(location(self.root).resolve())

    def _is_checkpoint_file(self, entry: Entry) -> bool:
        """Return whether the entry is a checkpoint file; note the reason if a likely file is not."""
        name, path = entry.name, entry.path
        if name.startswith(".") or entry.is_folder or SHARD.search(name):
            return False
        if is_unfinished_name(name):
            self.pass_over(path, "unfinished, as its name says", warn=True, unfinished=True)
            return False
        if not is_weights_name(name):
            if entry.is_file and name.lower().endswith(FOREIGN_SUFFIXES):
                self.foreign.append(path)
            return False
        if RECOVERY.search(name):
            self.pass_over(path, "saved in the middle of an epoch, for recovery")
            return False
        if not entry.is_file:
            self.pass_over(path, "a link that leads nowhere" if entry.is_link else "not a regular file", warn=True)
            return False
        if is_other_archive(path):
            self.pass_over(path, "a zip archive without weights")
            return False
        target = pointer(path)
        if target is not None:
            self.pass_over(path, f"points to {target}")
            return False
        return True


def _are_checkpoints(paths: list[Path], beside: Beside) -> bool:
    """Return whether a folder's model is one beside its own checkpoints, which are at these paths in the folder."""
    clocked = [path for path in paths if has_clock(path)]
    return bool(clocked) and (not beside.is_one_state or beside.are_checkpoints(clocked))
