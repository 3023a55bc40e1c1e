"""Train Hugging Face models with Composer, which keeps their configuration and tokenizer in its checkpoints.

`python -m tests.trainers.write_composer_hf FOLDER`: `gpt2/` is a model with tied embeddings, `llama/` one in bfloat16
whose embeddings are apart, without a tokenizer, saved without the state of the training, `adapter/` a LoRA of it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from tests.trainers.ranks import leave
from tests.trainers.transformers_run import make_tokenizer
from tests.trainers.write_composer import let_composer_load

BATCHES = 8


def make_llama() -> Any:
    """Return a small Llama, always the same."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=10, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=16, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


def train(folder: Path, model: Any, tokenizer: Any = None, **options: Any) -> None:
    """Train eight batches, and save every second; of an adapter, with its settings among the options."""
    from composer import Trainer
    from composer.models import HuggingFaceModel

    torch.manual_seed(5)
    wrapped = HuggingFaceModel(model, tokenizer=tokenizer, use_logits=True, peft_config=options.pop("adapter", None))
    rows = torch.randint(2, 10, (4 * BATCHES, 8))
    data = [{"input_ids": row, "labels": row, "attention_mask": torch.ones_like(row)} for row in rows]
    Trainer(
        model=wrapped,
        train_dataloader=DataLoader(data, batch_size=4),
        max_duration=f"{BATCHES}ba",
        save_folder=str(folder),
        save_interval="2ba",
        optimizers=torch.optim.SGD(wrapped.parameters(), lr=0.5),
        device="cpu",
        seed=1,
        progress_bar=False,
        **options,
    ).fit()


def main(folder: Path) -> None:
    """Write the runs."""
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, GPT2Config

    config = GPT2Config(
        vocab_size=10, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
        attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    train(folder / "gpt2", AutoModelForCausalLM.from_config(config), make_tokenizer())
    train(folder / "llama", make_llama().to(torch.bfloat16), save_weights_only=True)
    adapter = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    train(folder / "adapter", make_llama(), make_tokenizer(), adapter=adapter)


if __name__ == "__main__":
    let_composer_load()
    main(Path(sys.argv[1]))
    leave()
