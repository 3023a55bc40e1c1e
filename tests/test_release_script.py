"""scripts/release.sh and the example workflows, as far as files that no trainer wrote show them."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from ema_cli.cli.app import app
from ema_cli.cli.typer_commands import Invocation
from tests import signing_stand_in
from tests.conftest import write_hf_run, write_torch_run
from tests.releases import BIN, ROOT, Job, github_release, gitlab_release, steps, workflow

SCRIPT = ROOT / "scripts" / "release.sh"
CI = ROOT / "docs" / "ci"


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job with a run of three checkpoints."""
    job = Job(tmp_path / "job")
    write_hf_run(job.folder / "checkpoints", [500, 1000, 1500])
    return job


def test_shellcheck_finds_nothing():
    """Neither an error nor a matter of style."""
    command = [BIN / "shellcheck", "--enable=quote-safe-variables,deprecate-which,avoid-nullary-conditions", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_options_reach_the_commands_that_know_them(job: Job):
    """Those of the output, of memory and threads are not told to inspect; the run may be named one by one."""
    named = " ".join(f"checkpoints/checkpoint-{step}" for step in (500, 1000, 1500))
    options = "--half-life 500ba --threads 1 --dtype=bfloat16 --max-memory 500MB --force --copy '*.bias' --min-count 3"
    done = job.run(f"scripts/release.sh {named} release.safetensors {options}", {"AGAIN": "none"})
    assert (done.returncode, done.stdout) == (0, "release.safetensors\n"), done.stderr
    assert steps(done.stderr) == ["inspect", "average", "verify", "sums"]
    assert job.names == {f"release.safetensors{suffix}" for suffix in ("", ".manifest.json", ".sha256")}
    recipe = json.loads((job.folder / "release.safetensors.manifest.json").read_text())["recipe"]
    assert (recipe["dtype"], recipe["copy"]) == ("BF16", ["*.bias"])
    assert job.summary.read_text().endswith("made again from the checkpoints: none.\n\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    "output",
    ["-o release.safetensors", "-orelease.safetensors", "--output=release.safetensors", "--output release.safetensors"],
)
def test_options_that_the_script_gives_itself_may_be_given(job: Job, output: str):
    """The output by its option, sums that are always made, and a summary of one's own."""
    options = f"--half-life 500ba --checksum {output} --summary mine.md -fq --exclude 'x*'"
    done = job.run(f"scripts/release.sh checkpoints {options}", {"AGAIN": "none"})
    assert (done.returncode, done.stdout) == (0, "release.safetensors\n"), done.stderr
    assert (job.folder / "mine.md").read_text().endswith("made again from the checkpoints: none.\n\n")


@pytest.mark.slow
def test_a_dry_run_writes_nothing(job: Job):
    """It shows what would be written, and ends."""
    done = job.run("scripts/release.sh checkpoints release --half-life 500ba --dry-run", {})
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert steps(done.stderr) == ["inspect", "average"]
    assert "Would write release" in done.stderr
    assert job.names == set()


# What the script does itself, or refuses.
OF_THE_SCRIPT = {"output", "summary", "checksum", "as_json", "no_manifest", "version", "dry_run", "part"}
STUB = """#!/usr/bin/env bash
printf '%s\\0' "$@" >"$1.arguments"
[[ $1 != average ]] || exit 7
"""


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("recipe", [False, True])
def test_every_option_of_average_reaches_the_commands_that_know_it(job: Job, joined: bool, recipe: bool):
    """By the options of the commands themselves: with its value, in either spelling; `inspect` gets what it has.

    A manifest knows no law, so `inspect` cannot check what is demanded of what would enter.
    """
    group: Any = typer.main.get_command(app)
    commands = {name: group.commands[name] for name in ("average", "inspect")}
    options = [
        option
        for option in commands["average"].params
        if option.opts[0].startswith("--") and option.name not in OF_THE_SCRIPT and (recipe or option.name != "recipe")
    ]
    words, given = [], {}
    for number, option in enumerate(options):
        spelling, value = option.opts[number % len(option.opts)], f"--value {number}"
        given[option.name] = True if option.is_flag else [value] if option.multiple else value
        if option.is_flag:
            words += [spelling]
        else:
            words += [f"{option.opts[0]}={value}"] if joined else [spelling, value]
    job.shims.mkdir()
    (job.shims / "ema-cli").write_text(STUB)
    (job.shims / "ema-cli").chmod(0o755)
    done = job.run(f"scripts/release.sh 'a run' 'an output' {shlex.join(words)}", {"SUMMARY": "mine.md"})
    assert (done.returncode, steps(done.stderr)) == (7, ["inspect", "average"]), done.stderr
    parsed = {}
    for name, command in commands.items():
        arguments = (job.folder / f"{name}.arguments").read_text().split("\0")[1:-1]
        parsed[name] = command.make_context(name, arguments, obj=Invocation()).params
    assert {name: parsed["average"][name] for name in given} == given
    known = {name: value for name, value in given.items() if name in parsed["inspect"]}
    if recipe:
        known |= {"min_count": None, "max_share": None}
    assert {name: parsed["inspect"][name] for name in known} == known
    assert [list(parsed[name]["paths"]) for name in parsed] == [["a run"], ["a run"]]
    assert (parsed["average"]["output"], parsed["average"]["summary"]) == ("an output", "mine.md")


def test_an_option_without_a_value_takes_no_word_behind_it(job: Job):
    """Each flag of `average` may stand before the output's option, and last."""
    average: Any = typer.main.get_command(app).commands["average"]  # type: ignore[attr-defined]
    flags = [option.opts[0] for option in average.params if getattr(option, "is_flag", False)]
    assert {"--series", "--strict"} <= set(flags)
    job.shims.mkdir()
    (job.shims / "ema-cli").write_text(STUB)
    (job.shims / "ema-cli").chmod(0o755)
    for flag in flags:
        if flag in ("--json", "--no-manifest", "--version", "--help"):
            continue
        done = job.run(f"scripts/release.sh run {flag} -o out {flag}", {})
        assert done.returncode == 7, (flag, done.stderr)
        arguments = (job.folder / "average.arguments").read_text().split("\0")
        assert arguments[:4] == ["average", "run", "--output", "out"], flag


@pytest.mark.slow
def test_a_release_in_the_form_of_its_trainer(job: Job):
    """A file that names a class is a release, as it names what the newest checkpoint names."""
    for step in (100, 200):
        state = {"model": {"w": torch.full((3,), float(step))}, "step": step, "args": argparse.Namespace(lr=0.1)}
        torch.save(state, job.folder / f"model-{step}.pt")
    done = job.run("scripts/release.sh model-100.pt model-200.pt out.pt --half-life 100ba --like-input", {})
    assert (done.returncode, done.stdout) == (0, "out.pt\n"), done.stderr
    assert steps(done.stderr) == ["inspect", "average", "again", "sums"]


def test_what_averaging_again_needs_reaches_verify(job: Job):
    """The models beside the checkpoints, how these are read, and who averages, where all is averaged again."""
    job.shims.mkdir()
    stub = STUB.replace(
        "[[ $1 != average ]] || exit 7", """[[ $1 != average ]] || echo out; [[ "$*" != *--against* ]] || exit 7"""
    )
    (job.shims / "ema-cli").write_text(stub)
    (job.shims / "ema-cli").chmod(0o755)
    options = "--merge-into model --base=start --on processes=2 --no-cache --any-sum --coefficients c.json --threads 2"
    wanted = "--merge-into model --against start --on processes=2 --against run --no-cache --threads 2"
    done = job.run(f"scripts/release.sh run out {options}", {"AGAIN": "all"})
    assert (done.returncode, steps(done.stderr)[-1]) == (7, "again"), done.stderr
    assert (job.folder / "verify.arguments").read_text().split("\0")[2:-1] == wanted.split()


@pytest.mark.slow
def test_several_averages_in_a_folder(job: Job):
    """Each has its sums, and all of them are checked: of folders, and of files with theirs beside them."""
    laws = "--half-life 500ba --half-life 900ba"
    done = job.run(f"scripts/release.sh checkpoints folders {laws}", {})
    assert (done.returncode, done.stdout) == (0, "folders\n"), done.stderr
    job.damage_after("*--against*", 'open("files/900ba.pt", "ab").write(b"x")')
    done = job.run(f"scripts/release.sh checkpoints 'files/{{half_life}}.pt' {laws}", {})
    assert (done.returncode, steps(done.stderr)[-1]) == (1, "sums"), done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"), [("--help", 0), ("", 2), ("a", 2), ("a b", 2), ("a --half-life 1ba", 2), ("a b --dtype", 2),
     ("a b --half-life 1ba --json", 2), ("a b --half-life 1ba --no-manifest", 2), ("a b --half-life 1ba --part 1/2", 2),
     ("a -o", 2),
     ("-o b --half-life 1ba", 2)],
)  # fmt: skip
def test_too_few_arguments_end_with_usage_and_exit_2(job: Job, arguments: str, code: int):
    """Help goes to stdout; what is too little to work with is told on stderr, with exit code 2."""
    done = job.run(f"scripts/release.sh {arguments}", {})
    assert done.returncode == code
    assert (done.stdout if code == 0 else done.stderr).startswith("usage: scripts/release.sh CKPTS... OUT OPTION...\n")
    assert (done.stderr if code == 0 else done.stdout) == ""
    assert job.names == set()
    assert job.run("scripts/release.sh a b --half-life 1ba", {"AGAIN": "perhaps"}).returncode == 2


