"""DeepSpeed's folders written over again: the optimizer's float32 weights, and the model's own in its type."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import pytest
import torch
from safetensors.torch import load_file, save_file

from ema_cli.formats import open_checkpoint
from ema_cli.formats.options import ReadOptions
from tests.conftest import Cli
from tests.formats.zero.make import Saved

DATA = Path(__file__).parents[1] / "data" / "deepspeed-0.19.8"
KINDS = ["zero1-bfloat16-2", "zero2-bfloat16-3", "zero3-bfloat16-2", "zero3-float32-3"]
UNIVERSAL = ["universal/zero1-bfloat16-2", "universal/zero3-bfloat16-2"]
LIKE = ("--half-life", "2ba", "--like-input")


class _Standing:
    """Stands for a class of DeepSpeed's, which is not installed everywhere."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _Standing if module.startswith("deepspeed") else super().find_class(module, name)


def load(path: Path) -> dict[str, Any]:
    """Return what torch loads from a file that DeepSpeed wrote, without DeepSpeed."""
    loaded: dict[str, Any] = torch.load(
        path, weights_only=False, pickle_module=SimpleNamespace(__name__="pickle", Unpickler=_Unpickler)
    )
    return loaded


def expected(kind: str) -> dict[str, torch.Tensor]:
    """Return the mean of what DeepSpeed's script made of both checkpoints."""
    name = kind.removeprefix("universal/")
    one, other = (load_file(DATA / "expected" / f"{name}-{step}.safetensors") for step in (2, 4))
    return {key: ((one[key].double() + other[key].double()) / 2).float() for key in one if one[key].is_floating_point()}


@pytest.mark.parametrize("kind", [*KINDS, *UNIVERSAL])
def test_masters_and_the_model_are_the_average(cli: Cli, tmp_path: Path, kind: str) -> None:
    """Read again, with float32 weights and without: both are the average, each in its type, and verified."""
    done = cli("average", DATA / kind, *LIKE, "--masters", "-o", "averaged")
    assert done.code == 0, done
    said = [line.split(": ")[-1] for line in done.err.splitlines() if "all stays that of" in line]
    assert all(len(set(places.split(", "))) == len(places.split(", ")) for places in said), said  # of all ranks, once
    exact, folder = expected(kind), tmp_path / "averaged"
    tensors = open_checkpoint(folder, ReadOptions(masters=True)).tensors
    for name, value in exact.items():
        data = bytearray(tensors.specs[name].nbytes)
        tensors.read_into(name, 0, memoryview(data))
        held = torch.frombuffer(data, dtype=getattr(torch, str(tensors.specs[name].dtype.torch))).view(value.shape)
        torch.testing.assert_close(held, value.to(held.dtype), rtol=1e-6, atol=1e-8, msg=name)
        if "zero3" not in kind:
            module = torch.load(folder / "mp_rank_00_model_states.pt", weights_only=False)["module"]
            assert torch.equal(module[name], held.to(module[name].dtype)), name
    for path in sorted(folder.rglob("*_model_states.pt")):  # each rank's own, with the buffers
        mean = torch.load(path, weights_only=False)["module"]["mean"]
        torch.testing.assert_close(mean, exact["mean"].to(mean.dtype))
    done = cli("verify", "averaged", "--against", DATA / kind, "--like-input")
    assert done.code == 0, done


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_else_changes(cli: Cli, tmp_path: Path, kind: str) -> None:
    """Of each file what is no weight stays: all that torch loads from it, the optimizer's states above all."""
    assert cli("average", DATA / kind, *LIKE, "--masters", "-o", "averaged").code == 0
    newest = DATA / kind / "global_step4"
    for path in newest.iterdir():
        one, other = (load(each / path.name) for each in (newest, tmp_path / "averaged"))
        if "optim" in path.name:
            states = [each["optimizer_state_dict"] for each in (one, other)]
            inner = "optimizer_state_dict" if "optimizer_state_dict" in states[0] else "base_optimizer_state"
            moments = [each[inner]["state"] for each in states]
            for number, state in moments[0].items():
                assert all(
                    torch.equal(torch.as_tensor(state[key]), torch.as_tensor(moments[1][number][key])) for key in state
                )
        else:
            assert one.keys() == other.keys()
            assert one["global_steps"] == other["global_steps"]
            assert torch.equal(one["module"]["seen"], other["module"]["seen"])


