"""Options that belong together, which several commands take: the run and how it is read, the output."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated

from typer import Option

from ema_cli.cli.law_options import RecipeOptions
from ema_cli.cli.options import (
    GATES,
    READ,
    SELECT,
    WRITE,
    ClockKey,
    Copy,
    Drop,
    Dtype,
    EpochLength,
    Exclude,
    LikeInput,
    MaxShardSize,
    MergeInto,
    NameClock,
    Paths,
    offer,
)
from ema_cli.dataclass import dataclass


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class EnteringOptions:
    """Which checkpoints are left out before any law applies."""

    exclude: Exclude = ()
    skip_damaged: Annotated[
        bool,
        Option(
            "--skip-damaged",
            help="Leave out checkpoints that are damaged, each with a warning. Default: a damaged one is an error.",
            rich_help_panel=SELECT,
        ),
    ] = False


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ClockOptions:
    """Where clocks come from, where checkpoints record none or wrong ones."""

    epoch_length: EpochLength = None
    spacing: Annotated[
        str | None,
        Option(
            metavar="TIME",
            help="Distance between checkpoints that record no clock (100ba), in natural order of their names.",
            rich_help_panel=READ,
        ),
    ] = None
    name_clock: NameClock = None
    clock_key: ClockKey = ()
    ignore_clocks: Annotated[
        bool,
        Option(
            "--ignore-clocks",
            help="Let --spacing take the place of recorded clocks.",
            rich_help_panel=READ,
        ),
    ] = False


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ModelOptions:
    """Which model of a checkpoint is read, and under which names."""

    key: Annotated[
        str | None,
        Option(
            metavar="NAME",
            help="Where in a file, not of safetensors, the weights are: NAME or NAME.NAME.",
            rich_help_panel=READ,
        ),
    ] = None
    weights: Annotated[
        str | None,
        Option(
            metavar="raw|ema",
            autocompletion=offer("raw", "ema"),
            help="Which to take where a file holds the averages of a training, too. Default: raw; where averages "
            "stand in the model's place, it must be said.",
            rich_help_panel=READ,
        ),
    ] = None
    component: Annotated[
        str | None,
        Option(
            metavar="NAME",
            help="One model of a checkpoint that is several: unet, 2_Dense. Default: all of them together, where they "
            "load together. Of averages that several trainings stored (EMA.store): which training.",
            rich_help_panel=READ,
        ),
    ] = None
    keep_prefix: Annotated[
        bool,
        Option(
            "--keep-prefix",
            help="Leave _orig_mod., _fsdp_wrapped_module. and module. in the names. Default: they are taken off.",
            rich_help_panel=READ,
        ),
    ] = False
    masters: Annotated[
        bool,
        Option(
            "--masters",
            help="Take the float32 weights that DeepSpeed's or Megatron's optimizer keeps of a model in half "
            "precision, and write them so. Default: the model's dtype.",
            rich_help_panel=READ,
        ),
    ] = False


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class GateOptions:
    """What is demanded of an average before it is made."""

    min_count: Annotated[
        int | None,
        Option(metavar="N", help="At least so many checkpoints enter. Default: 1.", rich_help_panel=GATES),
    ] = None
    max_share: Annotated[
        float | None,
        Option(
            metavar="SHARE",
            help="No checkpoint has a greater share of the average than this: 0.5. Default: any share.",
            rich_help_panel=GATES,
        ),
    ] = None
    strict: Annotated[
        bool,
        Option("--strict", help="There is nothing to warn of: a warning is an error.", rich_help_panel=GATES),
    ] = False
    expect_keys: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            help="The tensors are those that the file lists: a name on each line, or JSON (an index, a list).",
            rich_help_panel=GATES,
        ),
    ] = None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class RunOptions:
    """A run, what is averaged of it, and how it is read."""

    paths: Paths = ()
    law: RecipeOptions = field(default_factory=RecipeOptions)
    entering: EnteringOptions = field(default_factory=EnteringOptions)
    clocks: ClockOptions = field(default_factory=ClockOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    copy: Copy = ()
    merge_into: MergeInto = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class FormOptions:
    """The form of an output; see `writing.output_options.OutputOptions`."""

    allow_non_finite: Annotated[
        bool,
        Option(
            "--allow-non-finite",
            help="Let NaN and infinity pass, with a warning. Default: they are an error (exit 6).",
            rich_help_panel=READ,
        ),
    ] = False
    max_shard_size: MaxShardSize = None
    dtype: Dtype = None
    like_input: LikeInput = False
    drop: Drop = None
    exact_lora: Annotated[
        int | None,
        Option(
            metavar="RANK",
            help="Of LoRA adapters: average the products BA, and write the A and B of this rank that come nearest. "
            "Default: A and B are averaged each.",
            rich_help_panel=WRITE,
        ),
    ] = None
