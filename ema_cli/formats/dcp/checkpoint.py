"""Open a folder of torch.distributed.checkpoint: the model in it, its clocks, and whether it holds averages.

The folder holds all that was saved. Of that only the model's tensors are taken: those under a place for models in the
nested dict that was saved, or, where the model stands at the top, all but what is known to be something else.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from ema_cli.checkpoint import MAX_TENSORS, Checkpoint, Clock, Progress
from ema_cli.errors import CUT_SHORT, CheckpointError, EmaError, IncompleteCheckpoint, option
from ema_cli.formats.dcp.content import Metadata
from ema_cli.formats.dcp.masters import (
    buffers_error,
    can_be_taken,
    check_one_each,
    lie_in_buffers,
    masters_of,
    with_masters,
    without_masters,
)
from ema_cli.formats.dcp.metadata import read_metadata
from ema_cli.formats.dcp.model import DcpModel, find_model
from ema_cli.formats.dcp.tensors import DcpTables, DcpTensors
from ema_cli.formats.options import MASTERS_TAKEN, MASTERS_THERE, ReadOptions, no_masters_error
from ema_cli.formats.pickles.values import Inert, TensorRef
from ema_cli.formats.torch_save.file import open_torch
from ema_cli.formats.torch_save.zip_container import open_zip
from ema_cli.formats.trainers.choice import AVERAGED_MODEL, choose
from ema_cli.formats.trainers.counters import take_counters
from ema_cli.formats.trainers.dcp_layouts import DCP_BATCH_IN_EPOCH, DCP_CLOCKS, DCP_LAYOUTS, DcpLayout
from ema_cli.formats.trainers.folders import (
    DCP_FOLDERS,
    DCP_META,
    DCP_METADATA,
    OLMO_FOLDER,
    OLMO_STATE,
    OLMO_TRAIN,
    TRAINER_STATE,
)
from ema_cli.formats.trainers.layout import Selection, Sets
from ema_cli.formats.trainers.layouts import OTHERS
from ema_cli.formats.trainers.names import AVERAGED_COUNT, EXTRA_STATE
from ema_cli.formats.trainers.olmo import olmo_progress
from ema_cli.formats.trainers.places import progress_of
from ema_cli.formats.trainers.trainer_state import read_trainer_state
from ema_cli.law.time import Unit
from ema_cli.storage.location import location
from ema_cli.storage.source import FileRegion, InputFile
from ema_cli.text import some

_MAX_COUNTERS = 32  # that are read for a message


def open_folder(
    path: Path, folder: Path, options: ReadOptions, averaged: str | None = None, *, is_own: bool = False
) -> Checkpoint:
    """Read the `.metadata` of a checkpoint, and find the model in it; raise as `open_checkpoint`.

    Args:
        path: the checkpoint.
        folder: where its shards lie.
        options: what the user chose.
        averaged: how it is known from outside that the model is averages, None where it is not.
        is_own: whether ema-cli wrote it, so that all tensors are the model's.
    """
    metadata = read_metadata(location(folder / DCP_METADATA).open(), options.before)
    layout = _find_layout(folder, metadata)
    reader = _ItemReader(folder, metadata)
    try:
        model = find_model(metadata, options) if not is_own else DcpModel({name: name for name in metadata.tensors})
        selection = Selection(_trainer(path, folder, layout), model.names, Progress())
        choose(selection, _sets(model, reader, averaged or model.averaged or reader.averages_reason(layout)), options)
    except EmaError as error:
        error.about(path)
        raise
    if len(selection.tensors) > MAX_TENSORS:
        raise CheckpointError(f"holds {len(selection.tensors)} tensors; at most {MAX_TENSORS} are read", subject=path)
    names = {name: str(stored) for name, stored in selection.tensors.items()}
    masters = _find_masters(path, metadata, names, options)
    taken = names if not options.masters else {name: name for name in (*names.values(), *masters.values())}
    tables = metadata.tables(taken)
    files = _open_files(folder, tables)
    stored = DcpTensors.of(tables, files)
    try:
        tensors = with_masters(stored, names, masters) if options.masters else stored
    except CheckpointError as error:
        error.about(path)
        raise
    progress, sidecars = _sidecar_progress(path, folder)
    progress = progress if progress and progress.clocks else reader.progress()
    if options.clock_key:
        counters = {**reader.values(), **reader.counts([place for place, _ in options.clock_places])}
        progress = take_counters(progress, counters, options.clock_places)
    left_out = _left_out(path, metadata, options)
    if model.beside:
        selection.warnings.append(f"tensors beside the model, at {', '.join(model.beside[:4])}, are not taken (--key)")
    if left_out:
        selection.notes.append(f"not tensors, left out: {len(left_out)} such as '{left_out[0]}'")
    selection.notes += _notes_of_masters(metadata, stored, names, masters, options)
    return Checkpoint(
        name=path.name,
        path=path,
        tensors=tensors,
        files=(metadata.file, *files.values(), *sidecars),
        format="DCP",
        trainer=selection.trainer,
        progress=progress,
        averages=selection.averages,
        holds_both=selection.holds_both,
        resumable=any(OTHERS.match(name) for name in metadata.tensors),
        warnings=tuple(selection.warnings),
        notes=tuple(selection.notes),
        left_out=left_out,
    )


def _find_masters(path: Path, metadata: Metadata, names: dict[str, str], options: ReadOptions) -> dict[str, str]:
    """Return the names of the float32 weights of a model's tensors; where they are asked for, check them."""
    masters = masters_of(metadata, names)
    if not options.masters:
        return masters
    try:
        check_one_each(metadata, names)
    except CheckpointError as error:
        error.about(path)
        raise
    if not masters:
        raise buffers_error(path) if lie_in_buffers(metadata) else no_masters_error(path)
    return masters


