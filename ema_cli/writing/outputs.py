"""Lay out outputs from headers alone: the files of tensors to the byte, configuration, side files, model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import TYPE_CHECKING, TypedDict, Unpack

from ema_cli._version import __version__
from ema_cli.checkpoint import Checkpoint, Pretrained, TensorSpec
from ema_cli.dataclass import dataclass
from ema_cli.dtypes import DTYPES, DType, output_dtype
from ema_cli.errors import OutputError, UsageError, option
from ema_cli.formats.adapters.pairs import Pair, factored_specs, find_pairs, names_of, settings_of
from ema_cli.formats.mark import DROP, EXACT_LORA, LIKE_INPUT, MERGED, METADATA_KEY, RECORD, asked_for
from ema_cli.formats.output_file import OutputFile, Table, whole_name
from ema_cli.formats.safetensors.writer import lay_out_file
from ema_cli.formats.torch_save.writer import lay_out_torch_file
from ema_cli.formats.trainers.folders import DCP_METADATA
from ema_cli.kinds import as_count, as_size, as_text, check_flags, check_texts
from ema_cli.manifest.recipe_record import RecipeRecord
from ema_cli.manifest.sums import FOLDER_NAME
from ema_cli.manifest.types import RecipeRow
from ema_cli.planning.plan import Plan
from ema_cli.storage.source import InputFile
from ema_cli.writing.card import CARD_NAME, CONFIGS, model_card
from ema_cli.writing.folder_layout import divide, lay_out_models, loaded_names, with_header
from ema_cli.writing.side_files import SideFiles
from ema_cli.writing.target import Target

if TYPE_CHECKING:
    from ema_cli.writing.like_input import Likeness


OPTIMIZER = "optimizer"  # what --drop leaves out
_SMALL_BYTES = 1 << 20


class OutputKeywords(TypedDict, total=False):
    """The form of an output, in words.

    dtype: the dtype of floating tensors, as "bfloat16"; they may then differ between checkpoints. Default: as in the
        newest.
    max_shard_size: most bytes of tensors in one file of a folder, as "5GB". Default: the shards of the newest.
    allow_non_finite: let NaN and infinity pass.
    like_input: write the newest checkpoint over again, with averages in the place of its weights.
    drop: with like_input, "optimizer" leaves its state out.
    exact_lora: of an adapter, average the products BA, and write A and B of this rank.
    """

    dtype: str | DType | None
    max_shard_size: int | str | None
    allow_non_finite: bool
    like_input: bool
    drop: str | None
    exact_lora: int | None


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """The form of an output, as a user may choose it.

    Attributes:
        dtype: that of the floating tensors, which may then differ between checkpoints; None: as in the newest.
        max_shard_size: most bytes of tensors in one file of a folder; None: the shards of the newest checkpoint.
        allow_non_finite: whether NaN and infinity are written, too.
        like_input: whether the output is the newest checkpoint, with averages in the place of its weights.
        drop: what of that is left out: OPTIMIZER, or nothing.
        exact_lora: the rank of A and B whose product is the average of an adapter's products; None: each is averaged.
        version: the version of ema-cli that the files name. Only a comparison with what another version wrote sets it.
    """

    dtype: DType | None = None
    max_shard_size: int | None = None
    allow_non_finite: bool = False
    like_input: bool = False
    drop: str | None = None
    exact_lora: int | None = None
    version: str = __version__

    @classmethod
    def parse(cls, **keywords: Unpack[OutputKeywords]) -> OutputOptions:
        """Read what a user gives.

        Raises:
            UsageError: for a dtype that cannot be written, a text that is no size, and what the input decides.
        """
        dtype, size = keywords.get("dtype"), keywords.get("max_shard_size")
        for name, value in (("dtype", dtype), ("max_shard_size", size)):
            if keywords.get("like_input") and value is not None:
                raise UsageError(
                    f"is that of the input with {option('like_input', True)}", option=name, hint="leave out one"
                )
        check_flags(**{name: keywords.get(name, False) for name in ("allow_non_finite", "like_input")})
        drop = keywords.get("drop")
        check_texts(drop=drop)
        if drop not in (None, OPTIMIZER):
            raise UsageError(f"'{drop}' is nothing that can be left out", option="drop", hint=option("drop", OPTIMIZER))
        if drop is not None and not keywords.get("like_input"):
            like_input = option("like_input", True)
            raise UsageError(f"is for {like_input}: other outputs hold the weights alone", option="drop")
        rank = keywords.get("exact_lora")
        _check_exact(rank, keywords)
        return cls(
            dtype if dtype is None or isinstance(dtype, DType) else output_dtype(as_text(dtype, "dtype")),
            None if size is None else as_size(size, "max_shard_size"),
            keywords.get("allow_non_finite", False),
            keywords.get("like_input", False),
            drop,
            rank,
        )

    def to_dict(self) -> dict[str, object]:
        """Return the options as a manifest has them."""
        return {
            "dtype": self.dtype.name if self.dtype else None,
            "max_shard_size": self.max_shard_size,
            "allow_non_finite": self.allow_non_finite,
            **({LIKE_INPUT: True} if self.like_input else {}),
            **({DROP: self.drop} if self.drop is not None else {}),
            **({EXACT_LORA: self.exact_lora} if self.exact_lora is not None else {}),
        }

    @classmethod
    def from_dict(cls, data: RecipeRow) -> OutputOptions:
        """Read what `to_dict` returned, in the recipe of a manifest."""
        dtype = DTYPES[data["dtype"]] if data["dtype"] else None
        like_input, drop, rank = data.get("like_input", False), data.get("drop"), data.get("exact_lora")
        return cls(dtype, data["max_shard_size"], data["allow_non_finite"], like_input, drop, rank)


def _check_exact(rank: int | None, keywords: OutputKeywords) -> None:
    """Raise a UsageError for a rank of A and B that makes no sense, or with which another option makes none."""
    if rank is None:
        return
    as_count(rank, "exact_lora", "rows")
    for name, fact in (
        ("like_input", "writes A and B of the shapes that the input has"),
        ("allow_non_finite", "lets NaN pass, and a matrix with NaN cannot be factored"),
    ):
        if keywords.get(name):
            raise UsageError(f"{option(name, True)} {fact}", option="exact_lora", hint="leave out one")


@dataclass(frozen=True, slots=True)
class Output:
    """The files of one average, before anything is written.

    Attributes:
        target: the file or folder that they make up.
        files: the files of tensors.
        texts: small files by name, with their whole content.
        copies: side files of the newest checkpoint that are copied, by name.
        sources: the files from which `texts` and `copies` are made; they must not change meanwhile.
        originals: the name in the checkpoint of each tensor that is written under another name.
        likeness: how it takes over the newest checkpoint, None where it is of a form of our own.
        notes: what to know of loading it, in words.
        pairs: A and B of an adapter that are written as factors of the averaged products.
    """

    target: Target
    files: Sequence[OutputFile]
    texts: Mapping[str, bytes] = field(default_factory=dict)
    copies: Mapping[str, InputFile] = field(default_factory=dict)
    sources: Sequence[InputFile] = ()
    originals: Mapping[str, str] = field(default_factory=dict)
    likeness: Likeness | None = None
    notes: Sequence[str] = ()
    pairs: Sequence[Pair] = ()

    @property
    def nbytes(self) -> int:
        """Return the size of all files in bytes."""
        copied = sum(file.size for file in self.copies.values())
        return sum(file.size for file in self.files) + sum(map(len, self.texts.values())) + copied

    @property
    def large_copies(self) -> list[InputFile]:
        """Return the side files that are sent to a store as files of tensors are, without a copy on the disk."""
        return [file for file in self.copies.values() if is_large(file)]

    @property
    def sizes_sent(self) -> list[int]:
        """Return the size of each file that is sent to a store, if the output goes to one."""
        return [file.size for file in self.files] + [file.size for file in self.large_copies]

    @property
    def files_at_once(self) -> int:
        """Return how many files are written at the same time, in order; 0 where one is not written in its order."""
        if self.likeness is not None:
            return self.likeness.at_once
        return 0 if self.pairs else 1

    @property
    def dtypes(self) -> dict[str, DType]:
        """Return the dtype of each tensor by its name in the checkpoint, in the order in which the files hold them."""
        specs = ((self.original(file, name), spec) for file in self.files for name, spec in file.table.specs.items())
        return {name: spec.dtype for name, spec in specs}

    def original(self, file: OutputFile, name: str) -> str:
        """Return the name in the checkpoint of the tensor that is written into `file` under `name`."""
        whole = self.whole(file, name)
        return self.originals.get(whole, whole)

    def whole(self, file: OutputFile, name: str) -> str:
        """Return the name in the whole output of the tensor that `file` has under `name`."""
        return name if self.likeness is not None else whole_name(file.name, name)


def is_large(file: InputFile) -> bool:
    """Return whether a side file is too large to be made on the disk before it is sent."""
    return file.size > _SMALL_BYTES


def output_specs(checkpoint: Checkpoint, dtype: DType | None, copied: frozenset[str]) -> dict[str, TensorSpec]:
    """Return the specs of the tensors as they are written.

    Args:
        checkpoint: the newest.
        dtype: that of floating tensors which are not `copied`; None: as the model has it.
        copied: names of tensors that are copied because the user wants it.
    """
    specs, dtypes = checkpoint.tensors.specs, checkpoint.output_dtypes
    if dtype is None:
        return {
            name: replace(spec, dtype=dtypes[name]) if name in dtypes and name not in copied else spec
            for name, spec in specs.items()
        }
    return {
        name: replace(spec, dtype=dtype) if spec.dtype.kind == "float" and name not in copied else spec
        for name, spec in specs.items()
    }


def lay_out_output(
    plan: Plan,
    target: Target,
    options: OutputOptions,
    copied: frozenset[str],
    tables: Sequence[Table] = (),
    *,
    manifest: bool = True,
) -> Output:
    """Return the files that the average of `plan` will have at `target`.

    Args:
        plan: says which checkpoints enter; the newest gives names, shards, header and side files.
        target: the file or folder to write.
        options: the form of the output.
        copied: names of tensors that are copied because the user wants it.
        tables: headers of another average of the same run; equal ones are used again.
        manifest: whether a manifest is written into the folder, so that the model card mentions it.

    Raises:
        OutputError: for a tensor or a header that the format cannot hold.
        CheckpointError: where configuration or tokenizer of the newest checkpoint cannot be read.
    """
    if options.like_input:
        return _lay_out_like(plan, target, options, copied, manifest=manifest)
    specs = output_specs(plan.newest, options.dtype, copied)
    pairs: Sequence[Pair] = ()
    if options.exact_lora is not None:
        pairs = _exact_pairs(plan, options.exact_lora, target, copied)
        specs = factored_specs(specs, pairs, options.exact_lora)
    metadata = _metadata(plan, options, copied, [])
    inner = next(iter(plan.newest.pretrained.bases), None) if plan.newest.pretrained else None
    if inner is not None and (target.is_dcp or not target.is_folder):
        raise OutputError(
            f"{plan.newest.name} has a model of its own in '{inner}', which the output has no place for",
            subject=target.path,
            hint=f"write a folder: {option('o', target.path.stem)}; or take one of the models with "
            f"{option('component', inner)}",
        )
    if target.format != "safetensors":
        _check_no_header(plan, target)
    if target.is_lightning:
        return _lay_out_lightning(plan, target, specs, metadata[METADATA_KEY])
    if target.is_torch:
        return Output(target, [lay_out_torch_file(target.path.name, specs, metadata[METADATA_KEY], tables)])
    if target.is_dcp:
        return _lay_out_dcp(target, specs, _metadata(plan, options, copied, [DCP_METADATA, RECORD]), tables)
    wide = next((name for name, spec in specs.items() if not spec.dtype.in_safetensors), None)
    if wide is not None:
        raise OutputError(
            f"'{wide}' is complex128, which safetensors has no place for",
            subject=target.path,
            hint=f"write one file of torch's: {option('o', 'NAME.pt')}",
        )
    if not target.is_folder:
        named = with_header(metadata, plan.newest, "")
        return Output(target, [lay_out_file(target.path.name, specs, named, tables)])
    output = _lay_out_folder(plan, target, specs, options, copied, tables, manifest=manifest)
    return replace(output, pairs=pairs)


def _exact_pairs(plan: Plan, rank: int, target: Target, copied: frozenset[str]) -> list[Pair]:
    """Return A and B of the newest checkpoint, which are written anew.

    Raises:
        RunError: where it is no adapter that PEFT wrote.
        UsageError: for a rank that no sum of their products has, and where one is to be copied.
        OutputError: where their rank and scale cannot be written beside them.
    """
    newest = plan.newest
    pairs = find_pairs(newest, settings_of(newest, "exact_lora"))
    most = len(plan.read) * max(pair.rank for pair in pairs)
    if rank > most:
        raise UsageError(
            f"{rank} is more than the sum of the products can have, which is {most}",
            option="exact_lora",
            hint=option("exact_lora", most),
        )
    if not target.is_folder or target.is_dcp:
        raise OutputError(
            "is no folder, and the rank of A and B, and their scale, have to be in adapter_config.json beside them",
            subject=target.path,
            hint=option("o", target.path.stem),
        )
    kept = next((name for name in names_of(pairs) if name in copied), None)
    if kept is not None:
        raise UsageError(f"'{kept}' is of a pair of which the product is averaged", option="copy", hint="leave out one")
    return pairs


def _lay_out_like(
    plan: Plan, target: Target, options: OutputOptions, copied: frozenset[str], *, manifest: bool
) -> Output:
    """Return the files of an average in the form of its input; else as `lay_out_output`."""
    from ema_cli.writing.like_input import lay_out_like  # which most averages do not need

    def mark(names: Sequence[str]) -> str:
        return _metadata(plan, options, copied, names)[METADATA_KEY]

    drop = options.drop == OPTIMIZER
    like = lay_out_like(plan, target, copied, mark, without_optimizer=drop, manifest=manifest)
    likeness = like.likeness
    copies = tuple(like.copies.values())
    return Output(target, likeness.files, like.texts, like.copies, copies, likeness=likeness, notes=likeness.notes)


def _lay_out_folder(
    plan: Plan,
    target: Target,
    specs: dict[str, TensorSpec],
    options: OutputOptions,
    copied: frozenset[str],
    tables: Sequence[Table],
    *,
    manifest: bool,
) -> Output:
    """Return the files of an average that is a folder; `specs` are those of its tensors, else as `lay_out_output`."""
    pretrained = plan.newest.pretrained or Pretrained("model")
    beside = SideFiles.of(pretrained)
    sources = list(beside.copies.values())
    if options.exact_lora is not None:
        beside.set_rank(options.exact_lora)
    if plan.run.options.merge_into is not None:
        beside.copies.pop(CARD_NAME, None)  # that of the base model, which this is no longer
    originals: dict[str, str] = {}
    if pretrained.inner_files is not None:
        originals = loaded_names(plan.newest, pretrained.inner_files)
        specs = {name: specs[original] for name, original in originals.items()}
    models = divide(plan.newest, pretrained, specs)
    for model in models:
        converted = options.dtype is not None or bool(originals)
        beside.name_dtype(f"{model.prefix}config.json", model.own_specs(specs), converted=converted)
    if CARD_NAME not in beside.copies:
        card = model_card(plan, beside.contents(CONFIGS), manifest=FOLDER_NAME if manifest else None)
        beside.texts[CARD_NAME] = card.encode()
    metadata = _metadata(plan, options, copied, sorted({*beside.copies, *beside.texts}))
    files, indexes = lay_out_models(plan.newest, models, specs, options.max_shard_size, metadata, tables)
    return Output(target, files, {**beside.texts, **indexes}, beside.copies, sources, originals)


def _lay_out_dcp(
    target: Target, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str], tables: Sequence[Table]
) -> Output:
    """Return the files of an average that is a folder as torch.distributed.checkpoint writes it for one rank."""
    from ema_cli.formats.dcp.writer import lay_out_shard, shard_metadata  # which most averages do not need

    shard = lay_out_shard(specs, tables)
    return Output(target, [shard], {DCP_METADATA: shard_metadata(shard), RECORD: metadata[METADATA_KEY].encode()})


def _lay_out_lightning(plan: Plan, target: Target, specs: Mapping[str, TensorSpec], mark: str) -> Output:
    """Return the file of an average that Lightning's `load_from_checkpoint` takes."""
    from ema_cli.writing.lightning_file import lay_out_lightning  # which most averages do not need

    file, originals, notes = lay_out_lightning(plan.newest, target, specs, mark)
    return Output(target, [file], originals=originals, notes=notes)


