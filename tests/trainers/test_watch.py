"""`watch` beside trainers that delete their checkpoints: nothing of the training is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ema_cli.manifest.manifest import read_manifest
from ema_cli.manifest.sums import manifest_path
from tests.trainers.conftest import recurrence, require
from tests.trainers.ranks import REPOSITORY
from tests.trainers.transformers_run import load_clean
from tests.trainers.write_watched import INTERVAL, STEPS

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("ignore")]

QUICK = ("--every", "0.05s", "--settle", "0.05s")
LEFT = {"transformers": 2, "lightning": 1, "plain": 1}  # checkpoints that each of the trainings leaves


def watch_beside(kind: str, out: str, folder: Path, *options: str) -> None:
    """Train, with a watch beside it that writes to `out` until the training ends."""
    (folder / "run").mkdir()
    (folder / "truth").mkdir()
    ends = [] if kind == "transformers" else ["--until", f"{STEPS}ba"]
    words = ["watch", "run", "--half-life", "15ba", "-o", out, *options, *QUICK, *ends]
    command = [sys.executable, "-m", "ema_cli", *words]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watch:
        try:
            train = [sys.executable, "-m", "tests.trainers.write_watched", kind, str(folder)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            trained = subprocess.run(train, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
            assert trained.returncode == 0, trained.stderr
            told, err = watch.communicate(timeout=60)
        finally:
            watch.kill()
    assert watch.returncode == 0, err
    assert told == f"{out}\n"
    assert "missing" not in err
    assert "deleted" not in err


@pytest.mark.parametrize("kind", LEFT)
def test_watch_keeps_up_with_a_trainer_that_deletes_its_checkpoints(kind: str, tmp_path: Path):
    """Every checkpoint enters once, in its order; the average is Composer's of all of them, which nobody has any more.

    transformers says itself when the training ends; of the others the last step is told.
    """
    if kind != "plain":
        require(kind)
    watch_beside(kind, "out", tmp_path)
    left = [path for path in (tmp_path / "run").iterdir() if path.suffix in (".ckpt", ".pt") or path.is_dir()]
    assert len(left) == LEFT[kind]
    inputs = read_manifest(manifest_path(tmp_path / "out", is_folder=True))["inputs"]
    steps = list(range(INTERVAL, STEPS + 1, INTERVAL))
    assert [row["clock"] for row in inputs] == [f"{step}ba" for step in steps]
    truth = [load_file(tmp_path / "truth" / f"{step}.safetensors") for step in steps]
    exact = recurrence(truth, [float(step) for step in steps], 15)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == exact.keys()
    for name, tensor in exact.items():
        error = (written[name].double() - tensor.double()).abs().max()
        assert error <= 1e-6 * tensor.double().abs().max(), name
    if kind == "transformers":
        model = load_clean(tmp_path / "out")
        assert torch.equal(model.transformer.wte.weight, written["transformer.wte.weight"])


@pytest.mark.parametrize("kind", LEFT)
def test_watch_keeps_a_checkpoint_that_the_trainer_loads(kind: str, tmp_path: Path):
    """`--like-input`: the trainer's newest checkpoint, optimizer and all, with Composer's average for its weights."""
    if kind != "plain":
        require(kind)
    out = {"transformers": "out", "lightning": "out.ckpt", "plain": "out.pt"}[kind]
    watch_beside(kind, out, tmp_path, "--like-input")
    steps = list(range(INTERVAL, STEPS + 1, INTERVAL))
    truth = [load_file(tmp_path / "truth" / f"{step}.safetensors") for step in steps]
    exact = recurrence(truth, [float(step) for step in steps], 15)
    if kind == "transformers":
        newest = tmp_path / "run" / f"checkpoint-{STEPS}"
        weights = load_file(tmp_path / out / "model.safetensors")
        for path in newest.iterdir():
            if path.name not in ("model.safetensors", "README.md"):
                assert (tmp_path / out / path.name).read_bytes() == path.read_bytes(), path.name
        load_clean(tmp_path / out)
    else:
        (path,) = [path for path in (tmp_path / "run").iterdir() if path.suffix in (".ckpt", ".pt")]
        written, newest = (torch.load(each, weights_only=False) for each in (tmp_path / out, path))
        key = "state_dict" if kind == "lightning" else "model"
        weights = written.pop(key)
        assert weights.keys() == newest.pop(key).keys()
        assert repr(written) == repr(newest)
    assert weights.keys() == exact.keys()
    for name, tensor in exact.items():
        torch.testing.assert_close(weights[name].double(), tensor.double(), rtol=1e-5, atol=1e-6)
