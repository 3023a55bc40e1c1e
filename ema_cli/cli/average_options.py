"""The arguments and options of `average`, as the shell sees them."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated, ClassVar

from typer import Option

from ema_cli.cli.option_groups import (
    FormOptions,
    GateOptions,
    RunOptions,
)
from ema_cli.cli.options import (
    OUTPUT_FORMS,
    RELEASE,
    SELECT,
    WRITE,
    Anonymous,
    AsJson,
    Force,
    MaxMemory,
    NoCache,
    On,
    Part,
    Quiet,
    Threads,
)
from ema_cli.dataclass import dataclass


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class AverageOptions:
    """Write the average of a run's checkpoints, ready to load, and print where; of several half-lives in one pass."""

    EXAMPLES: ClassVar[str] = """\
Examples: the plan; the average; several in one pass; the same once more

  ema-cli average ckpts/ --half-life 50ba --dry-run
  ema-cli average ckpts/ --half-life 50ba -o release
  ema-cli average ckpts/ --half-life 20ba --half-life 50ba -o averages
  ema-cli average ckpts/ --recipe release/ema-manifest.json -o again

One of --half-life, --smoothing, --profile, --coefficients and --recipe says what is averaged. The manifest \
(ema-manifest.json) and the sums (SHA256SUMS) lie in a folder's average, or beside a file: \
release.safetensors.manifest.json, release.safetensors.sha256."""

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
            help=OUTPUT_FORMS + " Of several averages: a new folder for all, or a pattern with "
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
            help="Put the sums of all that is read into the manifest, not only a fingerprint of each input; check the "
            "ones that files of torch.save hold, and compare whole what several ranks saved alike.",
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
