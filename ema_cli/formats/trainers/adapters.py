"""Settings of an adapter, which must be equal in all its checkpoints: how A and B become a change of the weights."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

from ema_cli.formats.json_text import read_json
from ema_cli.storage.location import location
from ema_cli.storage.source import InputFile

_CONFIG = "adapter_config.json"
_MAX_CONFIG_BYTES = 16 << 20
BASE = "base_model_name_or_path"
_ON_HUB = re.compile(r'"[\w.-]+(?:/[\w.-]+)?"', re.ASCII)  # as text in JSON; any other text is a path
# Fields of PEFT's configuration that change what the stored tensors mean.
_FIELDS = (
    "peft_type", "r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora",
    "layers_to_transform", "layers_pattern", "modules_to_save", "bias", "fan_in_fan_out", "target_parameters",
    "exclude_modules", "layer_replication", "lora_bias", "trainable_token_indices", BASE, "revision",
    "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config",
    "init_lora_weights",  # some ways change the base model, and A and B fit only that
)  # fmt: skip


def adapter_settings(folder: Path) -> tuple[dict[str, str], tuple[InputFile, ...]]:
    """Return the settings of the adapter in `folder` as text, and the file that holds them; nothing without one."""
    path = folder / _CONFIG
    if not location(path).info().exists:
        return {}, ()
    file = location(path).open()
    config = read_json(file, _MAX_CONFIG_BYTES)
    return config_settings(config) if isinstance(config, dict) else {}, (file,)


def config_settings(config: Mapping[str, object]) -> dict[str, str]:
    """Return the settings in PEFT's configuration as text."""
    return _as_text({name: config.get(name) for name in _FIELDS})


def may_be_one_base(one: str | None, other: str | None) -> bool:
    """Return whether two settings of `BASE` may mean one model: paths say nothing, names on the Hub their last part."""
    if one is None or other is None:
        return one == other
    if not (_ON_HUB.fullmatch(one) and _ON_HUB.fullmatch(other)):
        return True
    return _last_part(one) == _last_part(other)


def _last_part(text: str) -> str:
    return text.strip('"').rpartition("/")[2].lower()


def header_settings(text: str) -> dict[str, str]:
    """Return the settings that Diffusers writes into the header of a LoRA's file."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        return {"header": text}
    return _as_text(config) if isinstance(config, dict) else {"header": text}


def _as_text(values: Mapping[str, object]) -> dict[str, str]:
    # The modules that are adapted are a set, which PEFT writes in any order.
    return {
        name: json.dumps(sorted(value, key=str) if isinstance(value, list) else value, sort_keys=True, default=_number)
        for name, value in values.items()
        if value is not None
    }


def _number(value: object) -> int | str:
    """Return a number with a point, which is read as a fraction: 8.0 is the integer, 0.5 the text 1/2."""
    return value.numerator if isinstance(value, Fraction) and value.denominator == 1 else str(value)
