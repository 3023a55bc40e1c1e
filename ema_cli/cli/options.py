"""Options that several commands share, as the shell sees them, and the panels of the help pages. Only words here:
what they mean is read by `requests`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

LAW, SELECT, READ, WRITE, GATES = "Law", "Which checkpoints", "Reading", "Output", "What is demanded (exit 6)"
RELEASE = "Release"
EVALUATION = "Evaluation"
WATCHING = "Waiting, and what is kept"


def offer(*values: str) -> Callable[[str], list[str]]:
    """Return a function that gives a shell the values that begin with what is typed."""

    def offered(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return offered


Anonymous = Annotated[
    bool,
    Option(
        "--anonymous",
        help="Read from a bucket without credentials, as it is public. Default: those of the environment.",
        rich_help_panel=READ,
    ),
]
NoCache = Annotated[
    bool,
    Option(
        "--no-cache",
        help="Read the headers of what is in a bucket anew. Default: those that were read before are kept below "
        "XDG_CACHE_HOME (~/.cache), up to 256 MiB.",
        rich_help_panel=READ,
    ),
]
Threads = Annotated[
    int | None,
    Option(
        metavar="N",
        help="How many read and average at once. Default: the processors this process may use, up to 16.",
        rich_help_panel=READ,
    ),
]
On = Annotated[
    str | None,
    Option(
        metavar="ENGINE",
        help="Have it done by many: the workers of dask://HOST:8786, ray://HOST:10001, ray:auto or mpi; processes of "
        "this machine: processes=4, dask:local=4. All see inputs and output under the same paths. --threads are those "
        "of one task then.",
        rich_help_panel=READ,
    ),
]
Part = Annotated[
    str | None,
    Option(
        metavar="K/N|auto",
        autocompletion=offer("auto"),
        help="Make part K, from 0, of N: the same command on each of N machines that see inputs and output under the "
        "same paths. The last to end publishes. auto: both numbers from Slurm, mpirun, torchrun or Kubernetes.",
        rich_help_panel=READ,
    ),
]
MaxMemory = Annotated[
    str | None,
    Option(
        metavar="SIZE",
        help="Of the whole process, at most: 200MB, 1GiB. Default: 80 MiB for buffers, and what Python and headers "
        "take.",
        rich_help_panel=READ,
    ),
]
OUTPUT_FORMS = (
    "NAME.safetensors or NAME.pt for one file, of Lightning's runs also NAME.ckpt; a name without suffix for a folder; "
    "dcp:NAME for a folder that torch.distributed.checkpoint loads; each in a bucket, too: s3://bucket/NAME."
)
LikeInput = Annotated[
    bool,
    Option(
        "--like-input",
        help="Write the newest checkpoint over again, file or folder, with averages in the place of its weights: "
        "its trainer goes on from it.",
        rich_help_panel=WRITE,
    ),
]
Drop = Annotated[
    str | None,
    Option(
        metavar="WHAT",
        autocompletion=offer("optimizer"),
        help="With --like-input: 'optimizer' leaves out the optimizer's state. Default: it stays the newest's.",
        rich_help_panel=WRITE,
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
    Argument(
        metavar="PATHS...",
        help="One folder that holds a run, or its checkpoints in any order; in a bucket, too: s3://bucket/run.",
    ),
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
WithSeries = Annotated[
    bool,
    Option(
        "--series",
        help="An average at each checkpoint, each of the run up to there, as with --stop; all in one reading.",
        rich_help_panel=SELECT,
    ),
]
SeriesEvery = Annotated[
    str | None,
    Option(
        metavar="TIME",
        help="A series with an average every so much instead: 25e9tok; at the first checkpoint there or after, and at "
        "the newest.",
        rich_help_panel=SELECT,
    ),
]
Last = Annotated[
    int | None,
    Option(metavar="N", help="Of those that would enter, keep the newest N. Default: all.", rich_help_panel=SELECT),
]
MergeInto = Annotated[
    Path | None,
    Option(
        metavar="BASE",
        help="Of LoRA adapters: average the whole model, each adapter merged into BASE, the model that it adapts (a "
        "folder or a file).",
        rich_help_panel=READ,
    ),
]
Copy = Annotated[
    tuple[str, ...],
    Option(
        metavar="PATTERN",
        help="Copy tensors of these names ('*.qweight') from the newest checkpoint, not averaged. Repeatable.",
        rich_help_panel=READ,
    ),
]
Exclude = Annotated[
    tuple[str, ...],
    Option(
        metavar="PATTERN",
        help="Leave out checkpoints of these names ('*-best.pt'), as inspect shows them. Repeatable.",
        rich_help_panel=SELECT,
    ),
]
EpochLength = Annotated[
    str | None,
    Option(
        metavar="TIME",
        help="Batches in an epoch (1000ba), to convert clocks. Default: as recorded.",
        rich_help_panel=READ,
    ),
]
NameClock = Annotated[
    str | None,
    Option(
        metavar="UNIT|PATTERN",
        autocompletion=offer("ba", "ep", "sp", "tok"),
        help="What the number in the names counts: ba, ep, sp, tok; or 'run7-{ep}-{ba}.pt'. Overrules what is "
        "recorded in that unit.",
        rich_help_panel=READ,
    ),
]
ClockKey = Annotated[
    tuple[str, ...],
    Option(
        metavar="NAME=UNIT",
        help="Where in a file, not of safetensors, a counter is: trainer.step=ba. Repeatable.",
        rich_help_panel=READ,
    ),
]
MaxShardSize = Annotated[
    str | None,
    Option(
        metavar="SIZE",
        help="Most bytes in one file of a folder: 5GB. Default: the shards of the newest checkpoint.",
        rich_help_panel=WRITE,
    ),
]
Dtype = Annotated[
    str | None,
    Option(
        metavar="TYPE",
        autocompletion=offer("float32", "bfloat16", "float16"),
        help="Type of floating tensors: float32, bfloat16, float16. Default: as stored.",
        rich_help_panel=WRITE,
    ),
]
Smoothing = Annotated[
    float | None,
    Option(
        metavar="S",
        help="Instead of a half-life: the share of the old average kept at one update (also called decay), 0 to 1.",
        rich_help_panel=LAW,
    ),
]
SigmaRel = Annotated[
    float | None,
    Option(
        metavar="S",
        help="Width of --profile power as a share of the training, at most 0.2887: 0.1.",
        rich_help_panel=LAW,
    ),
]