def test_without_masters_their_copies_are_named(cli: Cli) -> None:
    """Of the stages in which the model lies whole: the error says both ways on."""
    done = cli("average", DATA / "zero2-bfloat16-3", *LIKE, "-o", "averaged")
    assert done.code == 5
    assert "--drop optimizer" in done.err
    assert "--masters" in done.err


def test_a_changed_copy_is_found(cli: Cli, tmp_path: Path) -> None:
    """Sums that somebody wrote anew hide no other weights in the model's own type."""
    kind = "zero1-bfloat16-2"
    assert cli("average", DATA / kind, *LIKE, "--masters", "-o", "averaged").code == 0
    folder = tmp_path / "averaged"
    name = "mp_rank_00_model_states.pt"
    path = folder / name
    module = torch.load(path, weights_only=False, mmap=True)["module"]
    wanted = module["body.0.weight"].view(torch.uint8).numpy().tobytes()
    data = bytearray(path.read_bytes())
    at = data.index(wanted)
    with zipfile.ZipFile(path) as archive:
        record = max(
            (each for each in archive.infolist() if each.header_offset < at), key=lambda each: each.header_offset
        )
        before = archive.read(record)
    start = data.index(before)
    data[at] ^= 1
    after = data[start : start + len(before)]
    sums = [crc32(part).to_bytes(4, "little") for part in (before, after)]
    data = bytearray(bytes(data).replace(*sums))  # in the archive, too
    path.write_bytes(data)
    rows = json.loads((folder / "ema-manifest.json").read_text())["outputs"]
    old = next(row["sha256"] for row in rows if row["name"] == name)
    for listing in ("ema-manifest.json", "SHA256SUMS"):
        manifest = sha256((folder / "ema-manifest.json").read_bytes()).hexdigest()
        text = (folder / listing).read_text().replace(old, sha256(data).hexdigest())
        (folder / listing).write_text(text)
        if listing == "ema-manifest.json":
            sums = (folder / "SHA256SUMS").read_text()
            (folder / "SHA256SUMS").write_text(sums.replace(manifest, sha256(text.encode()).hexdigest()))
    done = cli("verify", "averaged", "--against", DATA / kind, "--like-input")
    assert done.code == 6
    assert "'body.0.weight' is not the average that lies elsewhere, too" in done.err


