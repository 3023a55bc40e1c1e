"""The files of a live average: those of `ema-cli average`, all or nothing, and readable by everybody."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from ema_cli import EMA, Recipe, Time, average, make_plan, open_run, parse_target
from ema_cli.errors import NonFiniteError, OutputError, RunError, UsageError
from ema_cli.storage.output_stream import OutputStream
from tests.conftest import Cli
from tests.online.models import assert_near, assert_same, dense, held, small_model, taken, walk


class Tied(nn.Module):
    """Tied, frozen, in several types, with a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.norm = nn.BatchNorm1d(4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.head = nn.Linear(4, 6, bias=False).to(torch.bfloat16)
        self.out = nn.Linear(4, 6, bias=False)
        self.out.weight = self.embed.weight
        self.turned = nn.Parameter(torch.randn(3, 4).half().t())
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.empty = nn.Parameter(torch.zeros(0, 3, dtype=torch.float64))
        self.register_buffer("mask", torch.full((3, 3), float("-inf")).triu(1))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("cache", torch.zeros(4), persistent=False)


def header(path: Path) -> dict[str, Any]:
    """Return a safetensors header without its metadata."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    found: dict[str, Any] = json.loads(data[8 : 8 + size])
    del found["__metadata__"]
    return found


def averaged(model: nn.Module, steps: int = 4, **asked: Any) -> tuple[EMA, list[dict[str, torch.Tensor]]]:
    ema = EMA(model, **(asked or {"half_life": "3ba"}))
    models = []
    for step in range(steps):
        walk(nn.ParameterList([p for p in model.parameters() if p.requires_grad]), step)()
        ema.update()
        models.append(taken(model))
    return ema, models


def test_the_file_is_that_of_ema_cli_average(tmp_path: Path):
    """Names, shapes, types and places in the file are those that `ema-cli average` writes for the checkpoints."""
    torch.manual_seed(0)
    model = Tied()
    ema, models = averaged(model)
    for step, state in enumerate(models, 1):
        (tmp_path / "run").mkdir(exist_ok=True)
        torch.save({"model": state, "step": step}, tmp_path / "run" / f"step-{step}.pt")
    ema.save(tmp_path / "online.safetensors")
    plan = make_plan(open_run([tmp_path / "run"]), Recipe(half_life=Time.parse("3ba")))
    average(plan, parse_target(tmp_path / "offline.safetensors"))
    assert header(tmp_path / "online.safetensors") == header(tmp_path / "offline.safetensors")
    found, expected = load_file(tmp_path / "online.safetensors"), load_file(tmp_path / "offline.safetensors")
    assert set(found) == set(model.state_dict())
    assert "cache" not in found
    assert torch.equal(found["out.weight"], found["embed.weight"])
    assert torch.equal(found["frozen.weight"], model.frozen.weight)
    narrow = {name for name, tensor in found.items() if tensor.dtype in (torch.bfloat16, torch.float16)}
    assert narrow == {"head.weight", "turned"}
    for name in narrow:
        # One rounding each, of sums that differ by less than a float32 rounding or two.
        torch.testing.assert_close(found[name], expected[name], rtol=2**-7, atol=0)
    assert_near(
        {name: t for name, t in found.items() if name not in narrow and name != "mask"},
        {name: t for name, t in expected.items() if name not in narrow and name != "mask"},
    )
    assert torch.equal(found["mask"], expected["mask"])


def test_the_official_reader_reads_it(tmp_path: Path):
    """safetensors opens the file, finds `format: pt` and our key, and the tensors of the model."""
    model = small_model()
    ema, models = averaged(model)
    ema.save(tmp_path / "ema.safetensors")
    with safe_open(tmp_path / "ema.safetensors", framework="pt") as file:
        told = file.metadata()
        assert set(file.keys()) == set(model.state_dict())
    assert told["format"] == "pt"
    record = json.loads(told["ema_cli"])
    assert (record["half_life"], record["update_interval"], record["clock"]) == ("3ba", "1ba", "4ba")
    assert_near(load_file(tmp_path / "ema.safetensors"), dense(models, 3))
    small_model(7).load_state_dict(load_file(tmp_path / "ema.safetensors"))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"half_life": "3ba"}, "half-life 3ba, update interval 1ba"),
        ({"half_life": "0.5ba", "ema_start": "2ba"}, "half-life 0.5ba, update interval every|start 2ba"),
        ({"smoothing": 0.9}, "smoothing 0.9"),
        ({"sigma_rel": 0.1}, "0.1"),
    ],
    ids=str,
)
def test_inspect_says_how_it_was_made(cli: Cli, tmp_path: Path, asked: dict[str, Any], words: str):
    """`ema-cli inspect FILE` shows what was asked for."""
    ema, _ = averaged(small_model(), **asked)
    ema.save(tmp_path / "release.safetensors")
    done = cli("inspect", "release.safetensors")
    assert done.code == 0, done
    assert "Averaged by ema-cli" in done.out
    told = " ".join(done.out.split())
    assert all(word.strip() in told for part in words.split("|") for word in part.split(",")), done


@pytest.mark.parametrize("name", ["ema.safetensors", "step-9.safetensors"])
def test_a_search_passes_it_over(tmp_path: Path, name: str):
    """Beside the checkpoints of a run, an average is none of them, whatever its name."""
    run = tmp_path / "run"
    run.mkdir()
    model = small_model()
    ema, models = averaged(model)
    for step, state in enumerate(models, 1):
        torch.save({"model": state, "step": step}, run / f"step-{step}.pt")
    ema.save(run / name)
    assert [each.name for each in open_run([run]).checkpoints] == [f"step-{step}.pt" for step in range(1, 5)]
    (named,) = open_run([run / name]).checkpoints
    assert named.averaged == "ema-cli made it"


def test_an_existing_file_is_not_replaced_without_force(tmp_path: Path):
    """The file stays as it is, unless force says otherwise."""
    ema, _ = averaged(small_model())
    path = tmp_path / "ema.safetensors"
    path.write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists already") as raised:
        ema.save(path)
    assert "force=True" in (raised.value.hint or "")
    assert path.read_bytes() == b"mine"
    ema.save(path, force=True)
    assert_near(load_file(path), held(ema))
    ema.save(str(tmp_path / "text.safetensors"))
    assert (tmp_path / "text.safetensors").read_bytes() == path.read_bytes()


def test_nothing_is_written_where_something_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A disk that is full in the middle leaves the old file, or none, and no litter."""
    ema, _ = averaged(small_model(), half_life=("3ba", "5ba"))
    ema.save(tmp_path / "old.safetensors", "3ba")
    old = (tmp_path / "old.safetensors").read_bytes()
    write = OutputStream.write

    def full(stream: Any, offset: int, data: Any) -> None:
        if offset:
            raise OutputError("No space left on device")
        write(stream, offset, data)

    monkeypatch.setattr(OutputStream, "write", full)
    for name in ("old.safetensors", "new.safetensors"):
        with pytest.raises(OutputError, match="No space left"):
            ema.save(tmp_path / name, "5ba", force=True)
    with pytest.raises(OutputError, match="No space left"):
        ema.store(tmp_path / "stored")
    assert ema.averages.first is not None
    files = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert files == ["old.safetensors"]
    assert (tmp_path / "old.safetensors").read_bytes() == old


def test_places_that_cannot_be_written(tmp_path: Path):
    """A folder that is not there, a name without .safetensors and a file for a folder are output errors."""
    ema, _ = averaged(small_model())
    for name, message in (
        ("no/ema.safetensors", "cannot be written"),
        ("ema.pt", "does not end in .safetensors"),
    ):
        with pytest.raises(OutputError, match=message):
            ema.save(tmp_path / name)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        ema.store(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_nan_in_a_saved_average_names_the_tensor_and_can_be_allowed(tmp_path: Path, value: float):
    """A NaN, and an infinity that the model does not have, is an error that names the tensor, and can be allowed."""
    model = small_model()
    ema, _ = averaged(model)
    with torch.no_grad():
        good = model[3].bias.clone()
        model[3].bias[1] = value
        ema.update()
        model[3].bias.copy_(good)
    with pytest.raises(NonFiniteError, match=r"'3\.bias' is not finite"):
        ema.save(tmp_path / "ema.safetensors")
    assert list(tmp_path.iterdir()) == []
    ema.save(tmp_path / "ema.safetensors", allow_non_finite=True)
    assert not load_file(tmp_path / "ema.safetensors")["3.bias"].isfinite().all()


def test_an_overflow_in_the_models_type_is_refused(tmp_path: Path):
    """An average that is finite in float32 and not in the model's type is not written, also inside `applied`."""
    model = nn.Linear(1, 1, bias=False).half()
    nn.init.constant_(model.weight, 65504)
    ema = EMA(model, "5ba")
    ema.update()
    ema.averages.store().averages[0][0].fill_(70000)  # type: ignore[union-attr]
    with pytest.raises(NonFiniteError, match="'weight' is not finite"):
        ema.save(tmp_path / "ema.safetensors")
    with ema.applied(), pytest.raises(NonFiniteError, match="'weight' is not finite"):
        ema.save(tmp_path / "ema.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_frozen_nan_is_refused(tmp_path: Path):
    """What is frozen is written too, and a NaN in it is no better."""
    model = small_model()
    model[0].requires_grad_(False)
    ema, _ = averaged(model)
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"'0\.weight' is not finite"):
        ema.save(tmp_path / "ema.safetensors")


def test_types_that_safetensors_has_no_place_for(tmp_path: Path):
    """complex128 is averaged, and cannot be saved: the error names it. Frozen 8-bit floats can."""
    model = small_model()
    model.register_buffer("wave", torch.ones(3, dtype=torch.complex128))
    ema, _ = averaged(model)
    with pytest.raises(OutputError, match=r"'wave' is torch\.complex128, which safetensors has no place for"):
        ema.save(tmp_path / "ema.safetensors")
    model = small_model()
    packed = torch.arange(4.0).to(torch.float8_e4m3fn)
    model.register_parameter("packed", nn.Parameter(packed, requires_grad=False))
    model.register_buffer("wave", torch.tensor([1 + 2j, 3 - 4j]))
    ema, _ = averaged(model)
    ema.save(tmp_path / "ema.safetensors")
    found = load_file(tmp_path / "ema.safetensors")
    assert torch.equal(found["packed"].view(torch.uint8), packed.view(torch.uint8))
    assert torch.equal(found["wave"], torch.tensor([1 + 2j, 3 - 4j]))


def test_a_state_dict_of_other_tensors_is_refused(tmp_path: Path):
    """Where hooks make the model's state anew, its names say nothing about the averages: an error says so."""
    model = nn.Linear(2, 2)
    model._register_state_dict_hook(lambda module, state, *_: state.update(weight=state["weight"].clone()))
    ema = EMA(model)
    ema.update()
    with pytest.raises(RunError, match="'weight' is no parameter or buffer of the model"):
        ema.save(tmp_path / "ema.safetensors")


def test_stored_averages_say_what_they_are(tmp_path: Path):
    """Each stored average is in full precision, and tells its law, its start, its clock, and the model's types."""
    torch.manual_seed(0)
    model = Tied()
    ema, models = averaged(model, half_life=("3ba", "9ba"), update_interval="1ba", ema_start="2ba")
    folder = ema.store(tmp_path)
    assert folder == tmp_path / "4ba"
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.safetensors")) == [
        "4ba/3ba.safetensors", "4ba/9ba.safetensors", "first.safetensors",
    ]  # fmt: skip
    with safe_open(folder / "3ba.safetensors", framework="pt") as file:
        stored = json.loads(file.metadata()["ema_cli"])["stored"]
    (branch,) = stored.pop("branches")
    norm, spread = float(stored.pop("norm")), float(stored.pop("spread"))
    assert norm > spread > 0
    assert re.fullmatch("[0-9a-f]{8}", branch["id"])
    assert stored == {
        "average": "3ba", "half_life": "3ba", "update_interval": "1ba", "start": "2ba", "clock": "4ba", "began": "2ba",
        "updates": 2, "clocks": {"ba": "4"}, "types": {"BF16": ["head.weight"], "F16": ["turned"]},
    }  # fmt: skip
    found = load_file(folder / "3ba.safetensors")
    assert {tensor.dtype for name, tensor in found.items() if name in ("head.weight", "turned")} == {torch.float32}
    average = held(ema, "3ba")
    assert all(torch.equal(found[name], average[name]) for name in found if name in average)
    first = load_file(tmp_path / "first.safetensors")
    assert all(torch.equal(first[name].to(tensor.dtype), tensor) for name, tensor in models[1].items())
    with safe_open(tmp_path / "first.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["ema_cli"])["stored"]["clock"] == "2ba"


def test_store_again(tmp_path: Path):
    """A second store adds a folder and leaves what is there; at the same clock it writes the same bytes."""
    model = small_model()
    ema, _ = averaged(model, half_life=("3ba", "9ba"))
    ema.store(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    ema.store(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")} == before
    ema.update()
    assert ema.store(tmp_path) == tmp_path / "5ba"
    assert all(path.read_bytes() == data for path, data in before.items())
    assert len(list(tmp_path.rglob("*.safetensors"))) == 5


def test_nothing_before_the_first_copy(tmp_path: Path):
    """Before the first copy nothing can be saved, and no folder is made."""
    ema = EMA(small_model(), "3ba")
    for write in (lambda: ema.save(tmp_path / "x.safetensors"), lambda: ema.store(tmp_path / "stored")):
        with pytest.raises(UsageError, match="there is no average yet"):
            write()
    assert list(tmp_path.iterdir()) == []


def test_a_frozen_parameter_stays_exact(tmp_path: Path):
    """What is trained no more keeps its average; what never was is the model's, bit for bit."""
    model = small_model()
    model[3].requires_grad_(False)
    ema, _ = averaged(model)
    ema.save(tmp_path / "ema.safetensors")
    found = load_file(tmp_path / "ema.safetensors")
    assert_same({"w": found["3.weight"]}, {"w": model[3].weight.detach()})
    assert "3.weight" not in held(ema)
