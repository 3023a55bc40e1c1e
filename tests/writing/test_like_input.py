"""An average in the form of its input: the newest checkpoint over again, with averages in the place of its weights.

The oracle is torch: what it loads of the output is the mean of what it loads of the inputs, and all else is the
newest's.
"""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.conftest import write_hf_run, write_torch_run
from tests.formats.dcp_folders import load_folder, save_folder
from tests.inprocess import InProcess

LIKE = ("--profile", "uniform", "--like-input")


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> InProcess:
    """Return the command line, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return InProcess(tmp_path, capsys)


def model(step: int) -> dict[str, torch.Tensor]:
    """Return tensors that lie in all the ways in which torch stores them."""
    generator = torch.Generator().manual_seed(step)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    conv = torch.nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    conv.weight.data.copy_(random(8, 3, 3, 3))
    whole, embedding = random(6, 10), random(5, 4)
    return {
        "conv.weight": conv.weight.detach(),
        "half": random(7).bfloat16(),
        "columns": whole[:, 2:6],
        "rest": whole[:, 7:],
        "transposed": random(30, 40).t(),
        "permuted": random(3, 4, 5).permute(2, 0, 1),
        "every other": random(20)[::2],
        "conjugate": torch.view_as_complex(random(6, 2)).conj(),
        "negative": torch._neg_view(random(9)),
        "embedding": embedding,
        "head": embedding,
        "empty": random(0, 3),
        "number": random(),
        "steps": torch.tensor(step),
    }


def save_lightning(path: Path, step: int, **options: Any) -> None:
    """Save what Lightning does, classes of the user's in it."""
    tensors = model(step)
    moments = {"exp_avg": torch.full((5,), float(step)), "step": torch.tensor(float(step))}
    saved = {
        "epoch": step - 1,
        "global_step": 10 * step,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": tensors,
        "loops": {"fit": {}},
        "callbacks": {"Stopping": {"best": torch.tensor(step / 7)}},
        "optimizer_states": [{"state": {0: moments}, "param_groups": [{"lr": 0.1}]}],
        "columns_of": tensors["columns"]._base,
        "hyper_parameters": argparse.Namespace(lr=step),
    }
    torch.save(saved, path, **options)


def save_run(folder: Path, save: Callable[[Path, int], object] = save_lightning, suffix: str = ".ckpt") -> list[Any]:
    """Save three checkpoints, and return what torch loads of each."""
    folder.mkdir()
    for step in (1, 2, 3):
        save(folder / f"step={10 * step}{suffix}", step)
    return [torch.load(folder / f"step={10 * step}{suffix}", weights_only=False) for step in (1, 2, 3)]


