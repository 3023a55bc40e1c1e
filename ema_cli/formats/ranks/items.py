"""What torch_checkpointing's files say beside the tensors: how many ranks saved, and when."""

from __future__ import annotations

from pathlib import Path

from ema_cli.checkpoint import Progress
from ema_cli.errors import CheckpointError
from ema_cli.formats.pickles.unpickle import unpickle
from ema_cli.formats.pickles.values import Inert, PickleError, TensorRef
from ema_cli.formats.torch_save.file import open_torch
from ema_cli.formats.trainers.dcp_layouts import DCP_CLOCKS
from ema_cli.formats.trainers.layout import ClockPlaces
from ema_cli.formats.trainers.nested import dig
from ema_cli.formats.trainers.progress import read_progress
from ema_cli.storage.location import location
from ema_cli.storage.source import InputFile

_MAX_RANKS = 1 << 20
# The names under which they are kept in folders of torch.distributed.checkpoint, too.
_CLOCKS = ClockPlaces(
    clocks={unit: tuple(name.replace(".", "/") for name in names) for unit, names in DCP_CLOCKS.items()},
    epochs="unknown",
)


def count_ranks(metadata: Path, item: str) -> int:
    """Return how many ranks saved, by `metadata.pkl`.

    Raises:
        CheckpointError: where it does not say it, or says that the item's files are of another kind.
    """
    try:
        root, _ = unpickle(location(metadata).open())
    except PickleError as error:
        raise CheckpointError(f"cannot be read: {error}", subject=metadata) from error
    ranks = dig(root, "world_size")
    if type(ranks) is not int or not 0 < ranks <= _MAX_RANKS:
        raise CheckpointError("does not say how many ranks saved", subject=metadata)
    layouts = dig(dig(dig(root, "metadata"), item), "rank_to_layout_info")
    for rank, layout in layouts.items() if isinstance(layouts, dict) else ():
        if layout is not None and dig(layout, "file_path") != f"{item}_{rank}.pt":
            raise CheckpointError(
                f"the file of rank {rank} has another name or kind than {item}_{rank}.pt, which is not read",
                subject=metadata,
                hint="save the item without a layout of its own, or as pieces of safetensors that are put together",
            )
    return ranks


def clocks_in(item: str, file: InputFile) -> Progress:
    """Return the clocks in an item: a number by itself, or a dict with numbers."""
    opened = open_torch(file)
    value = opened.root.state if isinstance(opened.root, Inert) else opened.root
    value = opened.scalar(item, value) if isinstance(value, TensorRef) else value
    return read_progress(_CLOCKS, {item: value}, opened.scalar)
