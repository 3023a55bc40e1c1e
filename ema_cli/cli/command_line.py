"""The commands as the shell sees them: for each a dataclass of its arguments and options, with help and examples.
Those of `average`, `tune`, `watch` and `verify` are in modules of their own.

Nothing here is more than words, so that a help page and a completion load nothing else. `requests` reads the words;
the module of the same name in `commands` does the work.
"""

from __future__ import annotations

from dataclasses import field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from typer import Argument, Option

from ema_cli.cli.option_groups import (
    GateOptions,
    ModelOptions,
    RunOptions,
)
from ema_cli.cli.options import (
    READ,
    WRITE,
    Anonymous,
    AsJson,
    NoCache,
    Threads,
)
from ema_cli.dataclass import dataclass

if TYPE_CHECKING:
    from ema_cli.cli.average_options import AverageOptions
    from ema_cli.cli.tune_options import TuneOptions
    from ema_cli.cli.verify_options import VerifyOptions
    from ema_cli.cli.watch_options import WatchOptions

COMMANDS = ("average", "inspect", "tune", "watch", "compare", "report", "verify")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class InspectOptions:
    """Show a run, or one file: checkpoints, clocks, tensors, what is odd; with half-lives, every weight."""

    EXAMPLES: ClassVar[str] = """\
Examples: a run, and what would enter its average; several half-lives side by side; one file

  ema-cli inspect ckpts/ --half-life 50ba
  ema-cli inspect ckpts/ --half-life 20ba --half-life 50ba
  ema-cli inspect release.safetensors

Without PATHS it is the working folder. Only headers are read: the weights themselves are not compared. Nothing is \
written."""

    run: RunOptions = field(default_factory=RunOptions)
    gates: GateOptions = field(default_factory=GateOptions)
    anonymous: Anonymous = False
    no_cache: NoCache = False
    as_json: AsJson = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class CompareOptions:
    """Show how far apart two checkpoints are, by layer and in total: distance, cosine, what is equal to the byte."""

    EXAMPLES: ClassVar[str] = """\
Example: how far an average is from the newest checkpoint

  ema-cli compare release.safetensors ckpts/checkpoint-3000

Both are read once, and nothing is written."""

    a: Annotated[Path, Argument(metavar="A", help="A checkpoint, or an average: a file or a folder.")]
    b: Annotated[Path, Argument(metavar="B", help="What it is compared with.")]
    model: ModelOptions = field(default_factory=ModelOptions)
    anonymous: Anonymous = False
    no_cache: NoCache = False
    threads: Threads = None
    as_json: AsJson = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class ReportOptions:
    """Write an HTML page about an average: weights over time, distances by layer, files; one file, no network."""

    EXAMPLES: ClassVar[str] = """\
Example: a page about an average, with its distance from each checkpoint

  ema-cli report release.safetensors --against ckpts/ -o report.html

Without --against no checkpoint is read: weights, files and their sums are those of the manifest."""

    average: Annotated[Path, Argument(metavar="OUT", help="What ema-cli average wrote, with its manifest.")]
    against: Annotated[
        tuple[Path, ...],
        Option(
            metavar="CKPTS",
            help="The folder of the checkpoints that were averaged: measure how far the average is from each. "
            "Repeatable, as for a base that lies elsewhere.",
            rich_help_panel=READ,
        ),
    ] = ()
    anonymous: Anonymous = False
    no_cache: NoCache = False
    threads: Threads = None
    output: Annotated[
        Path | None,
        Option("--output", "-o", metavar="PATH", help="The page to write. Default: OUT.html.", rich_help_panel=WRITE),
    ] = None
    force: Annotated[bool, Option("--force", "-f", help="Replace a page that is there.", rich_help_panel=WRITE)] = False
    as_json: AsJson = False
    quiet: Annotated[bool, Option("--quiet", "-q", help="Print the page's path only.", rich_help_panel=WRITE)] = False


if TYPE_CHECKING:
    Options = (
        AverageOptions | InspectOptions | TuneOptions | WatchOptions | CompareOptions | ReportOptions | VerifyOptions
    )


_HERE: dict[str, type[Options]] = {"inspect": InspectOptions, "compare": CompareOptions, "report": ReportOptions}


def options_of(command: str) -> type[Options]:
    """Return the arguments and options of a command. Those of one that has many are loaded for that one only."""
    if command in _HERE:
        return _HERE[command]
    module = import_module(f"ema_cli.cli.{command}_options")
    options: type[Options] = getattr(module, f"{command.capitalize()}Options")
    return options
