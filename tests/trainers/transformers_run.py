"""A run of Hugging Face's Trainer: a tiny model, trained and saved, and loaded without a complaint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.trainers.conftest import Tensors

STEPS = [10, 20, 30, 35]


def make_tokenizer() -> Any:
    """Return a tokenizer of ten words, made from nothing."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", *"abcdefgh"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<unk>")
    tokenizer.chat_template = "{{ messages }}"
    return tokenizer


def train(folder: Path, config: Any, dtype: torch.dtype) -> Path:
    """Train for 35 steps, saving every 10 and at the end, then save model and state as scripts do."""
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    data = [{"input_ids": row, "labels": row} for row in torch.randint(2, 10, (64, 8))]
    arguments = TrainingArguments(
        str(folder),
        max_steps=STEPS[-1],
        save_steps=10,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        include_num_input_tokens_seen="all",
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=data, processing_class=make_tokenizer())
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    return folder


def saved(folder: Path) -> list[Tensors]:
    """Return the weights of a run's checkpoints, oldest first."""
    return [load_file(folder / f"checkpoint-{step}" / "model.safetensors") for step in STEPS]


def load_clean(folder: Path) -> Any:
    """Load a model; check that no name is missing, unexpected or of another shape."""
    from transformers import AutoModelForCausalLM

    model, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    return model
