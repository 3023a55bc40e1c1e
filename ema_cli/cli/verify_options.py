"""The arguments and options of `verify`, as the shell sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from typer import Argument, Option

from ema_cli.cli.options import (
    GATES,
    READ,
    Anonymous,
    AsJson,
    MergeInto,
    NoCache,
    On,
    Threads,
)
from ema_cli.dataclass import dataclass


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
