"""Which file of an output folder holds which tensor: each model where it was in the newest checkpoint, sharded so."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from pathlib import PurePosixPath

from ema_cli.checkpoint import Checkpoint, InnerFiles, Pretrained, TensorSpec, check_tensor_name
from ema_cli.dataclass import dataclass
from ema_cli.errors import OutputError, option
from ema_cli.formats.mark import METADATA_KEY
from ema_cli.formats.output_file import OutputFile, Table
from ema_cli.formats.safetensors.writer import lay_out_file, lay_out_shards, split_shards
from ema_cli.formats.torch_save.writer import lay_out_torch_file
from ema_cli.formats.trainers.folders import BASES, EXTRAS

_SHARD_NUMBER = re.compile(r"-\d{5,}-of-\d{5,}(?=\.)")
_BASE_OF = {**{base: base for base in BASES}, **{pickled: base for base, pickled in BASES.items()}}


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """One model of an output.

    Attributes:
        folder: in which it lies, relative to the output; empty for the output's own.
        base: the name of its file without suffix, and of its shards without number.
        is_torch: whether its loader asks for a file of torch's.
        shards: the file that holds each of its tensors in the newest checkpoint, by the tensor's whole name.
    """

    folder: str
    base: str
    is_torch: bool
    shards: dict[str, str] = field(default_factory=dict)

    @property
    def prefix(self) -> str:
        """Return what stands before the names of its files and its tensors."""
        return f"{self.folder}/" if self.folder else ""

    def own_specs(self, specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
        """Return the specs of its tensors, by the names that they have in its files."""
        return {name.removeprefix(self.prefix): specs[name] for name in self.shards}


def divide(newest: Checkpoint, pretrained: Pretrained, specs: Mapping[str, TensorSpec]) -> list[ModelFiles]:
    """Divide the tensors of an output, `specs`, into its models, by the files of the newest checkpoint."""
    models: dict[tuple[str, str, bool], ModelFiles] = {}
    holders: dict[str, tuple[ModelFiles, str]] = {}  # of each file: the model that it belongs to, and its bare name
    keeps_files = newest.pretrained is not None and pretrained.inner_files is None
    for name in specs:
        file = newest.tensors.shard(name) if keeps_files else ""
        if file not in holders:
            path = PurePosixPath(file)
            folder = "" if path.parent == PurePosixPath() else path.parent.as_posix()
            stem = _SHARD_NUMBER.sub("", path.name).removesuffix(path.suffix)
            base = stem if stem in EXTRAS else _BASE_OF.get(stem, pretrained.bases.get(folder, pretrained.base))
            key = folder, base, stem in EXTRAS and path.suffix == ".bin"
            holders[file] = models.setdefault(key, ModelFiles(*key)), path.name
        model, bare = holders[file]
        model.shards[name] = bare
    return list(models.values())


def loaded_names(checkpoint: Checkpoint, inner_files: InnerFiles) -> dict[str, str]:
    """Return the names that the tensors have in a folder that loads, each with its name in the checkpoint."""
    names: dict[str, str] = {}
    for original in checkpoint.tensors.specs:
        name = inner_files.loaded_name(original)
        check_tensor_name(name, checkpoint.path)
        if name in names:
            raise OutputError(
                f"'{original}' and '{names[name]}' would have one name in a folder that loads",
                subject=checkpoint.path,
                hint=f"keep the names as they are: {option('keep_prefix', True)}",
            )
        names[name] = original
    return names


def with_header(metadata: Mapping[str, str], newest: Checkpoint, folder: str) -> Mapping[str, str]:
    """Return the `__metadata__` of a file with what that of the newest checkpoint's file in `folder` must say, too."""
    return {**metadata, **newest.adapter.headers.get(folder, {})}


def lay_out_models(
    newest: Checkpoint,
    models: Sequence[ModelFiles],
    specs: Mapping[str, TensorSpec],
    most_bytes: int | None,
    metadata: Mapping[str, str],
    tables: Sequence[Table],
) -> tuple[list[OutputFile], dict[str, bytes]]:
    """Return the files of tensors, and the texts of the indexes by name.

    Args:
        newest: the newest checkpoint.
        models: the models, as `divide` returned them.
        specs: their tensors, by whole name.
        most_bytes: most bytes of tensors in one file; None: the shards of the newest checkpoint.
        metadata: the `__metadata__` of each file, to which that of an adapter may add.
        tables: tables of other files; one of equal tensors is used again.
    """
    files: list[OutputFile] = []
    indexes: dict[str, bytes] = {}
    for model in models:
        own, base, header = model.own_specs(specs), model.base, with_header(metadata, newest, model.folder)
        if model.is_torch:
            files.append(lay_out_torch_file(f"{model.prefix}{base}.bin", own, metadata[METADATA_KEY], tables))
            continue
        if most_bytes is None:
            shards = dict(zip(own, (_shard_name(file, base) for file in model.shards.values()), strict=True))
        else:
            shards = split_shards(own, most_bytes, base)
        if len(set(shards.values())) > 1:
            parts, index = lay_out_shards(own, shards, header, tables)
            files += [replace(part, name=f"{model.prefix}{part.name}") for part in parts]
            indexes[f"{model.prefix}{base}.safetensors.index.json"] = index
        else:
            files.append(lay_out_file(f"{model.prefix}{base}.safetensors", own, header, tables))
    return files, indexes


def _shard_name(shard: str, base: str) -> str:
    # pytorch_model-00001-of-00002.bin becomes model-00001-of-00002.safetensors.
    number = _SHARD_NUMBER.search(shard)
    return f"{base}{number[0]}.safetensors" if number else f"{PurePosixPath(shard).stem}.safetensors"
