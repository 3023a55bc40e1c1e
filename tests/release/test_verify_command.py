"""`ema-cli verify`: what it prints, its exit codes, its JSON, and what it loads."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ema_cli.cli.verify_options import VerifyOptions
from ema_cli.errors import CheckpointError
from tests.conftest import Cli
from tests.loaded import loaded_by
from tests.release.verified import SINGLE, SINGLE_SUMS, SUMS, check, flip


def test_the_command_says_what_holds(made: Path, cli: Cli):
    """One line for each average on stdout, nothing else."""
    done = cli("verify", "folder", "several", cwd=made)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert re.fullmatch(r"folder: verified: 5 files, 3 tensors, [\d.]+ kB", lines[0])
    assert [line.partition(":")[0] for line in lines[1:]] == [
        f"several/ema-{half_life}.safetensors" for half_life in ("20ba", "50ba")
    ]


def test_the_command_says_what_does_not_hold(copy: Path, cli: Cli):
    """Problems on stderr, then the error with exit code 6; what holds is still said."""
    flip(copy / "folder" / "config.json")
    flip(copy / "folder" / "tokenizer.json")
    done = cli("verify", SINGLE, "folder", cwd=copy)
    assert done.code == 6
    assert re.fullmatch(r"one.*: verified: .*\nfolder: does not hold: 2 problems\n", done.out)
    assert [done.err.count(f"folder/{name}.json: its sha256 is") for name in ("config", "tokenizer")] == [1, 1]
    assert "error: folder: does not hold: 2 problems" in done.err


def test_only_the_first_problems_are_told(copy: Path, cli: Cli):
    """People see twenty problems and how many more there are; JSON has all of them."""
    for number in range(30):
        (copy / "folder" / f"extra-{number:02}").write_text("x")
    done = cli("verify", "folder", cwd=copy)
    assert done.err.count("is not listed") == 20
    assert "and 10 more" in done.err
    told = cli("verify", "folder", "--json", cwd=copy).json
    assert len(told["outputs"][0]["problems"]) == 30


def test_json_has_outputs_and_the_error(copy: Path, cli: Cli):
    """One envelope: every average with its problems, and the error where one does not hold."""
    (copy / "folder" / "extra").write_text("x")
    done = cli("verify", SINGLE, "folder", "--json", "--against", "pt", "--against", "hf", "--sample",
               "--seed", "s", cwd=copy)  # fmt: skip
    told = done.json
    assert done.code == 6
    assert (told["schema_version"], told["command"]) == (1, "verify")
    assert [(each["path"], each["ok"]) for each in told["outputs"]] == [(SINGLE, True), ("folder", False)]
    assert told["outputs"][1]["problems"] == [f"folder/extra: is not listed in {SUMS}"]
    assert told["outputs"][0]["against"] == {
        "checkpoints": 3, "tensors": 3, "most_elements": 65_536, "seed": "s", "bytes_read": 200,
        "tensors_different": 0, "bytes_different": 0,
    }  # fmt: skip
    assert told["error"]["code"] == 6
    assert told["error"]["message"] == f"folder/extra: is not listed in {SUMS}"
    assert "error" not in cli("verify", SINGLE, "--json", cwd=copy).json


@pytest.mark.parametrize(
    ("arguments", "code", "fact"),
    [
        ([], 2, "which average?"),
        (["nothing"], 2, "nothing: does not exist"),
        ([SINGLE, "--sample"], 2, "--sample: of what?"),
        ([SINGLE, "--strict"], 2, "--strict: of what?"),
        ([SINGLE, "--against", "pt", "--seed", "1"], 2, "--seed: is for a sample"),
        ([SINGLE, "--against", "nowhere"], 2, "nowhere: does not exist"),
        ([SINGLE, "--against", "hf"], 3, "'step-100.pt', which entered the average, is missing"),
        (["hf"], 6, "hf: is no average of ema-cli's, but a run of"),
    ],
)
def test_a_missing_file_has_the_exit_code_that_it_has_elsewhere(
    made: Path, cli: Cli, arguments: list[str], code: int, fact: str
):
    """What is missing on the way has the exit code that it has elsewhere."""
    done = cli("verify", *arguments, cwd=made)
    assert done.code == code
    assert fact in done.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_cannot_be_read(copy: Path):
    """What only this user cannot read, is no fault of the average."""
    (copy / "folder" / "config.json").chmod(0)
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be opened"):
        check(copy / "folder")


@pytest.mark.slow
def test_the_examples_run(made: Path, cli: Cli, tmp_path: Path):
    """The examples in the help do what they show."""
    shutil.copytree(made / "pt", tmp_path / "ckpts")
    assert cli("average", "ckpts", "--half-life", "50ba", "-o", "release.safetensors", "-q").code == 0
    examples = re.findall(r"ema-cli (verify .+)", VerifyOptions.EXAMPLES)
    assert len(examples) == 2
    for each in examples:
        done = cli(*each.split())
        assert done.code == 0, done


@pytest.mark.slow
def test_help_loads_no_numpy_and_verify_no_torch(made: Path):
    """Help loads no numpy, and to verify takes no torch."""
    assert not loaded_by(["verify", "--help"], made) & {"torch", "numpy", "safetensors", "json"}
    for arguments in (["folder"], ["one.pt"], [SINGLE, "--against", "pt"]):
        loaded = loaded_by(["verify", *arguments], made)
        assert "torch" not in loaded
        assert "numpy" in loaded


def test_sha256sum_agrees(made: Path):
    """The sums are those that the usual tool checks."""
    tool = shutil.which("sha256sum")
    if tool is None:
        pytest.skip("no sha256sum here")
    for folder, sums in ((made / "folder", SUMS), (made, SINGLE_SUMS)):
        subprocess.run([tool, "-c", "--strict", "--quiet", sums], cwd=folder, check=True)
