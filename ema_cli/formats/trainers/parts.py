"""Files that hold one rank's part of a model: refused, since a part alone is no model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ema_cli.errors import CheckpointError
from ema_cli.formats.pickles.values import Inert
from ema_cli.formats.trainers.part_names import parts_of
from ema_cli.storage.location import location

_MEGATRON_RANK = re.compile(r"^mp_rank_\d+")  # the folder of one rank, in Megatron's older format
_PARALLEL = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "expert_model_parallel_size")


def refuse_megatron_part(path: Path, root: Any) -> None:
    """Raise a CheckpointError for a file of Megatron's older format that is one rank's part of a model.

    Known by the folders of other ranks beside its own, or by the sizes in the arguments that the file holds. Folders
    whose numbers are known are put together, where each of them has its part.
    """
    if not _MEGATRON_RANK.search(path.parent.name):
        return
    ranks = [entry.name for entry in location(path.parent.parent).entries() if _MEGATRON_RANK.search(entry.name)]
    files = [path.parent.parent / rank / path.name for rank in ranks]
    are_joined = bool(parts_of(path.parent.name, ranks.__contains__)) and all(
        location(file).info().exists for file in files
    )
    args = root.get("args") if isinstance(root, dict) else None
    state = args.state if isinstance(args, Inert) and isinstance(args.state, dict) else {}
    sizes = [state.get(name) for name in _PARALLEL]
    if (len(ranks) > 1 and not are_joined) or any(type(size) is int and size > 1 for size in sizes):
        raise CheckpointError(
            "is one rank's part of a model of Megatron's",
            subject=path,
            hint="save it as torch_dist, or put it together with Megatron's tools/checkpoint first",
        )
