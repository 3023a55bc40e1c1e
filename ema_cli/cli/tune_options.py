"""The options of `tune`, as the shell sees them."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated, ClassVar

from typer import Option

from ema_cli.cli.option_groups import (
    ClockOptions,
    EnteringOptions,
    FormOptions,
    ModelOptions,
)
from ema_cli.cli.options import (
    EVALUATION,
    GATES,
    LAW,
    OUTPUT_FORMS,
    WRITE,
    Anonymous,
    AsJson,
    BiasCorrection,
    Copy,
    Force,
    Last,
    MaxMemory,
    NoCache,
    Paths,
    Quiet,
    SeriesEvery,
    Source,
    Start,
    Stop,
    Threads,
    UpdateInterval,
    WithSeries,
    offer,
)
from ema_cli.dataclass import dataclass


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TunedLawOptions:
    """The half-lives, or windows, that `tune` chooses from, and what is fixed."""

    half_life: Annotated[
        tuple[str, ...],
        Option(metavar="TIME", help="A half-life to evaluate: 200ba, 5%ba. Repeatable.", rich_help_panel=LAW),
    ] = ()
    profile: Annotated[
        str | None,
        Option(
            metavar="NAME",
            autocompletion=offer("uniform", "linear", "1-sqrt", "cosine", "inverse-sqrt"),
            help="Instead: choose the window of this profile: uniform, linear, 1-sqrt, cosine or inverse-sqrt.",
            rich_help_panel=LAW,
        ),
    ] = None
    window: Annotated[
        tuple[str, ...],
        Option(metavar="TIME", help="With --profile: a window to evaluate: 5000ba. Repeatable.", rich_help_panel=LAW),
    ] = ()
    between: Annotated[
        tuple[str, str] | None,
        Option(
            metavar="FROM TO",
            help="Instead: search this range of half-lives, or with --profile of windows; a grid first, then around "
            "the best.",
            rich_help_panel=LAW,
        ),
    ] = None
    tries: Annotated[
        int | None,
        Option(
            metavar="N",
            help="With --between or --extrapolate: how many averages to evaluate at most. Default: 12; fewer where the "
            "next would differ by less than 5 %, or by a hundredth of the range of --extrapolate.",
            rich_help_panel=LAW,
        ),
    ] = None
    extrapolate: Annotated[
        tuple[str, str] | None,
        Option(
            metavar="FROM TO",
            help="With one half-life, or window: search how far to go beyond its average, as average --extrapolate "
            "does: 0 1.",
            rich_help_panel=LAW,
        ),
    ] = None
    extrapolate_from: Annotated[
        str | None,
        Option(
            metavar="TIME",
            help="With --extrapolate: the half-life, or window, of the other average. Default: twice as long.",
            rich_help_panel=LAW,
        ),
    ] = None
    update_interval: UpdateInterval = None
    bias_correction: BiasCorrection = False
    source: Source = None
    start: Start = None
    stop: Stop = None
    last: Last = None
    series: WithSeries = False
    series_every: SeriesEvery = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class EvaluationOptions:
    """How candidates are judged."""

    command: Annotated[
        str | None,
        Option(
            "--eval",
            metavar="COMMAND",
            help="What judges a candidate: 'python eval.py {path}'. Its metric is the last number on its last line.",
            rich_help_panel=EVALUATION,
        ),
    ] = None
    metric: Annotated[
        str | None,
        Option(
            metavar="NAME",
            help="Take this key of the last JSON object that the command prints instead.",
            rich_help_panel=EVALUATION,
        ),
    ] = None
    maximize: Annotated[
        bool, Option("--maximize", help="More is better. Default: less is.", rich_help_panel=EVALUATION)
    ] = False
    repeats: Annotated[
        int | None,
        Option(
            metavar="N",
            help="Evaluate each so many times: what differs by no more than the spread is a tie. Default: 1.",
            rich_help_panel=EVALUATION,
        ),
    ] = None
    timeout: Annotated[
        float | None,
        Option(
            metavar="SECONDS",
            help="End an evaluation that takes longer. Default: it may take any time.",
            rich_help_panel=EVALUATION,
        ),
    ] = None
    shell: Annotated[
        bool,
        Option(
            "--shell",
            help="Give the command to /bin/sh, the path quoted. Default: split into words, nothing expanded.",
            rich_help_panel=EVALUATION,
        ),
    ] = False
    jobs: Annotated[
        int | None,
        Option(
            metavar="N",
            help="How many evaluations run at once. Default: 1, or the number of devices.",
            rich_help_panel=EVALUATION,
        ),
    ] = None
    devices: Annotated[
        str | None,
        Option(
            metavar="A,B",
            help="What CUDA_VISIBLE_DEVICES is, in turn, one for each evaluation at a time: 0,1. Default: as it is.",
            rich_help_panel=EVALUATION,
        ),
    ] = None
    keep: Annotated[
        int | None,
        Option(
            metavar="N",
            help="How many candidates may lie on the disk at once. Default: as many as there is room for.",
            rich_help_panel=EVALUATION,
        ),
    ] = None
    allow_last: Annotated[
        bool,
        Option(
            "--allow-last",
            help="Write the last checkpoint where it is the best. Default: that is an error (exit 6).",
            rich_help_panel=GATES,
        ),
    ] = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class TuneOptions:
    """Choose the half-life by your own evaluation: make candidates, run a command on each, write the best one."""

    EXAMPLES: ClassVar[str] = """\
Examples: among some; in a range

  ema-cli tune ckpts/ --half-life 1ep --half-life 4ep --eval './eval {path}'
  ema-cli tune ckpts/ --between 10ba 9000ba --eval './eval {path}' -o best

The last checkpoint is always evaluated, as the bar to beat. {path} is a file or folder as --output would be, and \
EMA_PATH and EMA_HALF_LIFE, EMA_WINDOW or EMA_EXTRAPOLATE say the same in the environment: "last" for the last \
checkpoint. \
Results and what the command prints are kept in OUT.tune; of an output in a bucket, in the working folder. \
The same line once more goes on where it was interrupted."""

    paths: Paths = ()
    law: TunedLawOptions = field(default_factory=TunedLawOptions)
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    entering: EnteringOptions = field(default_factory=EnteringOptions)
    clocks: ClockOptions = field(default_factory=ClockOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    copy: Copy = ()
    output: Annotated[
        Path | None,
        Option(
            "--output",
            "-o",
            metavar="PATH",
            help=OUTPUT_FORMS + " Default: ema-tuned.",
            rich_help_panel=WRITE,
        ),
    ] = None
    form: FormOptions = field(default_factory=FormOptions)
    anonymous: Anonymous = False
    no_cache: NoCache = False
    threads: Threads = None
    max_memory: MaxMemory = None
    force: Force = False
    dry_run: Annotated[
        bool,
        Option(
            "--dry-run",
            help="Print the candidates and the disk they need; evaluate nothing, write nothing.",
            rich_help_panel=WRITE,
        ),
    ] = False
    as_json: AsJson = False
    quiet: Quiet = False
