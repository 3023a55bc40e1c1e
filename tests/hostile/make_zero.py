"""Folders of DeepSpeed's ZeRO stage 3 put together by hand: two ranks share a matrix and a vector."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tests.hostile.make import call, data, mapping, number, numbers, storage, tensor, torch_zip, whole

MODEL = "zero_pp_rank_{}_mp_rank_00_model_states.pt"
OPTIMIZER = "zero_pp_rank_{}_mp_rank_00_optim_states.pt"
FIRST, OTHER = MODEL.format(0), MODEL.format(1)
FLAT, OTHER_FLAT = OPTIMIZER.format(0), OPTIMIZER.format(1)
SHAPES = {"w": (2, 3), "b": (3,)}


def size(*lengths: int) -> bytes:
    """Push a shape."""
    return call("torch.Size", numbers(*lengths))


def table(entries: Mapping[str, bytes]) -> bytes:
    """Push the shapes of one group."""
    return b"](" + mapping(entries) + b"e"


class Folder:
    """A folder to be written: what each rank's two files hold."""

    def __init__(self, step: int = 3) -> None:
        empty = tensor(storage("0", 0), shape=(0,))
        self.model = {
            "module": mapping({"w": empty, "b": empty}),
            "buffer_names": b"]",
            "param_shapes": table({name: size(*shape) for name, shape in SHAPES.items()}),
            "frozen_param_shapes": b"}",
            "frozen_param_fragments": b"}",
            "shared_params": b"}",
            "global_steps": number(step),
            "dp_world_size": number(2),
        }
        self.other = dict(self.model)  # of the second rank
        self.flat = b"](" + tensor(storage("0", 5), shape=(5,)) + b"e"
        self.states = {"zero_stage": number(3), "partition_count": number(2)}
        self.more: dict[str, bytes] = {}
        w, b = (np.frombuffer(data(step)[key], "<f4") for key in ("0", "1"))
        b = np.append(b, np.float32(7))  # the padding
        self.stored = [np.concatenate([w[3 * rank :][:3], b[2 * rank :][:2]]).tobytes() for rank in (0, 1)]

    def write(self, path: Path) -> None:
        """Write the files."""
        path.mkdir()
        states = mapping({**self.states, "fp32_flat_groups": self.flat})
        for rank, model in enumerate((self.model, self.other)):
            pickle = whole(mapping(model))
            (path / MODEL.format(rank)).write_bytes(torch_zip(pickle, {"0": b""}))
            optimizer = whole(mapping({"optimizer_state_dict": states, **self.more}))
            (path / OPTIMIZER.format(rank)).write_bytes(torch_zip(optimizer, {"0": self.stored[rank]}))

    def both(self, key: str, value: bytes) -> None:
        """Let both ranks' model states hold a value."""
        self.model[key] = self.other[key] = value


def named(name: str, value: bytes) -> dict[str, bytes]:
    """Return a table's entries with one more."""
    return {**{known: size(*shape) for known, shape in SHAPES.items()}, name: value}
