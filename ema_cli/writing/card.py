"""The model card of an average: the README.md for the Hugging Face Hub, where the model has none of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ema_cli._version import __version__
from ema_cli.errors import printable
from ema_cli.formats.trainers.folders import MODULES, PIPELINE
from ema_cli.law.wording import recipe_phrase
from ema_cli.planning.plan import Plan
from ema_cli.text import lazy_pattern, plural

CARD_NAME = "README.md"
_TAGS = ("ema", "weight-averaging")  # not "merge": the Hub takes that for a merge of different models
_LIBRARIES = {  # by the name of the file of tensors: the library, and the configuration that it needs
    "model": ("transformers", "config.json"),
    "adapter_model": ("peft", "adapter_config.json"),
    "diffusion_pytorch_model": ("diffusers", "config.json"),
    "pytorch_lora_weights": ("diffusers", None),
}
CONFIGS = ("config.json", "adapter_config.json", MODULES, PIPELINE)  # the card takes facts from these
_BASE_KEYS = (("adapter_config.json", "base_model_name_or_path"), ("config.json", "_name_or_path"))
# The name of a model on the Hub, `owner/model`. Not a path of more parts, nor a checkpoint of a Trainer's in a folder,
# nor a name that the Hub refuses: it would refuse the card, too.
_ON_HUB = lazy_pattern(
    r"(?!.{97}|.*(?:--|\.\.|\.git$))[A-Za-z0-9](?:[\w.-]*\w)?/(?!checkpoint-\d+$)[A-Za-z0-9](?:[\w.-]*\w)?", re.ASCII
)
_HARMLESS = lazy_pattern(r"[A-Za-z0-9._/=+,@ -]+")
_MOST_ROWS = 100


def model_card(plan: Plan, configs: Mapping[str, bytes], *, manifest: str | None, classes: Sequence[str] = ()) -> str:
    """Return the text of the card. It holds no times, hosts or absolute paths, so that equal runs give equal cards.

    Args:
        plan: that of the average.
        configs: the text of the configurations in the folder, by name; empty where it is too long to be read.
        manifest: the name of the manifest in the folder, None if there is none.
        classes: the classes and functions that files in the folder name, so that loading these runs their code.
    """
    base = plan.newest.pretrained.base if plan.newest.pretrained else "model"
    front = {"base_model": _base_model(configs), "library_name": _library(base, configs)}
    lines = ["---", *(f"{key}: {value}" for key, value in front.items() if value), "tags:"]
    lines += [*(f"- {tag}" for tag in _TAGS), "---", "", "# Averaged weights", "", _summary(plan), ""]
    lines += _table(plan)
    if classes:
        lines += ["", f"Loading all of it runs the code of {', '.join(map(_name, classes[:_MOST_ROWS]))}."]
    if manifest is not None:
        lines += ["", *_reproduce(manifest)]
    return "\n".join(lines) + "\n"


def _base_model(configs: Mapping[str, bytes]) -> str | None:
    """Return the name of the model from which the training began, where an adapter or a configuration names one on
    the Hub.
    """
    for name, key in _BASE_KEYS:
        value = _parsed(configs.get(name, b"")).get(key)
        if isinstance(value, str) and _ON_HUB.fullmatch(value):
            return value
    return None


def _library(base: str, configs: Mapping[str, bytes]) -> str | None:
    """Return the name of the library that loads the folder, None if that is not known."""
    if MODULES in configs:
        return "sentence-transformers"
    if PIPELINE in configs:
        return "diffusers"
    library, config = _LIBRARIES.get(base, (None, None))
    if config == "config.json" and library == "transformers" and "model_type" not in _parsed(configs.get(config, b"")):
        return None  # a model of somebody's own, as Accelerate saves any
    return library if config is None or config in configs else None


def _summary(plan: Plan) -> str:
    """Return a sentence that says how the average was made."""
    count = len(plan.read)
    if plan.approximation is not None:
        of = f"made of {plural(count, 'average')} that one training run stored"
    else:
        of = f"the weighted average of {plural(count, 'checkpoint')} of one training run"
    if plan.run.options.merge_into is not None:
        of = f"a base model with {of}, of an adapter, merged into it"
    return f"These weights are {of}, {recipe_phrase(plan.recipe)}. ema-cli {__version__} made them."


def _table(plan: Plan) -> list[str]:
    """Return a table of the checkpoints that enter, oldest first; of many only the newest, and a row for the rest."""
    shown = plan.read[-_MOST_ROWS:]
    what = "average" if plan.approximation is not None else "checkpoint"
    rows = [(_name(entry.checkpoint.name), str(entry.clock), f"{entry.weight:.4g}") for entry in shown]
    if len(shown) < len(plan.read):
        rest = plan.read[: -len(shown)]
        weight = sum(entry.weight for entry in rest)
        rows.append((f"{len(rest)} older", f"up to {rest[-1].clock}", f"{weight:.4g}"))
    if not shown[-1].has_clock:
        return [f"| {what} | weight |", "|---|---:|", *(f"| {name} | {weight} |" for name, _, weight in rows)]
    return [f"| {what} | clock | weight |", "|---|---|---:|", *(f"| {' | '.join(row)} |" for row in rows)]


def _name(name: str) -> str:
    """Return a name so that nothing in it is read as Markdown."""
    if _HARMLESS.fullmatch(name) and name == name.strip():
        return f"`{name}`"
    return "".join(char if char.isalnum() else f"&#{ord(char)};" for char in printable(name))


def _reproduce(manifest: str) -> list[str]:
    return [
        "## How to reproduce",
        "",
        f"`{manifest}` says what was asked for, and which checkpoints were read. A check of these files, and the same",
        "bytes again, from where the checkpoints lie (`CHECKPOINTS`):",
        "",
        "```bash",
        "ema-cli verify .",
        f"ema-cli average CHECKPOINTS --recipe {manifest} -o ../again",
        "```",
    ]


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
