"""Checkpoints that are one safetensors file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ema_cli.checkpoint import AdapterSettings, Averages, Checkpoint, Progress, Tensors, TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.errors import CheckpointError, NoSuchWeights, UsageError, option
from ema_cli.formats.before import Before
from ema_cli.formats.mark import MADE_HERE, METADATA_KEY, parse_mark
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.reader import Reader
from ema_cli.formats.safetensors.header import open_file
from ema_cli.formats.safetensors.offsets import saved_offsets
from ema_cli.formats.safetensors.tensors import SafetensorsTensors
from ema_cli.formats.trainers.adapters import header_settings
from ema_cli.formats.trainers.choice import averaged_model, choose, settle_averages
from ema_cli.formats.trainers.folders import RANK_SHARD
from ema_cli.formats.trainers.layout import NamedTensor, Selection, Sets
from ema_cli.formats.trainers.names import may_hold_averages
from ema_cli.formats.trainers.prefixes import Renamed
from ema_cli.storage.location import location, names_in
from ema_cli.storage.source import InputFile

_LORA_KEY = "lora_adapter_metadata"
_WITHOUT_CLOCKS = {"format"}  # what most headers say, and nothing else
_NAMES = "shard-00001-model-00001-of-00001.safetensors and so on, with the rank from 1 as the first number"


def matches(path: Path) -> bool:
    """Return whether this is a file whose name ends in .safetensors."""
    return path.name.lower().endswith(".safetensors") and not location(path).info().is_folder


def open_checkpoint(path: Path, options: ReadOptions) -> Checkpoint:
    """Read the file's header; an average that ema-cli made is recognised.

    Raises:
        CheckpointError: naming the file, the tensor and what is wrong.
        UsageError, RunError: where an option does not fit a file that holds one set of weights and nothing else.
    """
    tensors = open_file(path, options.before)
    _check_whole(path, tensors)
    return from_tensors(path, tensors, tensors.metadata, (tensors.file,), options)


def from_tensors(
    path: Path, tensors: Tensors, metadata: Mapping[str, str], files: tuple[InputFile, ...], options: ReadOptions
) -> Checkpoint:
    """Return the checkpoint at `path` with these tensors.

    Args:
        path: the checkpoint.
        tensors: its tensors.
        metadata: the `__metadata__` of its file.
        files: all files that were read.
        options: what the user chose.

    Raises:
        UsageError, RunError: as `open_checkpoint`.
    """
    averages = _averages(tensors, metadata)
    if averages is None and options.key is not None:
        raise UsageError(
            f"{option('key')} says where the weights are in a pickled file; this is safetensors",
            subject=path,
            hint=f"leave out {option('key')}",
        )
    # Diffusers keeps rank and alpha of a LoRA here, and nowhere else.
    kept = {name: metadata[name] for name in (_LORA_KEY,) if name in metadata}
    trainer, progress = _progress(metadata, options)
    checkpoint = Checkpoint(
        name=path.name,
        path=path,
        tensors=tensors,
        files=files,
        format="safetensors",
        trainer=trainer,
        progress=progress,
        averages=averages,
        mark=parse_mark(metadata[METADATA_KEY]) if METADATA_KEY in metadata else None,
        adapter=AdapterSettings(header_settings(kept[_LORA_KEY]), {"": kept}) if kept else AdapterSettings(),
    )
    sets = None if averages else _sets(tensors, options.before)
    return settle_averages(checkpoint, options) if sets is None else _choose(checkpoint, sets, options)


def _progress(metadata: Mapping[str, str], options: ReadOptions) -> tuple[str | None, Progress]:
    """Return the trainer that wrote the header, None where it is unknown, and the clocks in it."""
    places = () if METADATA_KEY in metadata else options.clock_places
    if metadata.keys() <= _WITHOUT_CLOCKS and not places:
        return None, Progress()
    from ema_cli.formats.trainers.headers import header_progress

    return header_progress(metadata, places)


@dataclass(frozen=True, slots=True)
class _Names:
    """Whether any of the names of some tensors is called averages."""

    specs: Mapping[str, TensorSpec]
    may_hold: bool


def _may_hold_averages(specs: Mapping[str, TensorSpec], before: Before) -> bool:
    known = before.get(_Names, len(specs))
    if known is None or known.specs is not specs:
        known = _Names(specs, may_hold_averages(specs))
        before.keep(len(specs), known, 0)  # the tables themselves are kept with the header
    return known.may_hold


def _sets(tensors: Tensors, before: Before) -> Sets | None:
    """Return the sets of weights where a part of the model is an average of the rest; None where there is one set."""
    if not _may_hold_averages(tensors.specs, before):
        return None
    from ema_cli.formats.trainers.averages import sets_of_parts
    from ema_cli.formats.trainers.likeness import SAMPLE_BYTES, decode

    def count(value: object) -> int | None:
        if not isinstance(value, NamedTensor) or tensors.specs[value.name].dtype.kind != "integer":
            return None
        stored = bytearray(tensors.specs[value.name].nbytes)
        tensors.read_into(value.name, 0, memoryview(stored))
        return int.from_bytes(stored, "little")

    def numbers(_: str, value: object) -> Sequence[float]:
        spec = tensors.specs[value.name] if isinstance(value, NamedTensor) else None
        if spec is None or not isinstance(value, NamedTensor) or spec.dtype.kind != "float":
            return ()
        stored = bytearray(min(spec.nbytes, SAMPLE_BYTES))
        tensors.read_into(value.name, 0, memoryview(stored))
        return decode(spec.dtype, bytes(stored))

    named = {name: NamedTensor(name, spec.shape) for name, spec in tensors.specs.items()}
    return sets_of_parts(named, count, numbers)


def _choose(checkpoint: Checkpoint, sets: Sets, options: ReadOptions) -> Checkpoint:
    """Return the checkpoint with one of the sets, each tensor read from where it is stored."""
    selection = Selection(checkpoint.trainer, {}, checkpoint.progress)
    try:
        choose(selection, sets, options)
    except NoSuchWeights as error:
        error.about(checkpoint.path)
        raise
    stored = {name: value.name for name, value in selection.tensors.items() if isinstance(value, NamedTensor)}
    specs = {name: checkpoint.tensors.specs[old] for name, old in stored.items()}
    return replace(
        checkpoint,
        tensors=Renamed(specs, stored, checkpoint.tensors),
        holds_both=selection.holds_both,
        warnings=(*checkpoint.warnings, *selection.warnings),
        notes=(*checkpoint.notes, *selection.notes),
    )


def _check_whole(path: Path, tensors: SafetensorsTensors) -> None:
    """Refuse a file of one rank's, where those of other ranks may have the rest of its tensors.

    The pieces of the first rank begin where whole tensors do: then only its name shows that there are others.
    """
    offsets = saved_offsets(tensors)
    if offsets is None:
        return
    names = names_in(path.parent)
    is_one_of_several = RANK_SHARD.search(path.name) and sum(1 for name in names if RANK_SHARD.search(name)) > 1
    if is_one_of_several or any(map(any, offsets.values())):
        called = "" if RANK_SHARD.search(path.name) else f", with its files called {_NAMES}"
        raise CheckpointError(
            "holds what one rank saved of a model, and the files of other ranks hold the rest",
            subject=path,
            hint=f"name its folder, {path.parent}{called}",
        )


def _averages(tensors: Tensors, metadata: Mapping[str, str]) -> Averages | None:
    """Return how it is known that these are averages already, None if they are not."""
    if METADATA_KEY in metadata:
        return Averages(MADE_HERE)
    return averaged_model(tensors)


READER = Reader(matches, open_checkpoint, folders=False)
