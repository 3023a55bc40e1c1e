"""What is in the wheel and the sdist, and what they say about themselves."""

from __future__ import annotations

import re
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from email.parser import BytesParser
from pathlib import Path

import pytest

from tests.package.conftest import ROOT, Built, build

pytestmark = pytest.mark.package

KERNEL = "ema_cli/folding/kernel/_compiled.abi3.so"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def names(wheel: Path) -> set[str]:
    """Return the names in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def metadata(built: Built) -> Message:
    """The wheel's METADATA."""
    with zipfile.ZipFile(built.wheel) as archive:
        return BytesParser().parsebytes(archive.read(next(n for n in archive.namelist() if n.endswith("/METADATA"))))


def test_the_wheel_has_the_package_and_nothing_else(built: Built, tree: Path):
    """Each module and each data file of ema_cli/, the kernel, the licence and the metadata; no tests, no scripts."""
    inside = names(built.wheel)
    package = {path.relative_to(tree).as_posix() for path in (tree / "ema_cli").rglob("*") if path.is_file()}
    assert {name for name in inside if ".dist-info/" not in name} == package | {KERNEL}
    assert "ema_cli/py.typed" in inside
    about = {name.partition(".dist-info/")[2] for name in inside if ".dist-info/" in name}
    assert about == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}


def test_one_wheel_fits_every_python_on_this_machine(built: Built):
    """The kernel keeps to what all Pythons from 3.11 have."""
    assert re.fullmatch(rf"ema_cli-{re.escape(version())}-cp311-abi3-\w+\.whl", built.wheel.name)


def version() -> str:
    """Return the version that the tree has."""
    found = re.search(r'= "(.+)"', (ROOT / "ema_cli" / "_version.py").read_text())
    assert found
    return found[1]


def test_the_sdist_has_what_the_wheel_is_built_from(built: Built, tree: Path):
    """The package's sources, the licence and what people read; no tests without the data they read."""
    with tarfile.open(built.sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    package = {path.relative_to(tree).as_posix() for path in (tree / "ema_cli").rglob("*") if path.is_file()}
    top = {"pyproject.toml", "setup.py", "README.md", "LICENSE", "CHANGELOG.md", "MANIFEST.in", "PKG-INFO", "setup.cfg"}
    assert {name for name in inside if not name.startswith("ema_cli.egg-info/")} == package | top


def test_the_tree_and_the_sdist_give_the_same_wheel(built: Built, tree: Path, tmp_path: Path):
    """The wheel that is made of the sdist is to the byte the one that is made of a checkout."""
    direct = build(tree, tmp_path / "dist", "--wheel")
    assert direct.wheel.name == built.wheel.name
    assert direct.wheel.read_bytes() == built.wheel.read_bytes()


def test_the_licence_is_named_and_comes_along(metadata: Message, built: Built):
    """As an SPDX expression, with its text."""
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]
    with zipfile.ZipFile(built.wheel) as archive:
        inside = next(name for name in archive.namelist() if name.endswith("licenses/LICENSE"))
        assert archive.read(inside) == (ROOT / "LICENSE").read_bytes()


def test_no_url_and_no_author_is_invented(metadata: Message):
    """The project has no public home to name."""
    for field in ("Home-page", "Project-URL", "Download-URL", "Author", "Author-email", "Maintainer"):
        assert metadata[field] is None, field


def test_name_version_and_pythons(metadata: Message):
    """The version is the tree's; each Python that a classifier names is one that Requires-Python lets in."""
    assert (metadata["Name"], metadata["Version"]) == ("ema-cli", version())
    assert metadata["Requires-Python"] == ">=3.11"
    classifiers = metadata.get_all("Classifier") or []
    minors = [int(each.rpartition(".")[2]) for each in classifiers if re.search(r":: 3\.\d+$", each)]
    assert minors == sorted(minors)
    assert minors[0] == 11
    assert sys.version_info[1] in minors


def test_four_libraries_are_asked_for_and_the_rest_is_in_extras(metadata: Message):
    """What averages files is small; torch is an extra."""
    required = metadata.get_all("Requires-Dist") or []
    without = {re.split(r"[^\w-]", each)[0] for each in required if "extra ==" not in each}
    assert without == {"numpy", "typer", "rich", "safetensors"}
    assert set(metadata.get_all("Provides-Extra") or []) == set(PROJECT["optional-dependencies"])


def test_the_description_is_the_readme(metadata: Message):
    """In Markdown, as a whole."""
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload(decode=True).strip() == (ROOT / "README.md").read_bytes().strip()
