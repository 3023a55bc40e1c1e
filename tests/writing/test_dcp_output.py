"""An average as a folder of torch.distributed.checkpoint's: made without torch, and read by torch as its own."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.metadata import Metadata

from tests.inprocess import InProcess

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

UNIFORM = ("--profile", "uniform")


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> InProcess:
    """Return the command line, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return InProcess(tmp_path, capsys)


def model(step: int) -> dict[str, torch.Tensor]:
    """Return tensors of several types and shapes; their names are those of optimizers and averages, too."""
    generator = torch.Generator().manual_seed(step)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "model.weight": random(4, 6),
        "optim.weight": random(300, 7),
        "ema.bias": random(5).bfloat16(),
        "half": random(3, 1, 2).half(),
        "double": random(2).double(),
        "complex": torch.view_as_complex(random(3, 2)),
        "scalar": random(),
        "empty": random(0, 3),
        "step": torch.tensor(step),
        "mask": torch.tensor([True, False]),
        "f8": torch.ones(4).to(torch.float8_e4m3fn),
    }


def write(run: InProcess) -> dict[str, torch.Tensor]:
    """Write a run of three checkpoints, and return the exact mean."""
    steps = [model(step) for step in (1, 2, 3)]
    for step, tensors in zip((1, 2, 3), steps, strict=True):
        (run.folder / "run").mkdir(exist_ok=True)
        torch.save(tensors, run.folder / f"run/step-{step}.pt")
    wide = {torch.complex64: torch.complex128}
    return {
        name: torch.stack([each[name].to(wide.get(each[name].dtype, torch.float64)) for each in steps]).mean(0)
        if (tensor.is_floating_point() or tensor.is_complex()) and name != "f8"
        else tensor
        for name, tensor in steps[-1].items()
    }


def average(run: InProcess, *more: str) -> None:
    """Average the run into a folder."""
    assert run("average", "run", "-o", "dcp:out", "--copy", "f8", *UNIFORM, *more)[0] == 0, run.err


def load(folder: Path) -> dict[str, torch.Tensor]:
    """Return what torch loads from a folder into tensors of other values."""
    loaded = {name: torch.full_like(tensor, 7) for name, tensor in model(9).items()}
    dcp.load(loaded, checkpoint_id=folder, no_dist=True)
    return loaded


def test_torch_loads_the_average(run: InProcess):
    """Into a state dict of its own names, and as one file; the numbers are the means in float64, rounded once."""
    exact = write(run)
    average(run)
    loaded = load(Path("out"))
    for name, tensor in exact.items():
        if name == "f8":
            assert torch.equal(loaded[name].float(), tensor.float())
        else:
            torch.testing.assert_close(loaded[name], tensor.to(loaded[name].dtype), rtol=1e-5, atol=1e-6)
    dcp_to_torch_save("out", "one.pt")
    assert torch.load("one.pt").keys() == exact.keys()


def described(folder: str) -> dict[str, object]:
    """Return what a `.metadata` says, without what is of one save alone: ids, paths, and sizes with a random id in."""
    metadata = pickle.loads(Path(folder, ".metadata").read_bytes())
    assert isinstance(metadata, Metadata)
    return {
        "tensors": {name: repr(entry) for name, entry in metadata.state_dict_metadata.items()},
        "paths": metadata.planner_data,
        "places": {repr(index): place.relative_path for index, place in metadata.storage_data.items()},
        "version": metadata.version,
        "more": sorted(vars(metadata)),
    }  # fmt: skip


def test_metadata_are_those_that_torch_writes(run: InProcess):
    """Field by field, for the same tensors."""
    write(run)
    average(run)
    dcp.save(model(3), checkpoint_id="torch", no_dist=True)
    assert described("out") == described("torch")