def test_a_wrong_option_ends_it_at_the_first_step(job: Job):
    """With the code of the command that refuses it, and without GitHub's commands elsewhere."""
    done = job.run("scripts/release.sh checkpoints release --half-life 50", {"GITHUB_ACTIONS": "", "SUMMARY": ""})
    assert done.returncode == 2
    assert done.stderr.startswith("== inspect\n+ ema-cli inspect checkpoints --half-life 50\nerror: ")
    assert done.stderr.endswith("\nrelease: inspect failed (exit 2)\n")
    assert "::" not in done.stderr


@pytest.mark.slow
def test_a_manifest_and_what_is_demanded(job: Job):
    """What would enter, only `average` knows then: it checks the demand, with its own exit code."""
    assert job.run("scripts/release.sh checkpoints one.pt --half-life 500ba", {"AGAIN": "none"}).returncode == 0
    again = "--max-share=0.9 --recipe one.pt.manifest.json --strict --min-count"
    done = job.run(f"scripts/release.sh checkpoints two.pt {again} 4", {"AGAIN": "none"})
    assert (done.returncode, steps(done.stderr)) == (6, ["inspect", "average"]), done.stderr
    done = job.run(f"scripts/release.sh checkpoints two.pt {again} 3", {"AGAIN": "none"})
    assert (done.returncode, done.stdout) == (0, "two.pt\n"), done.stderr


