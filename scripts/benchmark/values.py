"""The tensors of a model that a language model could have, and values for them: equal seeds give equal bytes.

Every value is a function of seed, step, tensor and place. So one set can be written in several formats without
reading the other, and a file of any size without its size in memory.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

CHUNK = 1 << 18  # values at a time: what is computed stays in the cache
_POOL = 1 << 22
_BYTES = {"BF16": 2, "F16": 2, "F32": 4}


@dataclass(frozen=True)
class Tensor:
    """A tensor's name and shape."""

    name: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Return the number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Model:
    """Tensors of one dtype."""

    dtype: str
    tensors: tuple[Tensor, ...]
    layers: int = 0  # of a llama; 0 for what is none
    hidden: int = 0
    feed_forward: int = 0
    vocabulary: int = 0

    @property
    def nbytes(self) -> int:
        """Return the size of all values."""
        return sum(tensor.count for tensor in self.tensors) * _BYTES[self.dtype]

    @property
    def config(self) -> dict[str, object]:
        """Return a `config.json` for it."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.feed_forward,
            "num_hidden_layers": self.layers,
            "num_attention_heads": max(1, self.hidden // 64),
            "num_key_value_heads": max(1, self.hidden // 64),
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": False,
            "torch_dtype": {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[self.dtype],
        }


def llama(dtype: str, hidden: int, feed_forward: int, layers: int, vocabulary: int) -> Model:
    """Return a model with the names and shapes of transformers' Llama."""
    tensors = [Tensor("model.embed_tokens.weight", (vocabulary, hidden))]
    for layer in range(layers):
        at = f"model.layers.{layer}."
        tensors += [Tensor(f"{at}self_attn.{name}_proj.weight", (hidden, hidden)) for name in "qkvo"]
        tensors += [Tensor(f"{at}mlp.{name}_proj.weight", (feed_forward, hidden)) for name in ("gate", "up")]
        tensors.append(Tensor(f"{at}mlp.down_proj.weight", (hidden, feed_forward)))
        tensors += [Tensor(f"{at}{name}_layernorm.weight", (hidden,)) for name in ("input", "post_attention")]
    tensors += [Tensor("model.norm.weight", (hidden,)), Tensor("lm_head.weight", (vocabulary, hidden))]
    return Model(dtype, tuple(tensors), layers, hidden, feed_forward, vocabulary)


def many_tensors(count: int, size: int = 64) -> Model:
    """Return a model of small tensors, each with `size` values."""
    return Model("F32", tuple(Tensor(f"layers.{number}.scale", (size,)) for number in range(count)))


def one_tensor(count: int) -> Model:
    """Return a model of a single tensor with about `count` values."""
    return Model("BF16", (Tensor("embed.weight", (max(1, count // 4096), 4096)),))


Values = NDArray[np.uint16] | NDArray[np.float16] | NDArray[np.float32]


def chunks(model: Model, seed: int, step: int, index: int) -> Iterator[Values]:
    """Yield the values of tensor `index` at a step, in order; the 16 bits of bfloat16 come as integers.

    A step away differs a little, as with neighbouring checkpoints. What is yielded is overwritten by the next.
    """
    tensor = model.tensors[index]
    base, drift = pools(seed)
    middle = np.float32(1.0 if "norm" in tensor.name else 0.0)
    out = np.empty(min(CHUNK, tensor.count), np.float32)
    for number, start in enumerate(range(0, tensor.count, CHUNK)):
        count = min(CHUNK, tensor.count - start)
        values = out[:count]
        # Every chunk begins somewhere else in the pools; the base is the same at every step.
        at, beside = (zlib.crc32(f"{index}/{number}/{of}".encode()) % (_POOL - CHUNK) for of in ("base", step))
        np.add(base[at : at + count], drift[beside : beside + count], out=values)
        values += middle
        if model.dtype == "BF16":  # cut off, not rounded: any bfloat16 will do
            yield np.ascontiguousarray(values.view(np.uint16)[1::2])
        else:
            yield values.astype(np.float16) if model.dtype == "F16" else values


def whole(model: Model, seed: int, step: int, index: int) -> Values:
    """Return all values of a tensor, in its shape."""
    parts = [part.copy() for part in chunks(model, seed, step, index)]
    return np.concatenate(parts).reshape(model.tensors[index].shape)


@cache
def pools(seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return random values of the size of weights, and of the size of what training changes between checkpoints."""
    random = np.random.default_rng(seed)
    base = random.standard_normal(_POOL, dtype=np.float32) * np.float32(0.02)
    drift = random.standard_normal(_POOL, dtype=np.float32) * np.float32(0.002)
    return base, drift
