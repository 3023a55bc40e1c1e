"""Checkpoints that are one safetensors file."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ema_cli.checkpoint import AdapterSettings, Averages, Checkpoint, Progress
from ema_cli.errors import CheckpointError, NoSuchWeights, UsageError, option
from ema_cli.formats.mark import MADE_HERE, METADATA_KEY, parse_mark
from ema_cli.formats.options import ReadOptions
from ema_cli.formats.reader import Reader
from ema_cli.formats.safetensors.header import SafetensorsTensors, open_file
from ema_cli.formats.trainers.adapters import header_settings
from ema_cli.formats.trainers.choice import averaged_model, choose, settle_averages
from ema_cli.formats.trainers.layout import NamedTensor, Selection, Sets
from ema_cli.formats.trainers.names import may_hold_averages
from ema_cli.formats.trainers.prefixes import Renamed
from ema_cli.storage.location import location

_LORA_KEY = "lora_adapter_metadata"
_WITHOUT_CLOCKS = {"format"}  # what most headers say, and nothing else
_PIECE_KEY = "DCP_SHARDING_INFO"  # under which torch's writer says which part of a tensor a file holds
# What puts the pieces together, in the folder `consolidated` beside them, where they are found.
_CONSOLIDATE = (
    "python -c 'import os, sys, torch.distributed.checkpoint as c; "
    "from torch.distributed.checkpoint._consolidate_hf_safetensors import consolidate_safetensors_files as join; "
    'd = sys.argv[1]; o = d + "/consolidated"; os.makedirs(o); '
    "join(d, o, dict.fromkeys(c.HuggingFaceStorageReader(d).read_metadata().state_dict_metadata, 1))' "
)


def matches(path: Path) -> bool:
    """Return whether this is a file whose name ends in .safetensors."""
    return path.name.lower().endswith(".safetensors") and not location(path).info().is_folder


def open_checkpoint(path: Path, options: ReadOptions) -> Checkpoint:
    """Read the file's header; an average that ema-cli made is recognised.

    Raises:
        CheckpointError: naming the file, the tensor and what is wrong.
        UsageError, RunError: where an option does not fit a file that holds one set of weights and nothing else.
    """
    tensors = open_file(path)
    if _PIECE_KEY in tensors.metadata and not _are_whole(tensors.metadata[_PIECE_KEY]):
        raise pieces_error(path)
    averages = _averages(tensors)
    if averages is None and options.key is not None:
        raise UsageError(
            f"{option('key')} says where the weights are in a pickled file; this is safetensors",
            subject=path,
            hint=f"leave out {option('key')}",
        )
    # Diffusers keeps rank and alpha of a LoRA here, and nowhere else.
    kept = {name: tensors.metadata[name] for name in (_LORA_KEY,) if name in tensors.metadata}
    trainer, progress = _progress(tensors, options)
    checkpoint = Checkpoint(
        name=path.name,
        path=path,
        tensors=tensors,
        files=(tensors.file,),
        format="safetensors",
        trainer=trainer,
        progress=progress,
        averages=averages,
        mark=parse_mark(tensors.metadata[METADATA_KEY]) if METADATA_KEY in tensors.metadata else None,
        adapter=AdapterSettings(header_settings(kept[_LORA_KEY]), {"": kept}) if kept else AdapterSettings(),
    )
    sets = None if averages else _sets(tensors)
    return settle_averages(checkpoint, options) if sets is None else _choose(checkpoint, sets, options)


def _progress(tensors: SafetensorsTensors, options: ReadOptions) -> tuple[str | None, Progress]:
    """Return the trainer that wrote the header, None where it is unknown, and the clocks in it."""
    metadata = tensors.metadata
    places = () if METADATA_KEY in metadata else options.clock_places
    if metadata.keys() <= _WITHOUT_CLOCKS and not places:
        return None, Progress()
    from ema_cli.formats.trainers.headers import header_progress

    return header_progress(metadata, places)


def _sets(tensors: SafetensorsTensors) -> Sets | None:
    """Return the sets of weights where a part of the model is an average of the rest; None where there is one set."""
    if not may_hold_averages(tensors.specs):
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


def pieces_error(path: Path) -> CheckpointError:
    """Return the error for a file, or a folder of files, with pieces of tensors whose rest is in other files."""
    folder = path.parent if path.suffix == ".safetensors" else path
    return CheckpointError(
        "holds pieces of tensors, as torch.distributed.checkpoint saves them in safetensors",
        subject=path,
        hint=f"put them together first: {_CONSOLIDATE}{shlex.quote(str(folder))}",
    )


def _are_whole(text: str) -> bool:
    """Return whether each tensor of a file begins where the saved one did, by what torch's writer says in its header.

    The rest of a tensor that is cut begins elsewhere, in another file of the same folder.
    """
    try:
        pieces = json.loads(text)
        return all(not any(piece["saved_offsets"]) for piece in pieces.values())
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return False


def _averages(tensors: SafetensorsTensors) -> Averages | None:
    """Return how it is known that these are averages already, None if they are not."""
    if METADATA_KEY in tensors.metadata:
        return Averages(MADE_HERE)
    return averaged_model(tensors)


READER = Reader(matches, open_checkpoint)
