"""The options of `watch`, as the shell sees them."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated, ClassVar

from typer import Argument, Option

from ema_cli.cli.option_groups import ModelOptions
from ema_cli.cli.options import (
    LAW,
    OUTPUT_FORMS,
    WATCHING,
    WRITE,
    Anonymous,
    AsJson,
    ClockKey,
    Copy,
    Drop,
    Dtype,
    EpochLength,
    Exclude,
    LikeInput,
    MaxMemory,
    MaxShardSize,
    NameClock,
    NoCache,
    Quiet,
    SigmaRel,
    Smoothing,
    Start,
    Threads,
    UpdateInterval,
    offer,
)
from ema_cli.dataclass import dataclass


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class WatchedLawOptions:
    """The averages that are kept, of laws that need no checkpoint but the new one."""

    half_life: Annotated[
        tuple[str, ...],
        Option(
            metavar="TIME",
            help="Training time after which a checkpoint counts half: 500ba, 2ep. Repeatable: an average of each.",
            rich_help_panel=LAW,
        ),
    ] = ()
    update_interval: UpdateInterval = None
    smoothing: Smoothing = None
    profile: Annotated[
        str | None,
        Option(
            metavar="NAME",
            autocompletion=offer("power", "uniform"),
            help="Instead of a half-life: power (with --sigma-rel) or uniform (all alike). Others need the future.",
            rich_help_panel=LAW,
        ),
    ] = None
    sigma_rel: SigmaRel = None
    start: Start = None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class WatchedClockOptions:
    """Where clocks come from, where checkpoints record none or wrong ones."""

    epoch_length: EpochLength = None
    name_clock: NameClock = None
    clock_key: ClockKey = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class WaitingOptions:
    """How it waits, and when it ends."""

    once: Annotated[
        bool,
        Option(
            "--once",
            help="End after what is there: for cron, a trainer's hook, a job between two others. Default: go on until "
            "the training ends, or Ctrl-C.",
            rich_help_panel=WATCHING,
        ),
    ] = False
    until: Annotated[
        str | None,
        Option(
            metavar="TIME",
            help="End at this clock: 50000ba. Default: where the trainer says that it is the end.",
            rich_help_panel=WATCHING,
        ),
    ] = None
    every: Annotated[
        str,
        Option(metavar="TIME", help="Look at the folder so often: 1min. Default: 10s.", rich_help_panel=WATCHING),
    ] = "10s"
    settle: Annotated[
        str,
        Option(
            metavar="TIME",
            help="A checkpoint that nothing marks as complete must not have changed for so long: 1min. Default: 10s.",
            rich_help_panel=WATCHING,
        ),
    ] = "10s"
    patience: Annotated[
        str,
        Option(
            metavar="TIME",
            help="For so long one that is not complete holds back those after it, and is left out then: 1h. Default: "
            "10min.",
            rich_help_panel=WATCHING,
        ),
    ] = "10min"
    publish_every: Annotated[
        str | None,
        Option(
            metavar="TIME",
            help="Write the averages when this training time has passed: 1000ba. Default: at each checkpoint.",
            rich_help_panel=WATCHING,
        ),
    ] = None
    store_every: Annotated[
        str | None,
        Option(
            metavar="TIME",
            help="Keep what is there each time this training time has passed, in OUT.watch: for other half-lives "
            "afterwards (average OUT.watch --from stored), and to go back to. Default: the newest alone.",
            rich_help_panel=WATCHING,
        ),
    ] = None
    restart_from: Annotated[
        str | None,
        Option(
            metavar="TIME",
            help="Go back to what was kept at this clock, as the training was resumed from there.",
            rich_help_panel=WATCHING,
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class WatchOptions:
    """Keep averages up to date while a training runs, so that its checkpoints may be deleted."""

    EXAMPLES: ClassVar[str] = """\
Examples: beside a training; one step, for cron or a trainer's hook; averages that its trainer loads as its own

  ema-cli watch ckpts/ --half-life 500ba --half-life 2000ba -o averages
  ema-cli watch ckpts/ --half-life 500ba -o average --once
  ema-cli watch ckpts/ --half-life 500ba -o latest --like-input

Each checkpoint is folded once, when it is complete. OUT.watch holds what is needed to go on: the averages in float32, \
as EMA.store writes them. Ctrl-C and SIGTERM publish what is folded; a second one ends at once."""

    path: Annotated[
        Path | None,
        Argument(
            metavar="PATH",
            help="The folder that the training saves into, or the one file that it writes again and again; in a "
            "bucket, too: s3://bucket/run.",
        ),
    ] = None
    law: WatchedLawOptions = field(default_factory=WatchedLawOptions)
    waiting: WaitingOptions = field(default_factory=WaitingOptions)
    exclude: Exclude = ()
    clocks: WatchedClockOptions = field(default_factory=WatchedClockOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    copy: Copy = ()
    output: Annotated[
        Path | None,
        Option(
            "--output",
            "-o",
            metavar="PATH",
            help=OUTPUT_FORMS + " Of several half-lives a folder for all, or a pattern as in averages/ema-{half_life}. "
            "Default: ema-watched.",
            rich_help_panel=WRITE,
        ),
    ] = None
    max_shard_size: MaxShardSize = None
    dtype: Dtype = None
    like_input: LikeInput = False
    drop: Drop = None
    anonymous: Anonymous = False
    no_cache: NoCache = False
    threads: Threads = None
    max_memory: MaxMemory = None
    force: Annotated[
        bool,
        Option(
            "--force",
            "-f",
            help="Replace an output that was there before the first checkpoint. Default: that is an error (exit 5).",
            rich_help_panel=WRITE,
        ),
    ] = False
    as_json: AsJson = False
    quiet: Quiet = False