def mean(inputs: list[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the mean of floating tensors, and the newest of the others."""
    averages = {}
    for name, newest in inputs[-1].items():
        wide = torch.complex128 if newest.is_complex() else torch.float64
        average = torch.stack([each[name].to(wide) for each in inputs]).mean(0)
        averages[name] = average.to(newest.dtype) if newest.is_floating_point() or newest.is_complex() else newest
    return averages


def assert_average(loaded: Mapping[str, torch.Tensor], inputs: list[Mapping[str, torch.Tensor]]) -> None:
    """Check values, order, dtypes and strides of tensors."""
    newest = inputs[-1]
    assert loaded.keys() == newest.keys()
    for name, expected in mean(inputs).items():
        tensor = loaded[name]
        assert (tensor.dtype, tensor.shape, tensor.stride()) == (
            expected.dtype,
            newest[name].shape,
            newest[name].stride(),
        )
        tolerance = 1e-2 if tensor.dtype == torch.bfloat16 else 1e-6
        torch.testing.assert_close(tensor, expected, rtol=tolerance, atol=tolerance, msg=name)


def assert_same(value: Any, other: Any) -> None:
    """Check that two values, nested as they may be, are equal."""
    if isinstance(value, dict):
        assert list(value) == list(other)
        for key in value:
            assert_same(value[key], other[key])
    elif isinstance(value, list):
        assert len(value) == len(other)
        for one, two in zip(value, other, strict=True):
            assert_same(one, two)
    elif isinstance(value, torch.Tensor):
        assert torch.equal(value, other)
    else:
        assert value == other


def assert_sound(path: Path, original: Path) -> None:
    """Check an archive by Python's own reader: checksums, places, and the records in the order of the original's."""
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(original) as before:
        assert archive.testzip() is None
        names = archive.namelist()
        assert names[:-1] == before.namelist()
        assert names[-1].endswith("/ema_cli.json")
        assert archive.read(names[0]) == before.read(names[0])
        for entry in before.infolist():
            assert archive.getinfo(entry.filename).header_offset == entry.header_offset


def names_in(run: InProcess) -> list[str]:
    """Return the names of the checkpoints that a search of the folder `run` gives."""
    return [each["name"] for each in run.json("inspect", "run")[1]["run"]["checkpoints"]]


def test_a_checkpoint_of_lightning_s_is_written_over_again(run: InProcess):
    """Names, strides, ties, views and description stay; weights are averages; all else is the newest's."""
    inputs = save_run(run.folder / "run")
    code, out = run("average", "run", "-o", "avg.ckpt", *LIKE)
    assert (code, out) == (0, "avg.ckpt\n"), run.err
    loaded = torch.load("avg.ckpt", weights_only=False)
    assert_average(loaded["state_dict"], [each["state_dict"] for each in inputs])
    assert loaded["state_dict"]["head"].data_ptr() == loaded["state_dict"]["embedding"].data_ptr()
    # Of a storage that holds more than the model's tensors, only these change.
    newest, whole = inputs[-1]["columns_of"], loaded["columns_of"]
    assert torch.equal(whole[:, :2], newest[:, :2])
    assert torch.equal(whole[:, 6], newest[:, 6])
    assert torch.equal(whole[:, 2:6], loaded["state_dict"]["columns"])
    others = {"state_dict", "columns_of"}
    assert list(loaded) == list(inputs[-1])
    for key in set(loaded) - others:
        assert_same(loaded[key], inputs[-1][key])
    assert_sound(run.folder / "avg.ckpt", run.folder / "run/step=30.ckpt")
    assert "loading it runs the code of argparse.Namespace, as loading step=30.ckpt does" in run.err
    assert "beside the weights, all stays that of step=30.ckpt: callbacks, optimizer_states" in run.err


@pytest.mark.parametrize("how", ["rewritten", "without checksums"])
def test_archives_of_other_writers_keep_their_form(run: InProcess, how: str, monkeypatch: pytest.MonkeyPatch):
    """Checksums may stand before the bytes, as zipfile writes them, or may be missing; both archives load."""

    def save(path: Path, step: int) -> None:
        if how == "without checksums":
            torch.serialization.set_crc32_options(False)
        try:
            save_lightning(path, step)
        finally:
            torch.serialization.set_crc32_options(True)
        if how == "rewritten":
            with zipfile.ZipFile(path) as before:
                records = {name: before.read(name) for name in before.namelist()}
            with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
                for name, content in records.items():
                    archive.writestr(name, content)

    inputs = save_run(run.folder / "run", save)
    assert run("average", "run", "-o", "avg.ckpt", *LIKE)[0] == 0, run.err
    assert_average(torch.load("avg.ckpt", weights_only=False)["state_dict"], [each["state_dict"] for each in inputs])
    if how == "rewritten":
        assert_sound(run.folder / "avg.ckpt", run.folder / "run/step=30.ckpt")


def test_a_later_search_passes_it_over_and_a_name_is_refused(run: InProcess):
    """It carries our mark, as a record that torch passes over."""
    save_run(run.folder / "run")
    assert run("average", "run", "-o", "run/avg.ckpt", *LIKE)[0] == 0, run.err
    assert names_in(run) == ["step=10.ckpt", "step=20.ckpt", "step=30.ckpt"]
    assert run("average", "run/avg.ckpt", "run/step=10.ckpt", "--profile", "uniform", "-o", "x.pt")[0] == 4
    assert "ema-cli made it" in run.err


def test_a_recipe_gives_the_same_bytes(run: InProcess):
    """The manifest says that the output is in the form of its input."""
    save_run(run.folder / "run")
    assert run("average", "run", "-o", "avg.ckpt", *LIKE, "--checksum")[0] == 0, run.err
    recipe = json.loads(Path("avg.ckpt.manifest.json").read_text())
    assert recipe["recipe"]["like_input"] is True
    assert recipe["classes"] == ["argparse.Namespace"]
    for name in ("again.ckpt", None):
        output = [] if name is None else ["-o", name]
        code, out = run("average", "run", "--recipe", "avg.ckpt.manifest.json", *output)
        assert code == 0, run.err
        assert Path(out.strip()).read_bytes() == Path("avg.ckpt").read_bytes()
    assert run("average", "run", "--recipe", "avg.ckpt.manifest.json", "-o", "x", "--force")[0] == 2


def test_verify_names_classes_unless_the_description_is_compared(run: InProcess):
    """Only with --like-input and --against may an average name classes; the file itself cannot say so."""
    save_run(run.folder / "run")
    assert run("average", "run", "-o", "avg.ckpt", *LIKE)[0] == 0, run.err
    for extra in ([], ["--against", "run"]):
        assert run("verify", "avg.ckpt", *extra)[0] == 6
        assert "names argparse.Namespace, whose code runs where it is loaded" in run.err
    assert run("verify", "avg.ckpt", "--like-input")[0] == 2
    code, out = run("verify", "avg.ckpt", "--like-input", "--against", "run")
    assert (code, "all bytes are those of 3 checkpoints averaged anew" in out) == (0, True), run.err
    assert run("verify", "avg.ckpt", "--like-input", "--against", "run", "--sample", "--seed", "1")[0] == 0, run.err


def test_verify_finds_another_description(run: InProcess):
    """A class with a name of equal length in the pickle, with sums that fit, is found by the comparison."""
    save_run(run.folder / "run")
    assert run("average", "run", "-o", "avg.ckpt", *LIKE, "--no-manifest")[0] == 0, run.err
    data = Path("avg.ckpt").read_bytes().replace(b"Namespace", b"Hamespace", 1)
    assert run("average", "run", "-o", "avg.ckpt", *LIKE, "--force")[0] == 0, run.err
    from tests.release.verified import vouch

    Path("avg.ckpt").write_bytes(data)
    vouch(run.folder / "avg.ckpt")
    assert run("verify", "avg.ckpt", "--like-input", "--against", "run")[0] == 6
    assert "something else around them" in run.err


def test_what_names_no_classes_is_verified_as_it_is(run: InProcess):
    """A plain loop's checkpoint loads with weights_only, before and after."""
    saved = write_torch_run(run.folder / "run", [1, 2, 3])
    assert run("average", "run", "-o", "avg.pt", *LIKE)[0] == 0, run.err
    assert run("verify", "avg.pt")[0] == 0, run.err
    loaded = torch.load("avg.pt", weights_only=True)
    assert loaded["step"] == 3
    assert_average(loaded["model"], saved)
    assert run("verify", "avg.pt", "--against", "run", "--like-input")[0] == 0, run.err
    assert run("average", "run", "-o", "x.pt", "--profile", "uniform")[0] == 0
    assert run("verify", "x.pt", "--against", "run", "--like-input")[0] == 6


def test_a_file_of_the_old_format_can_hold_no_mark(run: InProcess):
    """It is written outside of its run only: a search would take it for a checkpoint."""
    inputs = save_run(
        run.folder / "run", lambda path, step: save_lightning(path, step, _use_new_zipfile_serialization=False)
    )
    assert run("average", "run", "-o", "run/avg.ckpt", *LIKE)[0] == 5
    assert "has no place for our mark" in run.err
    assert run("average", "run", "-o", "avg.ckpt", *LIKE)[0] == 0, run.err
    loaded = torch.load("avg.ckpt", weights_only=False)
    assert_average(loaded["state_dict"], [each["state_dict"] for each in inputs])
    assert_same(loaded["optimizer_states"], inputs[-1]["optimizer_states"])
    assert run("verify", "avg.ckpt", "--like-input", "--against", "run")[0] == 0, run.err


def test_key_and_prefixes_are_those_of_the_reading(run: InProcess):
    """Averages of what --key names go where that is, under the names that the file has."""

    def save(path: Path, step: int) -> None:
        tensors = {f"module.{name}": tensor for name, tensor in model(step).items()}
        torch.save({"net": {"a": tensors, "b": model(step + 5)}, "iter": step}, path)

    inputs = save_run(run.folder / "run", save, ".pt")
    assert run("average", "run", "-o", "avg.pt", *LIKE, "--key", "net.a")[0] == 0, run.err
    loaded = torch.load("avg.pt", weights_only=False)
    assert_average(loaded["net"]["a"], [each["net"]["a"] for each in inputs])
    assert_same(loaded["net"]["b"], inputs[-1]["net"]["b"])
    assert run("verify", "avg.pt", "--against", "run")[0] == 0, run.err


def test_copied_tensors_stay_and_may_not_share_bytes_with_averages(run: InProcess):
    """--copy leaves the newest's bytes; of two tied tensors both are averaged, or none."""
    inputs = save_run(run.folder / "run")
    assert run("average", "run", "-o", "avg.ckpt", *LIKE, "--copy", "conv*")[0] == 0, run.err
    loaded = torch.load("avg.ckpt", weights_only=False)["state_dict"]
    assert torch.equal(loaded["conv.weight"], inputs[-1]["state_dict"]["conv.weight"])
    assert run("average", "run", "-o", "x.ckpt", *LIKE, "--copy", "head")[0] == 5
    assert "'embedding' and 'head' share bytes" in run.err or "'head' and 'embedding' share bytes" in run.err


def test_ties_of_the_newest_alone_are_refused(run: InProcess):
    """Two averages that may differ cannot have one place."""

    def save(path: Path, step: int) -> None:
        tensors = model(step)
        tensors["head"] = tensors["head"].clone() if step < 3 else tensors["head"]
        torch.save({"model": tensors, "step": step}, path)

    save_run(run.folder / "run", save, ".pt")
    assert run("average", "run", "-o", "avg.pt", *LIKE)[0] == 5
    assert "share bytes" in run.err
    assert run("average", "run", "-o", "avg.pt", "--profile", "uniform")[0] == 0, run.err


def test_copies_of_the_weights_in_an_optimizer_are_refused(run: InProcess):
    """A trainer that resumes with float32 copies puts them over the average; the hint leaves them out."""

    def save(path: Path, step: int) -> None:
        masters = {"fp32_from_fp16_params": [[torch.ones(3)]]}
        torch.save({"model": model(step), "iteration": step, "optimizer": {"optimizer": {}, **masters}}, path)

    save_run(run.folder / "run", save, ".pt")
    assert run("average", "run", "-o", "avg.pt", *LIKE)[0] == 5
    assert "optimizer/fp32_from_fp16_params: copies of the weights, which a trainer that resumes" in run.err
    assert run("average", "run", "-o", "avg.pt", *LIKE, "--drop", "optimizer")[0] == 0, run.err
    assert "optimizer" not in torch.load("avg.pt")


@pytest.mark.parametrize(
    ("output", "hint"),
    [("avg", "-o avg.ckpt"), ("avg.safetensors", "-o avg.ckpt"), ("b/ema-0.5ep", "-o b/ema-0.5ep.ckpt")],
)
def test_a_name_that_says_another_form_is_refused(run: InProcess, output: str, hint: str):
    """Loaders go by suffixes; the hint is followed."""
    save_run(run.folder / "run")
    Path("b").mkdir()
    assert run("average", "run", "-o", output, *LIKE)[0] == 2
    assert f"hint:  {hint}\n" in run.err
    assert run("average", "run", *hint.split(), *LIKE)[0] == 0, run.err


@pytest.mark.parametrize("extra", [("--dtype", "bfloat16"), ("--max-shard-size", "1MB")])
def test_the_form_is_the_input_s(run: InProcess, extra: tuple[str, str]):
    """What says another form is excluded."""
    save_run(run.folder / "run")
    assert run("average", "run", "-o", "avg.ckpt", *LIKE, *extra)[0] == 2
    assert "that of the input" in run.err


def test_several_half_lives_are_several_checkpoints(run: InProcess):
    """Each has the suffix of the newest, in the folder or by the pattern."""
    save_run(run.folder / "run")
    laws = ("--half-life", "10ba", "--half-life", "20ba", "--like-input")
    assert run("average", "run", "-o", "many", *laws)[0] == 0, run.err
    assert run("average", "run", "-o", "more/x-{half_life}.ckpt", *laws)[0] == 0, run.err
    for name in ("10ba", "20ba"):
        data = Path(f"many/ema-{name}.ckpt").read_bytes()
        assert data == Path(f"more/x-{name}.ckpt").read_bytes()
        assert torch.load(io.BytesIO(data), weights_only=False)["global_step"] == 30


def test_safetensors_keep_their_header(run: InProcess):
    """Names, places and metadata are the newest's; our key is added."""
    inputs = []
    Path("run").mkdir()
    for step in (1, 2, 3):
        inputs.append({name: model(step)[name].contiguous().clone() for name in ("conv.weight", "half", "steps")})
        save_file(inputs[-1], f"run/step-{step}.safetensors", metadata={"about": "a model\n", "format": "pt"})
    assert run("average", "run", "-o", "avg.safetensors", *LIKE)[0] == 0, run.err
    assert_average(dict(sorted(load_file("avg.safetensors").items())), [dict(sorted(each.items())) for each in inputs])
    with safe_open("avg.safetensors", "pt") as opened:
        metadata = opened.metadata()
    assert {name: metadata[name] for name in ("about", "format")} == {"about": "a model\n", "format": "pt"}
    assert run("verify", "avg.safetensors", "--against", "run")[0] == 0, run.err


def files(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder, relative to it."""
    return (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def test_a_folder_of_the_trainer_s_is_written_over_again(run: InProcess):
    """All files are there, optimizer and state too; only the weights differ, so that training goes on from them."""
    saved = write_hf_run(run.folder / "run", [100, 200, 300])
    assert run("average", "run", "-o", "run/release", *LIKE)[0] == 0, run.err
    release, newest = run.folder / "run/release", run.folder / "run/checkpoint-300"
    assert_average(load_file(release / "model.safetensors"), saved)
    ours = {Path("ema-manifest.json"), Path("SHA256SUMS"), Path("README.md")}
    assert set(files(release)) == {*files(newest), *ours}
    for name in set(files(newest)) - {Path("model.safetensors")}:
        assert (release / name).read_bytes() == (newest / name).read_bytes()
    assert run("verify", "run/release", "--against", "run", "--like-input")[0] == 0, run.err
    assert names_in(run) == ["checkpoint-100", "checkpoint-200", "checkpoint-300"]
    assert run("average", "run", "-o", "run/release", *LIKE, "--force")[0] == 0, run.err
    (release / "mine.txt").write_text("")
    assert run("average", "run", "-o", "run/release", *LIKE, "--force")[0] == 5


def state(step: int) -> dict[str, Any]:
    """Return what a trainer keeps in a folder of torch.distributed.checkpoint."""
    optimizer = {"state": {"head": {"exp_avg": torch.full((3,), float(step))}}}
    return {"model": model(step), "optimizer": optimizer, "train_state": {"step": step}}


def test_a_folder_of_distributed_checkpoint_is_written_over_again(run: InProcess):
    """torch.distributed.checkpoint reads it, and a later search passes it over, by a file of ours."""
    for step in (1, 2, 3):
        save_folder(run.folder / f"run/step-{step}", state(step))
    inputs = [load_folder(run.folder / f"run/step-{step}") for step in (1, 2, 3)]
    assert run("average", "run", "-o", "run/avg", *LIKE)[0] == 0, run.err
    loaded = load_folder(run.folder / "run/avg")
    for name, tensor in mean([each["model"] for each in inputs]).items():
        torch.testing.assert_close(loaded["model"][name], tensor, rtol=1e-2, atol=1e-2)
    assert_same(loaded["optimizer"], inputs[-1]["optimizer"])
    assert Path("run/avg/.metadata").read_bytes() == Path("run/step-3/.metadata").read_bytes()
    assert run("verify", "run/avg", "--against", "run")[0] == 0, run.err
    assert names_in(run) == ["step-1", "step-2", "step-3"]
    assert run("average", "run", "-o", "run/avg", *LIKE, "--force")[0] == 0, run.err


@pytest.mark.parametrize("kind", ["bare weights", "a module", "a checkpoint"])
def test_one_checkpoint_is_converted_without_a_clock(run: InProcess, kind: str):
    """It has weight 1 by any law: --last 1 alone says it, and no code in the file runs."""
    layer = torch.nn.Linear(3, 2)
    saved = {
        "bare weights": layer.state_dict(),
        "a module": layer,
        "a checkpoint": {"model": layer.state_dict(), "x": {1}},
    }
    torch.save(saved[kind], "in.pt")
    assert run("average", "in.pt", "--last", "1", "-o", "out.safetensors")[0] == 0, run.err
    loaded = load_file("out.safetensors")
    assert_same(dict(sorted(loaded.items())), dict(sorted(layer.state_dict().items())))
    assert run("verify", "out.safetensors", "--against", "in.pt")[0] == 0, run.err
    torch.save(layer.state_dict(), "other.pt")
    assert run("average", "in.pt", "other.pt", "--last", "1", "-o", "x.safetensors")[0] == 4


def test_of_one_checkpoint_nothing_is_said_that_holds_for_averages(run: InProcess):
    """Neither that it holds all of the average, nor who is the newest, nor what became of statistics."""
    torch.save(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).state_dict(), "in.pt")
    assert run("average", "in.pt", "--last", "1", "--strict", "-o", "out.safetensors")[0] == 0, run.err
    assert run.err.startswith("1 checkpoint averaged")
    assert run("inspect", "in.pt", "--last", "1")[0] == 0, run.err  # as average, it needs no law
    torch.save(torch.nn.BatchNorm1d(2).state_dict(), "step-1.pt")
    torch.save(torch.nn.BatchNorm1d(2).state_dict(), "step-2.pt")
    assert run("average", "step-1.pt", "step-2.pt", "--half-life", "1ba", "-o", "two.safetensors")[0] == 0, run.err
    assert "note: the running statistics of BatchNorm" in run.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run_of", "output"),
    [
        ("deepspeed-0.19.8/zero1-bfloat16-2", "avg"),
        ("fastai-2.8.12", "avg.pth"),
        ("lerobot-0.4.4", "avg"),
        ("mace-0.3.16", "avg.pt"),
        ("olmo-core-3.0.0", "avg"),
        ("speechbrain-1.1.2", "avg.ckpt"),
    ],
)
def test_files_of_libraries_are_written_over_again(run: InProcess, run_of: str, output: str):
    """Averaged anew, every byte is the same; DeepSpeed's float32 copies of the weights have to be left out."""
    data = Path(__file__).parents[1] / "data" / run_of
    drop = ("--drop", "optimizer") if run_of.startswith("deepspeed") else ()
    if drop:
        assert run("average", data, "-o", output, *LIKE)[0] == 5
        assert "single_partition_of_fp32_groups" in run.err
        assert "--drop optimizer" in run.err
    assert run("average", data, "-o", output, *LIKE, *drop)[0] == 0, run.err
    assert run("average", data, "-o", output, *LIKE, *drop, "--force")[0] == 0, run.err
    assert run("verify", output, "--against", data, "--like-input")[0] == 0, run.err


def test_what_is_read_only_is_refused(run: InProcess):
    """What ranks have of a model is put together as it is read, from one of several copies; the hint is followed."""
    data = Path(__file__).parents[1] / "data/torch_checkpointing-0.1.1/steps"
    assert run("average", data, "-o", "avg", *LIKE)[0] == 5
    assert "cannot be written over again: is stored in a form that is read only" in run.err
    assert "hint:  leave out --like-input" in run.err
    assert run("average", data, "-o", "avg", "--profile", "uniform")[0] == 0, run.err
