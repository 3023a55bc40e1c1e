"""ema-cli watch."""

from __future__ import annotations

import re

from ema_cli.cli import requests
from ema_cli.cli.law_options import RecipeOptions
from ema_cli.cli.output import make_printer
from ema_cli.cli.watch_options import WatchOptions
from ema_cli.errors import UsageError, option
from ema_cli.law.recipe import Recipe
from ema_cli.law.time import Time
from ema_cli.runs.options import OpenOptions
from ema_cli.system import signals
from ema_cli.text import parse_size
from ema_cli.watching.asked import Asked, Waiting
from ema_cli.watching.telling import Listener
from ema_cli.watching.watch import perform
from ema_cli.writing.output_options import OutputOptions
from ema_cli.writing.target import parse_target

_DEFAULT_NAME = "ema-watched"
_SECONDS = {"": 1, "s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?(s|sec|min|m|h|)")


def run(options: WatchOptions) -> None:
    """Keep averages up to date, and show what was written."""
    printer = make_printer("watch", as_json=options.as_json, quiet=options.quiet)
    asked = resolve(options)
    listener = Listener(printer.entered, printer.refreshed, printer.missed, printer.waiting)
    with signals.finishing():
        watched = perform(asked, listener)
    printer.watched(watched)


def resolve(options: WatchOptions) -> Asked:
    """Read the options, and check what goes together.

    Raises:
        UsageError: for a value that makes no sense, or two options that exclude each other.
    """
    requests.check_threads(options.threads)
    if options.path is None:
        raise UsageError("which checkpoints?", hint="name the folder that they are saved in: ema-cli watch ckpts/ ...")
    waiting, clocks = options.waiting, options.clocks
    read = requests.read_options(options.model, options.copy, clocks.clock_key)
    return Asked(
        options.path,
        OpenOptions(
            read, _time(clocks.epoch_length, "epoch_length"), name_clock=clocks.name_clock, exclude=options.exclude
        ),
        _recipes(options),
        parse_target(options.output if options.output is not None else _DEFAULT_NAME, like_input=options.like_input),
        OutputOptions.parse(
            dtype=options.dtype,
            max_shard_size=options.max_shard_size,
            like_input=options.like_input,
            drop=options.drop,
        ),
        Waiting(
            _seconds(waiting.every, "every"),
            _seconds(waiting.settle, "settle"),
            _seconds(waiting.patience, "patience"),
            waiting.once,
            _time(waiting.until, "until"),
        ),
        _time(waiting.publish_every, "publish_every"),
        _time(waiting.store_every, "store_every"),
        _time(waiting.restart_from, "restart_from"),
        options.threads,
        None if options.max_memory is None else parse_size(options.max_memory, "max_memory"),
        options.force,
    )


def _recipes(options: WatchOptions) -> tuple[Recipe, ...]:
    law = options.law
    if not law.half_life and law.smoothing is None and law.profile is None:
        raise UsageError("which average?", hint=f"as {option('half_life', '500ba')}, repeatable: an average of each")
    return requests.recipes(
        RecipeOptions(
            half_life=law.half_life,
            update_interval=law.update_interval,
            smoothing=law.smoothing,
            profile=law.profile,
            sigma_rel=law.sigma_rel,
            start=law.start,
        )
    )


def _seconds(text: str, name: str) -> float:
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"'{text[:60]}' is no time on a clock", option=name, hint=f"as {option(name, '10s')}, 2min, 1h"
        )
    return float(match[1]) * _SECONDS[match[2]]


def _time(text: str | None, name: str) -> Time | None:
    return None if text is None else Time.parse(text, name)
