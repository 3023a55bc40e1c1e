"""The options that say what is averaged: the law, and the checkpoints that it is applied to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from ema_cli.cli.options import (
    LAW,
    BiasCorrection,
    Last,
    SeriesEvery,
    SigmaRel,
    Smoothing,
    Source,
    Start,
    Stop,
    UpdateInterval,
    WithSeries,
    offer,
)
from ema_cli.dataclass import dataclass


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class RecipeOptions:
    """What is averaged: the law, and the checkpoints that it is applied to."""

    half_life: Annotated[
        tuple[str, ...],
        Option(
            metavar="TIME",
            help="Training time after which a checkpoint counts half: 50ba, 2ep; 5%ba: 5 % of the training so far. "
            "Repeatable: an average of each.",
            rich_help_panel=LAW,
        ),
    ] = ()
    update_interval: UpdateInterval = None
    smoothing: Smoothing = None
    profile: Annotated[
        str | None,
        Option(
            metavar="NAME",
            autocompletion=offer("power", "uniform", "linear", "1-sqrt", "cosine", "inverse-sqrt", "bema"),
            help="Instead of a half-life: power (with --sigma-rel), uniform (all alike), a falling learning rate "
            "emulated (linear, 1-sqrt, cosine, inverse-sqrt), or bema (with --base).",
            rich_help_panel=LAW,
        ),
    ] = None
    sigma_rel: SigmaRel = None
    window: Annotated[
        tuple[str, ...],
        Option(
            metavar="TIME",
            help="With a profile, but not power: average only this much training before the newest checkpoint: "
            "5000ba. Repeatable: an average of each.",
            rich_help_panel=LAW,
        ),
    ] = ()
    bias_correction: BiasCorrection = False
    base: Annotated[
        Path | None,
        Option(
            metavar="MODEL",
            help="With --profile bema: the model that the training began with, a file or a folder.",
            rich_help_panel=LAW,
        ),
    ] = None
    lag: Annotated[
        float | None,
        Option(metavar="RHO", help="With --profile bema. Default: 10.", rich_help_panel=LAW),
    ] = None
    multiplier: Annotated[
        float | None,
        Option(metavar="GAMMA", help="With --profile bema. Default: 1.", rich_help_panel=LAW),
    ] = None
    bias_power: Annotated[
        float | None,
        Option(
            metavar="ETA",
            help="With --profile bema: (lag + multiplier x batches) to the power of -ETA of the way from the base is "
            "added. Default: 0.2.",
            rich_help_panel=LAW,
        ),
    ] = None
    ema_power: Annotated[
        float | None,
        Option(
            metavar="KAPPA",
            help="With --profile bema: the share that a checkpoint enters with, as --bias-power. Default: 0.5.",
            rich_help_panel=LAW,
        ),
    ] = None
    extrapolate: Annotated[
        float | None,
        Option(
            metavar="X",
            help="Go beyond the average of --half-life or --window A, away from another one B: (1 + X) A - X B.",
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
    coefficients: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            help="Instead of a law: CSV or JSON of a name or clock, and its weight, for each checkpoint that enters.",
            rich_help_panel=LAW,
        ),
    ] = None
    any_sum: Annotated[
        bool,
        Option(
            "--any-sum",
            help="Take --coefficients as they are. Default: their sum is 1, to 1e-6.",
            rich_help_panel=LAW,
        ),
    ] = False
    source: Source = None
    start: Start = None
    stop: Stop = None
    last: Last = None
    series: WithSeries = False
    series_every: SeriesEvery = None
