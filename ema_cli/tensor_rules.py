"""Which tensors are averaged, which are copied from the newest checkpoint, and which must not be averaged, and why.

Decided from names, dtypes and shapes alone. No tensor is read, no numpy.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Mapping, Sequence

from ema_cli.checkpoint import Checkpoint, TensorSpec
from ema_cli.errors import CheckpointError
from ema_cli.formats.places import EXTRA_STATE

Specs = Mapping[str, TensorSpec]

# Integers that are weights in disguise, by the last part of their name: GPTQ, AWQ, compressed-tensors.
_PACKED_NAMES = ("qweight", "qzeros", "weight_packed")
# What stands beside packed weights and scales them: GPTQ, AWQ, LLM.int8, compressed-tensors, fp8 and MXFP4 models.
_SCALES = re.compile(
    r"^(?:scales|scale|absmax|quant_map|SCB|.*_scale|.*_scales|.*_scale_inv|.*_zero_point|.*_zero_points"
    r"|nested_absmax|nested_quant_map)$"
)
_BLOCKS = "_blocks"  # of MXFP4, beside ..._scales
_DORA = re.compile(r"lora_magnitude_vector|dora_scale")
_LORA = re.compile(r"(?:^|[._])lora_(?:A|B|down|up|embedding_A|embedding_B)(?:[._]|$)|\.lora\.(?:down|up)\.")
ADAPTER_NOTE = "an adapter: A and B are averaged each, which is not the average of their products BA"


def copied_names(specs: Specs, patterns: Sequence[str]) -> frozenset[str]:
    """Return the names that the user wants copied from the newest checkpoint."""
    return frozenset(name for name in specs if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))


def refusals(specs: Specs, copied: Collection[str] = ()) -> dict[str, str]:
    """Return the tensors that must not be averaged, nor copied without a word, each with the reason."""
    found: dict[str, str] = {}
    packed: dict[str, str] = {}  # what scales may stand beside -> the packed tensor
    for name, spec in specs.items():
        if spec.dtype.kind == "packed":
            found[name] = f"{spec.dtype.name} has too few bits to be averaged"
        elif name.endswith(EXTRA_STATE):
            found[name] = "what is in it, only the module's own code can read"
        elif _DORA.search(name):
            found[name] = "of a DoRA adapter, whose directions and magnitudes cannot be averaged apart"
        elif _is_packed(name, spec, specs):
            found[name] = "packed integer weights, which mean nothing without their scales"
        else:
            continue
        if not name.endswith(EXTRA_STATE) and not _DORA.search(name):
            packed[_stem(name)] = name
            packed[f"{name}"] = name
    for name, spec in specs.items():
        if spec.dtype.averaged and name not in found and packed:
            owner = _owner(name, packed)
            if owner is not None:
                found[name] = f"scales '{owner}', which is not averaged"
    return {name: reason for name, reason in found.items() if name not in copied}


def check_averageable(checkpoint: Checkpoint, copied: Collection[str]) -> None:
    """Raise a CheckpointError for tensors that must not be averaged, and that the user does not want copied."""
    found = refusals(checkpoint.weights.specs, copied)
    if found:
        name, reason = next(iter(found.items()))
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise CheckpointError(
            f"{checkpoint.path}: '{name}' cannot be averaged: {reason}{more}",
            hint="average the run's full-precision checkpoints and convert the result, or copy from the newest "
            f"checkpoint, with everything that belongs together: --copy '{name}'",
        )


def tensor_notes(specs: Specs) -> list[str]:
    """Return what a user should know of the tensors."""
    return [ADAPTER_NOTE] if any(map(_LORA.search, specs)) else []


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _is_packed(name: str, spec: TensorSpec, specs: Specs) -> bool:
    """Return whether an integer tensor holds weights: no counter or mask is called so, or has two dimensions."""
    if spec.dtype.kind != "integer" or spec.dtype.name == "BOOL":
        return False
    last = name.rpartition(".")[2]
    return (
        last in _PACKED_NAMES
        or (last.endswith("weight") and len(spec.shape) >= 2)
        or (last.endswith(_BLOCKS) and f"{name.removesuffix(_BLOCKS)}_scales" in specs)
        or f"{name}.absmax" in specs
    )


def _owner(name: str, packed: Mapping[str, str]) -> str | None:
    """Return the packed tensor that `name` scales, None if there is none."""
    stem, _, last = name.rpartition(".")
    if not _SCALES.search(last) and not last.startswith("quant_state"):
        return None
    return packed.get(stem)
