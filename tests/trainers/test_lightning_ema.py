"""EMACallback in trainings with Lightning's Trainer, against averages of every step in float64."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ema_cli.errors import RunError, UsageError
from tests.conftest import Cli
from tests.trainers.conftest import Tensors, assert_rounds, load_dcp, names, recurrence, require
from tests.trainers.ranks import launch

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("ignore")]

EPOCH_LENGTH = 12


def make_model(fails_at: int | None = None, keep: Callable[[str], bool] | None = None) -> Any:
    """Return a LightningModule with BatchNorm, whose validation logs the sum of its first weights.

    It raises in the validation after step `fails_at`; its own hook saves the tensors that it is to `keep`.
    """
    lightning = pytest.importorskip("lightning")

    class Model(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
            self.seen: list[torch.Tensor] = []

        def training_step(self, batch: Sequence[torch.Tensor], _index: int) -> torch.Tensor:
            loss: torch.Tensor = (self.net(batch[0]) - batch[0].sum(dim=1, keepdim=True)).pow(2).mean()
            return loss

        def validation_step(self, _batch: Any, _index: int) -> None:
            self.seen.append(self.net[0].weight.detach().clone())
            self.log("val_sum", self.net[0].weight.double().sum())
            if fails_at is not None and self.trainer.global_step == fails_at:
                raise ZeroDivisionError

        test_step = validation_step

        def predict_step(self, _batch: Any, _index: int) -> None:
            self.seen.append(self.net[0].weight.detach().clone())

        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            if keep is not None:
                checkpoint["state_dict"] = {name: each for name, each in checkpoint["state_dict"].items() if keep(name)}

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=0.02)

    return Model()


def make_loader() -> Any:
    """Return 12 batches that are all the same: Lightning begins the data anew where it resumes within an epoch."""
    data = torch.randn(4, 4, generator=torch.Generator().manual_seed(5))
    return DataLoader(TensorDataset(data.repeat(EPOCH_LENGTH, 1)), batch_size=4)


def make_trainer(folder: Path, *callbacks: Any, epochs: int = 3, **options: Any) -> Any:
    """Return a Trainer."""
    lightning = pytest.importorskip("lightning")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 1}
    options.setdefault("enable_checkpointing", any(hasattr(each, "dirpath") for each in callbacks))
    return lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, callbacks=[*callbacks], default_root_dir=folder,
        **quiet, **options,
    )  # fmt: skip


def make_ema(*arguments: Any, **options: Any) -> Any:
    """Return the callback."""
    pytest.importorskip("lightning")
    from ema_cli.integrations.lightning import EMACallback

    return EMACallback(*arguments, **options)


def make_saver(folder: Path, **options: Any) -> Any:
    """Return Lightning's ModelCheckpoint, which keeps all it writes."""
    pytest.importorskip("lightning")
    from lightning.pytorch.callbacks import ModelCheckpoint

    return ModelCheckpoint(folder, **{"save_top_k": -1, **options})


def make_recorder() -> Any:
    """Return a callback that keeps the model as it is after each optimizer step."""
    lightning = pytest.importorskip("lightning")

    class Recorder(lightning.Callback):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.steps: dict[int, Tensors] = {}

        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            # BatchNorm goes on between the steps where gradients accumulate.
            if trainer.global_step not in self.steps:
                self.steps[trainer.global_step] = copied(module)

    return Recorder()


def copied(module: Any) -> Tensors:
    """Return a module's tensors, as they are now."""
    return {name: each.detach().clone() for name, each in module.state_dict().items()}


def averaged(callback: Any) -> Tensors:
    """Return all that the first average of a callback is, in full precision."""
    state = callback.ema.state_dict()
    return {**next(iter(state["averages"].values())), **state["copied"]}


def assert_same(left: Tensors, right: Tensors) -> None:
    """Check that all tensors are the same bits."""
    assert sorted(left) == sorted(right)
    assert [name for name, each in left.items() if not torch.equal(each, right[name])] == []


