"""The options that several commands share, each written once, grouped as the help shows them; and what they say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ema_cli._version import __version__
from ema_cli.errors import UsageError

if TYPE_CHECKING:
    from ema_cli.dtypes import DType
    from ema_cli.formats.options import ReadOptions
    from ema_cli.law.recipe import Recipe
    from ema_cli.planning.gates import Gates

LAW, SELECT, READ, WRITE, GATES = "Law", "Which checkpoints", "Reading", "Output", "What is demanded (exit 6)"
RELEASE = "Release"


def offer(*values: str) -> Callable[[str], list[str]]:
    """Return what tells the shell which of the values begin with what is typed."""

    def offered(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return offered


Paths = Annotated[
    list[Path] | None,
    typer.Argument(
        readable=False, metavar="PATHS...", help="One folder that holds a run, or its checkpoints in any order."
    ),
]
HalfLife = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TIME",
        help="Training time after which a checkpoint counts half: 50ba, 2ep. Repeatable: an average of each.",
        rich_help_panel=LAW,
    ),
]
UpdateInterval = Annotated[
    str | None,
    typer.Option(
        metavar="TIME|every",
        autocompletion=offer("every"),
        help="Training time between updates, or 'every': one at each checkpoint. Default: 1 of the half-life's unit.",
        rich_help_panel=LAW,
    ),
]
Smoothing = Annotated[
    float | None,
    typer.Option(
        metavar="S",
        help="Instead of a half-life: the share of the old average kept at one update (also called decay), 0 to 1.",
        rich_help_panel=LAW,
    ),
]
Profile = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        autocompletion=offer("power", "uniform", "linear", "1-sqrt"),
        help="Instead of a half-life: power (with --sigma-rel), uniform (all alike), or a falling learning rate "
        "emulated: linear, 1-sqrt.",
        rich_help_panel=LAW,
    ),
]
SigmaRel = Annotated[
    float | None,
    typer.Option(
        metavar="S",
        help="Width of --profile power as a share of the training, at most 0.2887: 0.1.",
        rich_help_panel=LAW,
    ),
]
From = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="raw|stored",
        autocompletion=offer("raw", "stored"),
        help="What to average: checkpoints, or averages that the training stored (EMA.store). Default: raw.",
        rich_help_panel=SELECT,
    ),
]
BiasCorrection = Annotated[
    bool,
    typer.Option("--bias-correction", help="Remove the first checkpoint's excess, as Adam does.", rich_help_panel=LAW),
]
Start = Annotated[
    str | None,
    typer.Option(
        metavar="TIME", help="Leave out what is earlier than 1000ba. Default: nothing.", rich_help_panel=SELECT
    ),
]
Stop = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Leave out what is later than 9000ba. Default: nothing.", rich_help_panel=SELECT),
]
Last = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Of those that would enter, keep the newest N. Default: all.", rich_help_panel=SELECT
    ),
]
EpochLength = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Batches in an epoch (1000ba), to convert clocks. Default: as recorded.",
        rich_help_panel=READ,
    ),
]
Spacing = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Distance between checkpoints that record no clock (100ba), in natural order of their names.",
        rich_help_panel=READ,
    ),
]
Key = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Where in a pickled file the weights are: NAME or NAME.NAME.", rich_help_panel=READ
    ),
]
WeightsChoice = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="raw|ema",
        autocompletion=offer("raw", "ema"),
        help="Which to take where a file holds the averages of a training, too. Default: raw; where "
        "averages stand in the model's place, it must be said.",
        rich_help_panel=READ,
    ),
]
Component = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Which model, where a checkpoint is a folder of several: unet, transformer. Default: the only one.",
        rich_help_panel=READ,
    ),
]
KeepPrefix = Annotated[
    bool,
    typer.Option(
        "--keep-prefix",
        help="Leave _orig_mod., _fsdp_wrapped_module. and module. in the names. Default: they are taken off.",
        rich_help_panel=READ,
    ),
]
Copy = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Copy tensors of these names ('*.qweight') from the newest checkpoint, not averaged. Repeatable.",
        rich_help_panel=READ,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="How many read and average at once. Default: the processors this process may use, up to 16.",
        rich_help_panel=READ,
    ),
]
MinCount = Annotated[
    int | None,
    typer.Option(metavar="N", help="At least so many checkpoints enter. Default: 1.", rich_help_panel=GATES),
]
MaxShare = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="No checkpoint has a greater share of the average than 0.5. Default: any share.",
        rich_help_panel=GATES,
    ),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="There is nothing to warn of: a warning is an error.", rich_help_panel=GATES)
]
ExpectKeys = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The tensors are those that the file lists: a name on each line, or JSON (an index, a list).",
        rich_help_panel=GATES,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, errors too.", rich_help_panel=WRITE)]


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"ema-cli {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
]


def parse_recipes(
    half_lives: Sequence[str] | None,
    update_interval: str | None,
    smoothing: float | None,
    start: str | None,
    stop: str | None,
    last: int | None,
    bias_correction: bool,
    profile: str | None,
    sigma_rel: float | None,
) -> list[Recipe]:
    """Return what is asked for: a recipe for each half-life, or one for the smoothing or the profile."""
    from ema_cli.law.recipe import Recipe

    recipes: list[Recipe] = []
    one_each: Sequence[str | None] = half_lives or [None]
    for half_life in one_each:
        recipe = Recipe(
            half_life=half_life,
            smoothing=smoothing,
            profile=profile,
            sigma_rel=sigma_rel,
            update_interval=update_interval,
            start=start,
            stop=stop,
            last=last,
            bias_correction=bias_correction,
        )
        if recipe in recipes:
            raise UsageError(f"'{half_life}' is given twice", option="half_life")
        recipes.append(recipe)
    return recipes


def parse_from(text: str | None, given: Mapping[str, object]) -> bool:
    """Return whether stored averages are to be taken; what is `given` on how to read others has no place there."""
    if text not in (None, "raw", "stored"):
        raise UsageError(f"'{text}' is neither raw nor stored", option="from")
    for name, value in given.items() if text == "stored" else ():
        if value not in (None, False):
            raise UsageError("is for raw checkpoints; stored averages say what they are", option=name)
    return text == "stored"


def parse_read_options(
    key: str | None, weights: str | None, component: str | None, keep_prefix: bool, copy: Sequence[str] | None
) -> ReadOptions:
    """Return how checkpoints are to be read."""
    from ema_cli.formats.options import ReadOptions

    match weights:
        case None | "raw" | "ema":
            return ReadOptions(key, weights, component, keep_prefix, tuple(copy or ()))
    raise UsageError(f"'{weights}' is neither raw nor ema", option="weights")


def check_threads(number: int | None) -> None:
    """Check the number of threads, None for the default."""
    if number is not None and number < 1:
        raise UsageError(f"{number} is not a number of threads", option="threads", hint="at least 1")


def parse_gates(min_count: int | None, max_share: float | None, strict: bool, expect_keys: Path | None) -> Gates:
    """Return what is demanded of an average."""
    from ema_cli.planning.gates import Gates, read_keys

    return Gates(min_count, max_share, strict, read_keys(expect_keys) if expect_keys is not None else None)


def parse_dtype(name: str | None) -> DType | None:
    """Return the dtype to write."""
    from ema_cli.dtypes import OUTPUT_DTYPES

    if name is None:
        return None
    if name not in OUTPUT_DTYPES:
        raise UsageError(f"'{name}' cannot be written", option="dtype", hint=f"one of {', '.join(OUTPUT_DTYPES)}")
    return OUTPUT_DTYPES[name]
