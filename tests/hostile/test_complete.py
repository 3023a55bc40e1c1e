"""The harness itself: every builder is in a case, every case in a test, and the server does as the program does."""

from __future__ import annotations

import ast
import contextlib
import importlib
import pickle
import pkgutil
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests import hostile
from tests.conftest import Cli
from tests.hostile import conftest
from tests.hostile.conftest import Case, Harness, Kind
from tests.hostile.make import good_zip, whole
from tests.hostile.programs import BOMBS, CARRIED_OUT, ENDLESS, PROGRAMS, UNREADABLE

FOLDER = Path(hostile.__file__ or "").parent
MODULES = [each.name for each in pkgutil.iter_modules([str(FOLDER)]) if each.name.startswith(("test_", "make", "prog"))]
LEAST = 800


@pytest.mark.slow
def test_every_builder_is_used() -> None:
    """Each function of the builders' modules is used somewhere in the package, apart from where it is defined."""
    sources = {name: (FOLDER / f"{name}.py").read_text() for name in MODULES}
    everything = "\n".join(sources.values())
    defined = [
        node.name
        for source in sources.values()
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("test_")
    ]
    dead = [name for name in defined if len(re.findall(rf"(?<!def )\b{name}\b", everything)) == 0]
    assert dead == []


def test_every_case_is_run() -> None:
    """Each case that a module lists is a parameter of one of its tests; there are hundreds, and of all programs."""
    for name in MODULES:
        module = importlib.import_module(f"tests.hostile.{name}")
        for value in vars(module).values():
            listed = value if isinstance(value, list) and value and isinstance(value[0], Case) else []
            assert {id(case) for case in listed} <= {id(case) for case in conftest.PARAMETERS}, name
    labels = Counter(case.name.split(", ")[0] for case in conftest.PARAMETERS)
    missing = [label for label in (*PROGRAMS, *ENDLESS, *UNREADABLE, *BOMBS) if label.split(", ")[0] not in labels]
    assert missing == []
    assert len(conftest.PARAMETERS) > LEAST


@pytest.mark.slow
def test_the_server_does_as_the_program_does(harness: Harness, program: Cli) -> None:
    """Exit code and both streams are those of `python -m ema_cli` in a process of its own."""
    work = harness.run_of(Kind("step-{}.pt", good_zip), lambda path, _: path.write_bytes(b"\x80\x02Pa\n."), "both")
    for arguments in (["inspect", "run"], ["inspect", "run/step-1.pt"], ["average", "run"], ["average", "nowhere"]):
        ended = harness.server.run(arguments, work, harness.logs / "log")
        alone = program(*arguments, cwd=work)
        assert (ended.code, ended.out.decode(), ended.err.decode()) == (alone.code, alone.out, alone.err)


def test_programs_are_programs_and_harmless_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own unpickler carries them out, and so would a reader that calls what a file names; without the
    stand-ins of these tests, as in any other program, nothing happens.
    """

    def leaves(label: str) -> bool:
        canary = tmp_path / "canary"
        with contextlib.suppress(Exception):
            pickle.loads(whole(PROGRAMS[label](canary))).close()  # one of them opens a device
        left = canary.exists()
        canary.unlink(missing_ok=True)
        return left

    assert [label for label in PROGRAMS if leaves(label)] == list(CARRIED_OUT)
    monkeypatch.setitem(sys.modules, "tests.hostile.stand_ins", None)
    assert [label for label in PROGRAMS if leaves(label)] == []
