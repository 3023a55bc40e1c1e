"""The package as it is built from this tree, and environments that have nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import write_hf_run, write_torch_run

ROOT = Path(__file__).parent.parent.parent
GIT_LS_FILES = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
EPOCH = "1700000000"  # the time that archives give their files, so that equal trees give equal bytes


def checked(command: Sequence[object], **options: object) -> str:
    """Run a command that must succeed, and return its stdout."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    out: str = done.stdout
    return out


@dataclass(frozen=True)
class Built:
    """What `python -m build` left."""

    wheel: Path
    sdist: Path


def build(tree: Path, out: Path, *kinds: str) -> Built:
    """Build the tree with the build backend of constraints.txt, in an environment that `build` makes for it.

    Without a compiled kernel there is no wheel.
    """
    environment = os.environ | {
        "PIP_CONSTRAINT": str(ROOT / "constraints.txt"), "SOURCE_DATE_EPOCH": EPOCH, "EMA_KERNEL": "compiled"
    }  # fmt: skip
    checked([sys.executable, "-m", "build", *kinds, "--outdir", out, tree], env=environment, cwd=out.parent)
    return Built(next(out.glob("*.whl")), next(out.glob("*.tar.gz"), Path()))


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git does not ignore, as a clean checkout has it: no leftovers of other builds."""
    copy = tmp_path_factory.mktemp("tree")
    for name in filter(None, checked(GIT_LS_FILES, cwd=ROOT).split("\0")):
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="session")
def built(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Wheel and sdist of the tree: the wheel made from the sdist, as `python -m build` does."""
    return build(tree, tmp_path_factory.mktemp("dist"))


@dataclass(frozen=True)
class Environment:
    """A virtual environment: no pip, and none of what the tests' own environment has."""

    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    def install(self, *requirements: object) -> None:
        """Install, ready-made wheels only; the versions are not those of constraints.txt but what pip finds."""
        pip = [sys.executable, "-m", "pip", "--python", self.python, "--disable-pip-version-check"]
        environment = {key: value for key, value in os.environ.items() if key != "PIP_CONSTRAINT"}
        checked([*pip, "install", "--quiet", "--no-compile", "--only-binary", ":all:", *requirements], env=environment)
        checked([*pip, "check"])

    def versions(self) -> dict[str, str]:
        """Return what is installed, by name."""
        script = (
            "import json; from importlib.metadata import distributions\n"
            "print(json.dumps({each.name: each.version for each in distributions()}))"
        )
        found: dict[str, str] = json.loads(checked([self.python, "-c", script]))
        return found


@pytest.fixture(scope="session")
def make_environment(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Environment]:
    """Return a function that makes an environment of an interpreter, with what is to be installed in it."""

    def make(python: str, *requirements: object) -> Environment:
        folder = tmp_path_factory.mktemp("environment") / "venv"
        checked([python, "-m", "venv", "--without-pip", folder])
        environment = Environment(folder)
        if requirements:
            environment.install(*requirements)
        return environment

    return make


@pytest.fixture(scope="session")
def installed(built: Built, make_environment: Callable[..., Environment]) -> Environment:
    """An environment of this Python with the wheel and the newest of what it asks for."""
    return make_environment(sys.executable, built.wheel)


def find_python(minor: int) -> str | None:
    """Return the interpreter python3.MINOR on the PATH, or of pyenv, that can make environments."""
    name = f"python3.{minor}"
    candidates = [name]
    if shutil.which("pyenv"):
        known = subprocess.run(["pyenv", "whence", name], capture_output=True, text=True, check=False)
        for version in reversed(known.stdout.split()):
            prefix = subprocess.run(["pyenv", "prefix", version], capture_output=True, text=True, check=False)
            candidates.append(f"{prefix.stdout.strip()}/bin/{name}")
    for candidate in candidates:
        try:  # a shim of pyenv is there and yet fails; a Python of Debian's may come without venv
            done = subprocess.run([candidate, "-c", "import venv, ssl"], capture_output=True, check=False)
        except OSError:
            continue
        if done.returncode == 0:
            return candidate
    return None


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of Hugging Face folders and one of pickled files."""
    folder = tmp_path_factory.mktemp("work")
    write_hf_run(folder / "hf", [100, 200, 300])
    write_torch_run(folder / "pt", [100, 200, 300])
    return folder


@dataclass(frozen=True)
class Told:
    """What the commands print and write about `work`, but for what the versions of libraries make different."""

    version: str
    inspect: str
    average: dict[str, bytes]


Use = Callable[..., Told]


@pytest.fixture
def use(work: Path, tmp_path: Path) -> Use:
    """Return a function that looks, averages and checks with a command, and returns what came of it."""

    def run(*command: object, path: str | None = None) -> Told:
        folder = tmp_path / f"use-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        # Nothing of the tests' own environment; a warning is an error, as in the tests.
        environment = {"PATH": path or os.defpath, "HOME": str(folder), "PYTHONWARNINGS": "error"}
        environment |= {key: os.environ[key] for key in ("LANG", "LC_ALL") if key in os.environ}

        def call(*arguments: object) -> str:
            return checked([*command, *arguments], cwd=folder, env=environment)

        version = call("--version").partition("\n")[0]  # of the tree's own kernel nothing is known
        told = call("inspect", work / "hf", "--half-life", "200ba")
        assert call("average", work / "hf", "--half-life", "200ba", "-o", "hf", "-q") == "hf\n"
        one = "pt.safetensors"
        assert call("average", work / "pt", "--half-life", "200ba", "-o", one, "-q") == f"{one}\n"
        call("verify", "hf")
        call("verify", one, "--against", work / "pt")
        weights = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}
        assert set(weights) == {"hf/model.safetensors", one}
        return Told(version, told, weights)

    return run


@pytest.fixture
def expected(use: Use) -> Told:
    """What the tree's own code does in the environment of the tests."""
    return use(
        sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom ema_cli.cli.app import main; main()"
    )