def fit(folder: Path, callback: Any, *others: Any, model: Any = None, ckpt: Path | None = None, **options: Any) -> Any:
    """Train; return the trainer."""
    validates = "val_check_interval" in options
    trainer = make_trainer(folder, callback, *others, **options)
    trainer.fit(model or make_model(), make_loader(), make_loader() if validates else None, ckpt_path=ckpt)
    return trainer


@pytest.mark.parametrize(
    ("half_life", "interval", "accumulate", "start"),
    [("8ba", None, 1, 0), ("10ba", "4ba", 1, 0), ("6ba", None, 5, 0), ("4ba", "1ba", 1, 7)],
)
def test_average_in_batches(tmp_path: Path, half_life: str, interval: str | None, accumulate: int, start: int):
    """The average is the recurrence over optimizer steps, one for several batches where gradients accumulate."""
    callback, recorder = make_ema(half_life, None, f"{start}ba", interval), make_recorder()
    fit(tmp_path, callback, recorder, accumulate_grad_batches=accumulate)
    # The last batches of an epoch make a step of their own.
    assert max(recorder.steps) == (36 if accumulate == 1 else 9)
    clocks = [step for step in sorted(recorder.steps) if step >= max(start, 1)]
    saved = [recorder.steps[step] for step in clocks]
    law = int(half_life[:-2]), int((interval or "1ba")[:-2])
    assert_rounds(averaged(callback), recurrence(saved, clocks, *law))


def test_two_optimizers(tmp_path: Path):
    """Where a batch makes two optimizer steps, as Lightning counts them, the average has both in one update."""

    class Alternates(type(make_model())):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Sequence[torch.Tensor], index: int) -> None:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(super().training_step(batch, index))
                optimizer.step()

        def configure_optimizers(self) -> Any:
            return [
                torch.optim.SGD(self.net[0].parameters(), lr=0.1),
                torch.optim.SGD(self.net[2].parameters(), lr=0.1),
            ]

    callback, recorder = make_ema("8ba"), make_recorder()
    fit(tmp_path, callback, recorder, model=Alternates(), epochs=1)
    clocks = range(2, 25, 2)
    assert sorted(recorder.steps) == list(clocks)
    assert_rounds(averaged(callback), recurrence([recorder.steps[step] for step in clocks], clocks, 8))


@pytest.mark.parametrize("accumulate", [1, 5])
def test_average_in_epochs(tmp_path: Path, accumulate: int):
    """In epochs the average is the recurrence over their ends; an epoch that max_steps cuts short is none."""
    callback, recorder = make_ema("2ep"), make_recorder()
    length = 12 if accumulate == 1 else 3
    fit(tmp_path, callback, recorder, epochs=9, max_steps=4 * length + 2, accumulate_grad_batches=accumulate)
    assert max(recorder.steps) == 4 * length + 2
    saved = [recorder.steps[length * epoch] for epoch in (1, 2, 3, 4)]
    assert_rounds(averaged(callback), recurrence(saved, [1, 2, 3, 4], 2))


def test_average_in_epochs_is_ready_for_validation(tmp_path: Path):
    """The epoch that has just ended is in the average when it is validated, and in the checkpoint of that time."""
    callback, model = make_ema("0ep"), make_model()  # half-life 0 is the newest
    fit(tmp_path, callback, make_saver(tmp_path, monitor="val_sum"), model=model, epochs=2, val_check_interval=1.0)
    ends = [torch.load(path, weights_only=True) for path in sorted(tmp_path.glob("*.ckpt"))]
    assert [end["global_step"] for end in ends] == [12, 24]
    for end, seen in zip(ends, (model.seen[1 + 11], model.seen[1 + 23]), strict=True):
        assert torch.equal(seen, end["state_dict"]["net.0.weight"])
        assert torch.equal(seen, end["callbacks"]["EMACallback"]["averages"]["0ep"]["net.0.weight"])


