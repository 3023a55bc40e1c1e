"""The state of a watch on the disk: moments, each a folder with the averages as `EMA.store` writes them.

In the folder lie `first.safetensors`, the first copy, and for the newest moment, and each that is kept, a folder with
the name of its clock: an average in float32 for each law, in `rest` what was rounded off it, `watch.json` with what was
folded, and in `model` the side files of the newest checkpoint. A moment is there as a whole or not at all; the newest
is where a watch goes on.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import field
from fractions import Fraction
from pathlib import Path
from typing import Any

from ema_cli.checkpoint import AdapterSettings, Checkpoint, Pretrained, TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.dtypes import DTYPES
from ema_cli.errors import CheckpointError, EmaError, OutputError, UsageError, option
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.safetensors.file import open_checkpoint
from ema_cli.law.time import Time, Unit
from ema_cli.storage.folder_locks import close_folder, lock_folder, sync_folder
from ema_cli.storage.output_stream import output_errors
from ema_cli.storage.small_file import read_small_file
from ema_cli.storage.staging import remove_abandoned
from ema_cli.watching.past import Form, Past

JOURNAL, SIDE_FILES, REST = "watch.json", "model", "rest"
_VERSION = 1
_MOST_BYTES = 1 << 30
_GONE = "given-up"


@dataclass(frozen=True, slots=True)
class Journal:
    """What was done up to a moment.

    Attributes:
        what: what decides the averages, as `Asked.what` returns it.
        unit: that of the clocks that count.
        branch: 8 hexadecimal digits that no other watch has.
        folded: the checkpoints that entered, oldest first.
        skipped: those that did not, with the reason.
        given_up: the clocks of those that nobody waited for any longer.
        gaps: what was missed, in words.
        epochs_from_zero: whether epochs are counted from 0 in the checkpoints.
        kept: whether the moment stays when a newer one is there.
        newest: what else the newest checkpoint says of the output; see `describe`.
    """

    what: Mapping[str, Any]
    unit: Unit
    branch: str
    folded: tuple[Past, ...] = ()
    skipped: tuple[Past, ...] = ()
    given_up: tuple[str, ...] = ()
    gaps: tuple[str, ...] = ()
    epochs_from_zero: bool = False
    kept: bool = False
    newest: Mapping[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return the journal as JSON."""
        content = {
            "watch": _VERSION,
            "what": self.what,
            "unit": str(self.unit),
            "branch": self.branch,
            "folded": [past.to_dict() for past in self.folded],
            "skipped": [past.to_dict() for past in self.skipped],
            "given_up": list(self.given_up),
            "gaps": list(self.gaps),
            "epochs_from_zero": self.epochs_from_zero,
            "kept": self.kept,
            "newest": self.newest,
        }
        return json.dumps(content, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def read(cls, path: Path) -> Journal:
        """Read the journal of a moment.

        Raises:
            CheckpointError: where it is none, or cannot be read.
        """
        text = read_small_file(path, _MOST_BYTES)
        try:
            content = json.loads(text)
            if content["watch"] != _VERSION:
                raise ValueError("another version of ema-cli wrote it")
            return cls(
                content["what"],
                Unit(content["unit"]),
                str(content["branch"]),
                tuple(map(Past.from_dict, content["folded"])),
                tuple(map(Past.from_dict, content["skipped"])),
                tuple(map(str, content["given_up"])),
                tuple(map(str, content["gaps"])),
                bool(content["epochs_from_zero"]),
                bool(content["kept"]),
                content["newest"],
            )
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"is no record of a watch: {error}",
                subject=path,
                hint=f"move {path.parent} away to go on from an older moment, or from the beginning",
            ) from error


@dataclass(frozen=True, slots=True)
class Moment:
    """One moment: the averages as they were at a clock."""

    folder: Path
    journal: Journal

    @property
    def clock(self) -> Time:
        """Return its clock."""
        return Time.parse(self.folder.name)

    @property
    def newest(self) -> Past:
        """Return the checkpoint that was folded last."""
        return self.journal.folded[-1]

    def average(self, name: str) -> Checkpoint:
        """Open the average of a law.

        Raises:
            CheckpointError: where it cannot be read.
        """
        return open_checkpoint(self.folder / f"{name}.safetensors", ReadOptions(keep_prefix=True))

    def summed(self, name: str, names: frozenset[str]) -> Checkpoint:
        """Open the average of a law with what was rounded off it, as float64; `names` are the tensors of which it was.

        Raises:
            CheckpointError: where one of them cannot be read.
        """
        from ema_cli.watching.rest import opened  # which loads numpy

        path = self.folder / REST / f"{name}.safetensors"
        is_first = len(self.journal.folded) == 1
        rest = None if is_first else open_checkpoint(path, ReadOptions(keep_prefix=True))
        return opened(self.average(name), rest, names)

    def form(self, average: Checkpoint) -> Form:
        """Return what the newest checkpoint said of the output, by an average of the moment.

        Raises:
            CheckpointError: where the journal does not fit the average.
        """
        try:
            return _form(self.journal.newest, average, self.folder / SIDE_FILES)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise CheckpointError(f"is damaged: {error}", subject=self.folder / JOURNAL) from error


