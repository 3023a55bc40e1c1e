"""The options that several commands share, as the shell sees them, in the groups of the help pages. Only words here:
what they mean is read by `requests`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

LAW, SELECT, READ, WRITE, GATES = "Law", "Which checkpoints", "Reading", "Output", "What is demanded (exit 6)"
RELEASE = "Release"
EVALUATION = "Evaluation"


def offer(*values: str) -> Callable[[str], list[str]]:
    """Return a function that gives a shell the values that begin with what is typed."""

    def offered(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return offered


Threads = Annotated[
    int | None,
    Option(
        metavar="N",
        help="How many read and average at once. Default: the processors this process may use, up to 16.",
        rich_help_panel=READ,
    ),
]
MaxMemory = Annotated[
    str | None,
    Option(
        metavar="SIZE",
        help="Of the whole process, at most: 200MB, 1GiB. Default: 64 MiB for buffers, and what Python and headers "
        "take.",
        rich_help_panel=READ,
    ),
]
Force = Annotated[
    bool,
    Option(
        "--force",
        "-f",
        help="Replace an output that is there. Default: that is an error (exit 5).",
        rich_help_panel=WRITE,
    ),
]
Quiet = Annotated[bool, Option("--quiet", "-q", help="Print the output's path only.", rich_help_panel=WRITE)]
AsJson = Annotated[bool, Option("--json", help="Print one JSON object, errors too.", rich_help_panel=WRITE)]


Paths = Annotated[
    tuple[Path, ...],
    Argument(metavar="PATHS...", help="One folder that holds a run, or its checkpoints in any order."),
]
UpdateInterval = Annotated[
    str | None,
    Option(
        metavar="TIME|every",
        autocompletion=offer("every"),
        help="Training time between updates, or 'every': one at each checkpoint. Default: 1 of the half-life's "
        "unit; 'every' for a half-life below that.",
        rich_help_panel=LAW,
    ),
]
BiasCorrection = Annotated[
    bool,
    Option("--bias-correction", help="Remove the first checkpoint's excess, as Adam does.", rich_help_panel=LAW),
]
Source = Annotated[
    str | None,
    Option(
        "--from",
        metavar="raw|stored",
        autocompletion=offer("raw", "stored"),
        help="What to average: checkpoints, or averages that the training stored (EMA.store). Default: raw.",
        rich_help_panel=SELECT,
    ),
]
Start = Annotated[
    str | None,
    Option(
        metavar="TIME",
        help="Leave out what is earlier than this: 1000ba. Default: nothing.",
        rich_help_panel=SELECT,
    ),
]
Stop = Annotated[
    str | None,
    Option(metavar="TIME", help="Leave out what is later than this: 9000ba. Default: nothing.", rich_help_panel=SELECT),
]
Last = Annotated[
    int | None,
    Option(metavar="N", help="Of those that would enter, keep the newest N. Default: all.", rich_help_panel=SELECT),
]
Copy = Annotated[
    tuple[str, ...],
    Option(
        metavar="PATTERN",
        help="Copy tensors of these names ('*.qweight') from the newest checkpoint, not averaged. Repeatable.",
        rich_help_panel=READ,
    ),
]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class RecipeOptions:
    """What is averaged: the law, and the checkpoints that it is applied to."""

    half_life: Annotated[
        tuple[str, ...],
        Option(
            metavar="TIME",
            help="Training time after which a checkpoint counts half: 50ba, 2ep. Repeatable: an average of each.",
            rich_help_panel=LAW,
        ),
    ] = ()
    update_interval: UpdateInterval = None
    smoothing: Annotated[
        float | None,
        Option(
            metavar="S",
            help="Instead of a half-life: the share of the old average kept at one update (also called decay), 0 to 1.",
            rich_help_panel=LAW,
        ),
    ] = None
    profile: Annotated[
        str | None,
        Option(
            metavar="NAME",
            autocompletion=offer("power", "uniform", "linear", "1-sqrt"),
            help="Instead of a half-life: power (with --sigma-rel), uniform (all alike), or a falling learning rate "
            "emulated: linear, 1-sqrt.",
            rich_help_panel=LAW,
        ),
    ] = None
    sigma_rel: Annotated[
        float | None,
        Option(
            metavar="S",
            help="Width of --profile power as a share of the training, at most 0.2887: 0.1.",
            rich_help_panel=LAW,
        ),
    ] = None
    bias_correction: BiasCorrection = False
    source: Source = None
    start: Start = None
    stop: Stop = None
    last: Last = None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class EnteringOptions:
    """Which checkpoints are left out before any law applies."""

    exclude: Annotated[
        tuple[str, ...],
        Option(
            metavar="PATTERN",
            help="Leave out checkpoints of these names ('*-best.pt'), as inspect shows them. Repeatable.",
            rich_help_panel=SELECT,
        ),
    ] = ()
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

    epoch_length: Annotated[
        str | None,
        Option(
            metavar="TIME",
            help="Batches in an epoch (1000ba), to convert clocks. Default: as recorded.",
            rich_help_panel=READ,
        ),
    ] = None
    spacing: Annotated[
        str | None,
        Option(
            metavar="TIME",
            help="Distance between checkpoints that record no clock (100ba), in natural order of their names.",
            rich_help_panel=READ,
        ),
    ] = None
    name_clock: Annotated[
        str | None,
        Option(
            metavar="UNIT|PATTERN",
            autocompletion=offer("ba", "ep", "sp", "tok"),
            help="What the number in the names counts: ba, ep, sp, tok; or 'run7-{ep}-{ba}.pt'. Overrules what is "
            "recorded in that unit.",
            rich_help_panel=READ,
        ),
    ] = None
    clock_key: Annotated[
        tuple[str, ...],
        Option(
            metavar="NAME=UNIT",
            help="Where in a pickled file a counter is: trainer.step=ba. Repeatable.",
            rich_help_panel=READ,
        ),
    ] = ()
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
            metavar="NAME", help="Where in a pickled file the weights are: NAME or NAME.NAME.", rich_help_panel=READ
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
            help="Take the float32 weights that DeepSpeed's optimizer keeps of a model in half precision, and write "
            "them so. Default: the model's dtype.",
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