@pytest.mark.parametrize("offload", [None, "cpu"])
def test_evaluation_is_of_the_average(tmp_path: Path, offload: str | None):
    """Validation, test and prediction see the average, the monitored metric is its; then the weights are back."""
    callback, model, recorder = make_ema("8ba", offload=offload), make_model(), make_recorder()
    trainer = fit(tmp_path, callback, recorder, model=model, epochs=1, val_check_interval=6)
    law = [recorder.steps[step] for step in range(1, 13)]
    half, whole = recurrence(law[:6], range(1, 7), 8), recurrence(law, range(1, 13), 8)
    seen = model.seen
    assert len(seen) == 1 + 12 + 12
    assert torch.equal(seen[0], make_model().net[0].weight)  # the sanity check, before there is an average
    for each, exact in zip(seen[1:], [half] * 12 + [whole] * 12, strict=True):
        torch.testing.assert_close(each.double(), exact["net.0.weight"], rtol=0, atol=3e-7)
    logged = trainer.callback_metrics["val_sum"].double()
    torch.testing.assert_close(logged, whole["net.0.weight"].sum(), rtol=0, atol=1e-5)
    last = copied(model)
    assert_same(last, recorder.steps[12])
    for run in (trainer.validate, trainer.test, trainer.predict):
        seen.clear()
        run(model, make_loader())
        assert len(seen) == 12
        torch.testing.assert_close(seen[0].double(), whole["net.0.weight"], rtol=0, atol=3e-7)
        assert_same(copied(model), last)


def test_validation_that_raises(tmp_path: Path):
    """Where validation raises, the training weights are back, and in the checkpoint that is saved then."""
    callback, recorder, model = make_ema("8ba"), make_recorder(), make_model(fails_at=6)
    saver = make_saver(tmp_path, save_on_exception=True, every_n_train_steps=100)
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, callback, recorder, saver, model=model, val_check_interval=6)
    assert not torch.equal(model.seen[-1], recorder.steps[6]["net.0.weight"])
    assert_same(copied(model), recorder.steps[6])
    (saved,) = tmp_path.glob("*.ckpt")
    assert_same(torch.load(saved, weights_only=True)["state_dict"], recorder.steps[6])


def test_checkpoints_keep_both(tmp_path: Path):
    """A checkpoint holds the training weights, and the average in the callback's state; torch loads it safely."""
    callback, recorder = make_ema("8ba"), make_recorder()
    fit(tmp_path, callback, recorder, make_saver(tmp_path, every_n_train_steps=5), epochs=1)
    assert names(tmp_path) == {"epoch=0-step=5.ckpt", "epoch=0-step=10.ckpt"}
    checkpoint = torch.load(tmp_path / "epoch=0-step=10.ckpt", weights_only=True)
    assert_same(checkpoint["state_dict"], recorder.steps[10])
    state = checkpoint["callbacks"]["EMACallback"]
    exact = recurrence([recorder.steps[step] for step in range(1, 11)], range(1, 11), 8)
    assert_rounds({**state["averages"]["8ba"], **state["copied"]}, exact)
    assert "ema_cli" not in checkpoint


def test_weights_alone_are_the_average(cli: Cli, tmp_path: Path):
    """With save_weights_only the file holds the average, rounded to the module's types, and says so."""
    callback, recorder, model = make_ema("8ba"), make_recorder(), make_model()
    saver = make_saver(tmp_path, save_weights_only=True, monitor="val_sum")
    trainer = fit(tmp_path, callback, recorder, saver, model=model, epochs=1, val_check_interval=6)
    exact = recurrence([recorder.steps[step] for step in range(1, 7)], range(1, 7), 8)
    checkpoint = torch.load(tmp_path / "epoch=0-step=6.ckpt", weights_only=True)
    assert_rounds(checkpoint["state_dict"], exact)
    assert checkpoint["ema_cli"]["weights"] == "averages"
    assert (checkpoint["ema_cli"]["average"], checkpoint["ema_cli"]["clock"]) == ("8ba", "6ba")
    loaded = type(model).load_from_checkpoint(tmp_path / "epoch=0-step=6.ckpt")
    assert_same(copied(loaded), checkpoint["state_dict"])
    done = cli("average", "epoch=0-step=6.ckpt", "epoch=0-step=12.ckpt", "--half-life", "8ba")
    assert (done.code, "saved its average as the model" in done.err) == (4, True), done
    trainer.save_checkpoint(tmp_path / "by-hand.ckpt", weights_only=True)
    by_hand = torch.load(tmp_path / "by-hand.ckpt", weights_only=True)
    assert_same(by_hand["state_dict"], averaged(callback))
    assert_same(copied(model), recorder.steps[12])


