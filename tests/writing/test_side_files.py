"""What travels with the weights, and what config.json says of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ema_cli.writing.side_files import find_side_files, set_config_dtype


def test_files_that_load_a_model_travel_and_training_state_does_not(tmp_path: Path):
    """Configuration, tokenizer, processor, templates and remote code travel; training state never does."""
    wanted = {
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
        "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model",
        "chat_template.jinja", "preprocessor_config.json", "processor_config.json", "modeling_tiny.py",
        "video_preprocessor_config.json", "LICENSE", "qwen.tiktoken", "additional_chat_templates/tool.jinja",
        "README.md", "tekken.json", "normalizer.json", "target_vocab.json", "entity_vocab.json", "bpe.codes",
        "dict.txt", "prophetnet.tokenizer", "byte_maps.json", "emoji.json", "word_pronunciation.json",
        "word_shape.json",
    }  # fmt: skip
    unwanted = {
        "optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "trainer_state.json", "training_args.bin",
        "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "zero_to_fp32.py", "latest",
        "training_config.json", "global_step5/zero.pt", "events.out.tfevents", ".hidden_config.json",
    }  # fmt: skip
    for name in wanted | unwanted:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert set(find_side_files(tmp_path)) == wanted


def test_a_config_that_is_right_is_left_to_the_byte():
    """Odd spacing survives where the dtype is right already."""
    text = b'{ "dtype":"float32",\n\n "x": 1.0}'
    assert set_config_dtype(text, {"F32"}, converted=False) == text


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_dtype_that_is_written_is_said(key: str):
    """Under the key that is there, for sub-models too, and for nothing else."""
    config = {"a": [1, 2.5], key: "float32", "text_config": {key: "float32"}, "quantization_config": {key: "float32"}}
    changed = json.loads(set_config_dtype(json.dumps(config).encode(), {"BF16"}, converted=True))
    assert changed == config | {key: "bfloat16", "text_config": {key: "bfloat16"}}
    assert list(changed) == list(config)


def test_a_config_without_a_dtype_gains_one_when_converted():
    """A conversion is said even where nothing was; without one the file stays."""
    assert json.loads(set_config_dtype(b"{}", {"F16"}, converted=True)) == {"dtype": "float16"}
    assert set_config_dtype(b"{}", {"F16"}, converted=False) == b"{}"


@pytest.mark.parametrize("text", [b"[1]", b"not json", b"\xff"])
def test_a_config_that_cannot_be_read_is_copied_as_it_is(text: bytes):
    """Whatever the file holds, it is copied rather than guessed at."""
    assert set_config_dtype(text, {"F16"}, converted=True) == text


def test_several_dtypes_are_left_alone():
    """One word cannot say two dtypes."""
    assert set_config_dtype(b'{"dtype": "float32"}', {"F16", "F32"}, converted=False) == b'{"dtype": "float32"}'
