"""Errors and warnings as a job of GitHub Actions shows them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from ema_cli.cli.github import annotate, annotate_warnings
from ema_cli.errors import EmaError, printable
from tests.conftest import Cli, write_hf_run, write_torch_run

ON = {"GITHUB_ACTIONS": "true"}


def annotations(text: str) -> list[str]:
    """Return the lines that such a job takes for commands, as it finds them."""
    return [line for line in text.splitlines() if line.lstrip().startswith("::") or "##[" in line]


def test_nothing_is_told_elsewhere(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Only GITHUB_ACTIONS=true makes annotations."""
    for value in ("", "false", "1"):
        monkeypatch.setenv("GITHUB_ACTIONS", value)
        annotate("error", "something")
    monkeypatch.delenv("GITHUB_ACTIONS")
    annotate("error", "something")
    assert capsys.readouterr() == ("", "")


def test_one_line_each_escaped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Per cents are escaped, line breaks of others are shown, and only the hint has a line of its own."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    annotate("warning", "100%: a,b\r\n::error::x")
    annotate("error", "no", "50%0A")
    assert capsys.readouterr() == (
        "",
        "::warning title=ema-cli::100%25: a,b\\r\\n::error::x\n::error title=ema-cli::no%0Ahint: 50%250A\n",
    )


def test_warnings_are_told_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """What several plans warn of alike is one annotation."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    annotate_warnings(["a", "b", "b", "c"])
    told = [line.rpartition("::")[2] for line in capsys.readouterr().err.splitlines()]
    assert told == ["a", "b", "c"]


@pytest.mark.parametrize("flags", [[], ["--json"]])
@pytest.mark.parametrize("half_lives", [["10ba"], ["10ba", "20ba"]])
def test_warnings_of_an_average(cli: Cli, tmp_path: Path, flags: Sequence[str], half_lives: Sequence[str]):
    """A half-life that is too short is an annotation, with one law or several, as text or --json; stdout is clean."""
    write_hf_run(tmp_path / "ckpts", [500, 1000])
    laws = [part for each in half_lives for part in ("--half-life", each)]
    done = cli("average", "ckpts", *laws, "-o", "out", *flags, env=ON)
    assert done.code == 0, done
    told = annotations(done.err)
    assert len(told) == 1
    assert told[0].startswith("::warning title=ema-cli::checkpoint-1000 holds 100.0%25 of the average")
    assert annotations(done.out) == []
    assert done.json["written"]["path"] == "out" if flags else done.out == "out\n"


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_errors_of_every_kind(cli: Cli, tmp_path: Path, flags: Sequence[str]):
    """A usage error, a wrong option and a gate that fails are annotations, each one, with the hint."""
    write_hf_run(tmp_path / "ckpts", [500, 1000])
    for arguments, code, text in (
        (["average", "ckpts", "--half-life", "50"], 2, "'50'"),
        (["average", "--no-such-option"], 2, "--no-such-option"),
        (["inspect", "ckpts", "--half-life", "1000ba", "--min-count", "3"], 6, "--min-count 3"),
        (["average", "ckpts", "--half-life", "1000ba", "--min-count", "3"], 6, "--min-count 3"),
        (["average", "nowhere", "--half-life", "1000ba"], 2, "nowhere"),
    ):
        done = cli(*arguments, *flags, env=ON)
        assert done.code == code, done
        errors = [line for line in annotations(done.err) if line.startswith("::error title=ema-cli::")]
        assert len(errors) == 1, done
        assert text in errors[0]
        assert ("%0Ahint: " in errors[0]) == (text != "nowhere")
        assert annotations(done.out) == []


def test_warnings_of_inspect(cli: Cli, tmp_path: Path):
    """What is odd about a run is an annotation for each fact; the table is as it is elsewhere."""
    write_hf_run(tmp_path / "ckpts", [500, 1000])
    (tmp_path / "ckpts/checkpoint-1000/model.safetensors").write_bytes(b"")
    plain, done = cli("inspect", "ckpts"), cli("inspect", "ckpts", env=ON)
    assert (plain.err, annotations(plain.out)) == ("", [])
    assert done.out == plain.out
    assert [line.partition("::checkpoint-1000")[0] for line in done.err.splitlines()] == ["::warning title=ema-cli"]


def test_names_are_no_commands(cli: Cli, tmp_path: Path):
    """A checkpoint, a tensor or a path that looks like a command of the job is shown so that it is none."""
    names = ["::error::{}.pt", " ::stop-commands::x{}.pt", "##[add-mask]{}.pt"]
    for step, name in enumerate(names, 1):
        write_torch_run(tmp_path / "::group::a", [step], name)
    for arguments in (["."], ["::group::a"], ["./::group::a"]):
        done = cli("inspect", *arguments, "--half-life", "1ba", env=ON)
        assert done.code == 0, done
        assert annotations(done.out) == []
    done = cli("average", "::group::a", "--half-life", "1ba", "--min-count", "9", env=ON)
    assert [line.partition("::")[1:][1].partition(" ")[0] for line in annotations(done.err)] == ["error"], done
    shutil.rmtree(tmp_path / "::group::a")
    done = cli("average", "::group::a", "--half-life", "1ba", "--json", env=ON)
    assert json.loads(done.out)["error"]["message"].startswith(r":\x3agroup::a")


@pytest.mark.parametrize(
    ("text", "shown"),
    [("::x::", r":\x3ax::"), (" ::x", r" :\x3ax"), ("a::b", "a::b"), ("a ##[x]", r"a #\x23[x]"), ("##", "##")],
)
def test_only_what_would_be_a_command_is_escaped(text: str, shown: str):
    """Colons within a name, and number signs, are as they are; what is shown is shown again unchanged."""
    assert printable(text) == shown == printable(shown) == str(EmaError(text))
