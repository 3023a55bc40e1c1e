"""Averages in trainings with transformers' Trainer: written at each save, evaluated, and resumed with the same bits."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ema_cli.errors import RunError, UsageError
from tests.conftest import Cli
from tests.trainers.conftest import Tensors, assert_rounds, names, recurrence, require
from tests.trainers.ranks import launch

if TYPE_CHECKING:
    from tests.trainers import write_transformers_ema as writer


pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("ignore")]

STEPS, EVERY = 12, 6
SAVES = (6, 12)
MODEL_FILES = {
    "model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    """Import transformers, once it is known that it must stay offline."""
    pytest.importorskip("transformers")
    global writer, EMACallback, EMATrainerMixin
    from ema_cli.integrations.transformers import EMACallback, EMATrainerMixin
    from tests.trainers import write_transformers_ema as writer


def load_clean(folder: Path) -> Any:
    """Load a model; check that no name is missing, unexpected or of another shape."""
    from transformers import AutoModelForCausalLM

    model, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    return model


def state_of(folder: Path) -> dict[str, Any]:
    """Return what resuming needs, as anyone may read it."""
    state: dict[str, Any] = torch.load(folder / "ema_state.pt", weights_only=True)
    return state


def assert_same_state(ours: Any, theirs: Any) -> None:
    """Check that two states are the same to the bit, but for the identities of the starts and resumes behind them."""
    if isinstance(theirs, torch.Tensor):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for name, each in theirs.items():
            if name != "branches":
                assert_same_state(ours[name], each)
    else:
        assert ours == theirs


def dense(seen: list[Tensors], step: int, half_life: float = 4, clocks: Any = None, interval: float = 1) -> Any:
    """Return the float64 average of the models up to a step."""
    return recurrence(seen[:step], (clocks or range(1, step + 1))[:step], half_life, interval)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_each_save_holds_an_average_that_loads(tmp_path: Path, kind: str):
    """checkpoint-N/ema loads with no name missing or unexpected, in the model's type, and is the dense average.

    The weights beside it are those that are trained, and one update is one optimizer step of two batches.
    """
    from transformers import AutoTokenizer

    recorder, callback = writer.Recorder(), EMACallback(half_life="4ba")
    writer.make_trainer(tmp_path, writer.make_model(kind), callback, recorder).train()
    assert len(recorder.seen) == STEPS
    assert (callback.ema.updates, str(callback.ema.clock)) == (STEPS - 1, "12ba")
    for step in SAVES:
        folder = tmp_path / f"checkpoint-{step}" / "ema"
        assert names(folder) == MODEL_FILES
        written, raw = load_file(folder / "model.safetensors"), load_file(folder.parent / "model.safetensors")
        assert written.keys() == raw.keys()
        exact = dense(recorder.seen, step)
        assert_rounds(written, {name: exact[name] for name in written})
        assert {each.dtype for each in written.values()} == {writer.DTYPES[kind]}
        assert all(torch.equal(tensor, recorder.seen[step - 1][name]) for name, tensor in raw.items())
        for name in MODEL_FILES - {"model.safetensors"}:
            assert (folder / name).read_bytes() == (folder.parent / name).read_bytes()
        model = load_clean(folder)
        assert (model.lm_head.weight is model.get_input_embeddings().weight) == (kind == "gpt2")
        assert AutoTokenizer.from_pretrained(folder)("a h b")["input_ids"] == [2, 9, 3]
        assert {name for name in names(folder.parent) if name.startswith((".", "ema"))} == {"ema", "ema_state.pt"}
    assert names(tmp_path) == {"checkpoint-6", "checkpoint-12"}


@pytest.mark.parametrize(
    "asked",
    [
        {"half_life": "4ba"},
        {"half_life": ("3ba", "8ba"), "offload": "cpu"},
        {"smoothing": 0.8, "update_interval": "5ba"},
        {"half_life": "1ep", "update_interval": "0.25ep", "ema_start": "3ba"},
        {"half_life": "100tok"},
        {"sigma_rel": 0.1},
        {"half_life": "4ba", "train_with_ema_weights": True},
        {"half_life": "4ba", "ema_start": "9ba"},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_resumed_training_gives_the_same_bits(tmp_path: Path, kind: str, asked: dict[str, Any]):
    """Stopped after 6 steps and resumed, a training ends with the averages, to the bit, of one without a stop."""
    options = {"include_num_input_tokens_seen": "all"}
    whole, part = tmp_path / "whole", tmp_path / "part"
    writer.make_trainer(whole, writer.make_model(kind), EMACallback(**asked), **options).train()
    stopping = writer.Recorder(stop=EVERY)
    writer.make_trainer(part, writer.make_model(kind), stopping, EMACallback(**asked), **options).train()
    assert not (part / "checkpoint-12").exists()
    resumed = writer.make_trainer(part, writer.make_model(kind), EMACallback(**asked), **options)
    resumed.train(resume_from_checkpoint=str(part / "checkpoint-6"))
    for step in SAVES:
        ours, theirs = part / f"checkpoint-{step}", whole / f"checkpoint-{step}"
        assert_same_state(state_of(ours), state_of(theirs))
        assert (ours / "ema").exists() == (theirs / "ema").exists()
        if (theirs / "ema").exists():
            assert (ours / "ema/model.safetensors").read_bytes() == (theirs / "ema/model.safetensors").read_bytes()
    assert (theirs / "ema").exists()


@pytest.mark.parametrize(
    ("asked", "half_life", "interval"),
    [
        ({"half_life": "1ep", "update_interval": "0.25ep"}, 1, 0.25),
        ({"half_life": "1ep"}, 1, 1),
        ({"half_life": "500tok", "update_interval": "100tok"}, 500, 100),
    ],
    ids=["epochs", "whole epochs", "tokens"],
)
def test_epochs_and_tokens_are_the_trainers(tmp_path: Path, asked: dict[str, Any], half_life: float, interval: float):
    """Half-lives in epochs and tokens go by the counters that the Trainer writes into trainer_state.json."""
    recorder = writer.Recorder()
    options = {"include_num_input_tokens_seen": "all", "max_steps": 20, "save_steps": 20}
    writer.make_trainer(tmp_path, writer.make_model("gpt2"), EMACallback(**asked), recorder, **options).train()
    saved = json.loads((tmp_path / "checkpoint-20" / "trainer_state.json").read_text())
    assert (saved["epoch"], saved["num_input_tokens_seen"]) == (2.5, 20 * 8 * 8)
    clocks = recorder.epochs if "ep" in asked["half_life"] else [step * 64 for step in range(1, 21)]
    exact = dense(recorder.seen, 20, half_life, clocks, interval)
    written = load_file(tmp_path / "checkpoint-20" / "ema" / "model.safetensors")
    assert_rounds(written, {name: exact[name] for name in written})


def test_evaluation_is_of_the_average_and_leaves_the_training_alone(tmp_path: Path):
    """With the mixin each eval_loss is that of checkpoint-N/ema; the training goes on as after any evaluation."""
    recorder, plain = writer.Recorder(), writer.Recorder()
    options = {"eval_strategy": "steps", "eval_steps": EVERY, "eval_on_start": True}
    trainer = writer.make_trainer(
        tmp_path / "on", writer.make_model("gpt2"), EMACallback("4ba"), recorder,
        trainer=writer.AveragingTrainer, **options,
    )  # fmt: skip
    trainer.train()
    writer.make_trainer(tmp_path / "off", writer.make_model("gpt2"), plain, **options).train()
    for ours, theirs in zip(recorder.seen, plain.seen, strict=True):
        assert_same_state(ours, theirs)
    logged = {each["step"]: each["eval_loss"] for each in trainer.state.log_history if "eval_loss" in each}
    bare = writer.make_trainer(tmp_path / "bare", writer.make_model("gpt2"))
    assert logged[0] == bare.evaluate()["eval_loss"]  # before there is an average
    for step in SAVES:
        folder = tmp_path / "on" / f"checkpoint-{step}"
        losses = {}
        for path in (folder, folder / "ema"):
            losses[path] = writer.make_trainer(tmp_path / "bare", load_clean(path)).evaluate()["eval_loss"]
        assert logged[step] == losses[folder / "ema"] != losses[folder]
    # After the training, too, and for predictions.
    assert trainer.evaluate()["eval_loss"] == logged[12]
    assert trainer.predict(trainer.eval_dataset).metrics["test_loss"] == logged[12]
    several = trainer.evaluate({"a": trainer.eval_dataset, "b": trainer.eval_dataset})
    assert several["eval_a_loss"] == several["eval_b_loss"] == logged[12]
    assert_same_state(trainer.model.state_dict(), recorder.seen[-1])


@pytest.mark.parametrize("mixed", [True, False], ids=["mixin", "callback alone"])
def test_best_model_at_end_is_what_was_evaluated(tmp_path: Path, mixed: bool):
    """load_best_model_at_end loads the best average with the mixin, and without it the best model, as ever.

    `save_total_limit` removes the other checkpoints, averages and all; those that stay keep theirs.
    """
    recorder = writer.Recorder()
    trainer = writer.make_trainer(
        tmp_path, writer.make_model("gpt2"), EMACallback("2ba"), recorder,
        trainer=writer.AveragingTrainer if mixed else writer.Trainer, eval_strategy="steps", eval_steps=3, save_steps=3,
        learning_rate=3e-2, max_steps=24, load_best_model_at_end=True, save_total_limit=1,
    )  # fmt: skip
    trainer.train()
    logged = {each["step"]: each["eval_loss"] for each in trainer.state.log_history if "eval_loss" in each}
    best = min(logged, key=lambda step: logged[step])
    assert best < 24
    assert names(tmp_path) == {f"checkpoint-{best}"}
    assert (tmp_path / f"checkpoint-{best}" / "ema").is_dir()
    held = trainer.model.state_dict()
    if mixed:
        assert_rounds(held, dense(recorder.seen, best, 2))
        assert trainer.evaluate()["eval_loss"] == logged[best]
        written = load_file(tmp_path / f"checkpoint-{best}" / "ema" / "model.safetensors")
        assert all(torch.equal(held[name], tensor) for name, tensor in written.items())
        trainer.save_model(str(tmp_path / "best"))
        assert_same_state(load_file(tmp_path / "best" / "model.safetensors"), written)
    else:
        assert_same_state(held, recorder.seen[best - 1])


def test_best_model_from_before_the_average_stays_the_model(tmp_path: Path):
    """Where the best checkpoint is from before ema_start, the model was evaluated, and is loaded and evaluated."""
    recorder = writer.Recorder()
    trainer = writer.make_trainer(
        tmp_path, writer.make_model("gpt2"), EMACallback("2ba", ema_start="4ba"), recorder,
        trainer=writer.AveragingTrainer, eval_strategy="steps", eval_steps=3, save_steps=3,
        load_best_model_at_end=True, greater_is_better=True,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_global_step == 3
    assert not (tmp_path / "checkpoint-3" / "ema").exists()
    assert_same_state(trainer.model.state_dict(), recorder.seen[2])
    assert trainer.evaluate()["eval_loss"] == trainer.state.best_metric


def test_several_averages_are_stored_at_each_save(tmp_path: Path):
    """`ema/` of the output folder holds each average in float32 and the first copy; checkpoint-N/ema is the first."""
    recorder = writer.Recorder()
    callback = EMACallback(half_life=("4ba", "16ba"))
    writer.make_trainer(tmp_path, writer.make_model("llama"), callback, recorder, save_total_limit=1).train()
    assert names(tmp_path) == {"checkpoint-12", "ema"}
    assert names(tmp_path / "ema") == {"first.safetensors", "6ba", "12ba"}
    for step in SAVES:
        folder = tmp_path / "ema" / f"{step}ba"
        assert names(folder) == {"4ba.safetensors", "16ba.safetensors"}
        for half_life in (4, 16):
            tensors = load_file(folder / f"{half_life}ba.safetensors")
            assert {each.dtype for each in tensors.values()} == {torch.float32}
            assert_rounds(tensors, dense(recorder.seen, step, half_life))
    first = load_file(tmp_path / "ema" / "first.safetensors")
    assert all(torch.equal(first[name].bfloat16(), tensor) for name, tensor in recorder.seen[0].items())
    assert_rounds(load_file(tmp_path / "checkpoint-12" / "ema" / "model.safetensors"), dense(recorder.seen, 12, 4))


def test_averages_are_passed_over_by_the_command(cli: Cli, tmp_path: Path):
    """`inspect` and `average` see the raw checkpoints alone, and give the bytes that they give without averages."""
    run, bare = tmp_path / "run", tmp_path / "bare"
    writer.make_trainer(run, writer.make_model("gpt2"), EMACallback("4ba", store=True), save_steps=3).train()
    shutil.copytree(run, bare, ignore=lambda _, found: [name for name in found if name.startswith("ema")])
    told = cli("inspect", run, "--json").json["run"]
    assert [each["name"] for each in told["checkpoints"]] == [f"checkpoint-{step}" for step in (3, 6, 9, 12)]
    assert {each["reason"] for each in told["passed_over"]} <= {"averaged by ema-cli", "averages, as its name says"}
    assert told["passed_over"]
    for folder in (run, bare):
        done = cli("average", folder, "--half-life", "4ba", "-o", f"{folder.name}-4ba")
        assert done.code == 0, done
    assert (tmp_path / "run-4ba/model.safetensors").read_bytes() == (
        tmp_path / "bare-4ba/model.safetensors"
    ).read_bytes()
    refused = cli("average", run / "checkpoint-12" / "ema", run / "checkpoint-9", "--half-life", "4ba")
    assert refused.code == 4
    assert "is averaged already" in refused.err


def test_live_and_afterwards_agree(cli: Cli, tmp_path: Path):
    """With a checkpoint at each event, `ema-cli average` gives what the callback has written, to a rounding."""
    writer.make_trainer(tmp_path / "run", writer.make_model("gpt2"), EMACallback("4ba"), save_steps=1).train()
    assert cli("average", "run", "--half-life", "4ba").code == 0
    ours = load_file(tmp_path / "run" / "checkpoint-12" / "ema" / "model.safetensors")
    theirs = load_file(tmp_path / "ema-4ba" / "model.safetensors")
    torch.testing.assert_close(ours, theirs, rtol=3e-7, atol=3e-7)


def test_another_half_life_is_refused_unless_it_is_meant(tmp_path: Path):
    """A training is resumed with the averages that it had, or with others if change_half_life says so."""
    writer.make_trainer(tmp_path, writer.make_model("gpt2"), writer.Recorder(stop=6), EMACallback("4ba")).train()
    with pytest.raises(RunError, match="4ba"):
        writer.make_trainer(tmp_path, writer.make_model("gpt2"), EMACallback("5ba")).train(resume_from_checkpoint=True)
    meant = EMACallback("5ba", change_half_life=True)
    writer.make_trainer(tmp_path, writer.make_model("gpt2"), meant).train(resume_from_checkpoint=True)
    assert meant.ema.updates == STEPS - 1


def test_a_run_without_averages_can_begin_them_later(tmp_path: Path):
    """Resumed from a checkpoint that has none, averages are refused, unless ema_start is still to come."""
    recorder = writer.Recorder(stop=6)
    writer.make_trainer(tmp_path, writer.make_model("gpt2"), recorder).train()
    for start in ("0ba", "6ba"):
        late = writer.make_trainer(tmp_path, writer.make_model("gpt2"), EMACallback("4ba", ema_start=start))
        with pytest.raises(RunError, match="has no averages to go on with"):
            late.train(resume_from_checkpoint=True)
    callback, rest = EMACallback("4ba", ema_start="7ba"), writer.Recorder()
    writer.make_trainer(tmp_path, writer.make_model("gpt2"), callback, rest).train(resume_from_checkpoint=True)
    assert callback.ema.updates == 5
    written = load_file(tmp_path / "checkpoint-12" / "ema" / "model.safetensors")
    exact = recurrence(rest.seen, range(7, 13), 4)
    assert_rounds(written, {name: exact[name] for name in written})


def test_resuming_from_another_folder_is_said_in_the_arguments(tmp_path: Path):
    """Averages come from where the Trainer resumes, never from another run's folder of the same number."""
    for seed in (1, 2):
        stopping = writer.Recorder(stop=6)
        run = tmp_path / f"run-{seed}"
        writer.make_trainer(run, writer.make_model("gpt2"), stopping, EMACallback("4ba"), seed=seed).train()
    source = str(tmp_path / "run-1" / "checkpoint-6")
    wrong = writer.make_trainer(tmp_path / "run-2", writer.make_model("gpt2"), EMACallback("4ba"))
    with pytest.raises(RunError, match="is not what the Trainer resumed from"):
        wrong.train(resume_from_checkpoint=source)
    callback, rest = EMACallback("4ba"), writer.Recorder()
    right = writer.make_trainer(
        tmp_path / "run-2", writer.make_model("gpt2"), callback, rest, resume_from_checkpoint=source
    )
    right.train(resume_from_checkpoint=source)
    before = state_of(tmp_path / "run-1" / "checkpoint-6")["averages"]["4ba"]
    expected = {name: tensor.double() for name, tensor in before.items()}
    for seen in rest.seen:
        expected = {name: each * 2**-0.25 + seen[name].double() * (1 - 2**-0.25) for name, each in expected.items()}
    assert_rounds(state_of(tmp_path / "run-2" / "checkpoint-12")["averages"]["4ba"], expected)