def test_equal_averages_are_equal_bytes_and_verified(run: InProcess):
    """A second one is the same to the byte, both are verified, and a later search passes them over."""
    write(run)
    average(run)
    assert run("average", "run", "-o", "dcp:run/other", "--copy", "f8", *UNIFORM)[0] == 0, run.err
    for name in ("__0_0.distcp", ".metadata", "SHA256SUMS"):
        assert Path("out", name).read_bytes() == Path("run/other", name).read_bytes()
    assert sorted(path.name for path in Path("out").iterdir()) == [
        ".metadata", "SHA256SUMS", "__0_0.distcp", "ema-manifest.json", "ema_cli.json",
    ]  # fmt: skip
    assert run("verify", "out", "--against", "run")[0] == 0, run.err
    code, out = run("inspect", "run", *UNIFORM)
    assert code == 0
    assert "step-3.pt" in out
    assert run("average", "run", "-o", "dcp:out", "--copy", "f8", *UNIFORM)[0] == 5
    average(run, "--force")
    assert run("average", "--recipe", "out/ema-manifest.json", "run", "-o", "dcp:again")[0] == 0, run.err
    assert Path("again/__0_0.distcp").read_bytes() == Path("out/__0_0.distcp").read_bytes()
    assert run("average", "out", *UNIFORM, "-o", "x.safetensors")[0] == 4


@pytest.mark.parametrize(
    ("name", "place", "fact"),
    [
        ("__0_0.distcp", 710, "is not what the checkpoints give"),
        ("__0_0.distcp", 20, "something around its tensors"),
        (".metadata", 50, "cannot be read"),
        (".metadata", -6, "something around its tensors"),
    ],
)
def test_a_changed_byte_is_a_problem(run: InProcess, name: str, place: int, fact: str):
    """In a tensor, around it, or in what describes it; the sums are made anew, as somebody would who hides it."""
    write(run)
    average(run)
    changed = bytearray(Path("out", name).read_bytes())
    changed[place] ^= 1
    Path("out", name).write_bytes(changed)
    code, out = run("verify", "out", "--against", "run")
    assert code == 6
    assert fact in run.err + out, run.err


def test_nan_in_the_shard_is_a_problem(run: InProcess):
    """Tensors are looked at while the shard is read."""
    write(run)
    average(run)
    shard = Path("out/__0_0.distcp")
    mean = load(Path("out"))["optim.weight"].numpy()
    at = shard.read_bytes().index(mean.tobytes())
    shard.write_bytes(shard.read_bytes()[: at + 8] + b"\0\0\xc0\x7f" + shard.read_bytes()[at + 12 :])
    code, out = run("verify", "out")
    assert code == 6
    assert "'optim.weight' is not finite at element 2" in run.err + out


@pytest.mark.parametrize(
    ("output", "more", "fact"),
    [
        ("dcp:out.pt", (), "is a name for a file"),
        ("dcp:out", ("--like-input",), "asks for one"),
        ("dcp:", (), "is no name for something new"),
        ("dcp:out", ("--max-shard-size", "1MB"), "is for a folder of safetensors, and this is one file"),
    ],
)
def test_what_is_no_such_folder_is_a_usage_error(run: InProcess, output: str, more: tuple[str, ...], fact: str):
    """A file's name, or another form that is asked for."""
    write(run)
    assert run("average", "run", "-o", output, *UNIFORM, *more)[0] == 2
    assert fact in run.err


def test_several_averages_are_several_folders(run: InProcess):
    """One for each half-life, in a folder of theirs, or named by a pattern."""
    write(run)
    laws = ("--half-life", "1ba", "--half-life", "2ba", "--copy", "f8")
    for output in ("dcp:sweep", "dcp:patterns/ema-{half_life}"):
        assert run("average", "run", "-o", output, *laws)[0] == 0, run.err
        folder = Path(output.removeprefix("dcp:"))
        folder = folder if "{" not in folder.name else folder.parent
        assert {path.name for path in folder.iterdir()} == {"ema-1ba", "ema-2ba"}
        assert not torch.equal(load(folder / "ema-1ba")["half"], load(folder / "ema-2ba")["half"])
        assert run("verify", folder, "--against", "run")[0] == 0, run.err
