"""Only storage calls the file system for checkpoints and outputs, so that another kind of storage fits behind it."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

import ema_cli

PACKAGE = Path(ema_cli.__file__).parent
MAY = {
    "storage": "it is what the others go through",
    "system": "files of this process, as /proc/self/status",
    "online": "where a live model stores its averages, on the training machine",
    "integrations": "the folders of trainers, on the training machine",
    "formats/arrays/zarr.py": "tensorstore reads its files itself, where they are known to be local",
    "cli/app.py": "the standard output of this process",
    "report/markdown.py": "the summary of a job, a file of the service that runs it",
    "manifest/schema.py": "a schema that is a part of the package",
    "manifest/signing.py": "what the library that signs prints is kept in memory",
    "runs/paths.py": "what a pattern in quotes would have named, for a hint",
    "watching": "what it keeps beside its averages, on the training machine",
    "engines": "what tasks tell of themselves, in a folder that all workers see",
    "tuning": "a command of the user's, what it prints, and candidates that lie in a private folder meanwhile",
}
METHODS = {
    "chmod", "exists", "glob", "hardlink_to", "is_dir", "is_file", "is_symlink", "iterdir", "lstat", "mkdir",
    "read_bytes", "read_text", "readlink", "rename", "rglob", "rmdir", "samefile", "stat", "symlink_to", "touch",
    "unlink", "write_bytes", "write_text",
}  # fmt: skip
FUNCTIONS = {
    "access", "chmod", "link", "listdir", "lstat", "makedirs", "mkdir", "open", "readlink", "remove", "rename",
    "replace", "rmdir", "scandir", "stat", "statvfs", "symlink", "truncate", "unlink", "utime", "walk",
    "exists", "getmtime", "getsize", "isdir", "isfile", "islink", "lexists", "realpath", "samefile",
}  # fmt: skip
MODULES = {"fcntl", "glob", "io", "shutil", "tempfile"}


def reaches_disk(call: ast.Call) -> bool:
    """Return whether a call is one of the file system's: of a path, of the module os, or the built-in `open`."""
    if isinstance(call.func, ast.Name):
        return call.func.id == "open"
    if not isinstance(call.func, ast.Attribute):
        return False
    name, owner = call.func.attr, ast.unparse(call.func.value)
    if owner in ("os", "os.path"):
        return name in FUNCTIONS
    if owner.startswith("location("):
        return False
    has_mode = any(
        isinstance(argument, ast.Constant) for argument in (*call.args, *(key.value for key in call.keywords))
    )
    return name in METHODS or (name == "resolve" and not call.args) or (name == "open" and has_mode)


@cache
def disk_calls(source: str) -> list[str]:
    """Return the calls in a module that reach the file system, and its imports of modules that do."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and reaches_disk(node):
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.Import):
            found += [f"line {node.lineno}: import {alias.name}" for alias in node.names if alias.name in MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES | {"os", "os.path"}:
            if ast.unparse(node) == "from glob import escape":
                continue  # which only changes a text
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def room(path: Path) -> str:
    """Return the key in `MAY` that a module would have."""
    name = path.relative_to(PACKAGE).as_posix()
    return name if name in MAY else name.partition("/")[0]


@pytest.mark.slow
def test_nobody_but_storage_calls_the_file_system():
    """Other modules say `location(path)`; the few that may do otherwise are listed, each with the reason."""
    modules = [path for path in PACKAGE.rglob("*.py") if room(path) not in MAY]
    assert len(modules) > 100
    found = {path.relative_to(PACKAGE).as_posix(): disk_calls(path.read_text("utf-8")) for path in modules}
    assert {name: calls for name, calls in found.items() if calls} == {}


@pytest.mark.slow
def test_every_exception_is_needed():
    """A room or a module that reaches no disk any more loses its exception."""
    needed = {room(path) for path in PACKAGE.rglob("*.py") if disk_calls(path.read_text("utf-8"))}
    assert needed == set(MAY)


@pytest.mark.parametrize(
    "line",
    [
        "open(path)",
        "os.stat(path)",
        "os.path.isfile(path)",
        "path.is_file()",
        "(folder / name).exists()",
        "path.resolve()",
        "path.open('rb')",
        "path.open(mode='rb')",
        "import shutil",
        "from os import walk",
    ],
)
def test_a_call_of_the_file_system_is_noticed(line: str):
    """In all the ways in which one is written."""
    assert disk_calls(line)


@pytest.mark.parametrize(
    "line",
    [
        "location(path).open()",
        "location(path).resolve()",
        "location(path).info().is_file",
        "os.path.abspath(path)",
        "machine.resolve(value)",
        "reader.open(name, region)",
        "text.replace('a', 'b')",
    ],
)
def test_calls_that_only_look_like_file_access_are_let_through(line: str):
    """What storage offers, text, and methods of other things that have such names."""
    assert not disk_calls(line)
