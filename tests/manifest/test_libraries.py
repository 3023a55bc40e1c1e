"""The versions in a manifest are those of the libraries that are installed."""

from __future__ import annotations

import platform

import numpy as np
import safetensors

from ema_cli.manifest.libraries import library_versions


def test_the_versions_are_those_that_the_libraries_give():
    """Also that of numpy, which is not loaded for it."""
    assert library_versions() == {
        "numpy": np.__version__,
        "python": platform.python_version(),
        "safetensors": safetensors.__version__,
    }
