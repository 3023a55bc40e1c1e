"""Lay out outputs from headers alone: the files of tensors to the byte, configuration, side files, model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ema_cli.checkpoint import Pretrained, TensorSpec
from ema_cli.errors import OutputError, UsageError, option
from ema_cli.formats.adapters.pairs import Pair, factored_specs, find_pairs, names_of, settings_of
from ema_cli.formats.mark import DROP, EXACT_LORA, FOLDER_NAME, LIKE_INPUT, MERGED, METADATA_KEY, RECORD, asked_for
from ema_cli.formats.output_file import Table
from ema_cli.formats.safetensors.writer import lay_out_file
from ema_cli.formats.torch_save.writer import lay_out_torch_file
from ema_cli.formats.trainers.folders import DCP_METADATA
from ema_cli.manifest.recipe_record import RecipeRecord
from ema_cli.planning.plan import Plan
from ema_cli.writing.card import CARD_NAME, CONFIGS, model_card
from ema_cli.writing.folder_layout import divide, lay_out_models, loaded_names, with_header
from ema_cli.writing.output_options import OPTIMIZER, OutputOptions
from ema_cli.writing.outputs import Output, output_specs
from ema_cli.writing.side_files import SideFiles
from ema_cli.writing.target import Target


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
