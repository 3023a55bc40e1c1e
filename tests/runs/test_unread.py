"""What cannot be read in a run's folder: damaged checkpoints are errors, foreign files are passed over."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ema_cli.runs.unread import family
from tests.conftest import Cli, make_tensors, write_hf_run, write_torch_run

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"
LAW = ("--half-life", "100ba")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def compress(path: Path) -> None:
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


def cut_index(folder: Path) -> None:
    shard = folder / "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(shard)
    index = {"weight_map": dict.fromkeys(load_file(shard), shard.name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index)[:-5] + "no JSON")


def lose_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": dict.fromkeys(make_tensors(1), "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "cut short": ("step-200.safetensors", cut, "cut short"),
    "cut short, torch": ("step-200.pt", cut, "cut short"),
    "empty": ("step-200.pt", lambda path: path.write_bytes(b""), "is empty"),
    "text": ("step-200.pt", lambda path: path.write_text("Not found"), "not a checkpoint"),
    "pointer": ("step-200.safetensors", lambda path: path.write_text(LFS), "is a Git LFS pointer, not the file itself"),
    "compressed": ("step-200.pt", compress, "gunzip"),
    "no weights": ("step-200.pt", lambda path: torch.save({"step": 200}, path), "no weights"),
    "no shard": ("checkpoint-200", lose_shard, "is missing"),
    "index": ("checkpoint-200", cut_index, "not valid JSON"),
    "nothing in it": ("checkpoint-200", lambda path: (path / "model.safetensors").unlink(), "holds no weights"),
    "no state": ("checkpoint-200", lambda path: (path / "trainer_state.json").unlink(), "trainer_state.json"),
    "header": ("checkpoint-200", lambda path: (path / "model.safetensors").write_bytes(bytes(80)), "header"),
}


def make_run(folder: Path, name: str) -> Path:
    """Write three checkpoints, of the form that the name of the middle one shows; return its path."""
    if name.endswith(".safetensors"):
        folder.mkdir()
        for step in (100, 200, 300):
            save_file(make_tensors(step), folder / f"step-{step}.safetensors")
    elif name.endswith(".pt"):
        write_torch_run(folder, [100, 200, 300])
    else:
        write_hf_run(folder, [100, 200, 300])
    return folder / name


@pytest.mark.parametrize("label", DAMAGE)
def test_a_damaged_checkpoint_between_whole_ones_stops_an_average(cli: Cli, tmp_path: Path, label: str):
    """It is named with its clock; the hint leaves it out, which the manifest keeps; `inspect` goes on."""
    name, harm, words = DAMAGE[label]
    harm(make_run(tmp_path / "run", name))
    done = cli("average", "run", *LAW, "-o", "out")
    assert (done.code, words in done.err, "200ba" in done.err, name in done.err) == (3, True, True, True), done
    assert "--skip-damaged" in done.err
    assert not (tmp_path / "out").exists()
    seen = cli("inspect", "run", *LAW, "--json")
    assert seen.code == 0, seen
    assert [checkpoint["name"] for checkpoint in seen.json["run"]["checkpoints"]] == [
        name.replace("200", step) for step in ("100", "300")
    ]
    (passed,) = seen.json["run"]["passed_over"]
    assert passed["name"].startswith(name)
    assert passed["reason"].startswith("damaged (200ba; an average needs --skip-damaged): ")
    assert cli("inspect", "run", *LAW, "--strict").code == 6
    done = cli("average", "run", *LAW, "--skip-damaged", "-o", "out.safetensors")
    assert (done.code, f"{name}" in done.err) == (0, True), done
    manifest = json.loads((tmp_path / "out.safetensors.manifest.json").read_text())
    assert "damaged (200ba; left out by --skip-damaged)" in manifest["warnings"][0]
    written = load_file(tmp_path / "out.safetensors")
    for tensor, expected in make_tensors(300).items():
        if expected.is_floating_point():
            exact = make_tensors(100)[tensor].double() / 4 + expected.double() * 3 / 4
            torch.testing.assert_close(written[tensor], exact.to(expected.dtype), rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("label", ["cut short", "cut short, torch", "empty", "no shard", "nothing in it", "no state"])
def test_the_newest_may_still_be_written(cli: Cli, tmp_path: Path, label: str):
    """What is not whole is passed over with a warning, if nothing is newer."""
    name, harm, words = DAMAGE[label]
    harm(make_run(tmp_path / "run", name.replace("200", "300")))
    make_run(tmp_path / "whole", name)
    done = cli("average", "run", *LAW, "-o", "out.safetensors")
    assert (done.code, words in done.err, "half-written" in done.err) == (0, True, True), done


@pytest.mark.parametrize("label", ["text", "pointer", "compressed", "no weights"])
def test_what_holds_no_weights_is_not_still_written(cli: Cli, tmp_path: Path, label: str):
    """A text under the name of the newest checkpoint is exit 3, as in the middle."""
    name, harm, words = DAMAGE[label]
    harm(make_run(tmp_path / "run", name.replace("200", "300")))
    done = cli("average", "run", *LAW)
    assert (done.code, words in done.err, "300ba" in done.err) == (3, True, True), done


def test_of_two_that_are_not_whole_only_the_newest_may_still_be_written(cli: Cli, tmp_path: Path):
    """A disk that was full cut several: each older one is named."""
    write_torch_run(tmp_path / "run", [100, 200, 300, 400])
    for step in (300, 400):
        cut(tmp_path / "run" / f"step-{step}.pt")
    done = cli("average", "run", *LAW)
    assert (done.code, "run/step-300.pt: cut short" in done.err) == (3, True), done
    assert "step-400.pt is newer" in done.err


@pytest.mark.parametrize(("bound", "code"), [(("--start", "250ba"), 0), (("--stop", "150ba"), 0), (("--last", "1"), 3)])
def test_a_damaged_checkpoint_that_is_not_asked_for_stops_nothing(
    cli: Cli, tmp_path: Path, bound: tuple[str, str], code: int
):
    """What --start or --stop leaves out may be damaged."""
    write_torch_run(tmp_path / "run", [100, 200, 300])
    cut(tmp_path / "run" / "step-200.pt")
    assert cli("average", "run", *LAW, *bound).code == code


def test_a_folder_of_our_averages_is_named_as_such(cli: Cli, tmp_path: Path):
    """Whether they are files or folders: neither states of a training, nor nothing."""
    write_hf_run(tmp_path / "run", [100, 200])
    each = [f"--half-life={length}ba" for length in (50, 100)]
    assert cli("average", "run", *each, "-o", "folders").code == 0
    (tmp_path / "files").mkdir()
    assert cli("average", "run", *LAW, "-o", "files/one.safetensors").code == 0
    for folder, names in (("folders", "ema-50ba, ema-100ba"), ("files", "one.safetensors")):
        done = cli("inspect", folder)
        assert (done.code, f"only averages that ema-cli made: {names}\n" in done.err) == (3, True), done.err
        assert "or one of these averages" in done.err


def test_a_pointer_says_how_to_fetch_what_it_points_to(cli: Cli, tmp_path: Path):
    """A clone without Git LFS: all checkpoints are pointers, or one is."""
    for step in (100, 200):
        (tmp_path / f"step-{step}.safetensors").write_text(LFS)
    done = cli("average", ".", *LAW)
    assert (done.code, "is a Git LFS pointer, not the file itself" in done.err) == (3, True)
    assert "git lfs pull" in done.err


def script(path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))


def pack(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.add(__file__)


FOREIGN: dict[str, Callable[[Path], object]] = {
    "jit_script.pt": script,
    "frozen_model.pth": lambda path: path.write_bytes(b"\x08\x01graph"),
    "logs.tar": pack,
    "model.gguf": lambda path: path.write_bytes(b"GGUF" + bytes(40)),
    "data.h5": lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(40)),
    "metrics-7.pt": lambda path: torch.save({"loss": [1.0]}, path),
    "cached.safetensors": lambda path: path.write_bytes(b"junk"),
    "tokenizer.bin": lambda path: path.write_bytes(bytes(range(256))),
    "exports/step-9.pt": script,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_does_not_stop_a_run(cli: Cli, tmp_path: Path, name: str):
    """A file whose name is not that of the run's checkpoints is passed over, with a word."""
    write_torch_run(tmp_path / "run", [100, 200])
    (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
    FOREIGN[name](tmp_path / "run" / name)
    done = cli("average", "run", *LAW, "-o", "out.safetensors")
    is_quiet = name.endswith((".gguf", ".h5"))  # which nobody takes for a checkpoint of the run: listed, no warning
    assert (done.code, f"{name} is passed over" in done.err) == (0, not is_quiet), done
    seen = cli("inspect", "run", "--json").json["run"]
    assert {each["name"] for each in seen["checkpoints"]} == {"step-100.pt", "step-200.pt"}
    assert [each["name"] for each in seen["passed_over"]] == [name]


@pytest.mark.parametrize("name", ["step-200.gguf", "step-200.h5", "step-200.onnx", "step-200.keras"])
def test_a_checkpoint_in_another_format_is_missed(cli: Cli, tmp_path: Path, name: str):
    """Where a checkpoint of the run is there in a format that is not read only, an average stops."""
    make_run(tmp_path / "run", "step-200.safetensors").unlink()
    (tmp_path / "run" / name).write_bytes(b"GGUF" + bytes(40))
    done = cli("average", "run", *LAW)
    assert (done.code, f"run/{name}: " in done.err, "at 200ba by its name" in done.err) == (3, True, True), done
    save_file(make_tensors(2), tmp_path / "run" / "step-200.safetensors")
    assert cli("average", "run", *LAW, "--strict").code == 0


def test_another_form_of_a_checkpoint_is_not_damage(cli: Cli, tmp_path: Path):
    """A checkpoint packed beside itself, and a text with its name and another suffix, are listed."""
    write_torch_run(tmp_path / "run", [100, 200, 300])
    (tmp_path / "run" / "step-200.pt.gz").write_bytes(gzip.compress(b"weights"))
    (tmp_path / "run" / "step-100.bin").write_text("notes")
    done = cli("inspect", "run", *LAW, "--json")
    assert {each["name"]: each["reason"].partition(";")[0] for each in done.json["run"]["passed_over"]} == {
        "step-100.bin": "beside step-100.pt",
        "step-200.pt.gz": "beside step-200.pt",
    }
    assert cli("average", "run", *LAW, "--strict").code == 0


def test_names_without_numbers_fit_a_run_without_clocks(cli: Cli, tmp_path: Path):
    """Nothing tells a foreign file from a checkpoint there: a damaged one is an error."""
    for name in ("a", "b", "c"):
        save_file(make_tensors(1), tmp_path / f"{name}.safetensors")
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(40))
    assert cli("average", ".", "--profile", "uniform", "--spacing", "1ba").code == 0
    cut(tmp_path / "b.safetensors")
    done = cli("average", ".", "--half-life", "1ba", "--spacing", "1ba")
    assert (done.code, "b.safetensors: cut short" in done.err) == (3, True), done


