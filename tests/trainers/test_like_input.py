"""Averages in the form of their input: each is loaded by its trainer's own loader, and trained one step further."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, TensorDataset

from tests.conftest import Cli
from tests.trainers import test_lightning, test_timm, transformers_run
from tests.trainers.conftest import Tensors, assert_rounds, load_dcp
from tests.trainers.ranks import launch
from tests.trainers.write_dcp import STEPS

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("ignore")]


def mean(saved: list[Tensors], weights: Sequence[float] | None = None) -> dict[str, torch.Tensor]:
    """Return the mean of floating tensors in float64, and the newest of the others; `weights` need no sum of 1."""
    shares = torch.tensor(weights or [1.0] * len(saved), dtype=torch.float64)
    return {
        name: torch.stack([share * each[name].double() for share, each in zip(shares, saved, strict=True)]).sum(0)
        / shares.sum()
        if tensor.is_floating_point()
        else tensor
        for name, tensor in saved[-1].items()
    }


def average(cli: Cli, run: Path, output: Path) -> None:
    """Average a run uniformly, in its own form."""
    done = cli("average", run, "--profile", "uniform", "-o", output, "--like-input")
    assert done.code == 0, done
    assert cli("verify", output, "--against", run, "--like-input").code == 0


def test_lightning_loads_an_average_and_goes_on_from_it(cli: Cli, tmp_path: Path):
    """load_from_checkpoint gives the average, hyper-parameters and all; fit(ckpt_path=) trains on from it."""
    lightning = pytest.importorskip("lightning")
    run, output = test_lightning.fit(tmp_path / "run", every_n_train_steps=4), tmp_path / "avg.ckpt"
    average(cli, run, output)
    kind = type(test_lightning.make_model())
    module = kind.load_from_checkpoint(output, weights_only=False)
    exact = mean(test_lightning.saved(run))
    assert_rounds(module.state_dict(), exact)
    assert module.hparams.settings.width == 8

    class Watch(lightning.Callback):  # type: ignore[misc, name-defined]
        """Keeps the weights with which training begins."""

        def on_train_start(self, _trainer: Any, module: Any) -> None:
            self.begun = {name: tensor.clone() for name, tensor in module.state_dict().items()}

    watch = Watch()
    loader = DataLoader(TensorDataset(torch.randn(48, 4)), batch_size=4)
    trainer = lightning.Trainer(
        max_epochs=4, accelerator="cpu", devices=1, logger=False, callbacks=[watch], enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path / "on", enable_checkpointing=False,
    )  # fmt: skip
    module = test_lightning.make_model()
    trainer.fit(module, loader, ckpt_path=output, weights_only=False)
    assert_rounds(watch.begun, exact)
    assert trainer.global_step == 48
    assert not torch.equal(module.state_dict()["net.0.weight"], watch.begun["net.0.weight"])


def test_lightning_loads_a_file_from_scratch(cli: Cli, tmp_path: Path):
    """load_from_checkpoint makes the module of plain hyper-parameters, and it is trained on."""
    lightning = pytest.importorskip("lightning")

    class Plain(lightning.LightningModule):  # type: ignore[misc, name-defined]
        """A module of plain hyper-parameters, with a compiled part."""

        def __init__(self, width: int, rates: Sequence[float], **more: Any) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = torch.compile(torch.nn.Linear(4, width), backend="eager")

        def training_step(self, batch: Sequence[torch.Tensor], _index: int) -> torch.Tensor:
            result: torch.Tensor = self.net(batch[0]).pow(2).mean()
            return result

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=self.hparams.rates[0])

    def trainer(folder: Path, steps: int) -> Any:
        checkpoints = lightning.pytorch.callbacks.ModelCheckpoint(folder, every_n_train_steps=4, save_top_k=-1)
        return lightning.Trainer(
            max_steps=steps, accelerator="cpu", devices=1, logger=False, callbacks=[checkpoints],
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        )  # fmt: skip

    loader = DataLoader(TensorDataset(torch.randn(48, 4)), batch_size=4)
    trainer(tmp_path / "run", 12).fit(Plain(3, (1e-2, 1e-3), name="x", deep={"a": [None, True]}), loader)
    done = cli("average", tmp_path / "run", "--profile", "uniform", "-o", tmp_path / "avg.ckpt")
    assert done.code == 0, done
    assert cli("verify", tmp_path / "avg.ckpt", "--against", tmp_path / "run").code == 0
    module = Plain.load_from_checkpoint(tmp_path / "avg.ckpt")
    assert dict(module.hparams) == {"width": 3, "rates": (1e-2, 1e-3), "name": "x", "deep": {"a": [None, True]}}
    assert_rounds(module.state_dict(), mean(test_lightning.saved(tmp_path / "run")))
    begun = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    trainer(tmp_path / "on", 1).fit(module, loader)
    assert all(not torch.equal(tensor, begun[name]) for name, tensor in module.state_dict().items())


def test_timm_loads_an_average_and_resumes_from_it(cli: Cli, tmp_path: Path):
    """load_checkpoint and resume_checkpoint take it, with the newest optimizer; its own averages stay the newest's."""
    from timm.models import load_checkpoint, resume_checkpoint

    run, output = test_timm.train(tmp_path / "run", ema=True), tmp_path / "avg.pth.tar"
    files = sorted(run.glob("checkpoint-*.pth.tar"), key=lambda path: int(path.name.split("-")[1].split(".")[0]))
    saved = [torch.load(path, weights_only=False) for path in files]
    done = cli("average", *files, "--profile", "uniform", "-o", output, "--like-input")
    assert done.code == 0, done
    assert "state_dict_ema" in done.err
    model = test_timm.make_model()
    load_checkpoint(model, str(output), use_ema=False, weights_only=False)
    exact = mean([each["state_dict"] for each in saved])
    assert_rounds(model.state_dict(), exact)
    model = test_timm.make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    resume_checkpoint(model, str(output), optimizer, log_info=False)
    assert_rounds(model.state_dict(), exact)
    assert optimizer.state_dict()["state"].keys() == saved[-1]["optimizer"]["state"].keys()
    torch.nn.functional.cross_entropy(model(torch.randn(4, 3, 16, 16)), torch.randint(3, (4,))).backward()
    optimizer.step()


