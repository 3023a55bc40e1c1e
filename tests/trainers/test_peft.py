"""Adapters that PEFT wrote here and now: averaged where that means something, refused where it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Cli
from tests.trainers.conftest import Tensors, assert_rounds, names, recurrence

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("ignore")]

STEPS = [10, 20, 30]


def make_base() -> Any:
    """Return a small Llama, always the same."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(11)
    config = LlamaConfig(
        vocab_size=10, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=16, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


def make_adapter(**options: Any) -> Any:
    """Return the model with a LoRA adapter on two projections."""
    peft = pytest.importorskip("peft")
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    return peft.get_peft_model(make_base(), peft.LoraConfig(**(settings | options)))


def save(model: Any, folder: Path, step: int, **options: Any) -> Tensors:
    """Save the adapter, its tensors set to what belongs to the step, as the Trainer does; return them."""
    torch.manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape))
    checkpoint = folder / f"checkpoint-{step}"
    model.save_pretrained(checkpoint, **options)
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step, "epoch": step / 16}))
    return load_adapter(checkpoint)


def load_adapter(checkpoint: Path) -> Tensors:
    """Return the tensors of a saved adapter."""
    whole = checkpoint / "adapter_model.safetensors"
    return load_file(whole) if whole.exists() else torch.load(checkpoint / "adapter_model.bin")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the Hugging Face Trainer on an adapter."""
    model = make_adapter()
    from transformers import Trainer, TrainingArguments

    folder = tmp_path_factory.mktemp("peft") / "run"
    arguments = TrainingArguments(
        str(folder), max_steps=STEPS[-1], save_steps=10, per_device_train_batch_size=4, learning_rate=1e-2,
        use_cpu=True, report_to=[], disable_tqdm=True,
    )  # fmt: skip
    data = [{"input_ids": row, "labels": row} for row in torch.randint(2, 10, (64, 8))]
    Trainer(model=model, args=arguments, train_dataset=data).train()
    return folder


def test_adapter_averages_to_an_adapter(cli: Cli, run: Path, tmp_path: Path):
    """The Trainer's folders give an adapter that PEFT loads on the base model; that BA is not averaged is said."""
    from peft import PeftModel

    done = cli("average", run, "--half-life", "10ba")
    assert (done.code, done.out) == (0, "ema-10ba\n"), done
    assert "not the average of their products" in done.err
    written = tmp_path / "ema-10ba"
    assert {"adapter_model.safetensors", "adapter_config.json"} <= names(written)
    assert not {"trainer_state.json", "optimizer.pt", "training_args.bin"} & names(written)
    exact = recurrence([load_adapter(run / f"checkpoint-{step}") for step in STEPS], STEPS, 10)
    assert_rounds(load_file(written / "adapter_model.safetensors"), exact)
    assert (written / "README.md").read_bytes() == (run / "checkpoint-30" / "README.md").read_bytes()  # PEFT's own
    loaded = PeftModel.from_pretrained(make_base(), written)
    held = {name.replace(".default.", "."): tensor for name, tensor in loaded.state_dict().items() if "lora_" in name}
    assert_rounds(held, exact)
    assert torch.isfinite(loaded(torch.ones(1, 3, dtype=torch.int64)).logits).all()


def test_clocks_of_the_trainer(cli: Cli, run: Path):
    """Steps and epochs come from trainer_state.json, as for whole models."""
    told = cli("inspect", run, "--json").json["run"]["checkpoints"]
    assert [(each["name"], each["clocks"]["ba"]) for each in told] == [
        (f"checkpoint-{step}", {"value": step, "from": "sidecar"}) for step in STEPS
    ]


def test_modules_saved_whole(cli: Cli, tmp_path: Path):
    """A head that PEFT saves whole beside A and B (modules_to_save) is averaged with them."""
    model = make_adapter(modules_to_save=["lm_head"])
    saved = [save(model, tmp_path / "run", step) for step in STEPS]
    assert any("lm_head" in name for name in saved[0])
    assert cli("average", "run", "--half-life", "10ba", "-o", "out").code == 0
    assert_rounds(load_file(tmp_path / "out" / "adapter_model.safetensors"), recurrence(saved, STEPS, 10))


def test_dora_is_refused(cli: Cli, tmp_path: Path):
    """DoRA divides by a norm of the sum: its averaged parts are no average, and it is refused."""
    model = make_adapter(use_dora=True)
    for step in STEPS:
        save(model, tmp_path / "run", step)
    done = cli("average", "run", "--half-life", "10ba")
    assert done.code in (3, 4), done
    assert "dora" in done.err.lower()
    assert names(tmp_path) == {"run"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"r": 8, "lora_alpha": 16}, "r"),
        ({"lora_alpha": 16}, "lora_alpha"),
        ({"use_rslora": True}, "use_rslora"),
        ({"rank_pattern": {"v_proj": 2}}, "rank_pattern"),
        ({"target_modules": ["q_proj", "k_proj"]}, "target_modules"),
    ],
)
def test_other_settings_are_refused(cli: Cli, tmp_path: Path, options: dict[str, Any], told: str):
    """Where rank, scale or places differ, the same numbers mean other weights: exit 4, and the setting is named."""
    save(make_adapter(), tmp_path / "run", 10)
    save(make_adapter(**options), tmp_path / "run", 20)
    done = cli("average", "run", "--half-life", "10ba")
    assert done.code == 4, done
    assert told in done.err
    assert names(tmp_path) == {"run"}


def test_order_of_the_modules_makes_no_difference(cli: Cli, tmp_path: Path):
    """PEFT writes the adapted modules in the order of a set, another in each process: they are compared as a set."""
    saved = [save(make_adapter(), tmp_path / "run", step) for step in STEPS]
    path = tmp_path / "run" / "checkpoint-20" / "adapter_config.json"
    config = json.loads(path.read_text())
    config["target_modules"].reverse()
    path.write_text(json.dumps(config))
    assert cli("average", "run", "--half-life", "10ba", "-o", "out").code == 0
    assert_rounds(load_file(tmp_path / "out" / "adapter_model.safetensors"), recurrence(saved, STEPS, 10))


def test_adapter_in_a_bin_file(cli: Cli, tmp_path: Path):
    """adapter_model.bin, as PEFT wrote before safetensors and still does when asked, averages likewise."""
    model = make_adapter()
    saved = [save(model, tmp_path / "run", step, safe_serialization=False) for step in STEPS]
    assert (tmp_path / "run" / "checkpoint-10" / "adapter_model.bin").exists()
    assert cli("average", "run", "--half-life", "10ba", "-o", "out").code == 0
    assert_rounds(load_file(tmp_path / "out" / "adapter_model.safetensors"), recurrence(saved, STEPS, 10))
