"""The files for `from_pretrained` that Composer keeps inside a checkpoint: configuration and tokenizer.

They are data like all of a checkpoint: here they become the text of files, and nothing in them is run. Composer's
wrapper puts `model.` before the names of its model's tensors; without it they are the names that transformers, or PEFT,
has.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ema_cli.dataclass import dataclass
from ema_cli.errors import CheckpointError
from ema_cli.formats.pickles.values import Inert
from ema_cli.formats.shards import is_plain_name
from ema_cli.formats.trainers.adapters import config_settings
from ema_cli.formats.trainers.nested import dig
from ema_cli.formats.trainers.prefixes import bare_names

_KEPT = "state/integrations/huggingface"  # the place of these files
MODEL, ADAPTER = "model", "adapter_model"  # the file of tensors in a folder that loads
_WRAPPER = "model."
_ADAPTER_NAME = re.compile(r"\.default(?=$|\.(?:weight|bias)$)")  # of the only adapter, which PEFT's files leave out
_CONFIGS = {MODEL: ("config", "config.json"), ADAPTER: ("peft_config", "adapter_config.json")}
_SUFFIXES = (".json", ".txt", ".py", ".model", ".jinja")  # of the files that Composer keeps
# Names of files that are no tokenizer's.
_TAKEN = re.compile(r"^(?:config|adapter_config|generation_config|ema-manifest)\.json$|\.index\.json$")
_MAX_VALUES = 8_000_000  # in all files; the largest vocabularies, with their merges, have a third of that
_MAX_CHARACTERS = 128 << 20
_MAX_DEPTH = 100
_MAX_BITS = 1024  # of an integer; a number that means "no limit" has a hundred
_FEW_VALUES = 10_000  # a file of no more is indented, for people to read
_END = object()
_CLASS = re.compile(r"^transformers\.models\.\w+\.\w+\.((?!FSDP)\w+)$")
_HINT = "write the weights alone, to one file: -o release.safetensors"


def find_base(root: Any, names: Iterable[object]) -> str | None:
    """Return the name of the file of tensors in a folder that loads; None where the checkpoint cannot become one.

    It can if it holds a configuration, and all `names` of its tensors are a wrapped model's, or all an adapter's.
    """
    kept = dig(root, f"{_KEPT}/model")
    base = next((base for base in (ADAPTER, MODEL) if _content(kept, base) is not None), None)
    texts = [name for name in names if isinstance(name, str)] if base else []
    if not texts or not all(name.startswith(_WRAPPER) for name in bare_names(texts)):
        return None
    # An adapter together with the weights that it adapts would have names that PEFT does not expect.
    return base if base == MODEL or all("lora_" in name or name.endswith("bias") for name in texts) else None


def adapter_settings(root: Any) -> dict[str, str]:
    """Return the settings of the adapter in Composer's checkpoint as text; none for a whole model."""
    config = _content(dig(root, f"{_KEPT}/model"), ADAPTER)
    return {} if config is None else config_settings(config)


@dataclass(frozen=True, slots=True)
class ComposerFiles:
    """Configuration and tokenizer inside the checkpoint at `path`, read only when they are wanted.

    A run of a thousand checkpoints has a thousand tokenizers, of which one is written. `reopen` unpickles the
    checkpoint once more.
    """

    base: str
    path: Path
    reopen: Callable[[], Any]

    def read(self) -> Mapping[str, bytes]:
        """Return the content of the files, by name."""
        try:
            return _read_files(self.reopen())
        except CheckpointError as error:
            error.about(self.path)
            raise

    def loaded_name(self, name: str) -> str:
        """Return the name that transformers or PEFT has for a tensor of Composer's."""
        bare = name.removeprefix(_WRAPPER)
        return _ADAPTER_NAME.sub("", bare) if self.base == ADAPTER else bare


def _read_files(root: Any) -> dict[str, bytes]:
    kept = dig(root, _KEPT)
    budget = _Budget()
    texts: dict[str, bytes] = {}
    for base, (key, name) in _CONFIGS.items():
        content = _content(dig(kept, "model"), base)
        if content is not None:
            config = _with_class(content, dig(kept, f"model/{key}/class")) if base == MODEL else content
            texts[name] = budget.json(name, config)
    tokenizer = dig(kept, "tokenizer")
    for name, part in tokenizer.items() if isinstance(tokenizer, dict) else ():
        file, text = _tokenizer_file(name, part, budget)
        if file in texts:
            raise CheckpointError(f"its tokenizer has two files called '{file}'", hint=_HINT)
        texts[file] = text
    return texts


