"""Layers by the names of tensors."""

from __future__ import annotations

import pytest

from ema_cli.comparing.layers import group_layers, layer_of


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.3.mlp.up_proj.weight", "model.layers.3"),
        ("transformer.h.11.attn.c_attn.bias", "transformer.h.11"),
        ("model.layers.3.mlp.experts.7.w1.weight", "model.layers.3.mlp.experts.7"),
        ("model.embed_tokens.weight", "model.embed_tokens"),
        ("vision.tower.patch.proj.weight", "vision.tower"),
        ("lm_head.weight", "lm_head"),
        ("params.0", "params"),
        ("scale", "scale"),
    ],
)
def test_layers_by_name(name: str, layer: str):
    """A layer is the path of a module up to its last number, or the outer two parts of it."""
    assert layer_of(name) == layer


def test_many_layers_are_put_together():
    """Experts go into their block first; then neighbours, in natural order, none left out."""
    experts = [f"layers.{block}.experts.{number}.weight" for block in range(20) for number in range(30)]
    found, together = group_layers(experts, 20)
    assert together
    assert list(dict.fromkeys(found.values())) == [f"layers.{block}" for block in range(20)]
    found, _ = group_layers(experts, 8)
    labels = list(dict.fromkeys(found.values()))
    assert (len(labels), labels[0], labels[-1]) == (8, "layers.0 to 1", "layers.17 to 19")
    assert set(found) == set(experts)
    assert group_layers(["b.weight", "a.weight"], 2) == ({"a.weight": "a", "b.weight": "b"}, False)
