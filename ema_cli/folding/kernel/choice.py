"""Which kernel does the arithmetic: the compiled one where it is built and agrees with numpy, else numpy."""

from __future__ import annotations

import os
from functools import cache

from ema_cli.dataclass import dataclass
from ema_cli.errors import UsageError
from ema_cli.folding.kernel import Kernel
from ema_cli.folding.kernel.agreement import agrees

VARIABLE = "EMA_KERNEL"
_WANTED = ("numpy", "compiled")


@dataclass(frozen=True, slots=True)
class Choice:
    """A kernel, its name for people, and in words why it is not the compiled one; empty where it is."""

    kernel: Kernel
    name: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})" if self.reason else self.name


def chosen_kernel() -> Choice:
    """Return the kernel of this process. Which it is does not show in any output.

    Raises:
        UsageError: where the environment asks for a kernel that is not here.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted == "numpy":
        return _numpy(f"{VARIABLE} says so")
    choice = _best_kernel()
    if wanted not in ("", *_WANTED):
        raise UsageError(f"there is no kernel '{wanted}'", subject=VARIABLE, hint=f"one of {', '.join(_WANTED)}")
    if wanted == "compiled" and choice.reason:
        raise UsageError(f"there is no compiled kernel: {choice.reason}", subject=VARIABLE, hint=f"{VARIABLE}=numpy")
    return choice


@cache
def _best_kernel() -> Choice:
    try:
        from ema_cli.folding.kernel.compiled_kernel import CompiledKernel, is_of_this_version, variants
    except ImportError:
        import sysconfig

        is_free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
        where = " for Pythons without the global lock" if is_free_threaded else ""
        return _numpy(f"the compiled kernel is not built{where}")
    if not is_of_this_version():
        return _numpy("the compiled kernel is one of another version; install again")
    for number, name in variants():
        kernel = CompiledKernel(number)
        if agrees(kernel):
            return Choice(kernel, f"compiled for {name}")
    return _numpy("the compiled kernel was found to give other bytes")


def _numpy(reason: str) -> Choice:
    from ema_cli.folding.kernel.numpy_kernel import NUMPY  # which loads numpy

    return Choice(NUMPY, "numpy", reason)