def _tokenizer_file(name: object, part: object, budget: _Budget) -> tuple[str, bytes]:
    suffix = part.get("file_extension") if isinstance(part, dict) else None
    if not isinstance(name, str) or not isinstance(part, dict) or suffix not in _SUFFIXES:
        raise CheckpointError("its tokenizer is not kept as Composer keeps one", hint=_HINT)
    file = name if name.endswith(suffix) else name + suffix  # as older versions name them
    if not is_plain_name(file) or not file.isprintable() or _TAKEN.search(file):
        raise CheckpointError(f"its tokenizer has a file called '{file[:200]}', which no tokenizer writes", hint=_HINT)
    content = part.get("content")
    if suffix == ".json":
        return file, budget.json(file, content)
    if suffix == ".txt" and isinstance(content, list) and all(isinstance(line, str) for line in content):
        return file, budget.text(file, *content)
    if suffix == ".model":
        data = _as_bytes(file, content)
        budget.count(file, 1, len(data))
        return file, data
    if suffix != ".txt" and isinstance(content, str):
        return file, budget.text(file, content)
    raise CheckpointError(f"its tokenizer's '{file}' holds a {type(content).__name__}", hint=_HINT)


def _as_bytes(file: str, content: object) -> bytes:
    """Return the content of a binary file. Pickles of protocol 2 hold bytes as a call that encodes text."""
    match content:
        case bytes():
            return content
        case Inert("_codecs.encode", (str(text), "latin1")):
            with suppress(UnicodeEncodeError):
                return text.encode("latin-1")
    raise CheckpointError(f"its tokenizer's '{file}' holds no bytes", hint=_HINT)


class _Budget:
    """Turns content into bytes, counting first: a small pickle can describe gigabytes of text."""

    def __init__(self) -> None:
        self.values = 0
        self.characters = 0

    def json(self, file: str, content: object) -> bytes:
        """Return the content as a JSON text."""
        before = self.values
        self._count_json(file, content)
        indent = 2 if self.values - before <= _FEW_VALUES else None
        return _encoded(file, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")

    def text(self, file: str, *lines: str) -> bytes:
        """Return lines as UTF-8."""
        self.count(file, len(lines), sum(map(len, lines)))
        return _encoded(file, "\n".join(lines))

    def count(self, file: str, values: int, characters: int) -> None:
        """Count the values and characters of a file before it is made; refuse too many."""
        self.values += values
        self.characters += characters
        if self.values > _MAX_VALUES or self.characters > _MAX_CHARACTERS:
            raise CheckpointError(f"its '{file}' is too large", hint=_HINT)

    def _count_json(self, file: str, content: object) -> None:
        """Count the content of a JSON file; refuse what JSON does not have, and endless nesting."""
        levels: list[Iterator[object]] = [iter([content])]
        while levels:
            value = next(levels[-1], _END)
            if value is _END:
                levels.pop()
            elif isinstance(value, dict | list | tuple) and len(levels) < _MAX_DEPTH:
                self.count(file, len(value), 0)
                levels.append(iter([*value, *value.values()] if isinstance(value, dict) else value))
                if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
                    raise CheckpointError(f"its '{file}' has a key that is no text", hint=_HINT)
            elif isinstance(value, str):
                self.count(file, 0, len(value))
            elif isinstance(value, int) and value.bit_length() > _MAX_BITS:
                raise CheckpointError(f"its '{file}' holds a number of {value.bit_length()} bits", hint=_HINT)
            elif not isinstance(value, int | float | None):
                raise CheckpointError(f"its '{file}' is not plain data, or is nested without end", hint=_HINT)


def _encoded(file: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise CheckpointError(f"its '{file}' is not valid text", hint=_HINT) from None


def _with_class(config: Mapping[str, object], name: object) -> Mapping[str, object]:
    """Return the configuration with the name of the model's class, which transformers adds when it saves a model."""
    match = _CLASS.match(name) if isinstance(name, str) else None
    return {"architectures": [match[1]], **config} if match and not config.get("architectures") else config


def _content(kept: Any, base: str) -> dict[str, object] | None:
    content = dig(kept, f"{_CONFIGS[base][0]}/content")
    return content if isinstance(content, dict) and content else None
