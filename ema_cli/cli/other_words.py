"""What people type who know other tools, and the option that says it here. A table, to be read as a page."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ema_cli.errors import UsageError, option

_DEVICE = "nothing runs on a device: files are averaged on the CPU, a block at a time"
_WORDS: Mapping[str, tuple[str, ...]] = {
    "smoothing": ("decay", "ema-decay", "ema-beta", "beta", "momentum", "rate"),
    "half_life": ("halflife", "half-time", "tau", "horizon"),
    "update_interval": ("interval", "update-every", "every"),
    "last": ("num", "num-last", "last-n", "n-last", "top-k", "num-checkpoints", "num-epoch-checkpoints"),
    "start": ("since", "begin", "min-step", "start-step"),
    "stop": ("until", "end", "max-step", "stop-step", "checkpoint-upper-bound"),
    "output": ("out", "out-dir", "output-dir", "output-path", "save", "save-path", "dest"),
    "force": ("overwrite", "yes", "clobber", "exist-ok"),
    "dtype": ("precision", "torch-dtype", "out-dtype"),
    "threads": ("workers", "num-workers", "jobs", "num-threads", "num-proc"),
    "max_memory": ("memory", "lazy-unpickle", "low-memory", "low-cpu-memory"),
    "exclude": ("ignore", "skip", "without"),
    "weights": ("ema", "use-ema", "ema-weights"),
    "profile": ("uniform", "mean", "swa", "merge-method", "average-method"),
    "epoch_length": ("steps-per-epoch", "batches-per-epoch"),
    "spacing": ("save-steps", "save-every", "save-interval"),
    "against": ("source", "sources", "inputs", "checkpoints"),
}
_ALL_ALIKE = ("--uniform", "--mean", "--swa")
_OF_ALL = ("--last", "--stop", "--window", "--bias-correction", "--series", "--coefficients")
OPTIONS = {f"--{word}": name for name, words in _WORDS.items() for word in words}


def known_elsewhere(typed: str, options: set[str], hint: str) -> UsageError | None:
    """Return the error for an option that another tool, or another spelling, calls differently; None for any other.

    Args:
        typed: the option as it was typed: `--decay`, `--half_life`.
        options: the options that the command has, as they are typed.
        hint: where the options are listed.
    """
    told = _what_to_say(typed, options, hint)
    return None if told is None else UsageError(f"No such option: {typed}", hint=told)


def with_one_dash(word: str, options: set[str], hint: str) -> UsageError | None:
    """Return the error for an option with one dash too few, or one letter with a `=`; None for any other word.

    typer reads such words by letters: `-force` as `-f -o rce`, `-overwrite` as `-o verwrite`, and `-o=x` as a file
    that is called `=x`.
    """
    typed, sign, _ = word.partition("=")
    if not re.match("-[^-].", word):
        return None
    if sign and typed in options:
        return UsageError(f"No such option: {typed}=", hint=f"leave out the '=', or give the option in full; {hint}")
    told = _what_to_say(f"-{typed}", options, hint)
    return None if told is None else UsageError(f"No such option: {typed}", hint=told)


def _what_to_say(typed: str, options: set[str], hint: str) -> str | None:
    dashed = typed.lower().replace("_", "-")
    if dashed in ("--device", "--cuda", "--gpu"):
        return _DEVICE
    if dashed in _OF_ALL and "--restart-from" in options:
        return "it needs checkpoints that are not there yet, or no more: leave it out"
    name = dashed.removeprefix("--").replace("-", "_") if dashed in options else OPTIONS.get(dashed)
    if name is None or f"--{name.replace('_', '-')}" not in options:
        return None
    return f"say {option(name, 'uniform' if dashed in _ALL_ALIKE else None)}; {hint}"