def test_skipped_data_does_not_turn_the_clock_back(tmp_path: Path):
    """With ignore_data_skip a resumed Trainer repeats a part of its epoch: the clock stands still meanwhile."""
    asked = {"half_life": "1ep", "update_interval": "0.25ep"}
    first, rest = writer.Recorder(stop=6), writer.Recorder()
    writer.make_trainer(tmp_path, writer.make_model("gpt2"), first, EMACallback(**asked)).train()
    callback = EMACallback(**asked)
    resumed = writer.make_trainer(tmp_path, writer.make_model("gpt2"), callback, rest, ignore_data_skip=True)
    resumed.train(resume_from_checkpoint=True)
    assert (first.epochs[-1], rest.epochs[0], rest.epochs[-1]) == (0.75, 0.125, 0.75)
    assert callback.ema.averages.clocks.passed == {"ba": STEPS, "ep": Fraction(3, 4)}
    assert_same_state(state_of(tmp_path / "checkpoint-12")["averages"], state_of(tmp_path / "checkpoint-6")["averages"])


def test_second_training_begins_anew(tmp_path: Path):
    """A Trainer that trains again from step 0 has new averages."""
    callback, recorder = EMACallback("4ba"), writer.Recorder()
    trainer = writer.make_trainer(tmp_path, writer.make_model("gpt2"), callback, recorder)
    trainer.train()
    recorder.seen.clear()
    trainer.train()
    assert callback.ema.updates == STEPS - 1
    written = load_file(tmp_path / "checkpoint-12" / "ema" / "model.safetensors")
    exact = dense(recorder.seen, 12)
    assert_rounds(written, {name: exact[name] for name in written})