def test_spaced_clocks_count_what_is_damaged(cli: Cli, tmp_path: Path):
    """The third of three is at three spacings, though the second is left out."""
    for number in (1, 2, 3):
        save_file(make_tensors(number), tmp_path / f"model_{number}.safetensors")
    cut(tmp_path / "model_2.safetensors")
    options = (".", "--half-life", "100ba", "--spacing", "100ba", "--skip-damaged", "--dry-run", "--json")
    entries = cli("average", *options).json["plans"][0]["entries"]
    assert [(entry["name"], entry["clock"]) for entry in entries] == [
        ("model_1.safetensors", "100ba"),
        ("model_3.safetensors", "300ba"),
    ]


def test_what_is_excluded_does_not_enter_and_is_said(cli: Cli, tmp_path: Path):
    """By a pattern of the names that are shown, damaged or not: in the plan, the recipe and its repetition."""
    write_torch_run(tmp_path / "run", [100, 200, 300, 400])
    cut(tmp_path / "run" / "step-300.pt")
    (tmp_path / "run" / "step-400.pt").rename(tmp_path / "run" / "spike-400.pt")
    options = ("average", "run", *LAW, "--exclude", "step-3*", "--exclude", "spike*", "--strict")
    plan = cli(*options, "--dry-run", "--json").json["plans"][0]
    assert [entry["name"] for entry in plan["entries"]] == ["step-100.pt", "step-200.pt"]
    assert {each["name"]: each["reason"] for each in plan["skipped"]} == {
        "spike-400.pt": "--exclude 'spike*'",
        "step-300.pt": "--exclude 'step-3*'",
    }
    done = cli(*options, "-o", "out.safetensors")
    assert (done.code, "2 checkpoints averaged, 2 skipped" in done.err) == (0, True), done
    manifest = json.loads((tmp_path / "out.safetensors.manifest.json").read_text())
    assert manifest["recipe"]["exclude"] == ["step-3*", "spike*"]
    again = cli("average", "run", "--recipe", "out.safetensors.manifest.json", "-o", "again.safetensors")
    assert again.code == 0, again
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "out.safetensors").read_bytes()
    assert cli("verify", "out.safetensors", "--against", "run").code == 0