def test_nanogpt_resumes_from_an_average(cli: Cli, tmp_path: Path):
    """What its train.py does with ckpt.pt: make the model of `model_args`, load it, and the optimizer, and go on."""

    def make(width: int) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Embedding(7, width), torch.nn.LayerNorm(width), torch.nn.Linear(width, 7))

    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        tokens = torch.randint(7, (8, 5))
        torch.nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()

    torch.manual_seed(1)
    model = torch.compile(make(4), backend="eager")  # so that its names have a prefix
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for number in (1, 2, 3):  # it has one file, which is kept each time
        step(model, optimizer)
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "model_args": {"width": 4},
                    "iter_num": number, "best_val_loss": torch.tensor(2.0 / number), "config": {"device": "cpu"}},
                   tmp_path / f"ckpt-{number}.pt")  # fmt: skip
    done = cli("average", *sorted(tmp_path.glob("ckpt-*.pt")), "--profile", "uniform", "-o", "avg.pt", "--like-input")
    assert done.code == 0, done
    checkpoint = torch.load(tmp_path / "avg.pt", map_location="cpu")
    model, state = make(**checkpoint["model_args"]), checkpoint["model"]
    for name in [name for name in state if name.startswith("_orig_mod.")]:
        state[name.removeprefix("_orig_mod.")] = state.pop(name)
    model.load_state_dict(state)
    saved = [torch.load(tmp_path / f"ckpt-{number}.pt")["model"] for number in (1, 2, 3)]
    exact = {name.removeprefix("_orig_mod."): tensor for name, tensor in mean(saved).items()}
    assert_rounds(model.state_dict(), exact)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    optimizer.load_state_dict(checkpoint["optimizer"])
    assert (checkpoint["iter_num"], optimizer.param_groups[0]["lr"]) == (3, 0.01)
    step(model, optimizer)
    assert not torch.equal(model.state_dict()["2.bias"].double(), exact["2.bias"])