def test_a_model_of_ones_own_is_saved_as_the_trainer_saves_it(tmp_path: Path):
    """A module that is no PreTrainedModel gets model.safetensors and the tokenizer."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(10, 4), nn.Linear(4, 10)

        def forward(self, input_ids: torch.Tensor, labels: torch.Tensor, **others: Any) -> dict[str, torch.Tensor]:
            logits = self.head(self.embed(input_ids))
            return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}

    recorder = writer.Recorder()
    writer.make_trainer(tmp_path, Own(), EMACallback("4ba"), recorder).train()
    folder = tmp_path / "checkpoint-12" / "ema"
    assert names(folder) == {"model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert_rounds(load_file(folder / "model.safetensors"), dense(recorder.seen, 12))


def test_adapter_is_what_is_averaged_and_saved(tmp_path: Path):
    """Of a PEFT model, checkpoint-N/ema is an adapter that loads, the state holds no more, and it resumes."""
    peft = pytest.importorskip("peft")

    def make() -> Any:
        torch.manual_seed(3)
        settings = peft.LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False)
        return peft.get_peft_model(writer.make_model("gpt2"), settings)

    recorder = writer.Recorder()
    writer.make_trainer(tmp_path, make(), EMACallback("4ba"), recorder).train()
    folder = tmp_path / "checkpoint-12"
    written, exact = load_file(folder / "ema" / "adapter_model.safetensors"), dense(recorder.seen, 12)
    assert_rounds(written, {name: exact[name.replace(".weight", ".default.weight")] for name in written})
    assert len(state_of(folder)["averages"]["4ba"]) == len(written) == 4
    loaded = peft.PeftModel.from_pretrained(writer.make_model("gpt2"), folder / "ema").state_dict()
    assert all(torch.equal(loaded[name.replace(".weight", ".default.weight")], each) for name, each in written.items())
    before = state_of(folder)
    trainer = writer.make_trainer(tmp_path, make(), EMACallback("4ba"))
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert_same_state(state_of(folder), before)
    # The Trainer takes the folder of averages for a second adapter, which must not stay.
    assert set(trainer.model.peft_config) == {"default"}


def test_saving_the_model_only_saves_the_average_only(tmp_path: Path):
    """save_only_model leaves out what resuming needs."""
    writer.make_trainer(tmp_path, writer.make_model("gpt2"), EMACallback("4ba"), save_only_model=True).train()
    assert {name for name in names(tmp_path / "checkpoint-12") if name.startswith("ema")} == {"ema"}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"half_life": "50sp"}, "counts no samples"),
        ({"half_life": "4ba", "ema_start": "50sp"}, "counts no samples"),
        ({"half_life": "4ba", "smoothing": 0.5}, "only one of"),
        ({"half_life": "-1ba"}, "half_life"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_before_training(asked: dict[str, Any], message: str):
    """Before any training, an error says what is wrong."""
    with pytest.raises(UsageError, match=message):
        EMACallback(**asked)


def test_tokens_must_be_counted(tmp_path: Path):
    """A half-life in tokens where the Trainer counts none is refused before the first step."""
    trainer = writer.make_trainer(tmp_path, writer.make_model("gpt2"), EMACallback("50tok"))
    with pytest.raises(UsageError, match="does not count tokens"):
        trainer.train()


def test_mixin_needs_the_callback(tmp_path: Path):
    """A Trainer that is to evaluate averages, and has no callback that makes them, says so."""
    trainer = writer.make_trainer(tmp_path, writer.make_model("gpt2"), trainer=writer.AveragingTrainer)
    for call in (trainer.train, trainer.evaluate):
        with pytest.raises(UsageError, match="0 EMACallbacks"):
            call()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_two_processes(tmp_path: Path, kind: str, way: str):
    """In DDP and sharded one process writes whole averages, which are the dense ones; both evaluate them, load the best
    of them at the end, and resume bit for bit.
    """
    require("transformers")
    launch("write_transformers_ema", tmp_path, kind, way)
    seen = [load_file(tmp_path / f"0-step-{step}.safetensors") for step in range(1, STEPS + 1)]
    for step in SAVES:
        folder = tmp_path / "whole" / f"checkpoint-{step}"
        assert names(folder / "ema") == MODEL_FILES
        written, exact = load_file(folder / "ema" / "model.safetensors"), dense(seen, step)
        assert_rounds(written, {name: exact[name] for name in written})
        load_clean(folder / "ema")
        assert {name for name in names(folder) if name.startswith((".", "ema"))} == {"ema", "ema_state.pt"}
        assert_same_state(state_of(tmp_path / "again" / f"checkpoint-{step}"), state_of(folder))
        for half_life in (4, 9):
            stored = load_file(tmp_path / "whole" / "ema" / f"{step}ba" / f"{half_life}ba.safetensors")
            assert_rounds(stored, dense(seen, step, half_life))
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert told[0] == told[1]
    best = told[0]["best"]
    held = dense(seen, best) if best else {name: tensor.double() for name, tensor in seen[-1].items()}
    for rank in range(2):
        assert_rounds(load_file(tmp_path / f"{rank}-best.safetensors"), held)


def test_importing_the_package_imports_no_trainer():
    """`import ema_cli`, and its folder of integrations, load none of the libraries."""
    script = (
        "import sys, ema_cli, ema_cli.integrations\n"
        "from ema_cli import EMA\n"
        "print({'transformers', 'accelerate', 'lightning', 'composer'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    assert EMACallback.__mro__[1].__module__ == "transformers.trainer_callback"