@pytest.mark.slow
def test_a_name_that_begins_with_a_dash(job: Job):
    """The path of what was written is no option of the steps after it."""
    done = job.run("scripts/release.sh checkpoints ./-odd.pt --half-life 500ba", {"AGAIN": "all"})
    assert (done.returncode, done.stdout) == (0, "./-odd.pt\n"), done.stderr
    assert steps(done.stderr)[-1] == "sums"


@pytest.mark.slow
def test_names_with_spaces_and_such(tmp_path: Path):
    """Whatever the folders are called, the commands get them whole."""
    job = Job(tmp_path / "a job")
    write_torch_run(job.folder / "my 'run' $x" / "ckpts", [10, 20, 30])
    out = "\"my 'run' \\$x/the release.pt\""
    done = job.run(f"scripts/release.sh \"my 'run' \\$x/ckpts\" {out} --half-life 10ba", {})
    assert (done.returncode, done.stdout) == (0, "my 'run' $x/the release.pt\n"), done.stderr


def run_steps(job: dict[str, Any]) -> list[str]:
    return [each["run"] for each in job["steps"] if "run" in each]


def test_the_workflow_for_github_is_one():
    """Two jobs, each with the permissions that attesting needs; values come from env, quoted."""
    told = workflow("github-release.yml")
    assert told["permissions"] == {}
    assert sorted(told["jobs"]) == ["averaged", "averaged-small"]
    assert told["jobs"]["averaged"]["runs-on"][0] == "self-hosted"
    for name, job in told["jobs"].items():
        assert job["permissions"] == {"contents": "read", "id-token": "write", "attestations": "write"}
        attest = next(each for each in job["steps"] if "attest" in each.get("uses", ""))
        assert attest["with"] == {"subject-checksums": "release/SHA256SUMS"}
        command, environment = github_release(name)
        assert command.startswith('scripts/release.sh "$CKPTS" release ')
        used = {variable for each in run_steps(job) for variable in re.findall(r"\$(\w+)", each)}
        assert used <= environment.keys()
        assert not any("${{" in each for each in run_steps(job))  # an input in a script could be one


