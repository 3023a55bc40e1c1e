"""The built package, installed where nothing else is, does what the tree does."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.package.conftest import ROOT, Built, Environment, Told, Use, checked, find_python

pytestmark = pytest.mark.package

Make = Callable[..., Environment]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_wheel_works_without_torch(installed: Environment, use: Use, expected: Told):
    """Four libraries, and what they need, come into an empty environment; the commands do what they do here."""
    assert not {"torch", "pip", "setuptools", "click"} & set(installed.versions())
    done = subprocess.run([installed.python, "-c", "import torch"], capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError" in done.stderr
    assert use(installed.folder / "bin" / "ema-cli") == expected
    assert use(installed.python, "-m", "ema_cli") == expected


def test_the_installed_package_is_typed_and_has_the_public_names(installed: Environment, tmp_path: Path):
    """`import ema_cli` from elsewhere finds py.typed and the names; those for a live model say what to install."""
    script = (
        "import ema_cli, importlib.resources\n"
        "assert (importlib.resources.files('ema_cli') / 'py.typed').is_file()\n"
        "for name in ema_cli.__all__:\n"
        "    try:\n        getattr(ema_cli, name)\n"
        "    except ImportError as error:\n        print(name, error, sep=': ')\n"
    )
    told = checked([installed.python, "-W", "error", "-c", script], cwd=tmp_path)
    assert {line.partition(": ")[0] for line in told.splitlines()} == {"EMA", "compute_ema", "update_bn"}
    assert all(line.endswith("pip install 'ema-cli[torch]'") for line in told.splitlines())


def test_every_module_that_needs_no_trainer_can_be_imported(installed: Environment, tmp_path: Path):
    """No module of the offline half wants what only a development environment has."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "ema_cli").rglob("*.py")
        if not {"online", "integrations"} & set(path.parts) and path.stem != "__init__"
    ]
    assert len(modules) > 50
    script = "import sys, importlib\nfor name in sys.argv[1:]: importlib.import_module(name)"
    checked([installed.python, "-W", "error", "-c", script, *modules], cwd=tmp_path)


def test_the_sdist_installs_too(built: Built, make_environment: Make, tmp_path: Path, use: Use, expected: Told):
    """pip builds it and installs what a wheel would have installed."""
    environment = make_environment(sys.executable)
    pip = [sys.executable, "-m", "pip", "--python", environment.python, "--disable-pip-version-check"]
    constraint = {"PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
    checked([*pip, "install", "--quiet", built.sdist], env=os.environ | constraint, cwd=tmp_path)
    assert use(environment.folder / "bin" / "ema-cli") == expected


def test_the_wheel_brings_the_compiled_kernel(installed: Environment, tmp_path: Path):
    """Where there is no compiler, too: the wheel has it."""
    told = checked([installed.folder / "bin" / "ema-cli", "--version"], env={"PATH": str(tmp_path)}, cwd=tmp_path)
    assert told.splitlines()[1].startswith("kernel: compiled for ")


def test_without_a_compiler_the_sdist_installs_and_averages(
    built: Built, make_environment: Make, tmp_path: Path, use: Use, expected: Told
):
    """Nothing fails: numpy does the arithmetic, with the same bytes, and --version says so."""
    environment = make_environment(sys.executable)
    pip = [sys.executable, "-m", "pip", "--python", environment.python, "--disable-pip-version-check"]
    nothing = os.environ | {"PIP_CONSTRAINT": str(ROOT / "constraints.txt"), "PATH": str(tmp_path)}
    checked([*pip, "install", "--quiet", built.sdist], env=nothing, cwd=tmp_path)
    command = environment.folder / "bin" / "ema-cli"
    told = checked([command, "--version"], cwd=tmp_path)
    assert told.splitlines()[1] == "kernel: numpy (the compiled kernel is not built)"
    assert use(command) == expected


def test_a_wheel_for_others_is_not_built_without_a_compiler(tree: Path, tmp_path: Path):
    """Who sets EMA_KERNEL=compiled, as `make wheel` does, gets the kernel or an error."""
    nothing = {"PIP_CONSTRAINT": str(ROOT / "constraints.txt"), "PATH": str(tmp_path), "EMA_KERNEL": "compiled"}
    # What an earlier build compiled there would do without a compiler.
    fresh = shutil.copytree(tree, tmp_path / "tree", ignore=shutil.ignore_patterns("build", "*.so"))
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(fresh)]
    done = subprocess.run(command, env=os.environ | nothing, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode != 0
    assert not list(tmp_path.glob("*.whl"))


def test_the_command_runs_through_a_link_with_nothing_activated(
    installed: Environment, tmp_path: Path, use: Use, expected: Told
):
    """As tools that keep each program in its own environment leave it: one link in a folder of the PATH."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ema-cli").symlink_to(installed.folder / "bin" / "ema-cli")
    assert use("env", "ema-cli", path=f"{tmp_path / 'bin'}:{os.defpath}") == expected


def test_pipx_installs_it(built: Built, tmp_path: Path, use: Use, expected: Told):
    """One command, and ema-cli is on the PATH."""
    homes = {
        "PIPX_HOME": str(tmp_path / "pipx"),
        "PIPX_BIN_DIR": str(tmp_path / "bin"),
        "PIPX_MAN_DIR": str(tmp_path / "man"),
    }
    environment = os.environ | homes | {"PIPX_DEFAULT_PYTHON": sys.executable}
    checked([sys.executable, "-m", "pipx", "install", built.wheel], env=environment, cwd=tmp_path)
    assert sorted(path.name for path in (tmp_path / "bin").iterdir()) == ["ema-cli"]
    assert use("env", "ema-cli", path=f"{tmp_path / 'bin'}:{os.defpath}") == expected


def test_the_lowest_versions_that_are_allowed_will_do(built: Built, make_environment: Make, use: Use, expected: Told):
    """Each dependency at its lower bound, with the oldest Python that is allowed."""
    python = find_python(11)
    if python is None:
        pytest.skip("no python3.11 here")
    lowest = dict(re.fullmatch(r"([\w-]+)>=([\d.]+)(?:,.*)?", each).groups() for each in PROJECT["dependencies"])
    environment = make_environment(python, built.wheel, *(f"{name}=={version}" for name, version in lowest.items()))
    found = environment.versions()
    for name, version in lowest.items():
        assert re.fullmatch(rf"{re.escape(version)}(\.0)*", found[name]), name
    assert use(environment.folder / "bin" / "ema-cli") == expected


@pytest.mark.parametrize("minor", [11, 12, 13, 14])
def test_every_python_that_is_here(
    minor: int, built: Built, installed: Environment, make_environment: Make, use: Use, expected: Told
):
    """The newest libraries that there are for each Python; those that the classifiers name, and newer ones."""
    python = find_python(minor)
    if python is None:
        pytest.skip(f"no python3.{minor} here")
    same = minor == sys.version_info[1]
    environment = installed if same else make_environment(python, built.wheel)
    told = checked([environment.python, "-c", "import sys; print(sys.version_info[1])"])
    assert told == f"{minor}\n"
    assert use(environment.folder / "bin" / "ema-cli") == expected
    assert f"Programming Language :: Python :: 3.{minor}" in PROJECT["classifiers"]
