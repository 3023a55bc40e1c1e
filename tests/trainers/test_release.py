"""The release that the example workflows make, on a run that transformers' Trainer wrote here and now."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.releases import ROOT, Job, github_release, gitlab_release, steps
from tests.trainers.conftest import assert_rounds, recurrence
from tests.trainers.transformers_run import STEPS, load_clean, saved, train

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("ignore")]

ALL = ["inspect", "average", "verify", "again", "sums"]
SET = {"HALF_LIFE": "20ba", "MIN_COUNT": "4"}  # where the examples have placeholders
FLIP = """
path = "release/model.safetensors"
data = bytearray(open(path, "rb").read())
data[-3] ^= 1
open(path, "wb").write(data)
"""
# Whoever changes weights may change what vouches for them, too.
FORGE = f"""{FLIP}
import hashlib, json
manifest = json.load(open("release/ema-manifest.json"))
old = [each for each in manifest["outputs"] if each["name"] == "model.safetensors"][0]["sha256"]
for name in ("ema-manifest.json", "SHA256SUMS"):
    text = open("release/" + name).read().replace(old, hashlib.sha256(data).hexdigest())
    if name == "SHA256SUMS":
        text = text.replace(before, hashlib.sha256(open("release/ema-manifest.json", "rb").read()).hexdigest())
    else:
        before = hashlib.sha256(open("release/" + name, "rb").read()).hexdigest()
    open("release/" + name, "w").write(text)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2, trained for 35 steps and saved four times."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=10, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return train(tmp_path_factory.mktemp("release") / "out", config, torch.float32)


@pytest.fixture
def job(tmp_path: Path, run: Path) -> Job:
    """A job that finds the run where the example fetches it."""
    job = Job(tmp_path / "job")
    shutil.copytree(run, job.folder / "checkpoints")
    return job


def release(job: Job, *, checkpoints: str = "checkpoints") -> subprocess.CompletedProcess[str]:
    """Run what the job for a small model runs."""
    command, environment = github_release("averaged-small")
    return job.run(command, {**environment, **SET, "CKPTS": checkpoints})


def assert_failed(job: Job, done: subprocess.CompletedProcess[str], step: str, code: int) -> None:
    """Check where a release ended, with which code, and that log, annotation and summary say so."""
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert steps(done.stderr) == ALL[: ALL.index(step) + 1]
    assert f"::error title=release::{step} failed (exit {code})\n" in done.stderr
    assert f"### Not released: {step} failed (exit {code})\n" in job.summary.read_text()
    assert job.names == ({"release"} if ALL.index(step) > ALL.index("average") else set())


def test_the_workflows_release_the_same_bytes(run: Path, tmp_path: Path):
    """Both jobs for GitHub and that for GitLab, on one processor and on all, in other places: manifest and sums too."""
    found = []
    for number, (kind, name, cpus) in enumerate(
        [(github_release, "averaged", None), (github_release, "averaged-small", 1), (gitlab_release, "averaged", None)]
    ):
        job = Job(tmp_path / f"job-{number}")
        shutil.copytree(run, tmp_path / f"place-{number}" / "checkpoints")
        command, environment = kind(name)
        summary = {"SUMMARY": str(job.summary)} if "SUMMARY" in environment else {}
        place = str(tmp_path / f"place-{number}" / "checkpoints")
        done = job.run(command, {**environment, **SET, "CKPTS": place, **summary}, cpus=cpus)
        assert (done.returncode, done.stdout) == (0, "release\n"), done.stderr
        assert steps(done.stderr) == ALL
        assert "::error" not in done.stderr
        assert job.names == {"release"}
        told = job.summary.read_text()
        assert told.startswith("### ema-cli: `release`\n")
        assert "\nVerified: " in told
        found.append(job.files())
    assert found[0] == found[1] == found[2]
    assert {"ema-manifest.json", "SHA256SUMS", "model.safetensors", "config.json"} <= found[0].keys()
    manifest = json.loads(found[0]["ema-manifest.json"])
    assert [each["name"] for each in manifest["inputs"]] == [f"checkpoint-{step}" for step in STEPS]
    assert all(each["blocks"] for each in manifest["inputs"])
    assert str(tmp_path) not in found[0]["ema-manifest.json"].decode()
    released = tmp_path / "job-0" / "release"
    assert_rounds(load_file(released / "model.safetensors"), recurrence(saved(run), STEPS, 20))
    load_clean(released)


def test_a_release_is_repeated_by_its_manifest(job: Job):
    """The script takes --recipe for a law, and gives the same bytes, though the training went on meanwhile."""
    assert release(job).returncode == 0
    shutil.copytree(job.folder / "checkpoints/checkpoint-35", job.folder / "checkpoints/checkpoint-40")
    state = job.folder / "checkpoints/checkpoint-40/trainer_state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "global_step": 40}))
    done = job.run("scripts/release.sh checkpoints again --recipe release/ema-manifest.json", {})
    assert (done.returncode, done.stdout) == (0, "again\n"), done.stderr
    assert job.files("again") == job.files("release")


def test_a_truncated_checkpoint_among_others(job: Job):
    """It is passed over, and what is demanded of the run does not hold: no tensor is read."""
    weights = job.folder / "checkpoints/checkpoint-20/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert_failed(job, release(job), "inspect", 6)


def test_a_truncated_checkpoint_that_is_named(job: Job):
    """It is an error of its own."""
    weights = job.folder / "checkpoints/checkpoint-20/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    named = " ".join(f"checkpoints/checkpoint-{step}" for step in STEPS)
    assert_failed(job, job.run(f"scripts/release.sh {named} release --half-life 20ba", {}), "inspect", 3)


def test_a_checkpoint_is_missing(job: Job):
    """Fewer enter than the job demands."""
    shutil.rmtree(job.folder / "checkpoints/checkpoint-20")
    done = release(job)
    assert_failed(job, done, "inspect", 6)
    assert "--min-count 4: 3 checkpoints enter the average of 20ba" in done.stderr


def test_a_checkpoint_holds_nan(job: Job):
    """Only reading it tells: the average fails, names tensor and checkpoint, and writes nothing."""
    weights = job.folder / "checkpoints/checkpoint-30/model.safetensors"
    tensors = load_file(weights)
    tensors["transformer.wpe.weight"][3, 2] = torch.nan
    save_file(tensors, weights, metadata={"format": "pt"})
    done = release(job)
    assert_failed(job, done, "average", 6)
    assert "checkpoint-30" in done.stderr
    assert "nothing was averaged (exit 6)" in job.summary.read_text()


@pytest.mark.parametrize(
    ("after", "damage", "step", "code"),
    [
        ("average*", FLIP, "verify", 6),
        ("average*", 'open("release/more.safetensors", "w").close()', "verify", 6),
        ("average*", FORGE, "again", 6),
        ("*--against*", FLIP, "sums", 1),
    ],
)
def test_the_output_is_damaged(job: Job, after: str, damage: str, step: str, code: int):
    """Between two steps; even where manifest and sums are forged with it, for which it must be averaged once more."""
    job.damage_after(after, damage)
    assert_failed(job, release(job), step, code)


def test_the_script_is_in_the_workflows_as_it_is_here():
    """Both examples name the script where it lies."""
    assert (ROOT / "scripts/release.sh").stat().st_mode & 0o111
    assert all(command.strip().startswith("scripts/release.sh ") for command, _ in map(github_release, ["averaged"]))
