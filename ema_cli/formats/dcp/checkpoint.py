"""What a folder of torch.distributed.checkpoint holds: of torchtitan, FSDP, Lightning, Composer, NeMo, ...

The folder holds all that was saved. Of that only the model's tensors are taken: those under a place for models in the
nested dict that was saved, or, where the model stands at the top, all but what is known to be something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from ema_cli.checkpoint import MAX_TENSORS, Checkpoint, Clock, Progress
from ema_cli.errors import CheckpointError, EmaError, IncompleteCheckpoint, option
from ema_cli.formats.dcp.metadata import Metadata, Record, StoredTensor, read_metadata
from ema_cli.formats.dcp.model import FoundModel, find_model
from ema_cli.formats.dcp.tensors import DcpTensors
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.pickles.values import TensorRef
from ema_cli.formats.torch_save.file import open_torch
from ema_cli.formats.torch_save.zip_container import open_zip
from ema_cli.formats.trainers.choice import Found, choose, choose_bare, refuse_raw
from ema_cli.formats.trainers.layouts import DCP_CLOCKS, DCP_META, DCP_METADATA, DCP_OTHERS, EXTRA_STATE, TRAINER_STATE
from ema_cli.formats.trainers.places import progress_of
from ema_cli.formats.trainers.trainer_state import read_trainer_state
from ema_cli.law.time import Unit
from ema_cli.storage.location import location
from ema_cli.storage.source import FileRegion, InputFile


def open_folder(path: Path, folder: Path, options: ReadOptions) -> Checkpoint:
    """Read the `.metadata` of the checkpoint at `path`, whose shards lie in `folder`; raise as `open_checkpoint`."""
    metadata = read_metadata(location(folder / DCP_METADATA).open())
    reader = _Reader(folder, metadata)
    try:
        model = find_model(metadata, options)
        found = Found(_trainer(path, folder, metadata), model.names, Progress())
        _choose(found, model, reader, options)
    except EmaError as error:
        error.about(path)
        raise
    if len(found.tensors) > MAX_TENSORS:
        raise CheckpointError(f"holds {len(found.tensors)} tensors; at most {MAX_TENSORS} are read", subject=path)
    tensors = {name: metadata.tensor(str(stored)) for name, stored in found.tensors.items()}
    files = _open_files(folder, tensors)
    progress, sidecars = _sidecar_progress(path, folder)
    left_out = _left_out(path, metadata, options)
    if model.beside:
        found.notes.append(f"tensors beside the model, at {', '.join(model.beside[:4])}, are not taken (--key)")
    if left_out:
        found.notes.append(f"not tensors, left out: {len(left_out)} such as '{left_out[0]}'")
    return Checkpoint(
        name=path.name,
        path=path,
        tensors=DcpTensors.of(tensors, files),
        files=(metadata.file, *files.values(), *sidecars),
        format="DCP",
        trainer=found.trainer,
        progress=progress if progress and progress.clocks else reader.progress(),
        averages=found.averages,
        notes=tuple(found.notes),
        left_out=left_out,
    )


def _choose(found: Found, model: FoundModel, reader: _Reader, options: ReadOptions) -> None:
    """Settle which of the model's tensors to take: its own, or its averages."""
    averaged = model.averaged or reader.composer_averages()
    if averaged is not None:
        refuse_raw(found, averaged, options)
    elif model.averages:
        choose(found, raw=model.names, averages=model.averages, options=options, where=model.averages_at)
    else:
        choose_bare(found, options)


def _trainer(path: Path, folder: Path, metadata: Metadata) -> str | None:
    if "state.timestamp.Timestamp.batch" in metadata.items or any(
        name.startswith("state.model.") for name in metadata.tensors
    ):
        return "Composer"
    if location(folder / DCP_META).info().is_file:
        return "Lightning"  # or its Fabric
    if any(name.startswith("train_state.") or name == "train_state" for name in [*metadata.tensors, *metadata.items]):
        return "torchtitan"
    by_folder = {"model_and_optim": "OLMo-core", "weights": "NeMo"}
    if folder != path:
        return by_folder.get(folder.name, "accelerate")
    return None