def _notes_of_masters(
    metadata: Metadata, stored: DcpTensors, names: dict[str, str], masters: dict[str, str], options: ReadOptions
) -> list[str]:
    """Return what is said of float32 weights of an optimizer's: that they are taken, or could be."""
    if not masters or not any(spec.dtype.is_narrow for spec in stored.specs.values()):
        return []
    if not options.masters:  # of all tensors they are alike
        return [MASTERS_THERE] if can_be_taken(metadata, next(iter(masters.values()))) else []
    narrow = without_masters(stored, names, masters)
    return [MASTERS_TAKEN, *([f"no float32 weights of {some(narrow)}: the model's own are taken"] if narrow else [])]


def beside_the_model(metadata: InputFile) -> dict[Any, Any]:
    """Return what a folder holds beside the model, given its `.metadata`, for a message; raise as `open_checkpoint`."""
    return _ItemReader(metadata.path.parent, read_metadata(metadata)).values()


def _sets(model: DcpModel, reader: _ItemReader, averaged: str | None) -> Sets:
    """Return the model's tensors and its averages; `averaged` says why its tensors are averages themselves, if so."""
    if averaged is not None:
        return Sets(averages=model.names, why=averaged)
    if model.averages:
        return Sets(model.names, model.averages, where=model.averages_at)
    if AVERAGED_COUNT in model.names:
        begun = reader.number(model.names[AVERAGED_COUNT]) != 0
        return Sets(averages=model.names, why=AVERAGED_MODEL, begun=begun)
    return Sets(model.names)


def _find_layout(folder: Path, metadata: Metadata) -> DcpLayout | None:
    """Return the trainer's row of the table, None for an unknown trainer."""
    files = {entry.name for entry in location(folder).entries() if entry.is_file}
    return next((row for row in DCP_LAYOUTS if row.matches(metadata.tensors, metadata.items, files)), None)


def _trainer(path: Path, folder: Path, layout: DcpLayout | None) -> str | None:
    """Return who saved the folder, by its layout, else by where the shards lie in the checkpoint."""
    if layout is not None:
        return layout.trainer
    by_folder = (trainer for pattern, trainer in DCP_FOLDERS.items() if fnmatch.fnmatch(folder.name, pattern))
    return next(by_folder, None) if folder != path else None


def _left_out(path: Path, metadata: Metadata, options: ReadOptions) -> tuple[str, ...]:
    """Return the names of the model's values that are no tensors; refuse them unless they are to be copied."""
    extra = [name for name in metadata.items if EXTRA_STATE in name and not OTHERS.match(name)]
    refused = next((name for name in extra if not options.copies(name)), None)
    if refused is not None:
        raise CheckpointError(
            f"'{refused}' is no tensor, but what only the module's own code can read",
            subject=path,
            hint=f"leave it out of the average and of the output: {option('copy', f'*{EXTRA_STATE}*')}",
        )
    return tuple(extra)


def _open_files(folder: Path, tables: DcpTables) -> dict[str, InputFile]:
    """Open the files with the tensors, and check that these lie in them."""
    files = {name: _open_shard(folder, name) for name in tables.ends}
    for name, file in files.items():
        beyond = tables.reaching_over(name, file.size)
        if beyond is not None:
            raise _cut_short(file, *beyond)
    return files


def _open_shard(folder: Path, name: str) -> InputFile:
    if not location(folder / name).info().exists:
        raise IncompleteCheckpoint(f"shard '{name}' is missing", subject=folder)
    return location(folder / name).open()


