"""What will be written, to the byte, from headers alone: weights, configuration, what travels with them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ema_cli._version import __version__
from ema_cli.checkpoint import Checkpoint, InnerFiles, Pretrained, TensorSpec, check_tensor_name
from ema_cli.dtypes import DType
from ema_cli.errors import OutputError, option
from ema_cli.formats.mark import METADATA_KEY, asked_for
from ema_cli.formats.output_file import OutputFile, Table
from ema_cli.formats.safetensors.writer import lay_out_file, lay_out_shards, split_shards
from ema_cli.formats.torch_save.writer import lay_out_torch_file
from ema_cli.manifest.recipe_record import RecipeRecord
from ema_cli.manifest.sums import FOLDER_NAME
from ema_cli.planning.plan import Plan
from ema_cli.storage.source import InputFile
from ema_cli.writing.card import CARD_NAME, CONFIGS, model_card
from ema_cli.writing.side_files import find_side_files, set_config_dtype
from ema_cli.writing.target import Target

_MAX_CONFIG_BYTES = 16 << 20
_SHARD_NUMBER = re.compile(r"-\d{5,}-of-\d{5,}(?=\.)")


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """What a user may say of the output.

    `dtype` replaces that of floating tensors, which may then differ between checkpoints. Tensors whose names match a
    pattern in `copy` are copied from the newest. `max_shard_size`: bytes in one file of a folder, None as the newest
    checkpoint has it. `allow_non_finite`: NaN and infinity are let through.
    """

    dtype: DType | None = None
    copy: tuple[str, ...] = ()
    max_shard_size: int | None = None
    allow_non_finite: bool = False


@dataclass(frozen=True, slots=True)
class Output:
    """What one average comes to: weights by range, small files whole, copies of side files."""

    target: Target
    files: Sequence[OutputFile]
    texts: Mapping[str, bytes]
    copies: Mapping[str, InputFile]
    sources: Sequence[InputFile] = ()  # of texts and copies
    originals: Mapping[str, str] = field(default_factory=dict)  # what the checkpoint calls a tensor of another name

    @property
    def nbytes(self) -> int:
        """Return the size of everything."""
        copied = sum(file.size for file in self.copies.values())
        return sum(file.size for file in self.files) + sum(map(len, self.texts.values())) + copied

    @property
    def dtypes(self) -> dict[str, DType]:
        """Return the dtype of each tensor by its name in the checkpoint, in the order in which the files hold them."""
        specs = ((self.original(name), spec) for file in self.files for name, spec in file.table.specs.items())
        return {name: spec.dtype for name, spec in specs}

    def original(self, name: str) -> str:
        """Return what the checkpoint calls the tensor that is written under `name`."""
        return self.originals.get(name, name)


def output_specs(checkpoint: Checkpoint, dtype: DType | None, copied: frozenset[str]) -> dict[str, TensorSpec]:
    """Return the specs that are written: averaged floating tensors in `dtype`, all others as the model has them."""
    specs, types = checkpoint.tensors.specs, checkpoint.output_dtypes
    if dtype is None:
        return {
            name: replace(spec, dtype=types.get(name, spec.dtype)) if types else spec for name, spec in specs.items()
        }
    return {
        name: replace(spec, dtype=dtype) if spec.dtype.kind == "float" and name not in copied else spec
        for name, spec in specs.items()
    }


def lay_out_output(
    plan: Plan,
    target: Target,
    dtype: DType | None,
    copied: frozenset[str],
    tables: Sequence[Table] = (),
    *,
    max_shard_bytes: int | None = None,
    manifest: bool = True,
) -> Output:
    """Return what the average of `plan` will be at `target`; `tables` are those of another, to be used again.

    A folder has the shards of the newest checkpoint, or with `max_shard_bytes`, in bytes, as many as that takes; and a
    model card, which tells of the manifest where there is one.

    Raises:
        OutputError: for what the container cannot hold.
        CheckpointError: where configuration or tokenizer of the newest checkpoint cannot be read.
    """
    newest = plan.newest
    specs = output_specs(newest, dtype, copied)
    if target.is_torch:
        return Output(target, [_lay_out_torch(plan, target, specs, _metadata(plan, dtype, copied, []), tables)], {}, {})
    wide = next((name for name, spec in specs.items() if not spec.dtype.in_safetensors), None)
    if wide is not None:
        raise OutputError(
            f"'{wide}' is complex128, which safetensors has no place for",
            subject=target.path,
            hint=f"write one file of torch's: {option('o', 'NAME.pt')}",
        )
    if not target.is_folder:
        return Output(
            target, [lay_out_file(target.path.name, specs, _metadata(plan, dtype, copied, []), tables)], {}, {}
        )
    pretrained = newest.pretrained or Pretrained("model")
    texts, copies = _side_files(pretrained)
    sources = list(copies.values())
    originals: dict[str, str] = {}
    if pretrained.inner_files is not None:
        originals = _loaded_names(newest, pretrained.inner_files)
        specs = {name: specs[original] for name, original in originals.items()}
    _set_config_dtype(texts, copies, specs, converted=dtype is not None or bool(originals))
    if CARD_NAME not in copies:
        texts[CARD_NAME] = model_card(
            plan, _configs(texts, copies), manifest=FOLDER_NAME if manifest else None
        ).encode()
    metadata = _metadata(plan, dtype, copied, sorted({*copies, *texts}))
    shards = _shards(newest) if max_shard_bytes is None else split_shards(specs, max_shard_bytes, pretrained.base)
    if len(set(shards.values())) > 1:
        files, index = lay_out_shards(specs, shards, metadata, tables)
        texts[f"{pretrained.base}.safetensors.index.json"] = index
    else:
        files = [lay_out_file(f"{pretrained.base}.safetensors", specs, metadata, tables)]
    return Output(target, files, texts, copies, sources, originals)


def _side_files(pretrained: Pretrained) -> tuple[dict[str, bytes], dict[str, InputFile]]:
    """Return the texts that lie inside the checkpoint, and the files beside its tensors, to be copied; by name."""
    texts = dict(pretrained.inner_files.read()) if pretrained.inner_files is not None else {}
    if pretrained.folder is None:
        return texts, {}
    files = find_side_files(pretrained.folder)
    return texts, {file.path.relative_to(pretrained.folder).as_posix(): file for file in files}


def _configs(texts: Mapping[str, bytes], copies: Mapping[str, InputFile]) -> dict[str, bytes]:
    """Return the configurations that will be in the folder, by name."""
    read = {name: file.read(0, file.size if file.size <= _MAX_CONFIG_BYTES else 0) for name, file in copies.items()
            if name in CONFIGS}  # fmt: skip
    return {**read, **{name: text for name, text in texts.items() if name in CONFIGS}}


def _loaded_names(checkpoint: Checkpoint, inner_files: InnerFiles) -> dict[str, str]:
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


def _set_config_dtype(
    texts: dict[str, bytes], copies: dict[str, InputFile], specs: Mapping[str, TensorSpec], *, converted: bool
) -> None:
    """Let config.json say the dtype of the weights as written; copy it where it does already."""
    name = "config.json"
    text = texts.get(name)
    if text is None and name in copies:
        text = copies[name].read(0, copies[name].size)
    if text is None:
        return
    floating = {spec.dtype.name for spec in specs.values() if spec.dtype.kind == "float"}
    changed = set_config_dtype(text, floating, converted=converted)
    if changed != text:
        texts[name] = changed
        copies.pop(name, None)


def _lay_out_torch(
    plan: Plan, target: Target, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str], tables: Sequence[Table]
) -> OutputFile:
    lost = next(iter(plan.newest.adapter.header), None)
    if lost is not None:
        raise OutputError(
            f"{plan.newest.name} has '{lost}' in its header, which a file of torch's has no place for",
            subject=target.path,
            hint=f"write it as safetensors: {option('o', 'NAME.safetensors')}",
        )
    return lay_out_torch_file(target.path.name, specs, metadata[METADATA_KEY], tables)


def _shards(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the file in which each tensor is written: as in the newest checkpoint, under the names for safetensors."""
    if checkpoint.pretrained is None or checkpoint.pretrained.inner_files is not None:
        return {}
    base = checkpoint.pretrained.base
    weights = checkpoint.tensors
    # pytorch_model-00001-of-00002.bin becomes model-00001-of-00002.safetensors.
    shards = {name: weights.shard(name) for name in weights.specs}
    names = {shard: _shard_name(shard, base) for shard in set(shards.values())}
    return {name: names[shard] for name, shard in shards.items()}


def _shard_name(shard: str, base: str) -> str:
    number = _SHARD_NUMBER.search(shard)
    return f"{base}{number[0]}.safetensors" if number else f"{Path(shard).stem}.safetensors"


def _metadata(plan: Plan, dtype: DType | None, copied: frozenset[str], side_files: Sequence[str]) -> dict[str, str]:
    """Say compactly how the file was averaged: no times, hosts or absolute paths, so that equal runs are equal."""
    asked = asked_for({**RecipeRecord.of(plan).to_dict(), "dtype": dtype.name if dtype else None})
    record: dict[str, object] = {"version": __version__, **asked}
    record["checkpoints"] = [[each.checkpoint.name, str(each.clock), each.weight] for each in plan.read]
    if copied:
        record["copied"] = sorted(copied)
    if side_files:
        record["files"] = list(side_files)
    return {"format": "pt", **plan.newest.adapter.header, METADATA_KEY: json.dumps(record, separators=(",", ":"))}