def test_actions_are_pinned_by_commit():
    """A tag can be moved to other code, a commit cannot. The version stands behind it, for people and their bots."""
    lines = [line for path in CI.iterdir() for line in path.read_text().splitlines() if "uses:" in line]
    assert len(lines) > 8
    pinned = re.compile(r"[- ]*uses: ([\w-]+/[\w-]+)@([0-9a-f]{40}) # v\d+\.\d+\.\d+")
    found = {tuple(match.groups()) for line in lines if (match := pinned.fullmatch(line))}
    assert [line for line in lines if not pinned.fullmatch(line)] == []
    assert len(found) == len({action for action, _ in found})  # one commit of each


def test_what_a_job_installs_is_pinned():
    """Each package has an exact version in constraints.txt: ema-cli's own, the extra that signs, and the Hub's client.

    What builds ema-cli is installed before it in the same way: pip would take the newest otherwise.
    """
    installs = [line for path in CI.iterdir() for line in path.read_text().splitlines() if "pip install" in line]
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    for line in installs:
        command = re.fullmatch(r"[- ]*python -m pip install --constraint constraints\.txt (.+)", line)
        assert command, line
        names = [word for word in command[1].split() if not word.startswith("--")]
        assert {*names} - {"."} <= pinned
        assert ("." in names) == ("--no-build-isolation" in line)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    wanted += project["project"]["optional-dependencies"]["sign"]
    assert {re.split("[<>=]", each)[0] for each in wanted} <= pinned


@pytest.mark.slow
def test_a_release_that_is_signed(job: Job, tmp_path: Path):
    """The key reaches `average` alone, and the signature is in no comparison."""
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "sitecustomize.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nimport pytest\nfrom tests import signing_stand_in\n"
        "signing_stand_in.install(pytest.MonkeyPatch())\n"
    )
    signing_stand_in.write_keys(job.folder, "mine")
    command = "scripts/release.sh checkpoints release --half-life 500ba --sign=mine.pem"
    done = job.run(command, {"AGAIN": "all", "PYTHONPATH": str(packages)})
    assert (done.returncode, done.stdout) == (0, "release\n"), done.stderr
    assert steps(done.stderr) == ["inspect", "average", "verify", "again", "sums"]
    assert (job.folder / "release/model.sig").exists()


@pytest.mark.slow
def test_the_workflow_for_wheels_tests_each_where_it_was_built(tmp_path: Path):
    """With the compiled kernel or not at all; the commands of the test are commands that work."""
    told = workflow("github-wheels.yml")
    build = next(each for each in told["jobs"]["wheels"]["steps"] if "cibuildwheel" in each.get("uses", ""))["env"]
    assert build["CIBW_ENVIRONMENT"] == "EMA_KERNEL=compiled"
    command = build["CIBW_TEST_COMMAND"].replace("{project}", str(ROOT))
    path = f"{BIN}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_pipeline_for_gitlab_is_one():
    """Both jobs run the script with variables that they set, and keep its output and the summary as artifacts."""
    told = workflow("gitlab-ci.yml")
    assert told[".average"]["artifacts"]["paths"] == ["release/", "release-summary.md"]
    for name in ("averaged", "averaged-small"):
        command, variables = gitlab_release(name)
        assert set(re.findall(r"\$(\w+)", command)) <= variables.keys()
        assert variables["SUMMARY"] == "release-summary.md"