def _cut_short(file: InputFile, name: str, end: int) -> IncompleteCheckpoint:
    """Return the error for a value that ends at a byte which its file does not have."""
    fact = f"cut short: '{name}' reaches to byte {end} of {file.size}"
    return IncompleteCheckpoint(fact, subject=file.path, hint=CUT_SHORT)


class _ItemReader:
    """Reads the few items beside the model that record when it was saved, and whether it is an average."""

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        self._folder = folder
        self._metadata = metadata
        self._files: dict[str, InputFile] = {}
        self._values: dict[str, object] = {}  # one item may hold several clocks

    def progress(self) -> Progress:
        """Return the clocks that are stored under known names."""
        clocks: dict[Unit, Clock] = {}
        for unit, names in DCP_CLOCKS.items():
            for name in names:
                value = self.number(name)
                if value is not None and unit not in clocks and not (value == 0 and unit in (Unit.SAMPLE, Unit.TOKEN)):
                    clocks[unit] = Clock(Fraction(value), "file")
        in_epoch = self.number(DCP_BATCH_IN_EPOCH)
        # Composer's epochs are those that began; others may count from 0 or from 1.
        return Progress(clocks, epoch_origin_unknown=in_epoch is None and Unit.EPOCH in clocks, batch_in_epoch=in_epoch)

    def averages_reason(self, layout: DcpLayout | None) -> str | None:
        """Return why the model holds averages, if an item of the trainer's says so."""
        if layout is None or layout.averages_item is None:
            return None
        names = [name for name in self._metadata.items if name.startswith(layout.averages_item)]
        return layout.averages_reason if any(layout.is_averaged(self._value(name)) for name in names) else None

    def counts(self, places: Sequence[str]) -> dict[str, int]:
        """Return the counts at the places that the user names."""
        numbers = {place: self.number(place) for place in places}
        return {place: number for place, number in numbers.items() if number is not None}

    def values(self) -> dict[Any, Any]:
        """Return what may stand beside the model: items, tensors at the top, and what meta.pt holds."""
        meta = self._folder / DCP_META
        root = open_torch(location(meta).open()).root if location(meta).info().is_file else None
        top = [name for name in self._metadata.tensors if "." not in name]
        others = [name for name in (*self._metadata.items, *top) if not OTHERS.match(name)]
        return {
            **(root if isinstance(root, dict) else {}),
            **{name: self._value(name) for name in others[:_MAX_COUNTERS]},
        }

    def number(self, name: str) -> int | None:
        """Return the count that is stored under a name, None where there is none."""
        value = self._value(name)
        return value if type(value) is int and 0 <= value < 1 << 63 else None

    def _value(self, name: str) -> Any:
        if name not in self._values:
            self._values[name] = self._read_value(name)
        return self._values[name]

    def _read_value(self, name: str) -> Any:
        if name in self._metadata.tensors:
            records = self._metadata.tensor(name).records
            record = records[0] if len(records) == 1 else None
        else:
            # Megatron says in the name which part of an object it is: common_state/shard_0_1.
            record = self._metadata.items.get(name) or self._metadata.items.get(f"{name}/shard_0_1")
        if record is None:
            # Older versions of torch store a dict without tensors as one item.
            around, _, last = name.rpartition(".")
            value = self._value(around) if around else None
            value = value.state if isinstance(value, Inert) else value
            return value.get(last) if isinstance(value, dict) else None
        file = self._files.get(record.file) or _open_shard(self._folder, record.file)
        self._files[record.file] = file
        if record.start + record.size > file.size:
            raise _cut_short(file, name, record.start + record.size)
        saved = open_zip(FileRegion(file, record.start, record.size))
        return saved.scalar(name, saved.root) if isinstance(saved.root, TensorRef) else saved.root


def _sidecar_progress(path: Path, folder: Path) -> tuple[Progress | None, tuple[InputFile, ...]]:
    """Return the clocks that lie in a file beside the shards, and that file."""
    if location(folder / DCP_META).info().is_file:
        meta = location(folder / DCP_META).open()
        root = open_torch(meta).root
        return progress_of(root) if isinstance(root, dict) else None, (meta,)
    if folder.name == OLMO_FOLDER and location(path / OLMO_TRAIN / OLMO_STATE).info().is_file:
        train = location(path / OLMO_TRAIN / OLMO_STATE).open()
        return olmo_progress(open_torch(train).root), (train,)
    if location(path / TRAINER_STATE).info().is_file:
        state = location(path / TRAINER_STATE).open()
        return read_trainer_state(state), (state,)
    return None, ()