def write_trainer_s(cli: Cli, folder: Path, kind: str, own: str) -> None:
    """Write the Hugging Face Trainer's folders around DeepSpeed's, each with a model of its own."""
    for step in (2, 4):
        inner = DATA / kind / f"global_step{step}"
        around = folder / f"checkpoint-{step}"
        shutil.copytree(inner, around / inner.name)
        (around / "latest").write_text(inner.name)
        (around / "config.json").write_text("{}")
        (around / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        whole = load_file(DATA / "expected" / f"{kind}-{step}.safetensors")
        model = {name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in whole.items()}
        if own == "empty":
            model = {name: torch.zeros(0, dtype=tensor.dtype) for name, tensor in model.items()}
        if own == "other":
            model["head.other"] = torch.ones(3)
        save_file(model, around / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(("kind", "own"), [("zero1-bfloat16-2", "full"), ("zero3-bfloat16-2", "empty"),
                                           ("zero3-bfloat16-2", "full")])  # fmt: skip
def test_a_trainer_s_folder_around_it_is_written_over_again(cli: Cli, tmp_path: Path, kind: str, own: str) -> None:
    """DeepSpeed's files as without it; the Trainer's own file is the average, too, rounded, or empty as it was."""
    write_trainer_s(cli, tmp_path / "run", kind, own)
    if own == "full":
        refused = cli("average", "run", *LIKE, "-o", "averaged")
        assert (refused.code, "--masters" in refused.err) == (5, True)
    masters = ("--masters",) if own == "full" else ()
    done = cli("average", "run", *LIKE, *masters, "-o", "averaged")
    assert done.code == 0, done
    (tmp_path / "plain").mkdir()
    plain = cli("average", DATA / kind, *LIKE, "--masters", "-o", "plain/global_step4")
    assert plain.code == 0, plain
    for path in (tmp_path / "plain/global_step4").glob("*.pt"):
        one, other = (archive_records(each) for each in (path, tmp_path / "averaged/global_step4" / path.name))
        assert one == other, path.name
    for name, tensor in load_file(tmp_path / "averaged/model.safetensors").items():
        if own == "empty":
            assert tensor.shape == (0,)
        elif tensor.is_floating_point():
            torch.testing.assert_close(tensor.float(), expected(kind)[name], rtol=2**-8, atol=1e-7)
    assert (tmp_path / "averaged/latest").read_text() == "global_step4"
    verify = cli("verify", "averaged", "--against", "run", "--like-input")
    assert verify.code == 0, verify


def archive_records(path: Path) -> dict[str, bytes]:
    """Return what an archive of torch's holds, but for our mark."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist() if "ema_cli" not in name}


def test_a_trainer_s_own_model_with_more_is_refused(cli: Cli, tmp_path: Path) -> None:
    """What DeepSpeed's files do not hold would stay as it was."""
    write_trainer_s(cli, tmp_path / "run", "zero3-bfloat16-2", "other")
    done = cli("average", "run", *LIKE, "--masters", "-o", "averaged")
    assert done.code == 5, done
    assert "model.safetensors has others, which would stay" in done.err


CUTS = {"a.weight": "rows", "b.weight": "padded", "c.weight": "columns", "h.weight": "halves"}


def cut_between_ranks(step: int, cuts: dict[str, str]) -> Saved:
    """Return a save of a model that ranks cut, with a tied weight, a part that does not train, and buffers."""
    random = torch.Generator().manual_seed(step)
    shapes = {"a.weight": (5, 3), "b.weight": (5, 2), "c.weight": (3, 4), "h.weight": (12, 2), "d": (3,), "e": ()}
    weights = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    frozen = {"f.weight": torch.randn(4, 6, generator=random).bfloat16()}
    buffers = {"seen": torch.tensor(step), "mean": torch.randn(3, generator=random)}
    shared = {"head.weight": "a.weight"}
    return Saved(2, 1, [weights], frozen=frozen, buffers=buffers, shared=shared, step=step, cuts=cuts)


@pytest.mark.parametrize("maps", [False, True])
@pytest.mark.parametrize("ranks", [2, 3])
def test_what_tensor_parallel_ranks_have_is_the_average_too(cli: Cli, tmp_path: Path, ranks: int, maps: bool) -> None:
    """The float32 weights are whole, and each rank has its part of them in the model's type, cut as it was."""
    cuts = {**CUTS, "b.weight": "rows", "f.weight": "columns"} if maps else CUTS
    saves = [cut_between_ranks(step, cuts) for step in (2, 4)]
    for saved in saves:
        saved.write_universal(tmp_path / f"run/global_step{saved.step}", ranks, maps=maps)
    done = cli("average", "run", *LIKE, "-o", "averaged")
    assert done.code == 0, done
    assert cli("verify", "averaged", "--against", "run", "--like-input").code == 0
    newest, folder = tmp_path / "run/global_step4", tmp_path / "averaged"
    wide = [saved.masters for saved in saves]
    whole = {name: ((one.double() + wide[1][name].double()) / 2).to(one.dtype) for name, one in wide[0].items()}
    whole["seen"] = wide[1]["seen"]
    parts = {name: saves[1].cut(name, tensor, ranks) for name, tensor in whole.items()}
    for path in sorted((folder / "zero").glob("*/fp32.pt")):
        held, name = torch.load(path), path.parent.name
        expected = whole[name] if name in saves[1].groups[0] else parts[name][0]
        torch.testing.assert_close(held["param"], expected.float(), rtol=1e-6, atol=1e-7, msg=name)
        before = torch.load(newest / "zero" / name / "fp32.pt")
        assert {**held, "param": 0} == {**before, "param": 0}
    for rank in range(ranks):
        path = folder / f"mp_rank_{rank:02}_model_states.pt"
        states, before = torch.load(path), torch.load(newest / path.name)
        for name, tensor in states["module"].items():
            expected, old = parts[name][rank].to(tensor.dtype), before["module"][name]
            assert (tensor.stride(), tensor.dtype) == (old.stride(), old.dtype)
            torch.testing.assert_close(tensor, expected, rtol=2**-7, atol=1e-6, msg=name)
        assert torch.equal(states["frozen_param_fragments"]["f.weight"], states["module"]["f.weight"])
        assert torch.equal(states["module"]["head.weight"], states["module"]["a.weight"])


def test_parts_of_ranks_of_which_nothing_says_which_they_are_are_refused(cli: Cli, tmp_path: Path) -> None:
    """They would stay as they were."""
    for step in (2, 4):
        folder = cut_between_ranks(step, CUTS).write_universal(tmp_path / f"run/global_step{step}", 2)
        path = folder / "zero/c.weight/fp32.pt"
        torch.save({"param": torch.load(path)["param"]}, path)
    done = cli("average", "run", *LIKE, "-o", "averaged")
    assert done.code == 5, done
    assert "how ranks cut 'c.weight' is not known: nothing says along which dimension it is cut" in done.err
    assert cli("average", "run", "--half-life", "2ba", "-o", "plain.safetensors").code == 0


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("more", [(), ("--on", "processes=1")], ids=str)
def test_tied_weights_that_lie_apart_are_all_replaced(
    cli: Cli, tmp_path: Path, ranks: int, more: tuple[str, ...]
) -> None:
    """One float32 weight in the optimizer, and in the model two copies of it, each with bytes of its own."""
    weights = [torch.full((3, 5), float(step)) for step in (2, 4)]
    for step, weight in zip((2, 4), weights, strict=True):
        saved = Saved(2, ranks, [{"embed": weight, "z": weight * 2}], shared={"head": "embed"}, step=step)
        saved.write(tmp_path / f"run/global_step{step}")
    for number in (0, 1):
        done = cli("average", "run", *LIKE, "--masters", *more, "-o", f"averaged{number}")
        assert done.code == 0, done
    module = torch.load(tmp_path / "averaged0/mp_rank_00_model_states.pt")["module"]
    for name, factor in (("embed", 1), ("head", 1), ("z", 2)):
        torch.testing.assert_close(module[name], factor * torch.full((3, 5), 3.0, dtype=torch.bfloat16))
    for path in (tmp_path / "averaged0").glob("*.pt"):
        assert path.read_bytes() == (tmp_path / "averaged1" / path.name).read_bytes()
    assert cli("verify", "averaged0", "--against", "run", "--like-input").code == 0


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_parameters_that_ceased_to_train_are_replaced_where_a_script_looks(
    cli: Cli, tmp_path: Path, stage: int
) -> None:
    """Their fragments are what `zero_to_fp32.py` takes, and lie beside the model: frozen on the way, they differ."""
    for step in (2, 4):
        weight, frozen = torch.full((3, 5), float(step)), torch.full((4,), 10.0 * step)
        saved = Saved(stage, 2, [{"w": weight}], frozen={"f": frozen}, step=step, dtype=torch.float32)
        saved.write(tmp_path / f"run/global_step{step}")
    done = cli("average", "run", *LIKE, "--masters", "-o", "averaged")
    assert done.code == 0, done
    states = [torch.load(path) for path in sorted((tmp_path / "averaged").glob("*model_states.pt"))]
    assert torch.cat([each["frozen_param_fragments"]["f"] for each in states]).tolist() == [30.0] * 4
    if stage < 3:
        assert states[0]["module"]["f"].tolist() == [30.0] * 4
    assert cli("verify", "averaged", "--against", "run", "--like-input").code == 0


@pytest.mark.parametrize("form", ["zero", "universal"])
def test_an_average_without_a_tensor_in_its_model_states_is_known_for_one(cli: Cli, tmp_path: Path, form: str) -> None:
    """Of ZeRO 3 without buffers only the optimizer's files are written anew, and those have our mark."""
    for step in (2, 4):
        saved = Saved(3, 2, [{"w": torch.full((3, 5), float(step))}], step=step)
        (saved.write if form == "zero" else saved.write_universal)(tmp_path / f"run/global_step{step}")
    done = cli("average", "run", *LIKE, "-o", "run/global_step6")
    assert done.code == 0, done
    assert open_checkpoint(tmp_path / "run/global_step6").mark is not None
    assert cli("verify", "run/global_step6", "--against", "run", "--like-input").code == 0
    assert "2 checkpoints averaged" in cli("average", "run", "--half-life", "2ba", "-o", "again.safetensors").err
