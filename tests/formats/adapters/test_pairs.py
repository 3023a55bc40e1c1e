"""Pairs of A and B: their names, their scale, and what is refused."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ema_cli.errors import CheckpointError, RunError
from ema_cli.formats import open_checkpoint
from ema_cli.formats.adapters.pairs import Pair, find_pairs, settings_of, whole_name
from tests.formats.adapters.adapters import BEGIN, adapter_tensors, write_adapter


def pairs(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **changes: Any) -> dict[str, Pair]:
    """Return the pairs of an adapter that is written here, by the name of their module."""
    checkpoint = open_checkpoint(write_adapter(folder / "checkpoint-1", tensors or adapter_tensors(1), **changes))
    return {pair.module: pair for pair in find_pairs(checkpoint, settings_of(checkpoint, "exact_lora"))}


def test_pairs_of_all_kinds_of_modules(tmp_path: Path) -> None:
    """Of matrices, convolutions and embeddings; the last change weights that are stored the other way round."""
    found = pairs(tmp_path)
    assert found.keys() == {"layer.q", "embed", "conv"}
    assert found["layer.q"] == Pair(
        "layer.q", f"{BEGIN}layer.q.lora_A.weight", f"{BEGIN}layer.q.lora_B.weight", 2, 3.0, False, False
    )
    assert (found["embed"].is_transposed, found["embed"].is_embedding) == (True, True)


@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        ({}, 3.0),
        ({"use_rslora": True}, 6 / math.sqrt(2)),
        ({"lora_alpha": 5}, 2.5),
        ({"lora_alpha": 0.5}, 0.25),
        ({"alpha_pattern": {"q": 1}}, 0.5),
        ({"alpha_pattern": {"layer.q": 1}}, 0.5),
        ({"alpha_pattern": {"^layer\\.q": 1}}, 0.5),
        ({"alpha_pattern": {"^q": 1, "ayer.q": 1, "embed": 1}}, 3.0),
        ({"alpha_pattern": None}, 3.0),
        ({"alpha_pattern": {"a": 9, "q": 1, "layer.q": 2}}, 1.0),
        ({"alpha_pattern": {"^layer.q": 4, "q": 1}}, 2.0),
    ],
    ids=str,
)
def test_scale(tmp_path: Path, changes: dict[str, Any], scale: float) -> None:
    """Alpha divided by the rank, or by its root; alpha of a module's own, by its name or the end of that."""
    assert pairs(tmp_path, **changes)["layer.q"].scale == pytest.approx(scale, rel=1e-15)


@pytest.mark.parametrize("alpha", [None, "6", True, [6], float("inf"), float("nan")], ids=str)
def test_alpha_that_is_no_number_is_refused(tmp_path: Path, alpha: object) -> None:
    """Without it nobody knows what is added."""
    with pytest.raises(CheckpointError, match=r"lora_alpha is .* no number|not valid"):
        pairs(tmp_path, lora_alpha=alpha)


def test_regular_expressions_are_not_run(tmp_path: Path) -> None:
    """A pattern of a file's own could run for hours: names alone are read, and others refused by what they are."""
    with pytest.raises(CheckpointError, match=r"has the regular expression '\(a\+\)\+"):
        pairs(tmp_path, alpha_pattern={"(a+)+$": 1})


def test_many_patterns_take_no_longer(tmp_path: Path) -> None:
    """A configuration of a hundred thousand patterns is looked up, and not gone through for each module."""
    began = time.process_time()
    assert pairs(tmp_path, alpha_pattern={f"other.{n}": n for n in range(100_000)})["layer.q"].scale == 3.0
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"peft_type": "LOHA"}, "is one of type LOHA"),
        ({"use_dora": True}, "its use_dora is true"),
        ({"lora_bias": True}, "its lora_bias is true"),
        ({"target_parameters": ["experts.up"]}, "its target_parameters"),
        ({"alora_invocation_tokens": [1, 2]}, "its alora_invocation_tokens"),
        ({"init_lora_weights": "pissa"}, "PEFT changes the base model"),
        ({"init_lora_weights": "olora"}, "PEFT changes the base model"),
    ],
    ids=str,
)
def test_more_than_a_product_is_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    """Where PEFT does something else than to add scale x BA, the setting is named, with the way on."""
    with pytest.raises(RunError, match=told) as raised:
        pairs(tmp_path, **changes)
    assert "exact_lora" in str(raised.value.hint)


def damaged(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Return an adapter's tensors with changes, by the part of the name before `_weight`; None leaves one out."""
    tensors = adapter_tensors(1)
    for name, tensor in changes.items():
        key = f"{BEGIN}layer.q.{name}.weight"
        tensors.pop(key, None)
        if tensor is not None:
            tensors[key] = tensor
    return tensors


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        (damaged(lora_A=None), "q.lora_B.weight' has no A"),
        (damaged(lora_B=None), "q.lora_A.weight' has no B"),
        (damaged(lora_A=torch.zeros(3, 5)), "cannot be multiplied with A"),
        (damaged(lora_A=torch.zeros(10)), "cannot be multiplied with A"),
        (damaged(lora_B=torch.zeros(4, 2, 3, 1)), "cannot be multiplied with A"),
        (damaged(lora_B=torch.zeros(4, 2, dtype=torch.int32)), "cannot be multiplied with A"),
        (damaged(lora_A=torch.zeros(0, 5), lora_B=torch.zeros(4, 0)), "cannot be multiplied with A"),
        ({f"{BEGIN}q.weight": torch.zeros(2)}, "has no A and B"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], told: str) -> None:
    """A half without the other, shapes that no product has, integers: named, and never a guess."""
    with pytest.raises(CheckpointError, match=told):
        pairs(tmp_path, tensors)


def test_several_adapters_are_refused(tmp_path: Path) -> None:
    """Of a second adapter in a folder of its own nobody knows which is meant."""
    folder = write_adapter(tmp_path / "checkpoint-1", adapter_tensors(1))
    write_adapter(folder / "second-2", adapter_tensors(2))
    with pytest.raises(RunError, match="holds several adapters"):
        settings_of(open_checkpoint(folder), "exact_lora")


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        (f"{BEGIN}lm_head.weight", "lm_head.weight"),
        (f"{BEGIN}lm_head.modules_to_save.weight", "lm_head.weight"),
        (f"{BEGIN}lm_head.modules_to_save.default.weight", "lm_head.weight"),
        (f"{BEGIN}q.base_layer.bias", "q.bias"),
        (f"model.{BEGIN}q.bias", "q.bias"),
        (f"{BEGIN}q.lora_A.weight", None),
        (f"{BEGIN}embed.lora_embedding_B", None),
        (f"{BEGIN}embed.trainable_tokens_delta", None),
    ],
)
def test_names_of_what_is_saved_whole(name: str, whole: str | None) -> None:
    """Heads, biases and layers that PEFT saves whole have the name that the base model has."""
    assert whole_name(name) == whole
