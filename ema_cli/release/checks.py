"""The checks of one published average. Each file is read once, several side by side."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ema_cli.checkpoint import Checkpoint, TensorSpec
from ema_cli.errors import CheckpointError, EmaError, Missing, Unreadable, at_terminal
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.safetensors import file as safetensors_file
from ema_cli.formats.shards import open_index
from ema_cli.formats.torch_save import file as torch_file
from ema_cli.manifest.manifest import Manifest, read_manifest
from ema_cli.manifest.sums import parse_sums
from ema_cli.release.mark import mark_differences
from ema_cli.release.published import Published
from ema_cli.release.read_file import FileSum, read_file
from ema_cli.storage.location import location
from ema_cli.storage.source import InputFile
from ema_cli.system.progress import ProgressCallback
from ema_cli.system.threads import thread_errors

Places = dict[str, tuple[int, TensorSpec]]  # of each tensor of a file: its first byte, and its spec
_TICK_SECONDS = 0.1
_MAX_SUMS_BYTES = 256 << 20
_WEIGHTS = ".safetensors"
_INDEX = ".safetensors.index.json"


@dataclass(slots=True)
class Checks:
    """The checks of one average, and what they have found so far: `problems`, each with the path of its file.

    Names are relative to the folder. `outputs` (size and sha256 by name) and `sums` are what is listed; `present`
    are the files that are there, `files` those that are listed, too, and `weights` those of them that hold tensors;
    `tensors` are the names in them, each with its file.
    """

    published: Published
    problems: list[str] = field(default_factory=list)
    manifest: Manifest | None = None
    outputs: dict[str, tuple[int, str]] = field(default_factory=dict)
    sums: dict[str, str] = field(default_factory=dict)
    present: set[str] = field(default_factory=set)
    files: dict[str, InputFile] = field(default_factory=dict)
    weights: dict[str, Checkpoint] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)
    unopened: bool = False  # a file, which may hold tensors, is missing or could not be read

    def run(self, threads: int, report: ProgressCallback) -> None:
        """Make all checks; `report(done, total)` is told the bytes that have been read."""
        self._read_manifest()
        self._read_sums()
        self._compare_names()
        weights = {name: opened for name in self._weights_names() if (opened := self._open(name)) is not None}
        self.weights = weights
        places = {name: self._places(name, opened) for name, opened in weights.items()}
        sums = self._read_files(places, threads, report)
        self._compare_sums(sums)
        if self.manifest is not None:
            before = len(self.problems)
            self._compare_tensors(self.manifest, weights)
            for name, opened in weights.items():
                for fact in mark_differences(opened.mark, self.manifest, self.published.manifest.name):
                    self.say(name, fact)
            self._name_stale(sums, other=len(self.problems) > before)
            self._compare_values(self.manifest, sums)
        self._compare_index(weights)
        for file in self.files.values():
            file.check_unchanged()

    def say(self, name: str, fact: str) -> None:
        """Note what does not hold of a file, or of the folder if the name is empty."""
        self.problems.append(f"{self.published.folder / name}: {fact}")

    def _read_manifest(self) -> None:
        name = self.published.manifest.name
        if not os.path.lexists(self.published.manifest):
            self.say(name, "is missing")
            return
        try:
            self.manifest = read_manifest(self.published.manifest)
        except CheckpointError as error:
            self._say_error(name, self.published.manifest, error)
            return
        self.outputs = {each["name"]: (each["bytes"], each["sha256"]) for each in self.manifest["outputs"]}
        for kind in ("inputs", "outputs", "tensors"):
            if len({each["name"] for each in self.manifest[kind]}) < len(self.manifest[kind]):
                self.say(name, f"lists one of its {kind} twice")

    def _read_sums(self) -> None:
        path = self.published.sums
        if not os.path.lexists(path):
            self.say(path.name, "is missing")
            return
        try:
            file = location(path).open()
            if file.size > _MAX_SUMS_BYTES:
                raise CheckpointError(f"{file.size} bytes are too many for sums", subject=path)
            self.sums = parse_sums(file.read(0, file.size), str(path))
            if not self.sums:
                self.say(path.name, "lists nothing")
        except CheckpointError as error:
            self._say_error(path.name, path, error)

    def _compare_names(self) -> None:
        """Compare the names in manifest, sums and folder, and open the files that are both listed and there."""
        own, sums_name = self.published.manifest.name, self.published.sums.name
        listed = self.sums.keys() | self.outputs.keys()
        self.present = self._present(listed) - {sums_name}
        for name in sorted(listed | self.present | {own}):
            if name not in self.present:
                if name != own:  # else it is said already
                    voucher = sums_name if name in self.sums else own
                    self.say(name, f"is missing, but {voucher} lists it")
                    self.unopened = True
                continue
            if name not in listed and name != own:
                self.say(name, f"is not listed in {sums_name}")
                continue
            self._compare_lists(name)
            path = self.published.folder / name
            try:
                self.files[name] = location(path).open()
            except CheckpointError as error:
                self._say_error(name, path, error)

    def _compare_lists(self, name: str) -> None:
        own, sums_name = self.published.manifest.name, self.published.sums.name
        if self.sums and name not in self.sums:
            self.say(name, f"is not listed in {sums_name}")
        if name == own or self.manifest is None:
            return
        if name not in self.outputs:
            self.say(name, f"is not listed in {own}")
        elif self.sums.get(name, self.outputs[name][1]) != self.outputs[name][1]:
            self.say(name, f"has other sums in {sums_name} and in {own}")

    def _present(self, listed: Collection[str]) -> set[str]:
        """Return the files that are there. What is hidden is not looked for: it is of git, or of the Hub."""
        if not self.published.is_folder:
            beside = (self.published.path, self.published.manifest, self.published.sums)
            return {path.name for path in beside if os.path.lexists(path)}

        def fail(error: OSError) -> None:
            raise CheckpointError(f"cannot be looked into: {error.strerror}", subject=error.filename) from error

        root, found = self.published.path, set[str]()
        for where, folders, names in os.walk(root, onerror=fail):
            inside = Path(where).relative_to(root)
            folders[:] = sorted(each for each in folders if not each.startswith("."))
            links = [each for each in folders if (Path(where) / each).is_symlink()]  # which are not entered
            paths = [(inside / name).as_posix() for name in (*names, *links)]
            found.update(path for path in paths if path in listed or not path.rpartition("/")[2].startswith("."))
        return found

    def _weights_names(self) -> list[str]:
        """Return the names of the files that hold tensors."""
        if not self.published.is_folder:
            return [name for name in (self.published.path.name,) if name in self.files]
        return [name for name in self.files if "/" not in name and name.lower().endswith(_WEIGHTS)]

    def _open(self, name: str) -> Checkpoint | None:
        """Return the tensors of a file by our own reader, if the official one finds the same."""
        path, is_safetensors = self.published.folder / name, name.lower().endswith(_WEIGHTS)
        reader = safetensors_file if is_safetensors else torch_file
        try:
            checkpoint: Checkpoint = reader.open_checkpoint(path, ReadOptions())
        except EmaError as error:
            self._say_error(name, path, error)
            self.unopened = True
            return None
        if is_safetensors:
            self._read_officially(name, path, checkpoint.tensors.specs)
        return checkpoint

    def _read_officially(self, name: str, path: Path, specs: Mapping[str, TensorSpec]) -> None:
        try:
            with safe_open(path, framework="np") as reader:
                different = reader.keys() ^ specs.keys() if len(reader.keys()) != len(specs) else set()
                for tensor in () if different else specs:
                    found = reader.get_slice(tensor)
                    spec = specs[tensor]
                    if found.get_dtype() != spec.dtype.name or tuple(found.get_shape()) != spec.shape:
                        different.add(tensor)
        except SafetensorError as error:
            self.say(name, f"is not read by safetensors: {error}")
        except OSError as error:
            raise CheckpointError(f"cannot be read: {error.strerror or error}", subject=path) from error
        else:
            if different:
                self.say(name, f"reads otherwise with safetensors: '{min(different)}'")

    def _places(self, name: str, opened: Checkpoint) -> Places:
        """Return where the tensors of a file begin in it."""
        found: Places = {}
        weights, end = opened.tensors, 0
        located = [
            (place[1] if place else -1, tensor) for tensor in weights.specs for place in [weights.locate(tensor)]
        ]
        for begin, tensor in sorted(located):
            spec = weights.specs[tensor]
            # Only torch's files can do either; in those of ema-cli each tensor has bytes of its own, in order.
            if begin < 0 or (begin < end and spec.nbytes):
                self.say(name, f"'{tensor}' {'is a view' if begin < 0 else 'shares its bytes with another'}")
                continue
            found[tensor] = (begin, spec)
            end = begin + spec.nbytes
        return found

    def _read_files(self, places: Mapping[str, Places], threads: int, report: ProgressCallback) -> dict[str, FileSum]:
        """Return the sum of each file, and of its tensors which are not finite: each is read once."""
        total, done, stopped = sum(file.size for file in self.files.values()), 0, False

        def count(nbytes: int) -> None:
            nonlocal done
            done += nbytes  # two at once may count as one: it is only told
            if stopped:
                raise InterruptedError

        with ThreadPoolExecutor(threads, "sha256") as hasher, ThreadPoolExecutor(threads, "verify") as pool:
            try:
                with thread_errors():
                    tasks = {
                        name: pool.submit(read_file, self.files[name], places.get(name, {}), hasher, count)
                        for name in sorted(self.files, key=lambda name: -self.files[name].size)
                    }
                    waiting = set(tasks.values())
                    while waiting:
                        finished, waiting = wait(waiting, _TICK_SECONDS)
                        for each in finished:
                            each.result()
                        report(done, total)
            finally:
                # However this ends, the other threads stop at their next block.
                stopped = True
                pool.shutdown(wait=False, cancel_futures=True)
        return {name: tasks[name].result() for name in self.files}

    def _compare_sums(self, found: Mapping[str, FileSum]) -> None:
        """Compare the sums of the files with those that are listed."""
        sums_name, own = self.published.sums.name, self.published.manifest.name
        for name, each in found.items():
            size, listed = self.outputs.get(name, (None, None))
            if size is not None and size != self.files[name].size:
                self.say(name, f"holds {self.files[name].size} bytes, but {size} in {own}")
            for said, where in ((self.sums.get(name), sums_name), (listed, own)):
                if said is not None and said != each.sha256:
                    self.say(name, f"its sha256 is {each.sha256[:12]}..., but {said[:12]}... in {where}")

    def _compare_tensors(self, manifest: Manifest, weights: Mapping[str, Checkpoint]) -> None:
        """Compare names, dtypes, shapes and sizes of all tensors with those of the manifest."""
        rows, own = {row["name"]: row for row in manifest["tensors"]}, self.published.manifest.name
        for name, checkpoint in weights.items():
            for tensor, spec in checkpoint.tensors.specs.items():
                if tensor in self.tensors:
                    self.say(name, f"'{tensor}' is in {self.tensors[tensor]}, too")
                self.tensors[tensor] = name
                row = rows.get(tensor)
                if row is None:
                    self.say(name, f"'{tensor}' is not listed in {own}")
                    continue
                said = f"{row['dtype']} [{', '.join(map(str, row['shape']))}]"
                if said != str(spec):
                    self.say(name, f"'{tensor}' is {spec}, but {said} in {own}")
                elif row["bytes"] != spec.nbytes:
                    self.say(name, f"'{tensor}' takes {spec.nbytes} bytes, but {row['bytes']} in {own}")
        if not self.unopened:
            for tensor in sorted(rows.keys() - self.tensors.keys()):
                self.say(own, f"lists '{tensor}', which is in no file")

    def _name_stale(self, found: Mapping[str, FileSum], *, other: bool) -> None:
        """Say first of all where manifest and sums lie beside a file that is not theirs, but whole.

        A run that was killed leaves the new ones beside the old file; and files are replaced by hand. `other`: it has
        other tensors, or metadata, than the manifest says. Else only one of the two that does not fit is stale: if
        neither does, the file may be damaged as well.
        """
        name = self.published.path.name
        if self.published.is_folder or name not in found or name not in self.sums or name not in self.outputs:
            return
        unlike = {
            self.published.manifest.name: self.outputs[name][1] != found[name].sha256,
            self.published.sums.name: self.sums[name] != found[name].sha256,
        }
        stale = [each for each, differs in unlike.items() if differs and (other or not all(unlike.values()))]
        if stale:
            fact = f"{' and '.join(stale)} {'is' if len(stale) == 1 else 'are'} of another {name}"
            self.problems.insert(0, f"{self.published.path}: {fact}; write it again with --force")

    def _compare_values(self, manifest: Manifest, found: Mapping[str, FileSum]) -> None:
        """Check that averaged tensors hold neither NaN nor infinity, but those of which the manifest says so."""
        finite = {row["name"] for row in manifest["tensors"] if row["averaged"] and not row["non_finite"]}
        for name, each in found.items():
            for tensor, wrong in sorted(each.not_finite.items()):
                if tensor in finite:
                    more = f" and {wrong.count - 1:,} more" if wrong.count > 1 else ""
                    self.say(name, f"'{tensor}' is not finite at element {wrong.first}{more}")

    def _compare_index(self, weights: Mapping[str, Checkpoint]) -> None:
        """Check that the index of a folder in shards says which tensor is in which of them."""
        if not self.published.is_folder or self.unopened:
            return
        indexes = [name for name in self.files if "/" not in name and name.endswith(_INDEX)]
        if len(weights) > 1 and not indexes:
            self.say("", f"holds {len(weights)} files of weights, but no index of them")
        for name in indexes:
            path = self.published.path / name
            try:
                _, parts = open_index(path, lambda part: safetensors_file.open_checkpoint(part, ReadOptions()))
            except EmaError as error:
                self._say_error(name, path, error)
                continue
            for missing in sorted(weights.keys() - {part.path.name for part in parts}):
                self.say(name, f"does not name {missing}")

    def _say_error(self, name: str, path: Path, error: EmaError) -> None:
        """Note what is wrong with a file; but what only this process cannot read, is an error."""
        if isinstance(error, Unreadable) and not isinstance(error, Missing):
            raise error
        self.say(name, error.message(at_terminal, known=path))