def _check_no_header(plan: Plan, target: Target) -> None:
    """Check that nothing in the header of the newest checkpoint has to go into that of the output, which has none."""
    lost = next((name for header in plan.newest.adapter.headers.values() for name in header), None)
    if lost is not None:
        raise OutputError(
            f"{plan.newest.name} has '{lost}' in its header, which a file of torch's has no place for",
            subject=target.path,
            hint=f"write it as safetensors: {option('o', 'NAME.safetensors')}",
        )


def _metadata(plan: Plan, options: OutputOptions, copied: frozenset[str], side_files: Sequence[str]) -> dict[str, str]:
    """Return the header's metadata, with the mark that says how the file was averaged.

    It holds no times, hosts or absolute paths, so that equal runs give equal bytes.
    """
    asked = asked_for({**RecipeRecord.of(plan).to_dict(), "dtype": options.dtype.name if options.dtype else None})
    mark: dict[str, object] = {"version": options.version, **asked}
    mark["checkpoints"] = [[entry.checkpoint.name, str(entry.clock), entry.weight] for entry in plan.read]
    if options.like_input:
        mark[LIKE_INPUT] = True
    if options.drop is not None:
        mark[DROP] = options.drop
    if options.exact_lora is not None:
        mark[EXACT_LORA] = options.exact_lora
    if plan.run.options.merge_into is not None:
        mark[MERGED] = True
    read, of_base = plan.run.options.read, plan.newest.unchanged
    asked_copies = sorted(name for name in copied if name not in of_base or read.copies(name))
    if asked_copies:
        mark["copied"] = asked_copies
    if side_files:
        mark["files"] = list(side_files)
    return {"format": "pt", METADATA_KEY: json.dumps(mark, separators=(",", ":"))}
