"""The version of ema-cli, where the build and the tool can both read it without importing anything."""

__version__ = "0.1.0"
