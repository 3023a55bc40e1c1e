"""The side files that `from_pretrained` needs beside the tensors: configuration, tokenizer, processor, remote code."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ema_cli.checkpoint import Pretrained, TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.dtypes import DTYPES
from ema_cli.errors import CheckpointError
from ema_cli.formats.folders.places import named_folders
from ema_cli.formats.folders.processors import PROCESSORS, processor_states
from ema_cli.formats.trainers.folders import ADAPTER_CONFIG
from ema_cli.storage.location import location
from ema_cli.storage.source import InputFile

# Files that `from_pretrained` of models, tokenizers and processors may look for. Never optimizer, RNG, trainer state
# or training arguments: this is a list of wanted files, so that no new kind of state can slip through.
_WANTED = (
    "config.json", "*_config.json", "config_*.json", "config_*.py", "tokenizer*", "special_tokens_map.json",
    "added_tokens.json", "vocab*", "merges.txt", "*.model", "*.tiktoken", "*.spm", "chat_template*", "*.jinja",
    PROCESSORS, "modules.json", "model_index.json", "*.py", "README.md", "LICENSE*", "NOTICE*",
    # Files of single tokenizers of transformers: Mistral's, Whisper's, Marian's, LUKE's, PhoBERT's and so on.
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
    "*.index.json",
)
_FOLDERS = ("additional_chat_templates",)
_MAX_SIDE_BYTES, _MAX_CONFIG_BYTES = 1 << 30, 16 << 20
_SNAPSHOTS, _BLOBS = "snapshots", "blobs"  # in the folder of a repository in the Hub's cache


@dataclass(frozen=True, slots=True)
class SideFiles:
    """What an output has beside its tensors, by name: small files with their whole content, and files to copy."""

    texts: dict[str, bytes]
    copies: dict[str, InputFile]

    @classmethod
    def of(cls, pretrained: Pretrained) -> SideFiles:
        """Return what lies inside a checkpoint, and beside its tensors.

        Raises:
            CheckpointError: where some of it cannot be read, or must not be.
        """
        texts = dict(pretrained.inner_files.read()) if pretrained.inner_files is not None else {}
        return cls(texts, find_side_files(pretrained.folder, pretrained.bases) if pretrained.folder else {})

    def contents(self, names: Iterable[str]) -> dict[str, bytes]:
        """Return the content of those of the files that are there; that of a huge one is empty."""
        files = {name: self.copies[name] for name in names if name in self.copies}
        read = {name: file.read(0, file.size if file.size <= _MAX_CONFIG_BYTES else 0) for name, file in files.items()}
        return {**read, **{name: self.texts[name] for name in names if name in self.texts}}

    def name_dtype(self, name: str, specs: Mapping[str, TensorSpec], *, converted: bool) -> None:
        """Make a config.json name the dtype of the tensors as written: change its text where it has another."""
        text = self.texts.get(name)
        if text is None and name in self.copies:
            text = self.copies[name].read(0, self.copies[name].size)
        if text is None:
            return
        floating = {spec.dtype.name for spec in specs.values() if spec.dtype.kind == "float"}
        changed = set_config_dtype(text, floating, converted=converted)
        if changed != text:
            self.texts[name] = changed
            self.copies.pop(name, None)

    def set_rank(self, rank: int) -> None:
        """Make an adapter_config.json say that every A and B has this rank, and that BA is added as it is.
        That it is a JSON object was seen when the checkpoint was opened.
        """
        config = json.loads(self.contents([ADAPTER_CONFIG])[ADAPTER_CONFIG])
        plain = {"r": rank, "lora_alpha": rank, "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False}
        self.texts[ADAPTER_CONFIG] = (json.dumps({**config, **plain}, indent=2, ensure_ascii=False) + "\n").encode()
        self.copies.pop(ADAPTER_CONFIG, None)


def find_side_files(folder: Path, models: Iterable[str] = ()) -> dict[str, InputFile]:
    """Return the side files of the checkpoint in `folder`, by their names relative to it.

    Of the folders in it, those that its own files name come with all that is in them but weights.

    Args:
        folder: the checkpoint's own folder.
        models: folders in it with further models of the checkpoint.

    Raises:
        CheckpointError: where one is too large, or cannot be opened, or is a link that leads out of the checkpoint.
    """
    all_names = _file_names(folder)
    names = [*(name for name in all_names if _is_wanted(name)), *processor_states(folder, all_names)]
    for inner in dict.fromkeys((*_FOLDERS, *named_folders(folder), *models)):
        if location(folder / inner).info().is_folder:
            names += [f"{inner}/{name}" for name in _file_names(folder / inner) if not _is_unwanted(name)]
    check_links(folder, names)
    files = {name: location(folder / name).open() for name in names}
    for file in files.values():
        if file.size > _MAX_SIDE_BYTES:
            raise CheckpointError(f"{file.size} bytes are too many for a side file", subject=file.path)
    return files


def check_links(folder: Path, names: Iterable[str]) -> None:
    """Check that files lie in a checkpoint's own folder, whatever links are on the way to them.

    In the Hub's cache a folder is made of links into the `blobs` of the same repository: these are followed, too. What
    is copied is published: a link that leads elsewhere could publish any file of the user's.

    Raises:
        CheckpointError: naming the first file that lies elsewhere.
    """
    real = location(folder).resolve()
    inside = [real, *(parent.parent / _BLOBS for parent in real.parents if parent.name == _SNAPSHOTS)]
    for name in names:
        target = location(folder / name).resolve()
        if not any(target.is_relative_to(place) for place in inside):
            raise CheckpointError(
                f"is a link to {target}, outside the checkpoint, and would be copied into the output",
                subject=folder / name,
                hint="put a copy of the file in its place, if it is to be published; else remove the link",
            )


def _file_names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in location(folder).entries() if entry.is_file)


def set_config_dtype(text: bytes, dtypes: set[str], *, converted: bool) -> bytes:
    """Return the text of a config.json with the dtype of the tensors as they are written.

    The text stays the same to the byte where it names that dtype already, where the tensors have several dtypes, or
    where it is no JSON object.

    Args:
        text: the config.json of the newest checkpoint.
        dtypes: the dtypes of the floating tensors, as safetensors names them.
        converted: whether they differ from the checkpoint's, so that a dtype is added where none is named.
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
    """Set `dtype` (`torch_dtype` before transformers 5) in a configuration and those in it; return whether it changed.

    With `add`, also where no dtype is named.
    """
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
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _WANTED) and not _is_unwanted(name)


def _is_unwanted(name: str) -> bool:
    return name.startswith(".") or any(fnmatch.fnmatchcase(name, pattern) for pattern in _UNWANTED)