def _left_out(path: Path, metadata: Metadata, options: ReadOptions) -> tuple[str, ...]:
    """Return what belongs to the model but is no tensor; raise an error unless the user lets it pass."""
    extra = [name for name in metadata.items if EXTRA_STATE in name and not DCP_OTHERS.match(name)]
    refused = next((name for name in extra if not options.copies(name)), None)
    if refused is not None:
        raise CheckpointError(
            f"'{refused}' is no tensor, but what only the module's own code can read",
            subject=path,
            hint=f"leave it out of the average and of the output: {option('copy', f'*{EXTRA_STATE}*')}",
        )
    return tuple(extra)


def _open_files(folder: Path, tensors: Mapping[str, StoredTensor]) -> dict[str, InputFile]:
    files: dict[str, InputFile] = {}
    for name, tensor in tensors.items():
        for record in tensor.records:
            _check_record(folder, name, record, files)
    return files


def _check_record(folder: Path, name: str, record: Record, files: dict[str, InputFile]) -> None:
    """Open the file of a record, once, and check that the record lies in it."""
    if record.file not in files:
        if not location(folder / record.file).info().exists:
            raise IncompleteCheckpoint(f"shard '{record.file}' is missing", subject=folder)
        files[record.file] = location(folder / record.file).open()
    if record.start + record.size > files[record.file].size:
        raise IncompleteCheckpoint(
            f"{folder / record.file}: cut short: '{name}' reaches to byte {record.start + record.size} "
            f"of {files[record.file].size}",
            hint="its writer did not finish",
        )


class _Reader:
    """Reads the few items beside the model that say when it was saved, and whether it is an average."""

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        self.folder = folder
        self.metadata = metadata
        self.files: dict[str, InputFile] = {}
        self.values: dict[str, Any] = {}  # one item may hold several clocks

    def progress(self) -> Progress:
        """Return the clocks that are stored under the names we know."""
        clocks: dict[Unit, Clock] = {}
        for unit, names in DCP_CLOCKS.items():
            for name in names:
                value = self._number(name)
                if value is not None and unit not in clocks and not (value == 0 and unit in (Unit.SAMPLE, Unit.TOKEN)):
                    clocks[unit] = Clock(Fraction(value), "file")
        in_epoch = self._number("state.timestamp.Timestamp.batch_in_epoch")
        # Composer's epochs are those that began; others may count from 0 or from 1.
        return Progress(clocks, epoch_origin_unknown=in_epoch is None and Unit.EPOCH in clocks, batch_in_epoch=in_epoch)

    def composer_averages(self) -> str | None:
        """Return why the model holds averages, if Composer's EMA was on."""
        for name in self.metadata.items:
            if name.startswith("state.algorithms"):
                value = self._value(name)
                if _mentions_active(value):
                    return "Composer's EMA was on: 'state.model' holds averages"
        return None

    def _number(self, name: str) -> int | None:
        value = self._value(name)
        return value if type(value) is int and 0 <= value < 1 << 63 else None

    def _value(self, name: str) -> Any:
        if name not in self.values:
            self.values[name] = self._read_value(name)
        return self.values[name]

    def _read_value(self, name: str) -> Any:
        if name in self.metadata.tensors:
            records = self.metadata.tensor(name).records
            record = records[0] if len(records) == 1 else None
        else:
            record = self.metadata.items.get(name)
        if record is None:
            # Older versions of torch store a dict without tensors as one item.
            around, _, last = name.rpartition(".")
            value = self._value(around) if around else None
            return value.get(last) if isinstance(value, dict) else None
        _check_record(self.folder, name, record, self.files)
        saved = open_zip(FileRegion(self.files[record.file], record.start, record.size))
        return saved.scalar(name, saved.root) if isinstance(saved.root, TensorRef) else saved.root


def _mentions_active(value: Any) -> bool:
    """Return whether the states of Composer's algorithms, pairs of name and state, say that averages are swapped in."""
    for entry in value if isinstance(value, list) else [value]:
        state = entry[1] if isinstance(entry, list | tuple) and len(entry) == 2 else entry
        if isinstance(state, dict) and state.get("ema_weights_active") is True:
            return True
    return False


def _sidecar_progress(path: Path, folder: Path) -> tuple[Progress | None, tuple[InputFile, ...]]:
    """Return the clocks that lie in a file beside the shards, and that file."""
    if location(folder / DCP_META).info().is_file:
        meta = location(folder / DCP_META).open()
        root = open_torch(meta).root
        return progress_of(root) if isinstance(root, dict) else None, (meta,)
    if location(path / TRAINER_STATE).info().is_file:
        state = location(path / TRAINER_STATE).open()
        return read_trainer_state(state), (state,)
    return None, ()