def test_tensors_that_a_module_s_hook_leaves_out_stay_out(tmp_path: Path):
    """A module whose own hook saves a part of its tensors has that part averaged, and no more."""
    model = make_model(keep=lambda name: name.startswith("net.0"))
    fit(tmp_path, make_ema("8ba"), make_saver(tmp_path, save_weights_only=True), model=model, epochs=1)
    checkpoint = torch.load(tmp_path / "epoch=0-step=12.ckpt", weights_only=True)
    assert sorted(checkpoint["state_dict"]) == ["net.0.bias", "net.0.weight"]
    assert not torch.equal(checkpoint["state_dict"]["net.0.weight"], model.net[0].weight)


def test_saved_while_validating(tmp_path: Path):
    """A checkpoint that is saved by hand in the middle of a validation holds the training weights all the same."""
    lightning = pytest.importorskip("lightning")

    class Save(lightning.Callback):  # type: ignore[misc, name-defined]
        def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}-weights.ckpt", weights_only=True)

    recorder, model = make_recorder(), make_model()
    fit(tmp_path, make_ema("8ba"), recorder, Save(), model=model, epochs=1, val_check_interval=6)
    full, weights = (torch.load(tmp_path / name, weights_only=True) for name in ("6.ckpt", "6-weights.ckpt"))
    assert_same(full["state_dict"], recorder.steps[6])
    assert "ema_cli" not in full
    assert torch.equal(weights["state_dict"]["net.0.weight"], model.seen[12])
    assert weights["ema_cli"]["clock"] == "6ba"
    assert_same(copied(model), recorder.steps[12])


@pytest.mark.parametrize("step", [5, 12, 17, 24])
@pytest.mark.parametrize("law", [("8ba", "3ba"), (("4ba", "20ba"), "1ba"), ("2ep", "1ep")])
def test_a_resumed_lightning_training_gives_the_same_bits(tmp_path: Path, step: int, law: tuple[Any, str]):
    """A training that is stopped in an epoch, or at its end, and resumed gives the same bits as one without a stop."""
    half_life, interval = law
    whole, whole_model = make_ema(half_life, update_interval=interval), make_model()
    fit(tmp_path / "whole", whole, model=whole_model, epochs=3, val_check_interval=4)
    stopped = make_saver(tmp_path / "stopped", every_n_train_steps=step)
    first = make_ema(half_life, update_interval=interval)
    fit(tmp_path, first, stopped, epochs=3, max_steps=step, val_check_interval=4)
    resumed, model = make_ema(half_life, update_interval=interval), make_model()
    (path,) = (tmp_path / "stopped").glob(f"*step={step}.ckpt")
    fit(tmp_path, resumed, model=model, ckpt=path, epochs=3, val_check_interval=4)
    assert_same(copied(model), copied(whole_model))
    for name, tensors in whole.ema.state_dict()["averages"].items():
        assert_same(resumed.ema.state_dict()["averages"][name], tensors)
    assert_same(resumed.ema.state_dict()["copied"], whole.ema.state_dict()["copied"])
    assert (resumed.ema.clock, resumed.ema.updates) == (whole.ema.clock, whole.ema.updates)


def test_another_half_life_on_resume(tmp_path: Path):
    """A resumed training with another half-life is an error, unless that is meant."""
    fit(tmp_path, make_ema("8ba"), make_saver(tmp_path, every_n_train_steps=5), epochs=1, max_steps=5)
    (path,) = tmp_path.glob("*.ckpt")
    with pytest.raises(RunError, match="is of 8ba every 1ba"):
        fit(tmp_path, make_ema("9ba"), ckpt=path, epochs=1)
    changed = make_ema("9ba", change_half_life=True)
    fit(tmp_path, changed, ckpt=path, epochs=1)
    assert str(changed.ema.clock) == "12ba"


