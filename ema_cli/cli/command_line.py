"""The commands as the shell sees them: for each a dataclass of its arguments and options, with help and examples.

Nothing here is more than words, so that a help page and a completion load nothing else. `requests` reads the words;
the module of the same name in `commands` does the work.
"""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from typer import Argument, Option

from ema_cli.cli.option_groups import (
    FormOptions,
    GateOptions,
    ModelOptions,
    RunOptions,
)
from ema_cli.cli.options import (
    GATES,
    READ,
    RELEASE,
    SELECT,
    WRITE,
    Anonymous,
    AsJson,
    Force,
    MaxMemory,
    MergeInto,
    NoCache,
    On,
    Part,
    Quiet,
    Threads,
)
from ema_cli.dataclass import dataclass

if TYPE_CHECKING:
    from ema_cli.cli.tune_options import TuneOptions
    from ema_cli.cli.watch_options import WatchOptions

COMMANDS = ("average", "inspect", "tune", "watch", "compare", "report", "verify")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class AverageOptions:
    """Write the average of a run's checkpoints, ready to load, and print where; of several half-lives in one pass."""

    EXAMPLES: ClassVar[str] = """\
Examples: the plan; the average; several in one pass; the same once more

  ema-cli average ckpts/ --half-life 50ba --dry-run
  ema-cli average ckpts/ --half-life 50ba -o release
  ema-cli average ckpts/ --half-life 20ba --half-life 50ba -o averages
  ema-cli average ckpts/ --recipe release/ema-manifest.json -o again

One of --half-life, --smoothing, --profile and --recipe says what is averaged. The manifest (ema-manifest.json) and \
the sums (SHA256SUMS) lie in a folder's average, or beside a file: release.safetensors.manifest.json, \
release.safetensors.sha256."""

    run: RunOptions = field(default_factory=RunOptions)
    allow_approximate: Annotated[
        bool,
        Option(
            "--allow-approximate",
            help="With --from stored: take the nearest, even where it is more than 5 % off.",
            rich_help_panel=SELECT,
        ),
    ] = False
    output: Annotated[
        Path | None,
        Option(
            "--output",
            "-o",
            metavar="PATH",
            help="NAME.safetensors or NAME.pt for one file, of Lightning's runs also NAME.ckpt; a name without suffix "
            "for a folder; dcp:NAME for a folder that torch.distributed.checkpoint loads; each in a bucket, too: "
            "s3://bucket/NAME. Of several averages: a new folder for all, or a pattern with "
            "{half_life}, {window}, {clock}: averages/ema-{half_life}. Default: ema-HALF_LIFE.",
            rich_help_panel=WRITE,
        ),
    ] = None
    form: FormOptions = field(default_factory=FormOptions)
    anonymous: Anonymous = False
    no_cache: NoCache = False
    on: On = None
    part: Part = None
    threads: Threads = None
    max_memory: MaxMemory = None
    force: Force = False
    dry_run: Annotated[
        bool, Option("--dry-run", help="Print the plan; read no tensor, write nothing.", rich_help_panel=WRITE)
    ] = False
    gates: GateOptions = field(default_factory=GateOptions)
    recipe: Annotated[
        Path | None,
        Option(
            metavar="MANIFEST",
            help="Repeat the average that a manifest tells of, from the same inputs found below PATHS, to the byte.",
            rich_help_panel=RELEASE,
        ),
    ] = None
    checksum: Annotated[
        bool,
        Option(
            "--checksum",
            help="Put the sums of all that is read into the manifest, not only a fingerprint of each input, and check "
            "the ones that files of torch.save hold.",
            rich_help_panel=RELEASE,
        ),
    ] = False
    sign: Annotated[
        Path | None,
        Option(
            metavar="KEY",
            help="Sign all files with a private key (PEM, P-256 or the like): model.sig in a folder, NAME.sig beside a "
            "file, in the format of model-signing. Needs ema-cli[sign]; the password of the key is asked for, or in "
            "EMA_SIGN_PASSWORD.",
            rich_help_panel=RELEASE,
        ),
    ] = None
    no_manifest: Annotated[
        bool, Option("--no-manifest", help="Write no manifest and no sums.", rich_help_panel=RELEASE)
    ] = False
    summary: Annotated[
        Path | None,
        Option(metavar="FILE", help="Append what was done as Markdown: $GITHUB_STEP_SUMMARY.", rich_help_panel=RELEASE),
    ] = None
    as_json: AsJson = False
    quiet: Quiet = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class InspectOptions:
    """Show a run, or one file: checkpoints, clocks, tensors, what is odd; with half-lives, every weight."""

    EXAMPLES: ClassVar[str] = """\
Examples: a run, and what would enter its average; several half-lives side by side; one file

  ema-cli inspect ckpts/ --half-life 50ba
  ema-cli inspect ckpts/ --half-life 20ba --half-life 50ba
  ema-cli inspect release.safetensors

Only headers are read: the weights themselves are not compared. Nothing is written."""

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
        Path | None,
        Option(
            metavar="CKPTS",
            help="The folder of the checkpoints that were averaged: measure how far the average is from each.",
            rich_help_panel=READ,
        ),
    ] = None
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class VerifyOptions:
    """Check averages by their sums and manifests, or by their checkpoints, too. Exit 6 where one does not hold."""

    EXAMPLES: ClassVar[str] = """\
Examples: by sums and manifest; averaged once more, too

  ema-cli verify release.safetensors
  ema-cli verify release.safetensors --against ckpts/

Nothing is written. Sums alone: sha256sum -c release.safetensors.sha256"""

    outputs: Annotated[
        tuple[Path, ...],
        Argument(metavar="OUT...", help="What ema-cli average wrote: a file, a folder, or a folder of several."),
    ] = ()
    against: Annotated[
        tuple[Path, ...],
        Option(
            metavar="CKPTS",
            help="Average the checkpoints in this folder once more, as the manifest says, and compare all bytes. "
            "Repeatable.",
            rich_help_panel=READ,
        ),
    ] = ()
    merge_into: MergeInto = None
    sample: Annotated[
        bool,
        Option(
            "--sample",
            help="With --against: at most 65,536 elements of each tensor, at its beginning, its end and in between. "
            "Default: all of them.",
            rich_help_panel=READ,
        ),
    ] = False
    seed: Annotated[
        str | None,
        Option(
            metavar="TEXT",
            help="With --sample: what the places in between follow from. Default: another one each time, which is "
            "printed.",
            rich_help_panel=READ,
        ),
    ] = None
    like_input: Annotated[
        bool,
        Option(
            "--like-input",
            help="With --against: what average --like-input wrote may name classes, as the newest checkpoint does. "
            "Default: they are a problem, as loading it runs their code.",
            rich_help_panel=GATES,
        ),
    ] = False
    allow_extra: Annotated[
        tuple[str, ...],
        Option(
            metavar="PATTERN",
            help="Files that may lie in the folder, too ('notes/*'); README.md: an edited card. Repeatable. Default: "
            "what is not of the average is a problem.",
            rich_help_panel=GATES,
        ),
    ] = ()
    signed_by: Annotated[
        tuple[Path, ...],
        Option(
            metavar="PUBLIC_KEY",
            help="Demand a signature of all files by this key (PEM), or, of several, by any of them. Repeatable. Needs "
            "ema-cli[sign].",
            rich_help_panel=GATES,
        ),
    ] = ()
    strict: Annotated[
        bool,
        Option(
            "--strict",
            help="With --against or --signed-by: fail where something cannot be compared, a signature is not checked, "
            "or the recipe overrules recorded clocks.",
            rich_help_panel=GATES,
        ),
    ] = False
    anonymous: Anonymous = False
    no_cache: NoCache = False
    on: On = None
    threads: Threads = None
    as_json: AsJson = False


if TYPE_CHECKING:
    Options = (
        AverageOptions | InspectOptions | TuneOptions | WatchOptions | CompareOptions | ReportOptions | VerifyOptions
    )


def options_of(command: str) -> type[Options]:
    """Return the arguments and options of a command."""
    if command == "tune":
        from ema_cli.cli.tune_options import TuneOptions  # many, which no other command needs

        return TuneOptions
    if command == "watch":
        from ema_cli.cli.watch_options import WatchOptions

        return WatchOptions
    others: dict[str, type[Options]] = {
        "average": AverageOptions,
        "inspect": InspectOptions,
        "compare": CompareOptions,
        "report": ReportOptions,
        "verify": VerifyOptions,
    }
    return others[command]