def test_a_pattern_that_excludes_nothing_is_a_note(cli: Cli, tmp_path: Path):
    """It is probably a mistake, as an unmatched --copy is."""
    write_torch_run(tmp_path / "run", [100, 200])
    assert "--exclude 'best*' matches no checkpoint" in cli("inspect", "run", "--exclude", "best*").out
    done = cli("average", "run", *LAW, "--exclude", "*")
    assert (done.code, "leaves out 2 checkpoints" in done.err) == (4, True), done


def test_named_checkpoints_are_excluded_too(cli: Cli, tmp_path: Path):
    """A shell's pattern names all, and --exclude takes one away."""
    write_torch_run(tmp_path / "run", [100, 200, 300])
    named = [tmp_path / "run" / f"step-{step}.pt" for step in (100, 200, 300)]
    run = cli("inspect", *named, "--exclude", "step-200.pt", "--json").json["run"]
    assert [checkpoint["name"] for checkpoint in run["checkpoints"]] == ["step-100.pt", "step-300.pt"]


def test_other_runs_are_excluded(cli: Cli, tmp_path: Path):
    """Several runs in one folder: a pattern leaves one of them."""
    write_torch_run(tmp_path / "seed-a", [100, 200])
    write_torch_run(tmp_path / "seed-b", [100, 200])
    assert cli("average", ".", *LAW).code == 4
    assert cli("average", ".", *LAW, "--exclude", "seed-b/*").code == 0