def test_evaluation_of_a_checkpoint(tmp_path: Path):
    """`test(ckpt_path=...)` is of that checkpoint's average: the one beside its weights, or its weights themselves."""
    pytest.importorskip("lightning")
    full = make_saver(tmp_path / "full", every_n_train_steps=5)
    alone = make_saver(tmp_path / "alone", every_n_train_steps=5, mode="max", save_weights_only=True)
    trainer = fit(tmp_path, make_ema("8ba"), full, alone, epochs=1)
    average = torch.load(tmp_path / "alone" / "epoch=0-step=5.ckpt", weights_only=True)["state_dict"]["net.0.weight"]
    raw = torch.load(tmp_path / "full" / "epoch=0-step=5.ckpt", weights_only=True)["state_dict"]["net.0.weight"]
    assert not torch.equal(raw, average)
    without = make_trainer(tmp_path)
    for folder, tester, expected in [
        ("alone", trainer, average),  # while its callback still has the average of the end
        ("full", trainer, average),
        ("full", make_trainer(tmp_path, make_ema("8ba")), average),
        ("alone", make_trainer(tmp_path, make_ema("8ba")), average),
        ("full", without, raw),
        ("alone", without, average),
    ]:
        model = tester.lightning_module or make_model()
        model.seen.clear()
        tester.test(model, make_loader(), ckpt_path=tmp_path / folder / "epoch=0-step=5.ckpt")
        assert torch.equal(model.seen[0], expected), (folder, tester.callbacks)


def test_end_with_the_average(tmp_path: Path):
    """After a training the module holds the training weights or, asked for, the average; a file of that says so."""
    callback, recorder, model = make_ema("8ba", end_with_ema_weights=True), make_recorder(), make_model()
    trainer = fit(tmp_path, callback, recorder, make_saver(tmp_path), model=model, epochs=1)
    assert_same(copied(model), averaged(callback))
    saved = torch.load(tmp_path / "epoch=0-step=12.ckpt", weights_only=True)
    assert_same(saved["state_dict"], recorder.steps[12])
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    after = torch.load(tmp_path / "after.ckpt", weights_only=True)
    assert_same(after["state_dict"], averaged(callback))
    assert after["ema_cli"]["weights"] == "averages"


def test_nothing_left_to_train(tmp_path: Path):
    """A checkpoint of the end gives its averages back, and the module ends with them where that is asked for."""
    callback = make_ema("5ba")
    fit(tmp_path, callback, make_saver(tmp_path / "ckpts"))
    (last,) = sorted((tmp_path / "ckpts").glob("*step=36*"))
    again, model = make_ema("5ba", end_with_ema_weights=True), make_model()
    fit(tmp_path, again, model=model, ckpt=last)
    assert again.ema.started
    assert_same(averaged(again), averaged(callback))
    assert torch.equal(model.net[0].weight, averaged(callback)["net.0.weight"])


def test_a_checkpoint_without_averages_is_not_gone_on_with(tmp_path: Path):
    """Unless they are to begin later, there is an error: they would begin anew, in the middle, without a word."""
    fit(tmp_path, make_saver(tmp_path / "ckpts"))
    (first,) = sorted((tmp_path / "ckpts").glob("*step=12*"))
    with pytest.raises(RunError, match="no averages to go on with"):
        fit(tmp_path, make_ema("5ba"), ckpt=first)
    later = make_ema("5ba", ema_start="20ba")
    fit(tmp_path, later, ckpt=first)
    assert later.ema.averages.began == 20


def test_another_training(tmp_path: Path):
    """A callback and a module that are trained anew begin a new average."""
    callback, model, recorder = make_ema("8ba"), make_model(), make_recorder()
    fit(tmp_path, callback, model=model, epochs=1)
    fit(tmp_path, callback, recorder, model=model, epochs=1)
    assert_rounds(averaged(callback), recurrence([recorder.steps[step] for step in range(1, 13)], range(1, 13), 8))


