"""Which kernel a process takes, and that it says so."""

from __future__ import annotations

import importlib.util
import runpy
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ema_cli.errors import UsageError
from ema_cli.folding.kernel import Kernel, SumSpec, choice
from ema_cli.folding.kernel.agreement import agrees, sum_of_averages
from ema_cli.folding.kernel.choice import chosen_kernel
from ema_cli.folding.kernel.numpy_kernel import NUMPY, NumpyKernel, NumpySums, NumpyWorkspace

ROOT = Path(__file__).parents[3]
EXTENSION = "ema_cli.folding.kernel._compiled"
needs_extension = pytest.mark.skipif(not importlib.util.find_spec(EXTENSION), reason="the extension is not built")


@pytest.fixture(autouse=True)
def afresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Choose anew in each test, whatever the environment of the tests says."""
    monkeypatch.delenv("EMA_KERNEL", raising=False)
    choice._best_kernel.cache_clear()
    yield
    choice._best_kernel.cache_clear()


class LateRounding(NumpySums):
    """Sums whose weights lose their last bits."""

    def __init__(self, spec: SumSpec, *others: object) -> None:
        rows = [[weight * (1 + 2**-23) for weight in row] for row in spec.weights.rows]
        table = type(spec.weights).of(rows)
        super().__init__(SumSpec(spec.count, spec.dtypes, spec.target, table), *others)  # type: ignore[arg-type]


class WrongKernel(NumpyKernel):
    """One that is wrong in the last bit now and then."""

    def workspace(self, size: object) -> NumpyWorkspace:
        workspace = super().workspace(size)  # type: ignore[arg-type]
        workspace.begin = lambda spec: LateRounding(spec, workspace._buffers)  # type: ignore[method-assign]
        return workspace


def test_a_kernel_that_differs_in_a_bit_is_found_out():
    """The check before use compares every bit with numpy's, whose sum it knows."""
    assert agrees(NUMPY), f"numpy's averages have the sum {sum_of_averages(NUMPY)}"
    assert not agrees(WrongKernel())


@needs_extension
def test_the_compiled_kernel_is_taken_where_it_is_built():
    """It is taken without being asked for, in the best variant; EMA_KERNEL=compiled asks for it."""
    assert str(chosen_kernel()).startswith("compiled for ")
    assert chosen_kernel().kernel is not NUMPY


@needs_extension
def test_a_variant_that_gives_other_bytes_is_passed_over(monkeypatch: pytest.MonkeyPatch):
    """A compiler that got one variant wrong leaves the next; one that got all wrong leaves numpy."""
    asked: list[Kernel] = []
    monkeypatch.setattr(choice, "agrees", lambda kernel: bool(asked) or asked.append(kernel))
    assert chosen_kernel().kernel is not asked[0]
    choice._best_kernel.cache_clear()
    monkeypatch.setattr(choice, "agrees", lambda kernel: False)
    assert str(chosen_kernel()) == "numpy (the compiled kernel was found to give other bytes)"


@needs_extension
@pytest.mark.parametrize("has", ["another number", "none"])
def test_an_extension_of_another_version_is_not_called(monkeypatch: pytest.MonkeyPatch, has: str):
    """Who updates a checkout without building again has new Python beside an old extension: numpy, not a traceback."""
    from ema_cli.folding.kernel import _compiled

    monkeypatch.delattr(_compiled, "INTERFACE")
    if has == "another number":
        monkeypatch.setattr(_compiled, "INTERFACE", 0, raising=False)
    monkeypatch.setattr(_compiled, "add", None)
    assert str(chosen_kernel()) == "numpy (the compiled kernel is one of another version; install again)"


@pytest.fixture
def no_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a package without the compiled kernel."""
    monkeypatch.setitem(sys.modules, EXTENSION, None)
    monkeypatch.delitem(sys.modules, "ema_cli.folding.kernel.compiled_kernel", raising=False)
    monkeypatch.delattr("ema_cli.folding.kernel._compiled", raising=False)


@pytest.mark.usefixtures("no_extension")
def test_a_python_without_the_global_lock_takes_numpy_and_says_so(monkeypatch: pytest.MonkeyPatch):
    """It has no limited API: for it setup.py builds no extension, and tags no wheel for one."""
    setuptools = pytest.importorskip("setuptools")
    monkeypatch.setattr(sysconfig, "get_config_var", {"Py_GIL_DISABLED": 1}.get)
    assert str(chosen_kernel()) == "numpy (the compiled kernel is not built for Pythons without the global lock)"
    asked: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", asked.update)
    runpy.run_path(str(ROOT / "setup.py"))
    assert asked == {"ext_modules": [], "options": {}}
    monkeypatch.setattr(sysconfig, "get_config_var", {}.get)
    runpy.run_path(str(ROOT / "setup.py"))
    assert [extension.name for extension in asked["ext_modules"]] == [EXTENSION]


@pytest.mark.usefixtures("no_extension")
def test_without_the_extension_numpy_does_it(monkeypatch: pytest.MonkeyPatch):
    """No compiler, no extension: numpy, and it says why. Who insists on the other gets an error."""
    assert chosen_kernel().kernel is NUMPY
    assert str(chosen_kernel()) == "numpy (the compiled kernel is not built)"
    monkeypatch.setenv("EMA_KERNEL", "compiled")
    with pytest.raises(UsageError, match="EMA_KERNEL: there is no compiled kernel"):
        chosen_kernel()


def test_the_environment_chooses_numpy(monkeypatch: pytest.MonkeyPatch):
    """EMA_KERNEL=numpy; a name that no kernel has is an error that lists those that there are."""
    monkeypatch.setenv("EMA_KERNEL", "numpy")
    assert chosen_kernel().kernel is NUMPY
    assert str(chosen_kernel()) == "numpy (EMA_KERNEL says so)"
    monkeypatch.setenv("EMA_KERNEL", "fast")
    with pytest.raises(UsageError, match="EMA_KERNEL: there is no kernel 'fast'"):
        chosen_kernel()