def test_spaced_clocks_count_what_is_excluded(cli: Cli, tmp_path: Path):
    """A checkpoint that was saved in the run keeps its place; a foreign one has none."""
    for name in ("best", "model_1", "model_2", "model_3"):
        save_file(make_tensors(1), tmp_path / f"{name}.safetensors")
    options = (".", "--half-life", "100ba", "--spacing", "100ba", "--exclude", "model_2*", "--exclude", "best*")
    entries = cli("average", *options, "--dry-run", "--json").json["plans"][0]["entries"]
    assert [entry["clock"] for entry in entries] == ["100ba", "300ba"]


def run_dcp(folder: Path) -> None:
    for step in (1, 2, 3):
        torch.distributed.checkpoint.save(
            {"model": make_tensors(step)}, checkpoint_id=folder / f"step-{step}", no_dist=True
        )


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_copy_without_hidden_files_is_damaged(cli: Cli, tmp_path: Path):
    """`cp run/* copy/` leaves `.metadata` behind: in the middle that is no checkpoint that is still written."""
    import torch.distributed.checkpoint  # noqa: F401 - slow, and needed here only

    run_dcp(tmp_path / "run")
    (tmp_path / "run" / "step-2" / ".metadata").unlink()
    done = cli("average", "run", "--half-life", "1ba")
    assert (done.code, "step-2: has no .metadata" in done.err) == (3, True), done
    shutil.rmtree(tmp_path / "run" / "step-3")
    assert cli("average", "run", "--half-life", "1ba").code == 0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("step-100.pt", "step-20.pth.tar", True),
        ("epoch=1-loss=0.25.ckpt", "epoch=2-loss=1.ckpt", True),
        ("epoch=1-step=9.ckpt", "epoch=1-step=9-v1.ckpt", True),
        ("step_1,000.pt", "step_900.pt", True),
        ("a/step-1/model.pt", "a/step-2/model.pt", True),
        ("step-1.pt", "step-1-optim.pt", False),
        ("step-1.pt", "eval/step-1.pt", False),
    ],
)
def test_names_of_one_family(one: str, other: str, same: bool):
    """Numbers, suffixes and versions make no difference; words and folders do."""
    assert (family(one) == family(other)) == same


def test_other_forms_of_a_model_in_its_own_folder_are_no_matter(cli: Cli, tmp_path: Path):
    """A Hugging Face folder with the model for other frameworks, too: nothing is said."""
    write_hf_run(tmp_path / "run", [100, 200])
    for folder in (tmp_path / "run").iterdir():
        (folder / "model.onnx").write_bytes(bytes(40))
    assert cli("inspect", "run", "--json").json["run"]["passed_over"] == []


def test_a_folder_of_optimizer_states_has_no_hint_that_leads_nowhere(cli: Cli, tmp_path: Path):
    """What training keeps beside its weights is named as such."""
    for step in (1, 2):
        torch.save({"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}, tmp_path / f"optimizer-{step}.pt")
    done = cli("average", ".", "--half-life", "1ba")
    assert (done.code, "only what training keeps beside one: optimizer-1.pt, optimizer-2.pt" in done.err) == (3, True)
    assert "hint:" not in done.err