def test_transformers_resumes_from_an_average(cli: Cli, tmp_path: Path):
    """Trainer.train(resume_from_checkpoint=) goes on from the folder, and from_pretrained loads it."""
    from transformers import AutoModelForCausalLM, GPT2Config, Trainer, TrainingArguments

    config = GPT2Config(vocab_size=16, n_positions=16, n_embd=8, n_layer=2, n_head=2)
    run = transformers_run.train(tmp_path / "run", config, torch.float32)
    for name in ("model.safetensors", "config.json"):
        (run / name).unlink()
    average(cli, run, tmp_path / "release")
    exact = mean(transformers_run.saved(run), [10, 10, 10, 5])  # the last is saved 5 steps after the one before
    assert_rounds(load_file(tmp_path / "release/model.safetensors"), exact)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "release")
    assert_rounds({name: model.state_dict()[name] for name in exact}, exact)
    # The Trainer goes by the name of the folder.
    shutil.copytree(tmp_path / "release", tmp_path / "on/checkpoint-35")
    data = [{"input_ids": row, "labels": row} for row in torch.randint(2, 10, (64, 8))]
    arguments = TrainingArguments(
        str(tmp_path / "on"), max_steps=36, per_device_train_batch_size=4, learning_rate=1e-2, use_cpu=True,
        report_to=[], disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    trainer = Trainer(model=AutoModelForCausalLM.from_config(config), args=arguments, train_dataset=data)
    trainer.train(resume_from_checkpoint=str(tmp_path / "on/checkpoint-35"))
    assert trainer.state.global_step == 36


def test_shards_of_two_ranks_are_written_over_again(cli: Cli, tmp_path: Path):
    """torch's own loader finds averages in both processes' files, whatever the cut, and the newest of all else."""
    written = launch("write_dcp", tmp_path / "written")
    exact = mean([load_file(written / "truth" / f"step-{step}.safetensors") for step in STEPS])
    for layout in ("torchtitan", "plain"):
        run, output = written / layout / "checkpoint", tmp_path / layout
        average(cli, run, output)
        newest = run / f"step-{STEPS[-1]}"
        assert (output / ".metadata").read_bytes() == (newest / ".metadata").read_bytes()
        loaded, before = load_dcp(output), load_dcp(newest)
        model = loaded if layout == "torchtitan" else loaded["model"]
        assert_rounds({name: model[name] for name in exact}, exact)
        assert loaded.keys() == before.keys()
        for name in loaded.keys() - exact.keys() - {"model"}:
            assert repr(loaded[name]) == repr(before[name])


def test_a_sharded_model_is_loaded_from_averages_and_trained_on(cli: Cli, tmp_path: Path):
    """By torch in two processes: one in its input's form, one without its optimizer, and one from scratch."""
    written, outputs = launch("write_dcp", tmp_path / "written"), tmp_path / "outputs"
    outputs.mkdir()
    steps = [load_file(written / "truth" / f"step-{step}.safetensors") for step in STEPS]
    for name, layout, options, saved in (
        ("plain", "plain", ("--like-input",), steps),
        # The last checkpoint of torchtitan's has no optimizer.
        ("dropped", "torchtitan", ("--like-input", "--drop", "optimizer", "--stop", f"{STEPS[-2]}ba"), steps[:-1]),
        ("dcp:scratch", "torchtitan", (), steps),
    ):
        output = f"{name.removesuffix('scratch')}{outputs}/scratch" if name.startswith("dcp:") else outputs / name
        done = cli("average", written / layout / "checkpoint", "--profile", "uniform", "-o", output, *options)
        assert done.code == 0, done
        save_file(mean(saved), outputs / f"{name.removeprefix('dcp:')}.safetensors")
    launch("load_dcp", outputs)
