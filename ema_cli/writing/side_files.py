"""The files beside the weights that make a folder load: configuration, tokenizer, processor, remote code."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path
from typing import Any

from ema_cli.dtypes import DTYPES
from ema_cli.errors import CheckpointError
from ema_cli.formats.folders.huggingface import module_folders
from ema_cli.formats.trainers.folders import MODULES
from ema_cli.storage.location import location
from ema_cli.storage.source import InputFile

# What `from_pretrained` of models, tokenizers and processors may look for. Never optimizer, RNG, trainer state
# or training arguments: a list of what is wanted, so that a new kind of state cannot slip through.
_WANTED = (
    "config.json", "*_config.json", "config_*.json", "config_*.py", "tokenizer*", "special_tokens_map.json",
    "added_tokens.json", "vocab*", "merges.txt", "*.model", "*.tiktoken", "*.spm", "chat_template*", "*.jinja",
    "modules.json", "*.py", "README.md", "LICENSE*", "NOTICE*",
    # What single tokenizers of transformers call theirs: Mistral's, Whisper's, Marian's, LUKE's, PhoBERT's and so on.
    "tekken.json", "normalizer.json", "*_vocab.json", "bpe.codes", "dict.txt", "*.tokenizer", "byte_maps.json",
    "emoji.json", "word_pronunciation.json", "word_shape.json",
)  # fmt: skip
_UNWANTED = (
    "zero_to_fp32.py",
    "zero_to_torch.py",
    "training_*",
    "optimizer*",
    "trainer_*",
    "*.safetensors",
    "*.bin",
)
_FOLDERS = ("additional_chat_templates",)
_MAX_SIDE_BYTES = 1 << 30


def find_side_files(folder: Path) -> list[InputFile]:
    """Return the side files of the checkpoint in `folder`, by name."""
    found = [path for path in sorted(folder.iterdir()) if path.is_file() and _is_wanted(path.name)]
    modules = module_folders(folder) if (folder / MODULES).is_file() else []
    for name in (*_FOLDERS, *modules):
        if (folder / name).is_dir():
            found += [path for path in sorted((folder / name).iterdir()) if path.is_file()]
    files = [location(path).open() for path in found]
    for file in files:
        if file.size > _MAX_SIDE_BYTES:
            raise CheckpointError(f"{file.size} bytes are too many for a side file", subject=file.path)
    return files


def set_config_dtype(text: bytes, dtypes: set[str], *, converted: bool) -> bytes:
    """Return the text of a config.json that says the dtype of the weights (safetensors' names) as written.

    Left to the byte where it says so already, where the weights have several dtypes and none was converted, or
    where it is not a JSON object.
    """
    if len(dtypes) != 1:
        return text
    known = DTYPES.get(next(iter(dtypes)))
    dtype = known.torch if known is not None and known.kind == "float" else None
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(config, dict) or dtype is None or not _set_dtype(config, dtype, add=converted):
        return text
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def _set_dtype(config: dict[str, Any], dtype: str, *, add: bool) -> bool:
    """Set `dtype` (`torch_dtype` before transformers 5) here and in sub-configurations; return whether it changed."""
    keys = [key for key in ("dtype", "torch_dtype") if isinstance(config.get(key), str)]
    if not keys and add:
        keys = ["torch_dtype" if "torch_dtype" in config else "dtype"]
    changed = any(config.get(key) != dtype for key in keys)
    config.update(dict.fromkeys(keys, dtype))
    for name, part in config.items():
        if isinstance(part, dict) and name.endswith("_config") and name != "quantization_config":
            changed |= _set_dtype(part, dtype, add=False)
    return changed


def _is_wanted(name: str) -> bool:
    def matches(patterns: tuple[str, ...]) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    return matches(_WANTED) and not matches(_UNWANTED) and not name.startswith(".")
