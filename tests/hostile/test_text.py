"""Texts from files on their way to a terminal, a log or a program: each passes one function."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import write_torch_run
from tests.hostile.drawn import HOSTILE
from tests.inprocess import InProcess
from tests.release.verified import SINGLE, edit_mark, vouch

pytestmark = pytest.mark.slow

PACKAGE = Path(__file__).parents[2] / "ema_cli"
CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
COMMANDS = re.compile(r"(?m)^\s*::|##\[")
TEXTS = [text for text in HOSTILE if CONTROLS.search(text) or COMMANDS.search(text) or "\n" in text]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> InProcess:
    """The command line, in a folder with a run and its average."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    write_torch_run(tmp_path / "pt", [100, 200])
    run = InProcess(tmp_path, capsys)
    assert run("average", "pt", "--half-life", "50ba", "-o", SINGLE, "-q")[0] == 0
    return run


def assert_harmless(run: InProcess, *arguments: str) -> None:
    """Check what a command prints, for people and as JSON, which is parsed, too."""
    for more in ((), ("--json",)):
        code, out = run(*arguments, *more)
        assert code in (0, 2, 3, 4, 6)
        assert not CONTROLS.search(out + run.err), (out, run.err)
        assert not COMMANDS.search(out + run.err), (out, run.err)
        if more:
            json.loads(out)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("field", ["version", "half_life", "name", "clock", "key", "files", "copied", "more"])
def test_every_field_of_a_mark(run: InProcess, field: str, text: str):
    """What an average says of itself in its header: `inspect` shows all of it, and `verify` what differs."""
    text = text.replace("\ud800", "")

    def edit(mark: dict[str, Any]) -> None:
        entry = mark["checkpoints"][0]
        match field:
            case "name":
                entry[0] = text
            case "clock":
                entry[1] = text
            case "key":
                mark[text] = "x"
            case "files" | "copied":
                mark[field] = [text]
            case _:
                mark[field] = text

    edit_mark(run.folder / SINGLE, edit)
    assert_harmless(run, "inspect", SINGLE)
    vouch(run.folder / SINGLE)
    assert_harmless(run, "verify", SINGLE)


@pytest.mark.parametrize("text", TEXTS)
def test_names_of_tensors_and_metadata(run: InProcess, text: str):
    """Names in a header, and what a dictionary of torch's has for names."""
    plain = text.replace("\ud800", "") or "x"
    save_file({f"{plain}.weight": torch.ones(2)}, run.folder / "a.safetensors", metadata={plain: plain})
    torch.save({"model": {f"{plain}.weight": torch.ones(2)}, plain: plain, "epoch": 1}, run.folder / "b.pt")
    for name in ("a.safetensors", "b.pt"):
        assert_harmless(run, "inspect", name)
    assert_harmless(run, "compare", "a.safetensors", "b.pt")
    assert_harmless(run, "compare", "a.safetensors", SINGLE)


@pytest.mark.parametrize("text", [text for text in TEXTS if "\x00" not in text and len(text) < 200])
def test_names_of_files(run: InProcess, text: str):
    """Names that lie in a folder: a checkpoint's, one that is passed over, and one beside an average."""
    name = text.replace("/", "_").encode(errors="replace").decode()
    torch.save({"model": {"w": torch.ones(2)}, "step": 5}, run.folder / f"pt/{name}.pt")
    (run.folder / f"pt/{name}.bin").write_text("x")
    assert_harmless(run, "inspect", "pt")
    assert run("average", "pt/step-100.pt", "pt/step-200.pt", "--half-life", "50ba", "-o", "out", "-q")[0] == 0
    (run.folder / "out").mkdir(exist_ok=True)
    (run.folder / "out" / name).write_text("x")
    assert_harmless(run, "verify", "out")


@pytest.mark.parametrize("text", TEXTS)
def test_names_in_sums(run: InProcess, text: str):
    """The names that a sums file lists are in its problems."""
    line = f"{'0' * 64}  {text}\n".encode(errors="replace")
    (run.folder / f"{SINGLE}.sha256").write_bytes(line)
    assert_harmless(run, "verify", SINGLE)


def test_nothing_is_written_past_that_function():
    """Only three modules write to stdout and stderr, and only one makes texts of rich."""
    writers, makers = set(), set()
    for path in PACKAGE.rglob("*.py"):
        code = path.read_text()
        name = path.relative_to(PACKAGE).as_posix()
        if re.search(r"sys\.std(out|err)\.write|(?<![\w.`])print\(", re.sub(r'"""[\s\S]*?"""', "", code)):
            writers.add(name)
        if re.search(r"(?<!\w)Text\(|Text\.(assemble|from_markup)", code):
            makers.add(name)
    assert writers == {"cli/stdout.py", "cli/stderr.py", "cli/github.py"}
    assert makers == {"cli/rich_console.py", "cli/help_pages.py"}  # the latter shows only words of ours
