"""`watch` at the command line: what it prints, its JSON, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from ema_cli.manifest.schema import read_schema
from ema_cli.watching.moments import alone
from tests.conftest import Cli, write_torch_run

ONCE = ["--once", "--settle", "0s", "-o", "out.safetensors"]


def test_it_says_what_entered_and_prints_where_it_is(cli: Cli, tmp_path: Path):
    """A line for each checkpoint and each output on stderr, the path alone on stdout."""
    write_torch_run(tmp_path / "run", [0, 100, 200])
    done = cli("watch", "run", "--half-life", "150ba", *ONCE)
    assert done.code == 0
    assert done.out == "out.safetensors\n"
    lines = [line.partition(", in ")[0] for line in done.err.splitlines()]
    assert lines == [
        "0ba: step-0.pt does not enter: no checkpoint is left to average: step-0.pt: its clock is still 0ba",
        "100ba: step-100.pt entered",
        "200ba: step-200.pt entered",
        "200ba: 1 average written to out.safetensors",
        "at 200ba: 2 checkpoints averaged, 3 now",
    ]
    assert cli("watch", "run", "--half-life", "150ba", *ONCE, "--quiet").err == ""


def test_json_is_one_object(cli: Cli, tmp_path: Path):
    """With all that was done, by its schema; errors too."""
    write_torch_run(tmp_path / "run", [100, 200])
    done = cli("watch", "run", "--half-life", "150ba", *ONCE, "--json")
    facts = json.loads(done.out)
    jsonschema.validate(facts, read_schema("output"))
    assert facts["clock"] == "200ba"
    assert facts["checkpoints"] == 2
    assert [row["name"] for row in facts["entered"]] == ["step-100.pt", "step-200.pt"]
    assert facts["written"] == {"path": "out.safetensors", "averages": ["out.safetensors"]}
    failed = json.loads(cli("watch", "run", "--half-life", "15ba", *ONCE, "--json").out)
    jsonschema.validate(failed, read_schema("output"))
    assert failed["error"]["code"] == 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "which average?"),
        (["--half-life", "5ba", "--last", "3"], "it needs checkpoints that are not there yet"),
        (["--half-life", "5ba", "--bias-correction"], "it needs checkpoints that are not there yet"),
        (["--profile", "linear"], "each new checkpoint changes the shares"),
        (["--half-life", "5ba", "--every", "5ba"], "is no time on a clock"),
        (["--half-life", "5ba", "--threads", "0"], "is not a number of threads"),
        (["--half-life", "5ba", "--half-life", "5ba"], "is given twice"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(arguments: list[str], said: str, cli: Cli, tmp_path: Path):
    """Exit 2, with what to do; nothing is made."""
    write_torch_run(tmp_path / "run", [100])
    done = cli("watch", "run", *arguments, *ONCE)
    assert done.code == 2
    assert said in done.err
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_a_folder_that_is_not_there_is_an_error_at_once(cli: Cli):
    """A typo is not waited for."""
    assert cli("watch", "nowhere", "--half-life", "5ba").code == 2


def test_two_watches_of_one_output_exit_with_5(cli: Cli, tmp_path: Path):
    """The second says so."""
    write_torch_run(tmp_path / "run", [100])
    with alone(tmp_path / "out.safetensors.watch"):
        done = cli("watch", "run", "--half-life", "5ba", *ONCE)
    assert done.code == 5
    assert "another watch writes these averages" in done.err