def describe(checkpoint: Checkpoint, renamed: Mapping[str, str]) -> dict[str, Any]:
    """Return what a checkpoint says of the output, besides the specs of its tensors, as JSON has it.

    Args:
        checkpoint: the one that is folded.
        renamed: of a model inside a file, whose configuration is in it: the names that load, by those in the file.
    """
    specs, pretrained = checkpoint.tensors.specs, checkpoint.pretrained
    narrow: dict[str, list[str]] = {}
    for name, spec in specs.items():
        if spec.dtype.is_narrow:
            narrow.setdefault(spec.dtype.name, []).append(name)
    shards = {name: checkpoint.tensors.shard(name) for name in specs} if pretrained is not None else {}
    return {
        "order": list(specs),
        "types": narrow,
        "shards": shards if len(set(shards.values())) > 1 else next(iter(shards.values()), ""),
        "pretrained": None
        if pretrained is None
        else {
            "base": pretrained.base,
            "bases": dict(pretrained.bases),
            "inside": dict(renamed) if pretrained.inner_files is not None else None,
        },
        "adapter": {
            "values": dict(checkpoint.adapter.values),
            "headers": {folder: dict(header) for folder, header in checkpoint.adapter.headers.items()},
        },
    }


@dataclass(frozen=True, slots=True)
class _KeptFiles:
    """Configuration and tokenizer that lay inside a checkpoint, and are kept; `InnerFiles`."""

    folder: Path
    names: Mapping[str, str]

    def read(self) -> Mapping[str, bytes]:
        """Return the content of the files, by name."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): read_small_file(path, _MOST_BYTES) for path in files}

    def loaded_name(self, name: str) -> str:
        """Return the name that a tensor has in a folder that loads."""
        return self.names.get(name, name)


def _form(newest: Mapping[str, Any], average: Checkpoint, side_files: Path) -> Form:
    there = average.tensors.specs
    types = {name: DTYPES[dtype] for dtype, names in newest["types"].items() for name in names}
    specs = {name: TensorSpec(types.get(name, there[name].dtype), there[name].shape) for name in newest["order"]}
    shards, described = newest["shards"], newest["pretrained"]
    pretrained = None
    if described is not None:
        inside = described["inside"]
        pretrained = Pretrained(
            str(described["base"]),
            side_files if inside is None and side_files.is_dir() else None,
            None if inside is None else _KeptFiles(side_files, inside),
            described["bases"],
        )
    adapter = newest["adapter"]
    return Form(
        specs,
        shards if isinstance(shards, dict) else dict.fromkeys(specs, str(shards)),
        pretrained,
        AdapterSettings(adapter["values"], adapter["headers"]),
    )


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make the folder of a watch, unless it is there, and keep a second watch out of it.

    Raises:
        OutputError: where another watch has it, or it cannot be made.
    """
    with output_errors(folder):
        folder.mkdir(exist_ok=True)
        lock = lock_folder(folder, required=False)
    if lock < 0:
        raise OutputError(
            "is in use: another watch writes these averages",
            subject=folder,
            hint=f"end that one first, or choose another {option('o')}",
        )
    try:
        yield
    finally:
        close_folder(lock)


def moments_in(folder: Path) -> list[Path]:
    """Return the folders of the moments, oldest first."""
    found: list[tuple[Fraction, Path]] = []
    for path in folder.iterdir():
        with suppress(UsageError, EmaError):
            clock = Time.parse(path.name)
            if str(clock) == path.name and (path / JOURNAL).is_file():
                found.append((Fraction(clock.value), path))
    return [path for _, path in sorted(found)]


def newest_moment(folder: Path, what: Mapping[str, Any]) -> Moment | None:
    """Return the moment at which a watch goes on, None where there is none yet.

    Raises:
        OutputError: where the folder is of another watch.
        CheckpointError: where its record cannot be read.
    """
    found = moments_in(folder)
    if not found:
        return None
    journal = Journal.read(found[-1] / JOURNAL)
    different = [key for key in {**what, **journal.what} if journal.what.get(key) != what.get(key)]
    if different:
        shown = "; ".join(f"{key}: {_shown(journal.what.get(key))}" for key in different)
        raise OutputError(
            f"is of another watch ({shown})",
            subject=folder,
            hint=f"say the same as then, or choose another {option('o')}; other half-lives can be made of what is kept "
            f"there, with {option('from', 'stored')}",
        )
    return Moment(found[-1], journal)


def _shown(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        return ", ".join(str(one.get("law")) for one in value)
    return json.dumps(value)


def go_back(folder: Path, clock: Time) -> list[Path]:
    """Give up all moments after a clock; return where they are now.

    Raises:
        OutputError: where no moment of that clock is kept.
    """
    found = moments_in(folder)
    wanted = [path for path in found if path.name == str(clock)]
    if not wanted:
        kept = ", ".join(path.name for path in found) or "none"
        raise OutputError(
            f"no moment is kept at {clock}; there is {kept}",
            subject=folder,
            hint=f"{option('store_every')} keeps moments to go back to",
        )
    given_up = []
    for path in reversed(found[found.index(wanted[0]) + 1 :]):  # so that the newest is right, whenever it is ended
        name = _free_name(path)
        with output_errors(path):
            path.rename(name)
        given_up.append(name)
    with output_errors(folder):
        sync_folder(folder)
    return given_up


def _free_name(path: Path) -> Path:
    numbers = (f".{number}" if number else "" for number in itertools.count())
    return next(name for end in numbers if not (name := path.with_name(f"{path.name}.{_GONE}{end}")).exists())


def drop_older(folder: Path, newest: Path) -> None:
    """Remove the moments before the newest that are not kept: each is gone as a whole, or there."""
    for path in moments_in(folder):
        if path == newest or Journal.read(path / JOURNAL).kept:
            continue
        aside = path.with_name(f".{path.name}.removed-{os.urandom(4).hex()}")
        with output_errors(path):
            path.rename(aside)
    remove_litter(folder)


def remove_litter(folder: Path) -> None:
    """Remove what a watch that was killed had not removed yet."""
    remove_abandoned(folder)
    for path in folder.glob(".*.removed-*"):
        shutil.rmtree(path, ignore_errors=True)
