"""Refuse a model whose weights are not in the file: a sharded one that was saved without being gathered.

Each rank of DeepSpeed's ZeRO-3 holds its parameters as tensors of shape [0] while they are not gathered; only those
below a threshold stay whole. Headers alone decide.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection
from pathlib import Path

from ema_cli.checkpoint import Checkpoint
from ema_cli.errors import CheckpointError
from ema_cli.storage.location import names_in
from ema_cli.text import plural

_EXTERNAL_MARK = (
    "output_mask"  # beside the tensors of e3nn's modules: what others hand in, as MACE does, is empty there
)
_CONVERTER = "zero_to_fp32.py"
_GATHER = "gather it when it is saved (in DeepSpeed's configuration: stage3_gather_16bit_weights_on_model_save)"


def check_has_elements(checkpoint: Checkpoint) -> None:
    """Check that the weights are there.

    Refused are a model without any element, and one in which a `...weight`, or more than half of the floating tensors,
    have the shape [0]. An empty buffer beside real weights is none of these, nor is a module of e3nn's.

    Raises:
        CheckpointError: naming a tensor, with the way to the whole model.
    """
    specs = checkpoint.tensors.specs
    floats = {name: spec for name, spec in specs.items() if spec.dtype.averaged}
    emptied = [name for name, spec in floats.items() if spec.shape == (0,) and not _is_handed_in(name, specs)]
    if not any(spec.count for spec in (floats or specs).values()):
        fact = f"holds {plural(len(floats or specs), 'tensor')} without a single element"
    elif any(name.endswith("weight") for name in emptied) or 2 * len(emptied) > len(floats):
        name = next((name for name in emptied if name.endswith("weight")), emptied[0])
        more = f" (and {len(emptied) - 1} more)" if len(emptied) > 1 else ""
        fact = f"'{name}' has the shape [0]{more}, beside others that have elements"
    else:
        return
    looks = ": so a sharded model looks (DeepSpeed's ZeRO-3, FSDP) that was saved without being gathered"
    raise CheckpointError(
        fact + looks * bool(emptied), subject=checkpoint.path, hint=_way_out(checkpoint.path) if emptied else None
    )


def _is_handed_in(name: str, names: Collection[str]) -> bool:
    """Return whether a module of e3nn's has the tensor, which is empty where it has none of its own."""
    return f"{name.rpartition('.')[0]}.{_EXTERNAL_MARK}" in names


def _way_out(path: Path) -> str:
    """Return how to get the whole model: by the converter that lies beside it, if it does."""
    for folder in (path, path.parent):
        if _CONVERTER in names_in(folder):
            command = shlex.join(["python", str(folder / _CONVERTER), str(folder), "OUTPUT"])
            return f"put this one together: {command}; for the next, {_GATHER}"
    return f"{_GATHER}; what DeepSpeed itself saved, in a folder global_stepN, is read as it is: name that"