def test_several_are_stored(cli: Cli, tmp_path: Path):
    """Several averages are stored beside the checkpoints, and any half-life between comes from them."""
    callback, recorder = make_ema(("4ba", "16ba")), make_recorder()
    fit(tmp_path, callback, recorder, make_saver(tmp_path / "ckpts", every_n_train_steps=6))
    stored = tmp_path / "ckpts" / "ema"
    assert names(stored) == {"first.safetensors", *(f"{step}ba" for step in range(6, 37, 6))}
    for step in (6, 36):
        saved = [recorder.steps[each] for each in range(1, step + 1)]
        for name, half_life in (("4ba", 4), ("16ba", 16)):
            written = load_file(stored / f"{step}ba" / f"{name}.safetensors")
            assert_rounds(written, recurrence(saved, range(1, step + 1), half_life))
    done = cli("average", "ckpts", "--half-life", "8ba")  # the checkpoints: what was stored is passed over
    assert done.code == 0, done
    saved = [recorder.steps[step] for step in range(6, 37, 6)]
    assert_rounds(load_file(tmp_path / "ema-8ba.safetensors"), recurrence(saved, range(6, 37, 6), 8))


def test_bf16_moves(tmp_path: Path):
    """A module in bfloat16 has averages in float32, which move where a bfloat16 one would stand still."""
    callback, recorder, model = make_ema(smoothing=0.99), make_recorder(), make_model()
    fit(tmp_path, callback, recorder, model=model, precision="bf16-true")
    assert model.net[0].weight.dtype is torch.bfloat16
    clocks = range(1, 37)
    exact = recurrence(
        [recorder.steps[step] for step in clocks],
        clocks,
        0.6931471805599453 / -torch.tensor(0.99, dtype=torch.float64).log().item(),
    )
    assert_rounds(averaged(callback), exact)
    assert not torch.equal(averaged(callback)["net.0.weight"].bfloat16(), recorder.steps[1]["net.0.weight"])


def test_samples_and_tokens_are_refused_since_lightning_counts_neither():
    """Times in samples and tokens are an error at once."""
    for arguments in ({"half_life": "50sp"}, {"half_life": "5ba", "ema_start": "100tok"}):
        with pytest.raises(UsageError, match="neither samples nor tokens"):
            make_ema(**arguments)
    with pytest.raises(UsageError, match="only one of"):
        make_ema("5ba", smoothing=0.9)


@pytest.mark.parametrize("strategy", ["FSDPStrategy", "DeepSpeedStrategy"])
def test_strategies_that_flatten(tmp_path: Path, strategy: str):
    """With a strategy whose tensors are none of the module's, the error says what to use."""
    pytest.importorskip("lightning")
    from lightning.pytorch import strategies

    trainer = make_trainer(tmp_path)
    # Neither can be made without a GPU.
    trainer.strategy.__class__ = type(strategy, (getattr(strategies, strategy),), {})
    with pytest.raises(UsageError, match=strategy):
        make_ema("8ba").setup(trainer, make_model(), "fit")


def test_importing_the_package_imports_no_lightning():
    """`import ema_cli` loads no Lightning."""
    code = "import sys, ema_cli; ema_cli.EMA; sys.exit('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "fsdp2, saved whole"])
def test_two_processes(tmp_path: Path, strategy: str):
    """In two processes averages, checkpoints and a resumed training are what they are in one."""
    require("lightning")
    folder = launch("write_lightning_ema", tmp_path / "written", strategy)
    saved = [load_file(folder / "truth" / f"{step}.safetensors") for step in range(1, 13)]
    exact = recurrence(saved, range(1, 13), 6)
    whole, resumed = (load_file(folder / f"{name}.safetensors") for name in ("whole", "resumed"))
    assert_rounds(whole, exact)
    assert_same(whole, resumed)
    assert_same(load_file(folder / "whole-model.safetensors"), load_file(folder / "resumed-model.safetensors"))
    seen = load_file(folder / "seen.safetensors")
    torch.testing.assert_close(seen["net.0.weight"].double(), exact["net.0.weight"], rtol=0, atol=3e-7)
    at_stop = recurrence(saved[:7], range(1, 8), 6)
    assert_rounds(load_file(folder / "stored" / "7ba" / "6ba.safetensors"), at_stop)
    alone = folder / "alone" / "step=7.ckpt"
    if strategy != "fsdp2":
        weights = torch.load(alone, weights_only=True)
    else:
        weights = load_dcp(alone) | torch.load(alone / "meta.pt", weights_only=True)
    assert_rounds(weights["state_dict"], at_stop)
    assert weights["ema_cli"]["weights"] == "averages"
