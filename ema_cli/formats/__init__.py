"""Checkpoints of any format: one reader per container, asked in turn.

A new format is a module with a `READER`, an entry in `READERS`, and the suffix of its files in `trainers/names.py`.
No reader imports torch. May import checkpoint and what is below it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import CUT_SHORT, CheckpointError, EmaError, IncompleteCheckpoint, NoSuchWeights, NoWeights
from ema_cli.formats.arrays import orbax_folder
from ema_cli.formats.arrays import reader as arrays
from ema_cli.formats.dcp import directory as dcp_directory
from ema_cli.formats.folders import deepspeed, items, olmo, parts, refused, resumable, several
from ema_cli.formats.folders.huggingface import open_tensors
from ema_cli.formats.mark import described_by
from ema_cli.formats.optimizer_beside import trained_schedule_free_beside
from ema_cli.formats.options import ReadOptions, no_masters_error, one_model_error
from ema_cli.formats.reader import Reader
from ema_cli.formats.safetensors import file as safetensors_file
from ema_cli.formats.shards import ReplacedTensors, ShardedTensors
from ema_cli.formats.torch_save import file as torch_file
from ema_cli.formats.trainers.choice import AVERAGED_AGAIN, WITHOUT_EMA
from ema_cli.formats.trainers.folders import AVERAGES_INSIDE
from ema_cli.formats.trainers.names import averages_file, component_name, stem
from ema_cli.formats.trainers.prefixes import strip_prefixes
from ema_cli.formats.trainers.sidecars import add_sidecar_clocks
from ema_cli.storage.location import location, names_in
from ema_cli.storage.store.header_cache import opening

WHAT_IS_READ = (
    "read: .safetensors, files of torch.save (.pt .pth .bin .ckpt .tar), .npz .nemo .pdparams .msgpack, "
    "stable-baselines3's .zip, folders of Hugging Face, torch.distributed.checkpoint, DeepSpeed and Orbax"
)

# Most specific first; the first that matches opens the checkpoint.
READERS: tuple[Reader, ...] = (
    parts.RANKS_READER,
    resumable.READER,
    several.READER,
    dcp_directory.READER,
    deepspeed.READER,
    items.READER,
    olmo.READER,
    parts.READER,
    orbax_folder.READER,
    arrays.READER,
    refused.READER,
    safetensors_file.READER,
    torch_file.READER,
)


def is_checkpoint_folder(folder: Path) -> bool:
    """Return whether the folder itself is one checkpoint, read or refused."""
    return _reader_of(folder) is not None


def weights_in(path: Path) -> str | None:
    """Return in words which weights a file holds: a checkpoint's, an average's; None where it is of no such format.

    For a file that a user names where something else is wanted, so that an error can say what it is.
    """
    if not location(path).info().is_file or _reader_of(path) is None:
        return None
    try:
        mark = open_checkpoint(path).mark
    except NoWeights:
        return None
    except EmaError:
        return "looks like a checkpoint"
    return "is a checkpoint" if mark is None else "is an average of ema-cli's"


def _reader_of(path: Path) -> Reader | None:
    """Return the reader of what lies at a path, None where there is none."""
    is_folder = location(path).info().is_folder
    asked = (reader for reader in READERS if (reader.folders if is_folder else reader.files))
    return next((reader for reader in asked if reader.matches(path)), None)


@opening()
def open_checkpoint(path: Path, options: ReadOptions | None = None) -> Checkpoint:
    """Read the headers of the checkpoint at `path`, a file or a directory.

    Raises:
        IncompleteCheckpoint: where its writer is not done, or died.
        NoWeights: for a readable file without model weights.
        CheckpointError: for everything else that cannot be read, or must not be.
        RunError: where `options.weights` asks for weights that are not there.
        UsageError: where another option does not fit what is there.
    """
    options = options or ReadOptions()
    if options.component is not None and _is_chosen(path, options.component):
        options = replace(options, component=None)
    reader = _reader_of(path)
    if reader is not None:
        if options.component is not None and not reader.takes_component:
            raise one_model_error(path)
        if options.masters and not reader.takes_masters:
            other = open_checkpoint(path, replace(options, masters=False))
            if other.mark is None:
                raise no_masters_error(path)
            return other  # an average of ours, which is passed over in its run
        try:
            opened = reader.open(path, options)
        except NoSuchWeights:
            beside = _averages_in(path) if options.weights == "ema" else None
            if beside is not None:
                return _open_averages(path, beside, options)
            if options.weights != "ema" or trained_schedule_free_beside(path) is not False:
                raise
            averages = open_checkpoint(path, replace(options, weights=None))
            return replace(averages, averages=None, warnings=(*averages.warnings, AVERAGED_AGAIN))
        if isinstance(opened.tensors, ShardedTensors) and opened.tensors.copies:
            from ema_cli.formats.copies.agreement import check_agreement  # which few checkpoints need

            opened = check_agreement(opened, options)
        checkpoint = add_sidecar_clocks(opened, lambda file: torch_file.open_torch(file).root)
        return checkpoint if options.keep_prefix else strip_prefixes(checkpoint)
    info = location(path).info()
    if info.is_folder:
        raise CheckpointError("a folder without a checkpoint", subject=path, hint=WHAT_IS_READ)
    if info.is_file and info.size < 8:
        fact = f"is cut short, or no checkpoint: {info.size} bytes" if info.size else "is empty"
        raise IncompleteCheckpoint(fact, subject=path, hint=CUT_SHORT)
    location(path).open()  # which says so if it cannot be read at all
    average = described_by(path)
    if info.is_file and average is not None and location(average).info().exists:
        raise NoWeights(f"holds no weights: it tells of {average}", subject=path, hint=f"name that: {average}")
    raise NoWeights("not a checkpoint of a format that is read", subject=path, hint=WHAT_IS_READ)


def _averages_in(path: Path) -> Path | None:
    """Return the folder, the file or the index in a checkpoint's folder that its name calls averages."""
    names = names_in(path)
    if AVERAGES_INSIDE in names and is_checkpoint_folder(path / AVERAGES_INSIDE):
        return path / AVERAGES_INSIDE
    name = averages_file(names)
    return None if name is None else path / name


