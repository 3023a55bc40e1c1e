"""Averaged weights from the checkpoints of a training run, with Composer's half-life law."""

from ema_cli._version import __version__

__all__ = ["__version__"]
