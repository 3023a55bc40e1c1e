"""The pairs of A and B in a LoRA adapter, each with its scale: the change of a module's weights is scale x B A."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from ema_cli.checkpoint import Checkpoint, TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.errors import CheckpointError, RunError, UsageError, option
from ema_cli.text import lazy_pattern

_HALF = lazy_pattern(r"^(.*)\.lora_(embedding_)?([AB])(?:\.default)?(?:\.weight)?$")
_WRAPPERS = lazy_pattern(r"^(?:model\.)?base_model\.model\.")  # Composer's, and PEFT's
_BESIDE = lazy_pattern(r"\.(?:base_layer|modules_to_save)(?:\.default)?(?=\.[^.]+$)")  # before the name of a parameter
# What PEFT's layers do then is not, or not only, to add scale x B A.
_OTHERWISE = (
    "use_dora", "lora_bias", "target_parameters", "use_qalora", "use_bdlora", "alora_invocation_tokens",
    "arrow_config", "kasa_config", "monteclora_config",
)  # fmt: skip
_BASE_STAYS = (True, False, None, "gaussian", "eva", "orthogonal")  # of init_lora_weights: other ways change the base
_PLAIN = lazy_pattern(r"^\^?(?:[\w-]|\\?\.)+$")  # of PEFT's patterns, which are regular expressions


@dataclass(frozen=True, slots=True)
class Pair:
    """A and B of one module.

    Attributes:
        module: its name in the base model.
        a: the name of A in the adapter, [rank, inputs] or, of a convolution, [rank, inputs, ...].
        b: the name of B, [outputs, rank] or [outputs, rank, 1, ...].
        rank: of both.
        scale: of their product.
        is_transposed: whether the weights that it changes are [inputs, outputs], as of an embedding.
        is_embedding: whether it is of an embedding.
    """

    module: str
    a: str
    b: str
    rank: int
    scale: float
    is_transposed: bool
    is_embedding: bool


def settings_of(checkpoint: Checkpoint, asked_by: str) -> dict[str, Any]:
    """Return the settings of the only LoRA adapter that a checkpoint holds.

    Args:
        asked_by: the option that is for adapters.

    Raises:
        UsageError: for one that was merged into its base model.
        RunError: for a checkpoint that is none, and for settings by which more than scale x B A is added.
    """
    if checkpoint.base is not None:
        raise UsageError(
            f"excludes {option('merge_into')}: whole models are written then, not A and B",
            option=asked_by,
            hint="leave out one",
        )
    without = f"leave out {option(asked_by)}"
    settings = {name: json.loads(text) for name, text in checkpoint.adapter.values.items() if name != "header"}
    if any("/" in name for name in settings):
        raise RunError(
            "holds several adapters", subject=checkpoint.path, hint=f"average the folder of one, or {without}"
        )
    if settings.get("peft_type") != "LORA":
        fact = f"is one of type {settings['peft_type']}" if "peft_type" in settings else "has no adapter_config.json"
        raise RunError(f"is no LoRA adapter that PEFT wrote: it {fact}", subject=checkpoint.path, hint=without)
    other = next((name for name in _OTHERWISE if settings.get(name)), None)
    if other is not None:
        raise RunError(
            f"its {other} is {json.dumps(settings[other])[:60]}: more than the product BA is added to the weights",
            subject=checkpoint.path,
            hint=without,
        )
    if settings.get("init_lora_weights") not in _BASE_STAYS:
        raise RunError(
            f"its init_lora_weights is {json.dumps(settings['init_lora_weights'])[:60]}: with that PEFT changes the "
            "base model, by this rank, before it adds the adapter",
            subject=checkpoint.path,
            hint="let PEFT convert it to a plain adapter (save_pretrained with "
            f"path_initial_model_for_weight_conversion), or {without}",
        )
    return settings


def find_pairs(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> list[Pair]:
    """Return the pairs of an adapter with these settings, in the order of its tensors.

    Raises:
        CheckpointError: for an A without B, for shapes that do not fit together, and for settings without a meaning.
    """
    specs = checkpoint.tensors.specs
    halves: dict[tuple[str, bool], dict[str, str]] = {}
    for name in specs:
        match = _HALF.search(name)
        if match:
            halves.setdefault((match[1], bool(match[2])), {})[match[3]] = name
    pairs, alphas = [], Alphas.read(checkpoint.path, settings)
    for (place, is_embedding), names in halves.items():
        if len(names) < 2:
            have, lacks = ("A", "B") if "A" in names else ("B", "A")
            raise CheckpointError(f"'{names[have]}' has no {lacks}", subject=checkpoint.path)
        a, b, module = specs[names["A"]], specs[names["B"]], _WRAPPERS.sub("", place)
        if not _fit(a, b):
            raise CheckpointError(
                f"'{names['B']}' is {b}, which cannot be multiplied with A, {a}", subject=checkpoint.path
            )
        scale = _scale(alphas, module, a.shape[0], by_root=bool(settings.get("use_rslora")))
        transposed = is_embedding or bool(settings.get("fan_in_fan_out"))
        pairs.append(Pair(module, names["A"], names["B"], a.shape[0], scale, transposed, is_embedding))
    if not pairs:
        raise CheckpointError("has no A and B of a LoRA", subject=checkpoint.path)
    return pairs


def _fit(a: TensorSpec, b: TensorSpec) -> bool:
    is_product = len(a.shape) >= 2 and len(b.shape) >= 2 and a.shape[0] == b.shape[1] and 0 not in (*a.shape, *b.shape)
    return is_product and set(b.shape[2:]) <= {1} and a.dtype.kind == b.dtype.kind == "float"


def whole_name(name: str) -> str | None:
    """Return the name in the base model of a tensor that an adapter holds whole; None for the part of a LoRA."""
    bare = _WRAPPERS.sub("", name)
    return None if re.search(r"(?:^|\.)(?:lora_|trainable_tokens)", bare) else _BESIDE.sub("", bare)


def _scale(alphas: Alphas, module: str, rank: int, *, by_root: bool) -> float:
    """Return by what PEFT multiplies BA: alpha / r, or alpha / sqrt(r) with rsLoRA (D. Kalajdzievski, 2023)."""
    return alphas.of(module) / (math.sqrt(rank) if by_root else rank)


@dataclass(frozen=True, slots=True)
class Alphas:
    """The alpha of each module.

    Attributes:
        path: the adapter.
        default: that of modules without their own.
        whole, ends: those of modules by their names, or the ends of these from a dot on, each with its position:
            of several, PEFT takes the first.
    """

    path: Path
    default: object
    whole: Mapping[str, tuple[int, object]]
    ends: Mapping[str, tuple[int, object]]

    @classmethod
    def read(cls, path: Path, settings: Mapping[str, Any]) -> Alphas:
        """Return what the settings of an adapter say.

        Raises:
            CheckpointError: for patterns that are no names.
        """
        patterns = settings.get("alpha_pattern") or {}
        whole: dict[str, tuple[int, object]] = {}
        ends: dict[str, tuple[int, object]] = {}
        for number, (key, value) in enumerate(patterns.items() if isinstance(patterns, dict) else ()):
            if not _PLAIN.search(key):
                raise CheckpointError(
                    f"its alpha_pattern has the regular expression '{key[:60]}'; names of modules alone are read",
                    subject=path,
                )
            name = key.replace("\\", "").removeprefix("^")
            (whole if key.startswith("^") else ends).setdefault(name, (number, value))
        return cls(path, settings.get("lora_alpha"), whole, ends)

    def of(self, module: str) -> float:
        """Return the alpha of a module.

        Raises:
            CheckpointError: where it is no number.
        """
        parts = module.split(".")
        names = (".".join(parts[at:]) for at in range(len(parts)))
        found = [self.ends[name] for name in names if name in self.ends]
        found += [self.whole[module]] if module in self.whole else []
        alpha = min(found, key=lambda each: each[0])[1] if found else self.default
        try:
            if (
                isinstance(alpha, bool)
                or not isinstance(alpha, int | str)
                or (isinstance(alpha, str) and "/" not in alpha)
            ):
                raise ValueError
            return float(Fraction(alpha))  # which is how a number that is no integer is kept: as text, 1/2
        except (ValueError, ArithmeticError):
            fact = f"its lora_alpha is {str(alpha)[:40]}, which is no number"
            raise CheckpointError(fact, subject=self.path) from None


def factored_specs(specs: Mapping[str, TensorSpec], pairs: Sequence[Pair], rank: int) -> dict[str, TensorSpec]:
    """Return the specs of an adapter whose pairs have another rank."""
    changed = dict(specs)
    for pair in pairs:
        a, b = specs[pair.a], specs[pair.b]
        changed[pair.a] = replace(a, shape=(rank, *a.shape[1:]))
        changed[pair.b] = replace(b, shape=(b.shape[0], rank, *b.shape[2:]))
    return changed


def names_of(pairs: Sequence[Pair]) -> Iterator[str]:
    """Yield the names of A and B."""
    for pair in pairs:
        yield from (pair.a, pair.b)


def bytes_of(pairs: Sequence[Pair], specs: Mapping[str, TensorSpec], checkpoints: int) -> int:
    """Return about how much memory the largest pair takes while it is factored."""
    elements = max(specs[pair.a].count + specs[pair.b].count for pair in pairs)
    return 6 * 8 * elements * checkpoints
