"""The part of the build that is code: the compiled kernel. All else is in pyproject.toml.

Without a compiler the package installs all the same, and numpy does the arithmetic. With EMA_KERNEL=compiled in the
environment, as for a wheel that is given to others, a build without the kernel fails.
"""

import os
import sysconfig

from setuptools import Extension, setup

KERNEL = "ema_cli/folding/kernel"
compiled = Extension(
    f"{KERNEL.replace('/', '.')}._compiled",
    sources=[f"{KERNEL}/compiled.c"],
    depends=[f"{KERNEL}/compiled_{part}.h" for part in ("arguments", "read", "sum", "variants")],
    libraries=["m"],
    # What keeps each step rounded for itself stands last, after whatever CFLAGS says. Equal sources give equal bytes.
    extra_compile_args=["-std=gnu11", "-O3", "-g0", "-Wall", "-Wno-psabi", "-fno-fast-math", "-ffp-contract=off"],
    py_limited_api=True,
    optional=os.environ.get("EMA_KERNEL") != "compiled",
)
# Pythons without the global lock have no limited API.
is_free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

setup(
    ext_modules=[] if is_free_threaded else [compiled],
    options={} if is_free_threaded else {"bdist_wheel": {"py_limited_api": "cp311"}},
)
