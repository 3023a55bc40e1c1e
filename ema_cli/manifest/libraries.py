"""The versions of the libraries that an average is made with, as a manifest tells them."""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path


def library_versions() -> dict[str, str]:
    """Return the version of each by its name."""
    import safetensors  # which loads a library of its own

    return {
        "numpy": _numpy_version(),
        "python": sys.version.partition(" ")[0],
        "safetensors": safetensors.__version__,
    }


def _numpy_version() -> str:
    """Return numpy's version without loading it, which takes longer than all else that starts."""
    package = find_spec("numpy")
    assert package, "numpy is required"
    assert package.origin, "its __init__.py"
    spec = spec_from_file_location("numpy_version", Path(package.origin).with_name("version.py"))
    assert spec, "a file of Python has one"
    assert spec.loader, "and what reads it"
    version = module_from_spec(spec)
    spec.loader.exec_module(version)
    return str(version.version)
