"""Libraries with containers of their own: numpy, stable-baselines3, Paddle, Flax, Orbax, NeMo.

Beside each run lies what the library itself loads from it, as safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from library_files.folders import fresh

STEPS = (10, 20, 30)
_TYPES = {"float32": "F32", "float64": "F64", "bfloat16": "BF16", "int64": "I64", "int32": "I32"}


def _keep(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write what a library loaded, arrays of numpy's and of ml_dtypes, as safetensors."""
    path.parent.mkdir(exist_ok=True)
    header, begin = {}, 0
    for name, array in arrays.items():
        end = begin + array.nbytes
        header[name] = {"dtype": _TYPES[array.dtype.name], "shape": array.shape, "data_offsets": (begin, end)}
        begin = end
    text = json.dumps(header).encode()
    data = b"".join(array.tobytes("C") for array in arrays.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def _leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the arrays of a tree by their places, joined by dots."""
    import numpy as np

    if not isinstance(tree, Mapping):
        return {prefix[:-1]: np.asarray(tree)}
    return {name: leaf for key, inner in tree.items() for name, leaf in _leaves(inner, f"{prefix}{key}.").items()}


def numpy(folder: Path) -> Path:
    """Save arrays, stored and compressed, with a counter among them."""
    import numpy as np

    made = fresh(folder, "numpy")
    random = np.random.default_rng(0)
    for name, save in (("stored", np.savez), ("compressed", np.savez_compressed)):
        (made / name).mkdir()
        for step in STEPS:
            arrays = {
                "layer/w": random.normal(size=(4, 3)).astype("f4"),
                "layer/turned": np.ones((3, 2), order="F") * step,
            }
            save(made / name / f"step-{step}.npz", **arrays, step=step)
    return made


def stable_baselines3(folder: Path) -> Path:
    """Train a policy with PPO, saved by the library's CheckpointCallback."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import CheckpointCallback

    made = fresh(folder, "stable-baselines3")
    model = PPO(
        "MlpPolicy", "CartPole-v1", n_steps=64, batch_size=32, seed=0, device="cpu", policy_kwargs={"net_arch": [2]}
    )
    model.learn(192, callback=CheckpointCallback(64, str(made)))
    return made


def paddle(folder: Path) -> Path:
    """Save a layer's state dict, and one below the top with a half-precision tensor in it."""
    import ml_dtypes
    import paddle

    made = fresh(folder, "paddlepaddle", "paddle")
    paddle.seed(0)
    model = paddle.nn.Sequential(paddle.nn.Linear(3, 2), paddle.nn.BatchNorm1D(2))
    for step in STEPS:
        for parameter in model.parameters():
            parameter.set_value(parameter + step / 7)
        state = model.state_dict()
        half = {name: tensor.astype("bfloat16") for name, tensor in state.items()}
        for kind, saved in (("plain", state), ("nested", {"model": half, "global_step": step})):
            path = made / kind / f"step-{step}.pdparams"
            paddle.save(saved, str(path))
            loaded = paddle.load(str(path))
            arrays = {name: tensor.numpy() for name, tensor in loaded.get("model", loaded).items()}
            _keep(
                made / "expected" / f"{kind}-{step}.safetensors",
                {name: a.view(ml_dtypes.bfloat16) if a.dtype == "uint16" else a for name, a in arrays.items()},
            )
    return made


def _state(step: int) -> dict[str, Any]:
    """Return the state of a training as Flax's users keep it."""
    import jax.numpy as jnp

    params = {
        "Dense_0": {"kernel": jnp.arange(12.0).reshape(4, 3) * step, "bias": jnp.full(3, step / 3, jnp.bfloat16)},
    }
    moments = {"0": {"mu": params, "count": jnp.array(step)}}
    return {
        "step": step,
        "params": params,
        "opt_state": moments,
        "batch_stats": {"norm": {"mean": jnp.full(3, step / 7)}},
    }


def _model_of(state: Mapping[str, Any]) -> dict[str, Any]:
    return {**_leaves(state["params"]), **_leaves(state["batch_stats"], "batch_stats.")}


def flax(folder: Path) -> Path:
    """Save states with to_bytes, once with all larger arrays in chunks."""
    from flax import serialization

    made = fresh(folder, "flax")
    whole = serialization.MAX_CHUNK_SIZE
    for kind, size in (("whole", whole), ("chunks", 16)):
        (made / kind).mkdir()
        serialization.MAX_CHUNK_SIZE = size
        for step in STEPS:
            data = serialization.to_bytes(_state(step))
            (made / kind / f"state_{step}.msgpack").write_bytes(data)
            _keep(made / "expected" / f"{step}.safetensors", _model_of(serialization.msgpack_restore(data)))
    serialization.MAX_CHUNK_SIZE = whole
    return made


def orbax(folder: Path) -> Path:
    """Save with CheckpointManager, and with a checkpointer that makes a folder for each array."""
    import orbax.checkpoint as ocp

    made = fresh(folder, "orbax-checkpoint", "orbax")
    with ocp.CheckpointManager((made / "manager").absolute()) as manager:
        for step in STEPS:
            manager.save(step, args=ocp.args.StandardSave(_state(step)))
        manager.wait_until_finished()
        for step in STEPS:
            loaded = manager.restore(step, args=ocp.args.StandardRestore())
            _keep(made / "expected" / f"{step}.safetensors", _model_of(loaded))
    for step in STEPS:
        ocp.PyTreeCheckpointer(use_ocdbt=False).save((made / "folders" / f"step_{step}").absolute(), _state(step))
    for mark in made.rglob("commit_success.txt"):
        mark.unlink()  # it names the folder in which it was written, and no version needs it in a local file system
    return made


def nemo(folder: Path) -> Path:
    """Pack a model of NeMo's, as `save_to` does; what it held then lies beside the run."""
    import overrides.signature
    import torch
    from safetensors.torch import save_file

    # NeMo asks for a Lightning of its time, and compares each method of it with its own.
    for check in ("ensure_all_kwargs_defined_in_sub", "ensure_all_positional_args_defined_in_sub"):
        setattr(overrides.signature, check, lambda *_args, **_kwargs: None)
    from nemo.core import ModelPT
    from omegaconf import OmegaConf

    class Small(ModelPT):
        def __init__(self, cfg: Any) -> None:
            super().__init__(cfg=cfg)
            self.encoder = torch.nn.Linear(cfg.inside, cfg.outside)
            self.norm = torch.nn.BatchNorm1d(cfg.outside)

        def setup_training_data(self, _config: Any) -> None:
            """Have none."""

        def setup_validation_data(self, _config: Any) -> None:
            """Have none."""

        @classmethod
        def list_available_models(cls) -> list[Any]:
            return []

    made = fresh(folder, "nemo-toolkit", "nemo")
    (made / "run").mkdir()
    (made / "expected").mkdir()
    for step in STEPS:
        torch.manual_seed(step)
        model = Small(OmegaConf.create({"inside": 3, "outside": 5}))
        model.norm(model.encoder(torch.randn(8, 3)))
        model.save_to(str(made / "run" / f"step-{step}.nemo"))
        save_file(model.state_dict(), made / "expected" / f"{step}.safetensors")
    return made


WRITERS: dict[str, Callable[[Path], Path]] = {
    "numpy": numpy,
    "stable-baselines3": stable_baselines3,
    "paddle": paddle,
    "flax": flax,
    "orbax": orbax,
    "nemo": nemo,
}
