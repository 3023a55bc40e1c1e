"""Decide which tensors are averaged, copied from the newest checkpoint, or refused, with the reason.

Names, dtypes and shapes alone decide. No tensor is read, no numpy.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from ema_cli.checkpoint import Checkpoint, TensorSpec
from ema_cli.errors import CheckpointError, option
from ema_cli.formats.trainers.names import EXTRA_STATE
from ema_cli.text import lazy_pattern

Specs = Mapping[str, TensorSpec]

# Integer tensors that encode weights, by the last part of their name: GPTQ, AWQ, compressed-tensors, EETQ, HQQ, AQLM,
# quanto, torchao.
_PACKED_NAMES = (
    "qweight", "qzeros", "weight_packed", "weights", "compressed", "W_q", "codes", "_data", "_qdata",
    "weight:_data", "weight:_qdata",
)  # fmt: skip
_BITSANDBYTES = ".quant_state.bitsandbytes__"  # next to its packed weights, which may be stored as floats
# Tensors next to packed weights that scale them: GPTQ, AWQ, LLM.int8, compressed-tensors, fp8 and MXFP4 models.
_SCALES = lazy_pattern(
    r"^(?:scales?|absmax|quant_map|SCB|codebooks|.*[_:]_?scales?(?:_inv|_\d+)?|.*_zero_points?"
    r"|nested_absmax|nested_quant_map)$"
)
_BLOCKS = "_blocks"  # of MXFP4, next to ..._scales
_NEVER = (
    (lazy_pattern(rf"{EXTRA_STATE}$"), "what is in it, only the module's own code can read"),
    (
        lazy_pattern(r"lora_magnitude_vector|dora_scale"),
        "of a DoRA adapter, whose directions and magnitudes cannot be averaged apart",
    ),
    (lazy_pattern(r"(?:^|[._])flat_param(?:_\d+)?$"), "one rank's part of a model that FSDP flattened"),
)
_LORA = lazy_pattern(r"(?:^|[._])lora_(?:[AaBb]|down|up|embedding_A|embedding_B)(?:[._]|$)|\.lora\.(?:down|up)\.")
# Parts of a model that follow another part of it, mostly as its average: in self-distillation, or a critic's target.
_FOLLOWED = {
    "teacher": ("student",),
    "target_network": ("online_network",),
    "target_encoder": ("online_encoder", "context_encoder", "encoder"),
    "encoder_k": ("encoder_q",),
    "key_encoder": ("query_encoder",),
    "momentum_encoder": ("encoder", "base_encoder"),
    "critic_target": ("critic",),
    "target_critic": ("critic",),
}
_FOLLOWER = lazy_pattern(rf"(?:^|(?<=\.))({'|'.join(_FOLLOWED)})(?=\.)")
_AVERAGES_INSIDE = lazy_pattern(r"(?:^|\.)(?:model_ema|ema_model)\.|\.n_averaged$")
_STATISTICS = ("running_mean", "running_var")  # of BatchNorm
STATISTICS_NOTE = (
    "the running statistics of BatchNorm are averaged as weights are; ema_cli.update_bn(model, loader) computes those "
    "that the averaged weights give"
)
ADAPTER_NOTE = (
    "an adapter: A and B are averaged each, which is not the average of their products BA; --exact-lora RANK averages "
    "these, --merge-into BASE the whole model"
)


def copied_names(names: Iterable[str], patterns: Sequence[str]) -> frozenset[str]:
    """Return the names that match a pattern of tensors to copy from the newest checkpoint."""
    if not patterns:
        return frozenset()
    matches = re.compile("|".join(map(fnmatch.translate, patterns))).match  # one search for each name
    return frozenset(name for name in names if matches(name))


def refusals(specs: Specs, copied: Collection[str] = ()) -> dict[str, str]:
    """Return the tensors that must neither be averaged nor copied silently, by name, with the reason."""
    by_bitsandbytes = {name.partition(_BITSANDBYTES)[0] for name in specs if _BITSANDBYTES in name}
    reasons: dict[str, str] = {}
    packed: dict[str, str] = {}  # a prefix or name that scales may follow -> the packed tensor
    for name, spec in specs.items():
        if spec.dtype.kind == "packed":
            reasons[name] = f"{spec.dtype.name} has too few bits to be averaged"
        elif name in by_bitsandbytes or _is_packed(name, spec, specs):
            reasons[name] = "packed weights, which mean nothing without their scales"
        else:
            continue
        packed[name.rpartition(".")[0]] = packed[name] = name
    for name, spec in specs.items():
        reason = next((why for pattern, why in _NEVER if pattern.search(name)), None)
        if reason is None and packed and spec.dtype.averaged and (owner := _owner(name, packed)) is not None:
            reason = f"scales '{owner}', which is not averaged"
        if reason is not None:
            reasons.setdefault(name, reason)
    return {name: reason for name, reason in reasons.items() if name not in copied}


def check_averageable(checkpoint: Checkpoint, copied: Collection[str]) -> None:
    """Check that a checkpoint has no tensor that must not be averaged, apart from the `copied` ones.

    Raises:
        CheckpointError: naming the first such tensor.
    """
    reasons = refusals(checkpoint.tensors.specs, copied)
    if reasons:
        name, reason = next(iter(reasons.items()))
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        raise CheckpointError(
            f"'{name}' cannot be averaged: {reason}{more}",
            subject=checkpoint.path,
            hint="average the run's full-precision checkpoints and convert the result, or copy from the newest "
            f"checkpoint, with everything that belongs together: {option('copy', name)}",
        )


def tensor_notes(specs: Specs) -> list[str]:
    """Return notes on the tensors for the user: that they are an adapter's."""
    return [ADAPTER_NOTE] if is_adapter(specs) else []


def inner_averages_warnings(specs: Specs) -> list[str]:
    """Return a warning where a model keeps averages itself that could not be told from the rest."""
    inside = next((name for name in specs if _AVERAGES_INSIDE.search(name)), None)
    if inside is not None:
        return [f"'{inside}' and others are averages that the model keeps itself; they are averaged again"]
    for name in filter(_FOLLOWER.search, specs):
        followed = next((other for other in _followed(name) if other in specs), None)
        if followed is not None:
            return [f"'{name}' may be an average of '{followed}', and so others; then they are averaged again"]
    return []


def _followed(name: str) -> list[str]:
    """Return the names that the tensor may have in the part that its own follows."""
    match = _FOLLOWER.search(name)
    parts = _FOLLOWED[match[1]] if match else ()
    return [_FOLLOWER.sub(part, name, count=1) for part in parts]


def averages_statistics(names: Iterable[str]) -> bool:
    """Return whether running statistics are among the tensors that are averaged."""
    return any(name.endswith(_STATISTICS) for name in names)


def is_adapter(specs: Specs) -> bool:
    """Return whether the tensors include the A and B of a LoRA."""
    return any(map(_LORA.search, specs))


def _is_packed(name: str, spec: TensorSpec, specs: Specs) -> bool:
    """Return whether an integer tensor encodes weights: no counter or mask has such a name, or two dimensions."""
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