def _is_chosen(path: Path, component: str) -> bool:
    """Return whether a path itself is the component that the user names: one of several files of a moment."""
    is_named = f"/{stem(path.as_posix())}".endswith(f"/{component}")
    return is_named or (component_name(path.name) == component and location(path).info().is_file)


def _open_averages(path: Path, beside: Path, options: ReadOptions) -> Checkpoint:
    """Return the averages that lie at a place of their own in a checkpoint's folder, with the checkpoint's clocks.

    Raises:
        NoSuchWeights: where they are not the model's, by names and shapes.
    """
    options = replace(options, weights=None)
    raw = open_checkpoint(path, options)
    is_folder = location(beside).info().is_folder
    try:
        averages = open_checkpoint(beside, options) if is_folder else open_tensors(beside, options)
    except NoWeights as error:
        raise NoSuchWeights(
            f"holds no averages that are read: {error.fact}", subject=beside, hint=WITHOUT_EMA
        ) from error
    averages = averages if is_folder or options.keep_prefix else strip_prefixes(averages)
    own, theirs = raw.tensors.specs, averages.tensors.specs
    foreign = next((name for name, spec in theirs.items() if name not in own or own[name].shape != spec.shape), None)
    if foreign is not None:
        fact = f"holds no averages of the model: '{foreign}' in '{beside.name}' is no tensor of it"
        raise NoSuchWeights(fact, subject=path, hint=WITHOUT_EMA)
    return replace(
        averages if is_folder else raw,
        name=raw.name,
        path=raw.path,
        tensors=averages.tensors if is_folder else ReplacedTensors.of(raw.tensors, averages.tensors),
        files=(*averages.files, *raw.files),
        trainer=raw.trainer,
        progress=raw.progress,
        averages=None,
        holds_both=True,
        resumable=raw.resumable,
        mark=None,
        warnings=(*averages.warnings, AVERAGED_AGAIN),
    )
