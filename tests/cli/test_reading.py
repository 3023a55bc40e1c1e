"""The options that say what is read, end to end: exit codes, messages, and outputs that load and are right."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import OWN_FILES, Cli, Outcome, make_tensors, oracle, write_torch_run
from tests.docs.table import builders as made

Tensors = dict[str, torch.Tensor]

STEPS = (1, 2, 3)
WEIGHTS = (0.25, 0.25, 0.5)  # of three checkpoints, one half-life apart
LAW = ("--half-life", "1ba")


@pytest.fixture
def cli(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run `ema-cli` where lines are long: no message is folded."""
    monkeypatch.setenv("COLUMNS", "200")
    return cli


def average(cli: Cli, *arguments: object) -> Outcome:
    """Average the run into out.safetensors and expect that it works."""
    done = cli("average", "run", *LAW, "-o", "out.safetensors", *arguments)
    assert done.code == 0, done
    return done


def assert_average(path: Path, saved: list[Tensors], rtol: float = 0) -> None:
    """Check names, dtypes and values of a file against the average in float64, rounded once."""
    written, expected = load_file(path), oracle(saved, WEIGHTS)
    assert sorted(written) == sorted(expected)
    for name, tensor in expected.items():
        assert written[name].dtype is tensor.dtype, name
        torch.testing.assert_close(written[name], tensor, rtol=rtol, atol=1e-6, msg=name)


def refuse(cli: Cli, code: int, *arguments: object) -> str:
    """Run, expect the exit code and one error, and return what was told."""
    done = cli("average", "run", *LAW, *arguments)
    assert (done.code, done.out) == (code, ""), done
    assert done.err.count("error: ") == 1
    return done.err


def test_component_of_a_pipeline(cli: Cli, tmp_path: Path):
    """All models, or one that is named; the output is a folder that its library loads, with its configuration."""
    case = made.diffusers(tmp_path / "run")
    assert "has a model of its own in 'unet'" in refuse(cli, 5, "-o", "whole.safetensors")
    assert cli("average", "run", *LAW, "-o", "whole").code == 0
    whole = {path.relative_to(tmp_path / "whole").as_posix() for path in (tmp_path / "whole").rglob("*.safetensors")}
    assert whole == {"unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"}
    assert "has no component 'vae'" in refuse(cli, 2, "--component", "vae")
    done = cli("average", "run", *LAW, "--component", "unet")
    assert (done.code, done.out) == (0, "ema-1ba\n"), done
    assert "averages lie beside them, in 'unet_ema'" in " ".join(done.err.split())
    assert {path.name for path in (tmp_path / "ema-1ba").iterdir()} == {
        "diffusion_pytorch_model.safetensors",
        "config.json",
        *OWN_FILES,
    }
    written, expected = load_file(tmp_path / "ema-1ba" / "diffusion_pytorch_model.safetensors"), case.expected()
    for name, tensor in expected.items():
        torch.testing.assert_close(written[name], tensor, rtol=0, atol=2e-7)


def test_component_that_is_averages(cli: Cli, tmp_path: Path):
    """Averages of Diffusers' are refused as such, unless they are asked for."""
    made.diffusers(tmp_path / "run")
    assert "is averaged already" in refuse(cli, 4, "--component", "unet_ema")
    average(cli, "--component", "unet", "--weights", "ema")
    assert_average(tmp_path / "out.safetensors", [made.state_dict(9)] * 3)


def test_component_of_accelerate(cli: Cli, tmp_path: Path):
    """Accelerate's second model is one by its number; without a name the error lists both."""
    saved = []
    for step in STEPS:
        folder = tmp_path / "run" / f"checkpoint_{step}"
        folder.mkdir(parents=True)
        save_file(make_tensors(9), folder / "model.safetensors")
        saved.append(make_tensors(step))
        save_file(saved[-1], folder / "model_1.safetensors")
        (folder / "random_states_0.pkl").touch()
    assert "holds several models: model, model_1" in refuse(cli, 2, "--spacing", "1ba")
    average(cli, "--component", "model_1", "--spacing", "1ba")
    assert_average(tmp_path / "out.safetensors", saved)


def test_accelerate_records_no_clock(cli: Cli, tmp_path: Path):
    """A counter in the name is no step: the error says --spacing, and with it the average is that of the order."""
    case = made.accelerate(tmp_path / "run")
    told = refuse(cli, 4)
    assert "records no clock in batches" in told
    assert "--spacing" in told
    average(cli, "--spacing", "1ba")
    written = load_file(tmp_path / "out.safetensors")
    for name, tensor in case.expected().items():
        torch.testing.assert_close(written[name], tensor, rtol=0, atol=2e-7)


def prefixed_run(folder: Path) -> list[Tensors]:
    """Write a run whose names have the prefix of torch.compile in two of three files."""
    saved = []
    for step in STEPS:
        saved.append(make_tensors(step))
        prefix = "_orig_mod." if step < 3 else ""
        folder.mkdir(exist_ok=True)
        torch.save({"model": {prefix + name: t for name, t in saved[-1].items()}, "step": step}, folder / f"s{step}.pt")
    return saved


