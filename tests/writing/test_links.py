"""Links among the files that are copied into an output: what they lead to lies in the checkpoint, or is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ema_cli.errors import CheckpointError
from ema_cli.writing.side_files import find_side_files
from tests.conftest import Cli, write_hf_run
from tests.inprocess import write_stored_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run of two checkpoints, beside a file that is nobody's business."""
    write_hf_run(tmp_path / "run", [100, 200])
    (tmp_path / "secret.json").write_text('{"secret": 1}')
    return tmp_path / "run"


def link(path: Path, target: Path | str) -> None:
    """Put a link in the place of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "README.md", "modeling_x.py", "config.json", "LICENSE", "vocab.txt"]
)
@pytest.mark.parametrize("absolute", [True, False])
def test_a_link_that_leads_out_is_refused(run: Path, cli: Cli, name: str, absolute: bool):
    """Side files, card, custom code: nothing is written, and the file is named with what it leads to."""
    link(run / "checkpoint-200" / name, run.parent / "secret.json" if absolute else "../../secret.json")
    done = cli("average", "run", "--half-life", "50ba", "-o", "out", "-q")
    assert done.code == 3
    assert f"run/checkpoint-200/{name}: is a link to {run.parent / 'secret.json'}, outside the checkpoint" in done.err
    assert not (run.parent / "out").exists()


def test_the_hint_helps(run: Path, cli: Cli):
    """A copy in the place of the link is what the hint says, and does."""
    path = run / "checkpoint-200/tokenizer.json"
    link(path, run.parent / "secret.json")
    assert "put a copy of the file in its place" in cli("average", "run", "--half-life", "50ba", "-o", "out", "-q").err
    text = path.read_bytes()
    path.unlink()
    path.write_bytes(text)
    assert cli("average", "run", "--half-life", "50ba", "-o", "out", "-q").code == 0


@pytest.mark.parametrize("name", ["trainer_state.json", "optimizer.pt", "notes.txt"])
def test_a_link_that_is_not_copied_does_not_matter(run: Path, cli: Cli, name: str):
    """What stays out of the output may be a link to anywhere."""
    path = run / "checkpoint-200" / name
    if path.exists():
        path.rename(run.parent / name)
    else:
        (run.parent / name).write_text("x")
    link(path, run.parent / name)
    assert cli("average", "run", "--half-life", "50ba", "-o", "out", "-q").code == 0
    assert not (run.parent / "out" / name).exists()


def test_links_to_checkpoints_and_weights_are_followed(run: Path, cli: Cli):
    """A run may be made of links, and weights may lie on another disk."""
    (run / "checkpoint-200/model.safetensors").rename(run.parent / "weights.safetensors")
    link(run / "checkpoint-200/model.safetensors", run.parent / "weights.safetensors")
    (run.parent / "linked").mkdir()
    for step in (100, 200):
        (run.parent / f"linked/checkpoint-{step}").symlink_to(run / f"checkpoint-{step}")
    assert cli("average", "linked", "--half-life", "50ba", "-o", "out", "-q").code == 0


def test_a_link_inside_the_checkpoint_is_followed(run: Path, cli: Cli):
    """Two names for one file, as some tokenizers have them."""
    link(run / "checkpoint-200/vocab.json", "tokenizer.json")
    assert cli("average", "run", "--half-life", "50ba", "-o", "out", "-q").code == 0
    copied = run.parent / "out/vocab.json"
    assert (copied.is_symlink(), copied.read_text()) == (False, "{}")


def cached(folder: Path, *names: str) -> Path:
    """Return a snapshot in a cache as the Hub's client makes it: links into the blobs of its repository."""
    snapshot = folder / "models--a--b/snapshots/0123abcd"
    blobs = folder / "models--a--b/blobs"
    blobs.mkdir(parents=True)
    for name in names:
        path = snapshot / name
        blob = blobs / f"blob-{name.replace('/', '-')}"
        blob.write_text("{}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(os.path.relpath(blob, path.parent))
    return snapshot


def test_the_cache_of_the_hub_is_followed(tmp_path: Path):
    """A snapshot is made of links to blobs; so is a checkpoint in it, and a folder in that."""
    names = ("config.json", "additional_chat_templates/tool.jinja", "checkpoint-5/tokenizer.json")
    snapshot = cached(tmp_path, *names)
    assert set(find_side_files(snapshot)) == {*names[:2]}
    assert set(find_side_files(snapshot / "checkpoint-5")) == {"tokenizer.json"}
    (tmp_path / "name").symlink_to(snapshot)
    assert set(find_side_files(tmp_path / "name")) == {*names[:2]}


@pytest.mark.parametrize("target", ["../../../other/blobs/x", "../../refs/main", "../1111/x"])
def test_a_link_in_the_cache_that_leads_elsewhere_is_refused(tmp_path: Path, target: str):
    """Only blobs of the same repository are its files."""
    snapshot = cached(tmp_path, "config.json")
    path = Path(os.path.normpath(snapshot / target))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    (snapshot / "tokenizer.json").symlink_to(target)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: is a link to .*, outside the checkpoint"):
        find_side_files(snapshot)


def test_a_folder_of_blobs_that_is_a_link_is_not_followed(tmp_path: Path):
    """Who unpacks a hostile archive gets no cache that leads out."""
    snapshot = tmp_path / "x/snapshots/y"
    snapshot.mkdir(parents=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home/key.json").write_text("x")
    (tmp_path / "x/blobs").symlink_to(tmp_path / "home")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/key.json")
    with pytest.raises(CheckpointError, match="outside the checkpoint"):
        find_side_files(snapshot)


def test_a_folder_inside_that_is_a_link(run: Path, cli: Cli):
    """Sub-folders are copied with all that is in them: one that leads out is refused, too."""
    home = run.parent / "home"
    home.mkdir()
    (home / "a.txt").write_text("x")
    (run / "checkpoint-200/additional_chat_templates").symlink_to(home)
    done = cli("average", "run", "--half-life", "50ba", "-o", "out", "-q")
    assert (done.code, "additional_chat_templates/a.txt: is a link to" in done.err) == (3, True)


def test_the_folders_of_modules(run: Path, cli: Cli):
    """The modules of a sentence-transformers model come with all that is in them."""
    newest = run / "checkpoint-200"
    modules = [{"idx": 0, "name": "0", "path": "", "type": "x"}, {"idx": 1, "name": "1", "path": "1_P", "type": "x"}]
    for step in (100, 200):
        (run / f"checkpoint-{step}/modules.json").write_text(json.dumps(modules))
        (run / f"checkpoint-{step}/1_P").mkdir()
        (run / f"checkpoint-{step}/1_P/config.json").write_text("{}")
    link(newest / "1_P/notes.txt", run.parent / "secret.json")
    done = cli("average", "run", "--half-life", "50ba", "-o", "out", "-q")
    assert (done.code, "1_P/notes.txt: is a link to" in done.err) == (3, True)


def test_the_components_of_a_pipeline(tmp_path: Path, cli: Cli):
    """So do those of a diffusers pipeline."""
    (tmp_path / "secret.json").write_text("{}")
    for step in (100, 200):
        folder = tmp_path / f"run/checkpoint-{step}"
        (folder / "unet").mkdir(parents=True)
        (folder / "scheduler").mkdir()
        (folder / "model_index.json").write_text(json.dumps({"unet": ["d", "U"], "scheduler": ["d", "S"]}))
        save_file({"w": torch.ones(3) * step}, folder / "unet/diffusion_pytorch_model.safetensors")
        (folder / "unet/config.json").write_text("{}")
    link(tmp_path / "run/checkpoint-200/scheduler/scheduler_config.json", tmp_path / "secret.json")
    done = cli("average", "run", "--half-life", "50ba", "-o", "out", "-q")
    assert (done.code, "scheduler/scheduler_config.json: is a link to" in done.err) == (3, True), done


def test_the_model_around_stored_averages(tmp_path: Path, cli: Cli):
    """What lies around stored averages is copied with them."""
    write_stored_run(tmp_path / "run/ema", ("20ba", "60ba"), steps=100)
    (tmp_path / "run/config.json").write_text('{"model_type": "x"}')
    (tmp_path / "secret.json").write_text("{}")
    link(tmp_path / "run/tokenizer.json", tmp_path / "secret.json")
    done = cli("average", "run", "--from", "stored", "--half-life", "30ba", "-o", "out", "-q")
    assert (done.code, "run/tokenizer.json: is a link to" in done.err) == (3, True), done