def test_keep_prefix(cli: Cli, tmp_path: Path):
    """Prefixes of wrappers are removed, and said; kept on request, files with and without them are two models."""
    saved = prefixed_run(tmp_path / "run")
    done = average(cli)
    assert "prefixes removed from names: _orig_mod." in " ".join(done.err.split())
    assert_average(tmp_path / "out.safetensors", saved)
    told = refuse(cli, 4, "--keep-prefix", "-o", "kept.safetensors")
    assert "s3.pt: 'layer.weight' is F32 [4, 3], but s2.pt does not have it" in " ".join(told.split())
    (tmp_path / "run" / "s3.pt").unlink()
    assert cli("average", "run", *LAW, "--keep-prefix", "-o", "kept.safetensors").code == 0
    assert set(load_file(tmp_path / "kept.safetensors")) == {f"_orig_mod.{name}" for name in make_tensors(1)}


def test_copied_tensors_are_the_newest_checkpoint_s_to_the_bit(cli: Cli, tmp_path: Path):
    """Tensors that match a pattern are the newest checkpoint's, to the bit; the others are averaged; it is told."""
    saved = write_torch_run(tmp_path / "run", STEPS)
    done = average(cli, "--copy", "layer.b*", "--json")
    assert (done.json["written"]["tensors_averaged"], done.json["written"]["tensors_copied"]) == (1, 2)
    expected = oracle(saved, WEIGHTS) | {"layer.bias": saved[-1]["layer.bias"]}
    written = load_file(tmp_path / "out.safetensors")
    torch.testing.assert_close(written, expected, rtol=0, atol=1e-6)
    assert torch.equal(written["layer.bias"], saved[-1]["layer.bias"])
    assert "copied" in cli("inspect", "out.safetensors", "--json").json["recipe"]


def test_copy_of_packed_weights(cli: Cli, tmp_path: Path):
    """Quantized weights are refused with the reason; copied with all that belongs to them, the rest is averaged."""
    (tmp_path / "run").mkdir()
    saved = []
    for step in STEPS:
        tensors = {
            **make_tensors(step),
            "q.weight": torch.full((4, 4), float(step)).to(torch.float8_e4m3fn),
            "q.weight_scale_inv": torch.full((1, 1), float(step)),
        }
        save_file(tensors, tmp_path / "run" / f"step-{step}.safetensors")
        saved.append(tensors)
    assert "'q.weight' cannot be averaged: F8_E4M3" in refuse(cli, 3)
    assert "'q.weight_scale_inv' cannot be averaged: scales 'q.weight'" in refuse(cli, 3, "--copy", "q.weight")
    average(cli, "--copy", "q.*")
    written = load_file(tmp_path / "out.safetensors")
    for name in ("q.weight", "q.weight_scale_inv"):
        assert torch.equal(written.pop(name).view(torch.uint8), saved[-1].pop(name).view(torch.uint8))
    torch.testing.assert_close(written, oracle([make_tensors(step) for step in STEPS], WEIGHTS), rtol=0, atol=1e-6)


MIXED = (torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_dtype_lets_float_types_differ(cli: Cli, tmp_path: Path, name: str, dtype: torch.dtype):
    """A run in several float types is refused with the option that averages it, and right with it."""
    (tmp_path / "run").mkdir()
    saved = []
    for step, each in zip(STEPS, MIXED, strict=True):
        tensors = {key: t.to(each) if t.is_floating_point() else t for key, t in make_tensors(step).items()}
        torch.save({"model": tensors, "step": step}, tmp_path / "run" / f"step-{step}.pt")
        saved.append(tensors)
    told = " ".join(refuse(cli, 4).split())
    assert "step-1.pt: 'layer.weight' is BF16 [4, 3], but F64 [4, 3] in step-3.pt" in told
    assert "hint: average them in one float type: --dtype float32" in told
    average(cli, "--dtype", name)
    written = load_file(tmp_path / "out.safetensors")
    for key, tensor in oracle(saved, WEIGHTS).items():
        expected = tensor.to(dtype) if tensor.is_floating_point() else tensor
        assert written[key].dtype is expected.dtype
        assert torch.equal(written[key], expected), key  # the sum is in float64: rounded once, nothing is lost


def test_bin_shards_become_safetensors_shards(cli: Cli, tmp_path: Path):
    """Pickled shards and their index come out as safetensors of the same cut, under the names that libraries load."""
    case = made.bin_shards(tmp_path / "run")
    done = cli("average", "run", *LAW)
    assert (done.code, done.out) == (0, "ema-1ba\n"), done
    out = tmp_path / "ema-1ba"
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert {path.name for path in out.iterdir()} == {*shards, "model.safetensors.index.json", "config.json", *OWN_FILES}
    index = json.loads((out / "model.safetensors.index.json").read_text())
    theirs = json.loads((tmp_path / "run" / "checkpoint-3" / "pytorch_model.bin.index.json").read_text())
    renamed = {
        n: s.replace("pytorch_model", "model").replace(".bin", ".safetensors") for n, s in theirs["weight_map"].items()
    }
    assert index["weight_map"] == renamed
    parts = [load_file(out / shard) for shard in shards]
    assert [sorted(part) for part in parts] == [sorted(n for n, s in renamed.items() if s == shard) for shard in shards]
    for name, tensor in case.expected().items():
        torch.testing.assert_close((parts[0] | parts[1])[name], tensor, rtol=0, atol=2e-7)


def test_an_adapter_comes_out_as_one_with_its_configuration_and_a_warning(cli: Cli, tmp_path: Path):
    """An adapter comes out as one, with its configuration and a warning of what averaging A and B means."""
    made.peft(tmp_path / "run")
    done = cli("average", "run", *LAW)
    assert (done.code, done.out) == (0, "ema-1ba\n"), done
    assert "A and B are averaged each" in " ".join(done.err.split())
    assert {path.name for path in (tmp_path / "ema-1ba").iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
        *OWN_FILES,
    }
    newest = tmp_path / "run" / "checkpoint-3" / "adapter_config.json"
    assert (tmp_path / "ema-1ba" / "adapter_config.json").read_bytes() == newest.read_bytes()


@pytest.mark.parametrize(("field", "value"), [("r", 4), ("lora_alpha", 12), ("target_modules", ["q"])])
def test_adapters_that_do_not_fit(cli: Cli, tmp_path: Path, field: str, value: object):
    """Another rank, alpha or set of targets is another adapter: exit 4, with field and both checkpoints."""
    made.peft(tmp_path / "run")
    path = tmp_path / "run" / "checkpoint-2" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    told = " ".join(refuse(cli, 4).split())
    assert f"checkpoint-2: its {field} is {json.dumps(value)}, but " in told
    assert " in checkpoint-3" in told
    assert not (tmp_path / "ema-1ba").exists()


def test_compressed_saves_of_composer(cli: Cli, tmp_path: Path):
    """A folder of compressed checkpoints is not passed over as if it were empty: the command that unpacks is told."""
    write_torch_run(tmp_path / "run", STEPS, "ep0-ba{}-rank0.pt")
    for path in sorted((tmp_path / "run").iterdir()):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    told = refuse(cli, 3)
    assert "run/ep0-ba1-rank0.pt.gz: is compressed with gzip" in told
    assert "gunzip run/ep0-ba1-rank0.pt.gz" in told


def test_timms_links_and_recovery_files(cli: Cli, tmp_path: Path):
    """Hard links count once, and the save in the middle of an epoch is passed over, with their reasons."""
    case = made.timm(tmp_path / "run")
    (tmp_path / "run" / "model_best.pth.tar").hardlink_to(tmp_path / "run" / "checkpoint-1.pth.tar")
    told = cli("inspect", "run", "--json").json["run"]
    assert [each["name"] for each in told["checkpoints"]] == [f"checkpoint-{epoch}.pth.tar" for epoch in range(3)]
    assert {each["name"]: each["reason"] for each in told["passed_over"]} == {
        "last.pth.tar": "the same file as checkpoint-2.pth.tar",
        "model_best.pth.tar": "the same file as checkpoint-1.pth.tar",
        "recovery-3-50.pth.tar": "saved in the middle of an epoch, for recovery",
    }
    assert [each["clocks"]["ep"]["value"] for each in told["checkpoints"]] == [1, 2, 3]
    done = cli("average", "run", "--half-life", "1ep", "-o", "out.safetensors")
    assert done.code == 0, done
    written = load_file(tmp_path / "out.safetensors")
    for name, tensor in case.expected().items():
        torch.testing.assert_close(written[name], tensor, rtol=0, atol=2e-7)


def test_names_of_speech_toolkits(cli: Cli, tmp_path: Path):
    """espnet's, wenet's and icefall's names give the order and the clocks; their own averages are none."""
    made.espnet(tmp_path / "espnet")
    told = cli("inspect", "espnet", "--json").json["run"]
    assert [(each["name"], each["clocks"]["ep"]["value"]) for each in told["checkpoints"]] == [
        (f"{epoch}epoch.pth", epoch) for epoch in STEPS
    ]
    passed = {each["name"]: each["reason"] for each in told["passed_over"]}
    assert passed["valid.acc.ave_10best.pth"] == "averages, as its name says"
    made.wenet(tmp_path / "wenet")
    told = cli("inspect", "wenet", "--json").json["run"]
    assert [each["name"] for each in told["checkpoints"]] == ["0.pt", "1.pt", "2.pt"]
    assert [each["clocks"]["ba"]["value"] for each in told["checkpoints"]] == list(STEPS)
    assert [each["clocks"]["ep"]["value"] for each in told["checkpoints"]] == list(STEPS)
    named = ["espnet/1epoch.pth", "espnet/valid.acc.ave_10best.pth"]
    done = cli("average", *named, "--half-life", "1ep", "--spacing", "1ep")
    assert done.code == 4, done
    shutil.copy(tmp_path / "wenet" / "0.pt", tmp_path / "wenet" / "avg3.pt")
    assert "is averaged already: its name says averages" in cli("average", "wenet/avg3.pt", *LAW).err
